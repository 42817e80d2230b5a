# SPDX-License-Identifier: Apache-2.0
"""Nodes that the library does not list: opens each alone, at growing pauses; a node that opens is scanned."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from xpu_plugin.edges.driver import BusyError, Driver, WorkerError
from xpu_plugin.loops.backoff import delays, wait_for


logger = logging.getLogger(__name__)

PAUSE_SECONDS = (1.0, 300.0)  # between two attempts at a node: first, most
BUSY_SECONDS = 5.0  # before another look whether nodes may be opened at all


@dataclass(slots=True)
class _Node:
    """A node by its N."""

    number: int
    retry_at: float = 0.0
    pauses: Iterator[float] = field(default_factory=lambda: delays(*PAUSE_SECONDS))


class Openings:
    """Tries to open what was not listed.

    driver: one whose workers have no other use
    opened: called when a node opens that did not; whether the library lists it, only a scan tells
    busy: whether a card is being changed: a node that is open then makes the driver refuse
    """

    def __init__(
        self,
        driver: Driver,
        opened: Callable[[], None],
        busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._opened = opened
        self._busy = busy
        self._clock = clock
        self._nodes: dict[int, _Node] = {}
        self._changed = asyncio.Event()

    def expect(self, numbers: Collection[int]) -> None:
        """These are not listed by the last scan; those of before go on with their pauses."""
        if self._nodes.keys() == set(numbers):
            return
        self._nodes = {number: self._nodes.get(number) or self._new(number) for number in numbers}
        self._changed.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            if not self._nodes:
                await self._changed.wait()
                self._changed.clear()
                continue
            first = min(self._nodes.values(), key=lambda node: node.retry_at)
            if await wait_for(self._changed, first.retry_at - self._clock()):
                self._changed.clear()
                continue
            await self._try(first)

    async def _try(self, node: _Node) -> None:
        if self._busy():
            node.retry_at = self._clock() + BUSY_SECONDS
            return
        self._pause(node)
        try:
            opens = await self._driver.opens(node.number)
        except BusyError:
            return  # a change has begun meanwhile
        except WorkerError as error:
            logger.warning("opening /dev/xpu%s: %s; it is tried again later", node.number, error)
            return
        if opens and self._nodes.get(node.number) is node:
            logger.info("/dev/xpu%s opens now: scanning again", node.number)
            self._opened()

    def _new(self, number: int) -> _Node:
        node = _Node(number)
        self._pause(node)
        return node

    def _pause(self, node: _Node) -> None:
        node.retry_at = self._clock() + next(node.pauses)
