# SPDX-License-Identifier: Apache-2.0
"""A library file that was replaced is tried in another process, before a scan ends the working worker."""

import logging
import time
from collections.abc import Callable

from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.log import Message
from xpu_plugin.loops.due import Due
from xpu_plugin.waiting import delays
from xpu_plugin.xpuml import XpumlError


logger = logging.getLogger(__name__)

TRIAL_SECONDS = (5.0, 300.0)  # back-off of trials of one library file that cannot be used: first, most


class LibraryTrial:
    """Compares the worker's library with its file, and tries a new file.

    unfit: reason for which the trial of the present file failed; None if it succeeded or the file is open
    """

    def __init__(
        self, worker: WorkerClient, due: Due, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._due = due
        self._clock = clock
        self._present: str | None = None  # identity of the library's file, if it is not the open one
        self.unfit: str | None = None
        self._trials = delays(*TRIAL_SECONDS)
        self._trial_at: float | None = None  # time of the next trial; None for a usable file

    @property
    def older(self) -> bool:
        """Whether the open library is older than its file, which was replaced or removed."""
        return self._present is not None

    def opened(self) -> None:
        """Take note that a scan has opened the present file."""
        self._present = self.unfit = None

    async def waits(self) -> bool:
        """Whether a scan has to wait: it would replace a working worker by one with an unusable library."""
        if self._worker.pid is None:
            return False
        await self.compare()
        return self.unfit is not None

    async def compare(self) -> None:
        """Try a new file. This is no reason to scan: a scan ends the working worker."""
        present = await self._worker.replaced()
        if present != self._present:
            self._present, self._trials, self._trial_at = present, delays(*TRIAL_SECONDS), self._clock()
        if present is None:
            self.unfit = None
        elif self._trial_at is not None and self._clock() >= self._trial_at:
            await self._try()

    async def _try(self) -> None:
        before = self.unfit
        try:
            opened = await self._worker.trial()
        except (WorkerError, LibraryError, XpumlError) as error:
            self.unfit, self._trial_at = str(error), self._clock() + next(self._trials)
            if self.unfit != before:
                logger.warning(
                    Message(
                        "the library's file was replaced or removed, and the present one cannot be used: the "
                        "running worker goes on with the former one, and scans wait; do not restart the "
                        "plugin before XRE is installed whole",
                        error=self.unfit,
                    )
                )
        else:
            self.unfit = self._trial_at = None
            if not self._due.wanted:
                logger.warning(
                    Message(
                        "the library's file was replaced, and a trial has opened the present one: the "
                        "running worker still has the former one; send SIGHUP to have the present one used",
                        path=opened["library"],
                        version=opened["library_version"],
                    )
                )
