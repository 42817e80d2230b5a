# SPDX-License-Identifier: Apache-2.0
"""Nodes that the library does not list: opens each alone, with growing pauses; one that opens causes a
scan."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from xpu_plugin.edges.worker.client import BusyError, WorkerClient, WorkerError
from xpu_plugin.log import Message
from xpu_plugin.loops.due import Due
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.health import VF_CHANGE_PLANNED
from xpu_plugin.waiting import Cooldown, wait_for


logger = logging.getLogger(__name__)

PAUSE_SECONDS = (1.0, 300.0)  # between two attempts for a node: first, most
BUSY_SECONDS = 5.0  # before the next check whether nodes may be opened at all


class Openings:
    """Tries to open nodes that were not listed.

    worker: a client without any other use
    picture: while it shows a card in change, no node is opened: the driver would refuse the change
    due: a node that opens makes a scan due; only a scan tells whether the library lists it
    """

    def __init__(
        self,
        worker: WorkerClient,
        picture: Picture,
        due: Due,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._picture = picture
        self._due = due
        self._clock = clock
        self._numbers: frozenset[int] = frozenset()  # N of each node
        self._retries: Cooldown[int] = Cooldown(*PAUSE_SECONDS, clock=clock)
        self._changed = asyncio.Event()

    def expect(self, numbers: Collection[int]) -> None:
        """Take the nodes that the last scan did not list; earlier ones keep their pauses."""
        former, self._numbers = self._numbers, frozenset(numbers)
        if self._numbers == former:
            return
        self._retries.forget_all_but(self._numbers)
        for number in self._numbers - former:
            self._retries.begin(number)
        self._changed.set()

    async def run(self) -> None:
        """Open each expected node at its time. Never returns."""
        while True:
            if not self._numbers:
                await self._changed.wait()
                self._changed.clear()
                continue
            first = min(self._numbers, key=self._retries.until)
            if await wait_for(self._changed, self._retries.until(first) - self._clock()):
                self._changed.clear()
                continue
            await self._try(first)

    async def _try(self, number: int) -> None:
        kept_back = self._picture.facts.kept_back.values()
        if any(health == VF_CHANGE_PLANNED or health.in_change for health in kept_back):
            self._retries.put_off(number, BUSY_SECONDS)
            return
        self._retries.begin(number)
        try:
            opens = await self._worker.opens(number)
        except BusyError:
            return  # a change has begun meanwhile
        except WorkerError as error:
            logger.warning(
                Message(
                    "cannot open a device node; it is tried again later",
                    path=f"/dev/xpu{number}",
                    error=error,
                )
            )
            return
        if opens and number in self._numbers:
            logger.info(Message("a device node opens now: scanning again", path=f"/dev/xpu{number}"))
            self._due.want()
