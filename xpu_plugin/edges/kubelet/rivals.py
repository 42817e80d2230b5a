# SPDX-License-Identifier: Apache-2.0
"""Finds out whether the kubelet has our list of a resource, or another plugin's."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Protocol

from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message
from xpu_plugin.model import rivals
from xpu_plugin.model.events import WARNING, Event
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.ownership import Checkpoint
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.model.rivals import Announced, Company, Phase, Rivalry, Sight
from xpu_plugin.observable import Outbox, Value


logger = logging.getLogger(__name__)

READ_SECONDS = 0.2  # for the checkpoint; without an answer no rival is seen, and no list is held back
SHOWN_IDS, LONGEST_ID = 8, 64  # ids of a rival in a sentence: their number, and characters of each
REASON = "XPUForeignPlugin"


@frozen
class _Looked:
    """The result of one look.

    ids: under our resource in the checkpoint
    strange: those of them that we never announced
    sockets: of other plugins, read before the checkpoint; None if they could not be read
    """

    sight: Sight = Sight.UNKNOWN
    ids: frozenset[str] = frozenset()
    strange: frozenset[str] = frozenset()
    written_ns: int = 0
    sockets: frozenset[SocketIdentity] | None = None


class Directory(Protocol):
    """The kubelet's directory, read off the event loop."""

    async def checkpoint(self) -> Checkpoint:
        """The kubelet's checkpoint. Raises UnknownHoldersError."""

    async def neighbours(self) -> frozenset[SocketIdentity]:
        """The sockets of other plugins. Raises OSError."""


