# SPDX-License-Identifier: Apache-2.0
"""Devices held otherwise than they would be offered: keeps them listed the way their holders know them.

The former plugin called devices "0", "1" and so on; and an administrator may change how resources are
named. A device counts as taken only while it is on the list of the resource, and under the id, that its
container was granted. So until that container ends, this is how the device is offered.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from xpu_plugin.edges.podresources import ask_both
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.holders import Holding
from xpu_plugin.model.inventory import held_otherwise


logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0  # between looks, while something is held or nobody could tell
SETTLE_SECONDS = 30.0  # a grant counts as held so long although nobody lists it yet
SOURCES = 2  # the pod resources API and the checkpoint
FIRST_LOOKS = 30  # before the first list, while neither answers ...
FIRST_SECONDS = 1.0  # ... between these
LOOKS_TO_RELEASE = 2  # in a row, with both sources answering


class Holders:
    """Keeps `Facts.held` true."""

    def __init__(
        self,
        picture: Picture,
        *,
        device_plugin_dir: Path,
        pod_resources_socket: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._directory = device_plugin_dir
        self._socket = pod_resources_socket
        self._clock = clock
        self._granted: dict[str, float] = {}
        self._absent: dict[str, int] = {}
        self._complete = False
        self._complaint: str | None = None
        self.seen: tuple[Holding, ...] = ()  # at the last look, by both sources

    def granted(self, ids: Collection[str]) -> None:
        """An Allocate was answered with these ids."""
        now = self._clock()
        self._granted.update({id: now for id in ids if id in self._picture.facts.held})

    async def run(self) -> None:
        """Never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._picture.facts.held or not self._complete:
                await self.look()

    async def first_look(self) -> None:
        """Look before the first list goes out; wait for a source that answers, but not for ever."""
        for _ in range(FIRST_LOOKS):
            if await self.look():
                return
            await asyncio.sleep(FIRST_SECONDS)

    async def look(self) -> bool:
        """Ask both sources, and submit what is held otherwise. In doubt what was held stays held.

        Returns whether any source answered.
        """
        named, answers = await self._named()
        self._complete = answers == SOURCES
        facts = self._picture.facts
        present = held_otherwise(named, facts.devices, self._picture.policy)
        now = self._clock()
        self._granted = {id: at for id, at in self._granted.items() if now - at < SETTLE_SECONDS}
        gone = facts.held.keys() - present.keys() - self._granted.keys()
        self._absent = {id: self._absent.get(id, 0) + self._complete for id in gone}
        released = {id for id, looks in self._absent.items() if looks >= LOOKS_TO_RELEASE}
        wanted = {id: resource for id, resource in {**facts.held, **present}.items() if id not in released}
        if wanted != facts.held:
            self._submit(wanted)
        return answers > 0

    def _submit(self, wanted: dict[str, str]) -> None:
        facts = self._picture.facts
        for id in sorted(wanted.keys() - facts.held.keys()):
            logger.info(
                "held from before id=%s resource=%s: offered so while the kubelet counts it as held",
                id,
                wanted[id],
            )
        for id in sorted(facts.held.keys() - wanted.keys()):
            logger.info("not held any more id=%s: its device is offered as configured again", id)
        self._picture.submit(lambda facts: replace(facts, held=wanted))

    async def _named(self) -> tuple[set[tuple[str, str]], int]:
        """The (id, resource) pairs that a source names as held, and how many sources answered."""
        witnesses = await ask_both(self._socket, self._directory)
        holdings, complaints = witnesses.named, witnesses.complaints
        complaint = "; ".join(complaints) or None
        if complaint != self._complaint and complaint:
            logger.warning("cannot tell who holds devices: %s", complaint)
        self._complaint = complaint
        self.seen = holdings
        named = {(id, holding.resource) for holding in holdings for id in holding.ids}
        return named, SOURCES - len(complaints)
