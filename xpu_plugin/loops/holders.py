# SPDX-License-Identifier: Apache-2.0
"""Old ids: notices containers that hold a device under the number the former plugin gave it.

That plugin called devices "0", "1" and so on. While a container holds "2", its device is offered under
that id, as the kubelet counts a device as taken only while its id is on the list.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from xpu_plugin.edges.podresources import Holding, UnknownHoldersError, list_pods, read_checkpoint
from xpu_plugin.loops.picture import Picture


logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0  # between looks, while an old id is held or nobody could tell
SETTLE_SECONDS = 30.0  # a grant counts as held so long although nobody lists it yet
LOOKS_TO_RELEASE = 2  # in a row, with both sources answering
_OLD_ID = re.compile(r"0|[1-9][0-9]{0,5}")


class Holders:
    """Keeps `Facts.held` true. `resources`: names under which old ids are ours."""

    def __init__(
        self,
        picture: Picture,
        *,
        resource: str,
        device_plugin_dir: Path,
        pod_resources_socket: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._resource = resource
        self._directory = device_plugin_dir
        self._socket = pod_resources_socket
        self._clock = clock
        self._granted: dict[str, float] = {}
        self._absent: dict[str, int] = {}
        self._complete = False
        self._complaint: str | None = None

    def granted(self, ids: Collection[str]) -> None:
        """An Allocate was answered with these ids."""
        now = self._clock()
        self._granted.update({id: now for id in ids if _OLD_ID.fullmatch(id)})

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._picture.facts.held or not self._complete:
                await self.look()

    async def look(self) -> None:
        """Ask both sources, and submit the old ids held. In doubt what was held stays held."""
        named, self._complete = await self._named()
        now = self._clock()
        self._granted = {id: at for id, at in self._granted.items() if now - at < SETTLE_SECONDS}
        held = self._picture.facts.held
        present = named | self._granted.keys()
        if self._complete:
            self._absent = {id: self._absent.get(id, 0) + 1 for id in held - present}
        released = {id for id, looks in self._absent.items() if looks >= LOOKS_TO_RELEASE} - present
        wanted = (held | present) - released
        if wanted == held:
            return
        for id in sorted(wanted - held):
            logger.info("old id is held: /dev/xpu%s is offered as %s until its container ends", id, id)
        for id in sorted(held - wanted):
            logger.info("old id is free: /dev/xpu%s is offered under its own id again", id)
        self._picture.submit(lambda facts: replace(facts, held=frozenset(wanted)))

    async def _named(self) -> tuple[set[str], bool]:
        """The old ids that a source names as held, and whether both sources answered."""
        holdings: list[Holding] = []
        complaints = []
        try:
            holdings += await list_pods(self._socket)
        except UnknownHoldersError as error:
            complaints.append(str(error))
        try:
            holdings += read_checkpoint(self._directory)
        except UnknownHoldersError as error:
            complaints.append(str(error))
        complaint = "; ".join(complaints) or None
        if complaint != self._complaint and complaint:
            logger.warning("cannot tell who holds devices: %s", complaint)
        self._complaint = complaint
        ids = {id for holding in holdings if holding.resource == self._resource for id in holding.ids}
        return {id for id in ids if _OLD_ID.fullmatch(id)}, not complaints
