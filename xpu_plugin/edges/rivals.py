# SPDX-License-Identifier: Apache-2.0
"""Looks whether the kubelet has our list of a resource, or that of another plugin."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection

from xpu_plugin.edges.podresources import UnknownHoldersError
from xpu_plugin.model import rivals
from xpu_plugin.model.holders import Checkpoint
from xpu_plugin.model.rivals import Announced, Phase, Rivalry, Sight


logger = logging.getLogger(__name__)

READ_SECONDS = 0.2  # for the checkpoint; without it nothing is seen, and nothing is held back
SHOWN_IDS, LONGEST_ID = 8, 64  # of a rival in a sentence: how many, and how much of each
REASON = "XPUForeignPlugin"


class RivalWatch:
    """Whose list the kubelet has under one resource name.

    Written by the resource's endpoint and its service; anybody may read `rivalry`.

    read: reads the checkpoint, off the event loop; None: nothing is seen, ever
    settle: seconds until a grant shows in the kubelet's lists; tell: kind, reason and text of an Event
    """

    def __init__(
        self,
        resource: str,
        *,
        read: Callable[[], Awaitable[Checkpoint]] | None = None,
        settle: float = 0.0,
        tell: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self.resource = resource
        self.rivalry = Rivalry()
        self.displacements = 0
        self._read = read
        self._reading: asyncio.Future[Checkpoint] | None = None
        self._settle = settle
        self._tell = tell
        self._announced = Announced()
        self._named = False  # whether a checkpoint has ever named our resource
        self._looked_at: float | None = None
        self._chance = 0.0
        self.change = asyncio.Event()  # another one after each change of how lists are to be sent

    @property
    def away(self) -> bool:
        """Whether another plugin has the name, or we are just coming back."""
        return self.rivalry.away

    @property
    def trouble(self) -> str | None:
        """A sentence for people while another plugin has the name; None otherwise."""
        if not self.rivalry.away:
            return None
        if self.rivalry.phase is Phase.DISPLACED:
            return f"another plugin has registered {self.resource}{self._listing()}"
        return f"another plugin had registered {self.resource}: its devices are offered again soon"

    # --- for the service ------------------------------------------------------------------------

    def announce(self, ids: Collection[str], healthy: Collection[str]) -> None:
        """A list is about to be sent."""
        self._announced = self._announced.then(ids, healthy, time.time_ns())
        self._become(rivals.listed(self.rivalry))

    async def look(self) -> None:
        """Look at the checkpoint."""
        now = time.monotonic()
        self._looked_at = now
        seen, strange = await self._sight()
        before = self.rivalry
        self._become(rivals.looked(before, seen, strange, now))
        if self.rivalry.phase is Phase.DISPLACED and before.phase is not Phase.DISPLACED:
            self._displaced()

    # --- for the endpoint -----------------------------------------------------------------------

    def begin(self) -> None:
        """Our socket is bound anew: nothing has been announced by it."""
        self._announced = Announced()
        if self.rivalry.phase is Phase.DISPLACED:
            self._become(rivals.returning(self.rivalry, time.monotonic()))
            logger.info("coming back with all devices withheld resource=%s", self.resource)
        else:
            self._become(rivals.listed(self.rivalry))

    def forget(self) -> None:
        """Another kubelet is there: plugins register anew, and the last one counts."""
        self._become(rivals.returned(self.rivalry, time.monotonic()))

    def mute(self, now: float) -> bool:
        """Whether the name is left to the rival for now."""
        return self.rivalry.phase is Phase.DISPLACED and now < rivals.returns_at(self.rivalry, self._chance)

    def take_back(self, now: float) -> bool:
        """Whether it is time to come back."""
        return self.rivalry.phase is Phase.DISPLACED and not self.mute(now)

    async def follow(self, holders: Callable[[], Awaitable[None]]) -> None:
        """Look when it is time to; send full lists again once `holders` has looked who holds devices."""
        now = time.monotonic()
        pause = 0.0 if self.rivalry.away or self.rivalry.silent else rivals.LOOK_SECONDS
        if self._looked_at is None or now - self._looked_at >= pause:
            await self.look()
        if rivals.settled(self.rivalry, time.monotonic(), self._settle):
            await holders()
            self._become(rivals.returned(self.rivalry, time.monotonic()))
            logger.info("the kubelet has our devices again resource=%s", self.resource)

    # --- within ---------------------------------------------------------------------------------

    async def _sight(self) -> tuple[Sight, frozenset[str]]:
        """What the checkpoint shows, and the ids in it that we never announced."""
        announced, checkpoint = self._announced, await self._checkpoint()
        if (
            checkpoint is None
            or checkpoint.registered is None
            or announced is not self._announced  # a list has gone out meanwhile
        ):
            return Sight.UNKNOWN, frozenset()
        # A kubelet that names no resource at all may never do so. One that has named ours has dropped it, as
        # 5 min after the end of a rival.
        self._named |= self.resource in checkpoint.registered
        named = self._named or bool(checkpoint.registered)
        ids = checkpoint.registered.get(self.resource, frozenset()) if named else None
        return (
            rivals.sight(announced, ids, checkpoint.written_ns),
            (ids or frozenset()) - announced.ever,
        )

    async def _checkpoint(self) -> Checkpoint | None:
        """The checkpoint; None when it cannot be read, or not in time. A read that hangs is the only one."""
        if self._read is None:
            return None
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        await asyncio.wait({self._reading}, timeout=READ_SECONDS)
        try:
            return self._reading.result() if self._reading.done() else None
        except UnknownHoldersError:
            return None  # said by those who need to know the holders

    def _displaced(self) -> None:
        self.displacements += 1
        self._chance = random.random()  # noqa: S311 - nothing secret
        seconds = rivals.returns_at(self.rivalry, self._chance) - self.rivalry.since
        logger.warning(
            "another plugin has registered our resource=%s ids=%s: pods get no device from this plugin; "
            "remove the other plugin; registering again in_seconds=%d",
            self.resource,
            ",".join(_shown(self.rivalry.strange)) or "none",
            seconds,
        )
        self._tell(
            "Warning",
            REASON,
            f"{self.trouble}. Pods that ask for it get no device from this plugin. Remove the other plugin's "
            f"DaemonSet. This plugin registers again in {seconds:.0f} s.",
        )

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
    """The first ids, which come from another plugin, in a form that is fit for a log."""
    return [ascii(id[:LONGEST_ID])[1:-1] for id in sorted(ids)[:SHOWN_IDS]]
