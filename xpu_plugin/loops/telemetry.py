# SPDX-License-Identifier: Apache-2.0
"""Measurements of the devices, read only on request and at most every few seconds."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message
from xpu_plugin.model.devices import Gauges
from xpu_plugin.waiting import Cooldown, wait_for
from xpu_plugin.xpuml import XpumlError


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

logger = logging.getLogger(__name__)

FRESH_SECONDS = 5.0  # younger readings are returned again
STALE_SECONDS = 60.0  # older readings are not returned
WAIT_SECONDS = 2.0  # wait for new readings; after that the last ones are returned
MUTE_SECONDS = (60.0, 3600.0)  # for a device at which a request cost a worker: first, most


@frozen
class Readings:
    """Readings by device id. at: time of the request, in seconds of the caller's clock"""

    at: float
    gauges: Mapping[str, Gauges]


class Telemetry:
    """Reads all devices by one request, between two requests of the sweep.

    A device at which the request hangs or crashes costs the sweep a worker, once; it is then left alone for a
    while.
    """

    def __init__(
        self,
        plugin: "Plugin",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = plugin.worker
        self._picture = plugin.picture
        self._unresponsive = plugin.monitor.unresponsive
        self._clock = clock
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._last: Readings | None = None
        self._mute: Cooldown[str] = Cooldown(*MUTE_SECONDS, clock=clock)  # device ids
        self.impossible: Counter[tuple[str, str]] = Counter()  # impossible readings by device id and name

    async def read(self) -> Readings | None:
        """Return readings that are a few seconds old at most, if the worker is soon free. Otherwise return
        the last ones, or None if those are too old. Callers at the same time share one request."""
        if self._last is None or self._clock() - self._last.at > FRESH_SECONDS:
            done = self._done
            self._wanted.set()
            await wait_for(done, WAIT_SECONDS)
        if self._last is None or self._clock() - self._last.at > STALE_SECONDS:
            return None
        return self._last

    async def run(self) -> None:
        """Carry out requests. Never returns."""
        while True:
            await self._wanted.wait()
            await self._ask()
            self._wanted.clear()
            self._done.set()
            self._done = asyncio.Event()

    async def _ask(self) -> None:
        devices = self._picture.facts.devices
        if not devices or self._worker.stuck:
            return
        began = self._clock()
        mute = {device.index for id, device in devices.items() if id in self._mute}
        try:
            answers = await self._worker.gauges(mute.union(self._unresponsive.skip))
        except WorkerError as error:
            self._leave_alone(error)
            return
        except (LibraryError, XpumlError):
            return  # the sweep reports this
        # Index and address have to agree: the worker may be that of a scan which was not taken in.
        known = {(device.index, device.address): id for id, device in self._picture.facts.devices.items()}
        found = {(answer.index, answer.pci): answer for answer in answers}
        self._last = Readings(at=began, gauges={known[key]: found[key] for key in found if key in known})
        self.impossible.update((id, name) for id, own in self._last.gauges.items() for name in own.impossible)
        self._mute.forget_all_but(devices.keys() - self._last.gauges.keys())

    def _leave_alone(self, error: WorkerError) -> None:
        index = error.call.index if error.call else None
        guilty = [id for id, device in self._picture.facts.devices.items() if device.index == index]
        for id in guilty:
            self._mute.begin(id)
            logger.warning(
                Message(
                    "cannot read the measurements of a device; it is asked again later", id=id, error=error
                )
            )
