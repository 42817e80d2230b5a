# SPDX-License-Identifier: Apache-2.0
"""The hand-over of a node to a new instance of the plugin: carries out `model.handover` at both sides."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from xpu_plugin.edges.handover import Door, Line, LostError, Peer, connected
from xpu_plugin.edges.state.handover import Handover, HandoverRecord
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, Once
from xpu_plugin.loops.endpoints import Endpoints
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.monitor import Monitor
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.relay import Passed
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.loops.vf_reconciler import VfReconciler
from xpu_plugin.model import handover as model
from xpu_plugin.model.handover import PROTOCOL, Do, Event, Giving, HandoverPace, Stage, Taking
from xpu_plugin.model.vf_plan import DesiredVfs
from xpu_plugin.observable import Value, until
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)

GRANTED = "granted"  # the line of a grant, which either side may send
DOOR_SECONDS = (1.0, 60.0)  # between attempts to listen: first, most
TRY_SECONDS = 0.01  # between attempts at the lock of a giver that has ended
RECORD_SECONDS = 1.0  # for the disk, at the end of a hand-over
LONGEST_REASON = 200  # characters of a text from the other side

P = TypeVar("P", bound=Giving | Taking)


@frozen
class State:
    """The state of a node that passes from one instance to the next."""

    grants: Grants
    history: HealthHistory
    reconciler: VfReconciler
    monitor: Monitor

    async def take_over(self) -> None:
        """Read the records that another instance has written, and scan."""
        await self.grants.reread()
        await self._begin_anew()

    async def go_on(self) -> None:
        """Do the same after a hand-over that failed; no grant is forgotten."""
        await self.grants.complete()
        await self._begin_anew()

    async def _begin_anew(self) -> None:
        await self.reconciler.inherit()
        await self.history.reread()
        await self.monitor.scanner.rescanned()

    async def written(self) -> None:
        """Write all records."""
        await self.grants.written()
        await self.history.written()


@frozen
class Means:
    """The parts that both sides of a hand-over use."""

    tenures: Tenures
    endpoints: Endpoints
    state: State
    record: HandoverRecord
    door: Door
    pod: str
    """The UID of our pod, or a random id of this process."""
    pace: HandoverPace
    vf_timeout: float
    """Seconds that a request to the driver may take."""

    @property
    def serving(self) -> bool:
        """Whether the kubelet has a stream of ours."""
        return any(endpoint.service.streams for endpoint in self.endpoints.all)


class Session(Generic[P]):
    """One connection with its phase, and the events that move it on."""

    def __init__(
        self,
        peer: Peer,
        phase: P,
        step: Callable[[P, Event], tuple[P, tuple[Do, ...]]],
        act: Callable[["Session[P]", Do, Line | None], Awaitable[None]],
        *,
        grants: Grants,
        deadlines: Mapping[P, float],
    ) -> None:
        self.peer = peer
        self.phase = phase
        self._step = step
        self._act = act
        self._grants = grants
        self._deadlines = deadlines
        self._deadline: float | None = None
        self._events: asyncio.Queue[tuple[str, Line | None]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self.line: Line | None = None  # the last one that was no grant

    async def run(self, ends: frozenset[P], event: Event, line: Line | None = None) -> P:
        """Begin with an event, and return the phase of the end. The connection is closed then."""
        try:
            await self._on(event, line)
            self.spawn(self._read())
            while self.phase not in ends:
                word, line = await self._next()
                if word == GRANTED:
                    await self._learn(line)
                else:
                    await self._on(Event(word), line)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.peer.close()
        return self.phase

    def spawn(self, work: Coroutine[Any, Any, Event | None], event: Event | None = None) -> None:
        """Do work beside. Its result is an event; or its end is the given one."""

        async def done() -> None:
            try:
                happened = await work or event
            except Exception as error:  # noqa: BLE001 - raised where the events are awaited
                self._failure = error
                self.put(Event.LOST)
            else:
                if happened is not None:
                    self.put(happened)

        task = asyncio.create_task(done(), name="hand-over")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put(self, event: Event) -> None:
        """Let an event happen."""
        self._events.put_nowait((event, None))

    async def send_grants(self, *, until_ended: bool) -> None:
        """Send each grant that the relay takes. A failed connection holds no grant up.

        until_ended: send none to a side that sends no more; the grant then waits for the end of the relay
        """
        relay = self._grants.relay
        while True:
            passed = await relay.get()
            with contextlib.suppress(LostError):
                await self.peer.send(GRANTED, {"grants": dict(passed.paths), "started": passed.started})
            if until_ended and self.peer.ended:
                return
            relay.passed()

    async def _on(self, event: Event, line: Line | None) -> None:
        before, self.line = self.phase, line or self.line
        self.phase, actions = self._step(self.phase, event)
        if self.phase is not before and self.phase in self._deadlines:
            self._deadline = time.monotonic() + self._deadlines[self.phase]
        elif self.phase is not before and self.phase is not Giving.YIELDING:
            self._deadline = None
        for do in actions:
            try:
                await self._act(self, do, line)
            except LostError:
                self.peer.shut()  # the reader comes to the end, after the lines of before
                return

    async def _next(self) -> tuple[str, Line | None]:
        if self._failure is not None:
            raise self._failure
        try:
            async with asyncio.timeout_at(self._at_loop()):
                return await self._events.get()
        except TimeoutError:
            self._deadline = None
            return Event.LATE, None

    def _at_loop(self) -> float | None:
        if self._deadline is None:
            return None
        return asyncio.get_running_loop().time() + max(0.0, self._deadline - time.monotonic())

    async def _read(self) -> None:
        while True:
            try:
                line = await self.peer.receive()
            except LostError:
                self.put(Event.LOST)
                return
            known = line.say in _LINES
            if line.descriptor is not None and line.say != Event.DONE:
                os.close(line.descriptor)
            self._events.put_nowait((line.say, line) if known else (Event.LOST, None))

    async def _learn(self, line: Line | None) -> None:
        if line is not None and (passed := _passed(line.fields)) is not None:
            await self._grants.learn(passed)


_LINES = frozenset(
    {
        GRANTED,
        *(Event.HELLO, Event.READY, Event.REGISTERING, Event.STREAMING),
        *(Event.REFUSED, Event.QUIET, Event.FROZEN, Event.DONE),
    }
)


def _passed(fields: Mapping[str, Any]) -> Passed | None:
    """Return the grants of a line; None for a malformed line."""
    grants = fields.get("grants")
    if not isinstance(grants, dict) or not all(isinstance(path, str) for path in grants.values()):
        return None
    return Passed(grants, started=bool(fields.get("started")))


# --- the instance with the lock -------------------------------------------------------------------


class Giver:
    """Listens while the lock is ours, and hands the node over to an instance that asks for it."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._trouble = Once()
        self._lock: int | None = None  # the descriptor that has it, once our streams are ending
        self._taker = ""
        self.given = False  # the node was handed over, and has not come back
        self.parting = Value(False)  # the lock is on its way

    async def run(self) -> None:
        """Never returns."""
        pauses = delays(*DOOR_SECONDS)
        while True:
            async with self._means.tenures.work():
                self.given = False
            try:
                await self._means.door.open()
            except OSError as error:
                if self._trouble.changed(error.strerror):
                    logger.warning(
                        Message(
                            "cannot listen for a hand-over; an update interrupts this node for a moment",
                            path=self._means.door.path,
                            error=error.strerror or "the disk does not answer",
                        )
                    )
                await asyncio.sleep(next(pauses))
                continue
            self._trouble.healed()
            pauses = delays(*DOOR_SECONDS)
            try:
                await self._receive()
            finally:
                await self._means.door.close()

    async def _receive(self) -> None:
        """Receive one caller after the other until the lock is not ours any more."""
        async with _tasks() as begin:
            over = begin(until(self._means.tenures.stage, Stage.WAITING))
            calling, session = begin(self._means.door.caller()), None
            while True:
                awaited = {calling, session or over}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if session is not None and session.done():
                    if session.result():
                        return
                    session = None
                if session is None and over.done():
                    return
                if calling.done():
                    peer, calling = calling.result(), begin(self._means.door.caller())
                    if session is None:
                        session = begin(self._session(peer))
                    else:
                        begin(self._refuse(peer, "another hand-over is in progress"))

    async def _refuse(self, peer: Peer, why: str) -> None:
        try:
            with contextlib.suppress(LostError):
                await peer.send(Event.REFUSED, {"why": why, "serving": self._means.serving})
        finally:
            peer.close()

    async def _session(self, peer: Peer) -> bool:
        """Answer one caller; return whether the node was handed over."""
        try:
            async with asyncio.timeout(self._means.pace.end):
                line = await peer.receive()
        except (LostError, TimeoutError):
            peer.close()
            return False
        if (why := self._objection(line)) is not None:
            await self._refuse(peer, why)
            return False
        self._taker = str(line.fields.get("pod", ""))[:LONGEST_REASON]
        version = str(line.fields.get("version", ""))[:LONGEST_REASON]
        logger.info(Message("another instance asks for this node", pod=self._taker, version=version))
        session = Session(
            peer, Giving.IDLE, _give, self._act, grants=self._means.state.grants, deadlines=self._deadlines()
        )
        try:
            return await session.run(frozenset({Giving.IDLE, Giving.GIVEN}), Event.HELLO) is Giving.GIVEN
        except Exception:
            if session.phase not in (Giving.IDLE, Giving.GIVEN):
                await self._resume(anew=True)
            raise
        finally:
            self.parting.set(False)

    def _deadlines(self) -> dict[Giving, float]:
        pace = self._means.pace
        return {
            Giving.STOPPING: self._means.vf_timeout + pace.stop,
            Giving.QUIET: pace.prepare,
            Giving.HOLDING: pace.end,
            Giving.FROZEN: pace.show,  # and YIELDING, together
            Giving.ENDING: pace.end,
        }

    def _objection(self, line: Line) -> str | None:
        if line.say != Event.HELLO:
            return "the first line is no hello"
        if line.fields.get("protocol") != PROTOCOL:
            return f"protocol {PROTOCOL} is accepted"
        if not line.fields.get("able"):
            return "the caller does not know all devices yet"
        if self._means.tenures.look() is not Stage.WORKING:
            return "this instance is taking over itself"
        return None

    async def _act(self, session: Session[Giving], do: Do, _: Line | None) -> None:
        means, peer = self._means, session.peer
        match do:
            case Do.QUIETEN:
                means.tenures.stage.set(Stage.QUIET)
                session.spawn(self._stop(), Event.STOPPED)
            case Do.SAY_QUIET:
                await peer.send(Event.QUIET, {"serving": means.serving})
            case Do.FREEZE:
                means.tenures.stage.set(Stage.FROZEN)
                session.spawn(self._hold(), Event.HELD)
            case Do.SAY_FROZEN:
                given, due = means.state.grants.share()
                await peer.send(Event.FROZEN, {"grants": dict(given.paths), "due": dict(due.paths)})
                session.spawn(session.send_grants(until_ended=False))
            case Do.END:
                self.given = True
                self.parting.set(True)
                self._lock = means.tenures.lock.part_with()
                means.tenures.stage.set(Stage.WAITING)
                means.state.reconciler.leave()
                session.spawn(self._end(), Event.ENDED)
            case Do.SAY_DONE:
                if self._lock is None:
                    raise LostError("the lock was lost with its directory")
                await peer.send(Event.DONE, descriptor=self._lock)
                self._release()
                session.put(Event.SENT)
            case Do.TRY_LOCK:
                session.put(Event.LOCKED if means.tenures.lock.attempt() else Event.RIVAL)
            case Do.FORGET:
                means.state.grants.disown()
                logger.info(Message("the node is handed over; this instance waits", pod=self._taker))
            case Do.RESUME:
                await self._resume(anew=False)
            case Do.RESUME_ANEW:
                await self._resume(anew=True)
            case Do.HANG_UP:
                peer.hang_up()

    async def _stop(self) -> None:
        await self._means.tenures.idle()
        await self._means.state.written()

    async def _hold(self) -> None:
        await self._means.endpoints.held()
        await self._means.state.grants.hold()

    async def _end(self) -> None:
        means = self._means
        await means.endpoints.ended()
        await means.door.hide()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECORD_SECONDS):
                await means.record.write(Handover(means.pod, self._taker))

    async def _resume(self, *, anew: bool) -> None:
        """Work again. anew: the other instance may have registered, and may have granted devices"""
        tenures, state = self._means.tenures, self._means.state
        logger.warning(
            Message("the hand-over failed; this instance goes on", pod=self._taker, registers_anew=anew)
        )
        if self._lock is not None:
            tenures.lock.adopt(self._lock)
            self._lock = None
        self.given = False
        if not anew:
            await state.grants.keep()
            tenures.stage.set(Stage.WORKING)
            return
        tenures.stage.set(Stage.QUIET)
        tenures.anew.fire()
        await state.grants.keep()
        await state.go_on()
        tenures.stage.set(Stage.WORKING)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _give(phase: Giving, event: Event) -> tuple[Giving, tuple[Do, ...]]:
    given = model.give(phase, event)
    return given.phase, given.actions


# --- the instance that waits ----------------------------------------------------------------------


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
            if (passed := _passed({"grants": fields.get(name), "started": started})) is not None:
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


@contextlib.asynccontextmanager
async def _tasks() -> AsyncIterator[Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]]:
    """Begin tasks that end with the context."""
    tasks: set[asyncio.Task[Any]] = set()

    def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="hand-over")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    try:
        yield begin
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
