# SPDX-License-Identifier: Apache-2.0
"""Compares the kubelet's list with the scan, for the startup taint and the node's condition."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from xpu_plugin.edges.host import vendor_functions
from xpu_plugin.edges.state.disk import DiskThread
from xpu_plugin.log import Message, Once
from xpu_plugin.model.events import WARNING, Event
from xpu_plugin.model.readiness import Facts, Readiness, Reason, Status, in_doubt, readiness
from xpu_plugin.waiting import pause


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between looks at what the kubelet lists
REASON = "XPUNotReady"


@cache
def _reader() -> DiskThread:
    """Return the thread that reads sysfs, which may hang."""
    return DiskThread("sysfs")


class ReadinessWatch:
    """Writes `exchange.readiness` and `exchange.condition`, within a tenure.

    A plugin without the lock has no list of its own.
    """

    def __init__(self, plugin: "Plugin", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._plugin = plugin
        self._clock = clock
        self._wake = asyncio.Event()
        self._functions = 0
        self._doubt_since: float | None = None
        self._behind_since: float | None = None
        self._stays: tuple[Reason, float] | None = None  # the present reason, and since when
        self._told = Once()

    async def run(self) -> None:
        """Never returns."""
        plugin = self._plugin
        with (
            plugin.picture.waking(self._wake),
            plugin.exchange.outcome.waking(self._wake),
            plugin.monitor.driver_gone.waking(self._wake),
            plugin.exchange.tainted.waking(self._wake),
        ):
            while True:
                await self._count_functions()
                async with plugin.tenures.work():
                    self._look()
                await pause(self._wake, LOOK_SECONDS)

    async def _count_functions(self) -> None:
        """Look at sysfs while the library shows no device."""
        if self._plugin.monitor.scanner.found.devices:
            return
        root = self._plugin.config.sysfs_root
        self._functions = len(await _reader().call(vendor_functions, root))

    def _look(self) -> None:
        """Compare, without an await: all facts are of one moment."""
        exchange, now = self._plugin.exchange, self._clock()
        found = readiness(self._facts(now))
        exchange.readiness.set(found)
        if not self._behind(found, now):
            if found.reason is not exchange.condition.current.reason:
                logger.info(
                    Message(
                        "readiness of the cards",
                        status=found.status,
                        reason=found.reason,
                        detail=found.message,
                    )
                )
            exchange.condition.set(found)
        self._tell(found, now)

    def _facts(self, now: float) -> Facts:
        plugin = self._plugin
        picture, outcome = plugin.picture.current, plugin.exchange.outcome.current
        if not in_doubt(outcome.report):
            self._doubt_since = None
        elif self._doubt_since is None:
            self._doubt_since = now
        patience = plugin.config.vf_decision_wait
        endpoints = plugin.endpoints.all
        resources = {endpoint.resource for endpoint in endpoints} | (
            picture.resources if picture else frozenset()
        )
        return Facts(
            functions=self._functions,
            trouble=plugin.monitor.driver_gone.current,
            devices=None if picture is None else len(plugin.monitor.scanner.found.devices),
            offered={
                name: frozenset(entry.id for entry in picture.of(name) if entry.health.healthy)
                for name in resources
            }
            if picture
            else {},
            listed={
                endpoint.resource: ids
                for endpoint in endpoints
                if endpoint.service.streams and (ids := endpoint.watch.registered) is not None
            },
            outcome=outcome,
            patient=self._doubt_since is None or now - self._doubt_since < patience,
        )

    def _behind(self, found: Readiness, now: float) -> bool:
        """Return whether the kubelet may only be about to take in another list of cards that were ready."""
        ready = self._plugin.exchange.condition.current.status is Status.TRUE
        if found.reason is not Reason.NOT_LISTED or not ready:
            self._behind_since = None
            return False
        if self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since < self._plugin.timings.behind

    def _tell(self, current: Readiness, now: float) -> None:
        """Report once for each reason that the taint stays."""
        taint, exchange = self._plugin.config.startup_taint, self._plugin.exchange
        if taint is None or current.open or not exchange.tainted.current:
            self._stays = None
            self._told.healed()
            return
        if self._stays is None or self._stays[0] is not current.reason:
            self._stays = current.reason, now
        if now - self._stays[1] >= self._plugin.timings.stays and self._told.changed(current.reason):
            text = f"the startup taint {taint} stays on this node: {current.message}"
            logger.warning(
                Message(
                    "the startup taint stays on this node",
                    taint=taint,
                    reason=current.reason,
                    detail=current.message,
                )
            )
            exchange.events.put(Event(kind=WARNING, reason=REASON, text=text))
