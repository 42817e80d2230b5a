# SPDX-License-Identifier: Apache-2.0
"""Devices at which the library hung or crashed: the sweep leaves them out, another worker asks each alone."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.log import Message
from xpu_plugin.loops.due import Due
from xpu_plugin.model.timings import USUAL
from xpu_plugin.waiting import Cooldown, wait_for
from xpu_plugin.xpuml import XpumlError


logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Suspect:
    """A device by its index. since: time of the request without an answer; pause: the last one, in seconds"""

    index: int
    since: float
    released_at: float | None = None
    pause: float = 0.0


class Unresponsive:
    """The devices that are left out, and since when.

    worker: a client of its own, so that the sweep goes on meanwhile
    due: a device that answers makes a scan due
    pauses: seconds between two attempts for a device: first, most
    """

    def __init__(
        self,
        worker: WorkerClient,
        due: Due,
        *,
        pauses: tuple[float, float] = USUAL.unresponsive,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._due = due
        self._pauses = pauses
        self._clock = clock
        self._suspects: dict[int, _Suspect] = {}
        self._retries: Cooldown[int] = Cooldown(*pauses, clock=clock)  # indexes
        self._changed = asyncio.Event()

    def suspect(self, index: int, since: float) -> bool:
        """Leave out the device at an index, where the library hung or crashed. Return whether this is new.

        since: time of the request without an answer

        A device that hangs again soon after its release continues with its growing pauses.
        """
        suspect, new = self._suspects.get(index), index not in self.skip
        if suspect is None or suspect.released_at is None:
            suspect = self._suspects.setdefault(index, _Suspect(index=index, since=since))
        else:
            suspect.since, suspect.released_at = since, None
        suspect.pause = self._retries.begin(index)
        self._changed.set()
        return new

    @property
    def skip(self) -> frozenset[int]:
        """The indexes to leave out."""
        return frozenset(index for index, suspect in self._suspects.items() if suspect.released_at is None)

    def since(self) -> list[float]:
        """Return for each device left out the time since which it does not answer."""
        return [self._suspects[index].since for index in self.skip]

    def overdue(self, grace: float) -> frozenset[int]:
        """Return the indexes of devices without an answer for `grace` seconds."""
        now = self._clock()
        return frozenset(index for index in self.skip if now - self._suspects[index].since >= grace)

    def answered(self) -> None:
        """Forget released devices, as all devices that are not left out have answered."""
        now = self._clock()
        self._suspects = {
            index: suspect
            for index, suspect in self._suspects.items()
            if suspect.released_at is None or now - suspect.released_at < suspect.pause
        }
        self._retries.forget_all_but(self._suspects)

    def clear(self) -> None:
        """Forget all, as the indexes belong to a new list now."""
        self._suspects = {}
        self._retries.forget_all_but(())
        self._changed.set()

    async def run(self) -> None:
        """Ask each device at its time. Never returns."""
        while True:
            held = [self._suspects[index] for index in self.skip]
            if not held:
                await self._changed.wait()
                self._changed.clear()
                continue
            first = min(held, key=lambda suspect: self._retries.until(suspect.index))
            if await wait_for(self._changed, self._retries.until(first.index) - self._clock()):
                self._changed.clear()
                continue
            await self._try(first)

    async def _try(self, suspect: _Suspect) -> None:
        """Ask this device alone."""
        if self._worker.busy:
            self._retries.put_off(suspect.index, self._pauses[0])
            return
        suspect.pause = self._retries.begin(suspect.index)
        try:
            scan = await self._worker.scan(only=suspect.index)
        except (WorkerError, LibraryError, XpumlError):
            return  # the sweep reports this
        finally:
            self._worker.dismiss()  # it would keep the control node open
        if scan is None or self._suspects.get(suspect.index) is not suspect:
            return
        logger.info(Message("the library answers at a device again", index=suspect.index))
        suspect.released_at = self._clock()
        self._due.want()
