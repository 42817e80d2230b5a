# SPDX-License-Identifier: Apache-2.0
"""Events on the Node about devices and driver: each change once, and never many."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from xpu_plugin.model.device_events import BAD, Notice, Reported, notices
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.events import NORMAL, WARNING, Event
from xpu_plugin.model.ownership import Listing
from xpu_plugin.waiting import delays, wait_for


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

LOOK_SECONDS = 2.0  # between looks at the driver, which gives no notice
TOGETHER_SECONDS = 1.0  # for changes of one time to share one Event
PAUSE_SECONDS = (10.0, 600.0)  # between two notices: first, most
QUIET_SECONDS = 1200.0  # without a notice until the pauses begin anew


class DeviceEvents:
    """Reports the differences to the last report. A change that ends within a pause is not reported."""

    def __init__(
        self,
        plugin: "Plugin",
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._picture = plugin.picture
        self._view = plugin.view
        self._driver_gone = plugin.monitor.driver_gone
        self._events = plugin.exchange.events
        self._tenures = plugin.tenures
        self._clock = clock
        self._sleep = sleep
        self._told = Reported()
        self._told_at = clock()
        self._wake = asyncio.Event()
        self._pauses = delays(*PAUSE_SECONDS)

    async def run(self) -> None:
        """Never returns."""
        with self._picture.waking(self._wake):
            while True:
                await self._awaited()
                told, found = self._news(None)
                if not found:
                    self._told = told
                    continue
                await self._sleep(TOGETHER_SECONDS)
                listed = await self._view.listing(oldest=0.0)
                self._told, found = self._news(listed.listing)
                self._say(found)
                if found:
                    await self._sleep(self._pause())

    async def _awaited(self) -> None:
        """Wait for another picture, or for a change of the driver since the last report."""
        while (self._gone is None) is self._told.driver:
            if await wait_for(self._wake, LOOK_SECONDS):
                self._wake.clear()
                return

    @property
    def _gone(self) -> str | None:
        """Why the driver is gone; None before the first scan, as on a node without cards."""
        return self._driver_gone.current if self._picture.current is not None else None

    def _news(self, listing: Listing | None) -> tuple[Reported, tuple[Notice, ...]]:
        entries = self._picture.current.entries if self._picture.current else {}
        picture = self._picture
        held = None if listing is None else holders(listing.holdings, picture.facts, picture.policy)
        return notices(self._told, entries.values(), self._gone, held)

    def _say(self, found: Iterable[Notice]) -> None:
        if self._tenures.aside:
            return  # the other instance reports it
        for notice in found:
            kind = WARNING if notice.reason in BAD else NORMAL
            self._events.put(Event(kind=kind, reason=notice.reason, text=notice.text))

    def _pause(self) -> float:
        now = self._clock()
        if now - self._told_at > QUIET_SECONDS:
            self._pauses = delays(*PAUSE_SECONDS)
        self._told_at = now
        return next(self._pauses)
