# SPDX-License-Identifier: Apache-2.0
"""The instance that waits for the lock: asks for the node, and takes it over."""

import asyncio
import logging
import time

from xpu_plugin.edges.handover import Line, LostError, Peer, connected
from xpu_plugin.log import Message, Once
from xpu_plugin.loops.giver import Giver
from xpu_plugin.loops.handover import LONGEST_REASON, Means, Session, grants_in
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model import handover as model
from xpu_plugin.model.handover import PROTOCOL, Do, Event, Stage, Taking
from xpu_plugin.model.vf_plan import DesiredVfs
from xpu_plugin.observable import Value, until
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)

TRY_SECONDS = 0.01  # between attempts at the lock of a giver that has ended


class Taker:
    """Asks the instance with the lock for a hand-over while it waits for the lock.

    desired: the desired VF count; while it is unknown, our lists withhold cards
    patience: seconds that a decision on it may take
    peer: the other instance, as far as it is known
    """

    def __init__(
        self,
        means: Means,
        giver: Giver,
        picture: Picture,
        *,
        desired: Value[DesiredVfs],
        patience: float,
    ) -> None:
        self._means = means
        self._giver = giver
        self._picture = picture
        self._desired = desired
        self._patient_until = time.monotonic() + patience
        self._next = 0.0  # time of the next request
        self._pauses = delays(*means.pace.again)
        self._refused = Once()
        self._ready = asyncio.Event()  # the first look at holders is done
        self.peer = model.Peer.UNKNOWN

    def begin(self) -> None:
        """Ask from now on. Before, the other instance is only asked whether it serves."""
        self._ready.set()

    @property
    def given(self) -> bool:
        """Whether this instance has handed the node over."""
        return self._giver.given

    @property
    def waits(self) -> str | None:
        """Why this instance must not replace the other one yet; None if nothing is lost by that."""
        tenures = self._means.tenures
        if tenures.stage.current is Stage.WORKING or not tenures.rival or self.given:
            return None
        match self.peer:
            case model.Peer.SILENT | model.Peer.IDLE:
                return None
            case model.Peer.UNKNOWN:
                return "another instance has it"
        return "another instance serves it, until its hand-over to this one"

    async def take_over(self) -> None:
        """Take over the state of an instance that has ended."""
        await self._means.state.take_over()

    async def wait(self) -> None:
        """Try to get the node, or wait for the next attempt at the lock."""
        await until(self._giver.parting, False)
        if self._means.tenures.rival and not self.given and time.monotonic() >= self._next:
            await self._ask()
        if self._means.tenures.look() is Stage.WAITING:
            await self._means.tenures.lock.pause()

    async def _ask(self) -> None:
        last = await self._means.record.read()
        if self._means.record.unread:
            return
        if last is not None and last.giver == self._means.pod:
            self.peer = model.Peer.SILENT  # this pod gave the node away; its container was restarted
            return
        peer = await connected(self._means.door.path.parent)
        if peer is None:
            self.peer = model.Peer.SILENT
            return
        if not self._able:
            await self._inquire(peer)
            return
        session = Session(
            peer, Taking.IDLE, _take, self._act, grants=self._means.state.grants, deadlines=self._deadlines()
        )
        if await session.run(frozenset({Taking.IDLE, Taking.TAKEN}), Event.HELLO) is Taking.TAKEN:
            self._pauses = delays(*self._means.pace.again)
            self._refused.healed()
        else:
            if session.line is not None:
                self._hear(session.line)
            self._next = time.monotonic() + next(self._pauses)

    @property
    def _able(self) -> bool:
        """Whether our lists would have all devices."""
        good = self._picture.current is not None and self._means.state.monitor.trouble is None
        decided = self._desired.current.origin is not None or time.monotonic() >= self._patient_until
        return good and decided and self._ready.is_set()

    async def _inquire(self, peer: Peer) -> None:
        """Ask whether the other instance serves."""
        try:
            async with asyncio.timeout(self._means.pace.end):
                await peer.send(Event.HELLO, self._hello(able=False))
                self._hear(await peer.receive())
        except (LostError, TimeoutError):
            pass
        finally:
            peer.close()

    def _hello(self, *, able: bool) -> dict[str, object]:
        from xpu_plugin.loops.metrics import version  # noqa: PLC0415 - takes a while, and only this needs it

        return {
            "protocol": PROTOCOL,
            "pod": self._means.pod,
            "version": version(),
            "resources": [endpoint.resource for endpoint in self._means.endpoints.all],
            "able": able,
        }

    def _hear(self, line: Line) -> None:
        """Take note of what the other instance tells of itself."""
        if line.say in (Event.REFUSED, Event.QUIET):
            self.peer = model.Peer.SERVING if line.fields.get("serving") else model.Peer.IDLE
        why = str(line.fields.get("why", ""))[:LONGEST_REASON]
        if line.say == Event.REFUSED and self._able and self._refused.changed(why):
            logger.info(Message("the other instance refuses a hand-over; it is tried again", reason=why))

    def _deadlines(self) -> dict[Taking, float]:
        pace = self._means.pace
        return {
            Taking.ASKING: self._means.vf_timeout + pace.stop + pace.end,
            Taking.PREPARING: pace.prepare,
            Taking.READY: 2 * pace.end,
        }

    async def _act(self, session: Session[Taking], do: Do, line: Line | None) -> None:
        means, peer = self._means, session.peer
        match do:
            case Do.SAY_HELLO:
                await peer.send(Event.HELLO, self._hello(able=True))
            case Do.PREPARE:
                if line is not None:
                    self._hear(line)
                session.spawn(means.state.take_over(), Event.PREPARED)
            case Do.SAY_READY:
                await peer.send(Event.READY)
            case Do.SAY_REGISTERING:
                await self._learn(line)
                await peer.send(Event.REGISTERING)
                session.spawn(session.send_grants(until_ended=True))
                session.put(Event.SENT)
            case Do.FORGET:
                means.state.grants.disown()
            case Do.SERVE:
                if peer.ended:  # we were stopped for a while, and the giver serves again
                    raise LostError("the giver does not wait any more")
                means.tenures.stage.set(Stage.QUIET)
                session.spawn(means.endpoints.shown(), Event.SHOWN)
            case Do.SAY_STREAMING:
                await peer.send(Event.STREAMING)
            case Do.ADOPT:
                given = None if line is None else line.descriptor
                ours = given is not None and means.tenures.lock.adopt(given)
                session.put(Event.LOCKED if ours else Event.RIVAL)
            case Do.TRY_LOCK:
                means.tenures.stage.set(Stage.FROZEN)
                session.spawn(self._locked())
            case Do.INHERIT:
                means.tenures.stage.set(Stage.QUIET)
                means.tenures.anew.fire()
                await means.state.grants.keep()
                session.spawn(means.state.go_on(), Event.PREPARED)
            case Do.WORK:
                means.tenures.stage.set(Stage.WORKING)
                logger.info("this instance has taken the node over")
                await means.state.grants.keep()
            case Do.WITHDRAW:
                means.tenures.stage.set(Stage.WAITING)
                await means.endpoints.ended()
                means.state.grants.disown()
                logger.warning("the other instance serves again; this one waits")

    async def _learn(self, line: Line | None) -> None:
        """Take note of the grants in the line, and pass on each later grant."""
        grants = self._means.state.grants
        await grants.hold()
        fields = line.fields if line is not None else {}
        for name, started in (("grants", False), ("due", True)):
            if (passed := grants_in({"grants": fields.get(name), "started": started})) is not None:
                await grants.learn(passed)
        grants.share()

    async def _locked(self) -> Event:
        """Take the lock of a giver that has ended; return whether it is ours."""
        end = time.monotonic() + self._means.pace.lock
        while time.monotonic() < end:
            if self._means.tenures.lock.attempt():
                return Event.LOCKED
            await asyncio.sleep(TRY_SECONDS)
        return Event.RIVAL


def _take(phase: Taking, event: Event) -> tuple[Taking, tuple[Do, ...]]:
    taken = model.take(phase, event)
    return taken.phase, taken.actions