class RivalWatch:
    """Tells whether the kubelet has our list under one resource name, or a rival's.

    The endpoint and the service of the resource write it; any part may read `rivalry`.

    plugins: the kubelet's directory; without one no rival is seen
    settle: seconds until a grant shows in the kubelet's lists
    events: for the administrator
    stage: our rights; in some stages no list goes out
    """

    def __init__(
        self,
        resource: str,
        *,
        plugins: Directory | None = None,
        settle: float = 0.0,
        events: Outbox[Event] | None = None,
        pace: rivals.RivalPace | None = None,
        stage: Value[Stage] | None = None,
    ) -> None:
        self.stage = stage or Value(Stage.WORKING)
        self.resource = resource
        self.rivalry = Rivalry()
        self.displacements = 0
        self.registered: frozenset[str] | None = None
        """The healthy ids that this kubelet has of us at the last look; None if it has no list of ours."""
        self._plugins = plugins
        self._reading: asyncio.Future[tuple[frozenset[SocketIdentity] | None, Checkpoint | None]] | None = (
            None
        )
        self._settle = settle
        self._own_pace = pace
        self._events = events or Outbox[Event]()
        self._announced = Announced()
        self._listed_at = 0.0
        self._company = Company()
        self._named = False  # a checkpoint has named our resource
        self._looked_at: float | None = None
        self._chance = 0.0
        self.change = asyncio.Event()  # fires after each change of the way in which lists are sent

    @property
    def _pace(self) -> rivals.RivalPace:
        return self._own_pace or rivals.RivalPace(
            look=rivals.LOOK_SECONDS, confirm=rivals.CONFIRM_SECONDS, returns=rivals.RETURN_SECONDS
        )

    @property
    def away(self) -> bool:
        """Whether another plugin has the name, or we are taking it back."""
        return self.rivalry.away

    @property
    def silent(self) -> bool:
        """Whether no list may go out."""
        return self.rivalry.silent or self.stage.current < Stage.QUIET

    @property
    def trouble(self) -> str | None:
        """A sentence for the administrator while another plugin has the name; None otherwise."""
        if not self.rivalry.away:
            return None
        if self.rivalry.phase is Phase.DISPLACED:
            return f"another plugin has registered {self.resource}{self._listing()}"
        return f"another plugin had registered {self.resource}: its devices are offered again soon"

    # --- for the service ------------------------------------------------------------------------

    def announce(self, ids: Collection[str], healthy: Collection[str]) -> None:
        """Take note of a list that is about to be sent."""
        self._announced = self._announced.then(ids, healthy, time.time_ns())
        self._listed_at = time.monotonic()
        self._company = replace(self._company, listed=True)
        self._become(rivals.listed(self.rivalry))

    async def look_before_list(self) -> None:
        """Look; and again after a while if another plugin may be about to register."""
        looked = await self.look()
        if (seconds := rivals.quiet_in(looked.sockets or (), time.time_ns())) > 0:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> _Looked:
        """Read the checkpoint and the sockets of other plugins."""
        now = time.monotonic()
        self._looked_at = now
        looked = await self._look()
        before = self.rivalry
        self._become(rivals.looked(before, looked.sight, looked.strange, now, self._pace.confirm))
        if looked.sight is not Sight.UNKNOWN:
            self.registered = looked.ids if looked.sight is Sight.OURS else None
        if looked.sight is Sight.OURS:
            self._company, hidden = rivals.accompanied(self._company, looked.sockets, looked.written_ns)
            if hidden:
                self._become(rivals.doubted(self.rivalry))
        if self.rivalry.phase is Phase.DISPLACED and before.phase is not Phase.DISPLACED:
            self._displaced()
        return looked

    # --- for the endpoint -----------------------------------------------------------------------

    def begin(self) -> None:
        """Begin anew, as our socket is a new one without an announced list."""
        self._announced, self._company, self.registered = Announced(), Company(), None
        if self.rivalry.phase is Phase.DISPLACED:
            logger.info(Message("coming back with all devices withheld", resource=self.resource))
        elif self.rivalry.doubted:
            logger.info(Message("another plugin may have registered meanwhile", resource=self.resource))
        self._become(rivals.begun(self.rivalry, time.monotonic()))

    def forget(self) -> None:
        """Forget the rival, as a new kubelet instance runs: plugins register anew, and the last one
        counts."""
        self.registered = None
        self._become(rivals.returned(self.rivalry, time.monotonic()))

    def mute(self, now: float) -> bool:
        """Whether the rival keeps the name for now."""
        return self.rivalry.phase is Phase.DISPLACED and now < rivals.returns_at(
            self.rivalry, self._chance, self._pace.returns
        )

    def take_back(self, now: float) -> bool:
        """Return whether it is time to take the name back, or to register again because of a doubt."""
        displaced = self.rivalry.phase is Phase.DISPLACED and not self.mute(now)
        return displaced or rivals.anew(self.rivalry, now)

    async def follow(self, holders: Callable[[], Awaitable[None]]) -> None:
        """Look at the due times; send full lists again once `holders` has found the holders of devices."""
        now = time.monotonic()
        soon = self._company.listed and now - self._listed_at < self._pace.look
        pause = 0.0 if soon or self.rivalry.away or self.rivalry.silent else self._pace.look
        if self._looked_at is None or now - self._looked_at >= pause:
            await self.look()
        if rivals.settled(self.rivalry, time.monotonic(), self._settle):
            await holders()
            self._become(rivals.returned(self.rivalry, time.monotonic()))
            logger.info(Message("the kubelet has our devices again", resource=self.resource))

    # --- within ---------------------------------------------------------------------------------

    async def _look(self) -> _Looked:
        announced, (sockets, checkpoint) = self._announced, await self._read_both()
        if (
            checkpoint is None
            or checkpoint.registered is None
            or announced is not self._announced  # a list was sent meanwhile
        ):
            return _Looked(sockets=sockets)
        # Some kubelets never name a resource. One that has named ours has dropped it, for example 5 min after
        # the end of a rival.
        self._named |= self.resource in checkpoint.registered
        named = self._named or bool(checkpoint.registered)
        ids = checkpoint.registered.get(self.resource, frozenset()) if named else None
        return _Looked(
            sight=rivals.sight(announced, ids, checkpoint.written_ns),
            ids=ids or frozenset(),
            strange=(ids or frozenset()) - announced.ever,
            written_ns=checkpoint.written_ns,
            sockets=sockets,
        )

    async def _read_both(self) -> tuple[frozenset[SocketIdentity] | None, Checkpoint | None]:
        """Return sockets and checkpoint, read after this call; None for a part that cannot be read in time.

        A read that hangs stays the only one.
        """
        former = self._reading
        if former is not None and not former.done():
            await asyncio.wait({former}, timeout=READ_SECONDS)
            if not former.done():
                return None, None
        if self._reading is former:  # otherwise another look has begun one meanwhile
            self._reading = asyncio.ensure_future(self._read_now())
        reading = self._reading
        assert reading is not None  # noqa: S101 - mypy takes it for unchanged
        await asyncio.wait({reading}, timeout=READ_SECONDS)
        return reading.result() if reading.done() else (None, None)

    async def _read_now(self) -> tuple[frozenset[SocketIdentity] | None, Checkpoint | None]:
        if self._plugins is None:
            return None, None
        try:
            sockets = await self._plugins.neighbours()
        except OSError:
            sockets = None
        try:
            return sockets, await self._plugins.checkpoint()
        except UnknownHoldersError:
            return sockets, None  # the parts that need the holders report it

    def _displaced(self) -> None:
        self.displacements += 1
        self._chance = random.random()  # noqa: S311 - nothing secret
        seconds = rivals.returns_at(self.rivalry, self._chance, self._pace.returns) - self.rivalry.since
        logger.warning(
            Message(
                "another plugin has registered our resource: pods get no device from this plugin; remove the "
                "other plugin",
                resource=self.resource,
                ids=_shown(self.rivalry.strange),
                again_in_seconds=int(seconds),
            )
        )
        text = (
            f"{self.trouble}. Pods that ask for it get no device from this plugin. Remove the other plugin's "
            f"DaemonSet. This plugin registers again in {seconds:.0f} s."
        )
        self._events.put(Event(kind=WARNING, reason=REASON, text=text))

    def _listing(self) -> str:
        ids = self.rivalry.strange
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        return f", and lists {', '.join(_shown(ids))}{more}" if ids else ""

    def _become(self, rivalry: Rivalry) -> None:
        shown = (self.rivalry.silent, self.rivalry.withheld)
        self.rivalry = rivalry
        if (rivalry.silent, rivalry.withheld) != shown:
            self.change.set()
            self.change = asyncio.Event()


def _shown(ids: Collection[str]) -> list[str]:
    """Return the first ids of another plugin in a printable, short form."""
    return [ascii(id[:LONGEST_ID])[1:-1] for id in sorted(ids)[:SHOWN_IDS]]
