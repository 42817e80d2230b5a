# SPDX-License-Identifier: Apache-2.0
"""Who holds what by the kubelet's list, for whoever only looks: asked now and then, and shared."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from xpu_plugin.edges.podresources import UnknownHoldersError, list_pods
from xpu_plugin.frozen import frozen
from xpu_plugin.model.holders import Listing


FRESH_SECONDS = 5.0


@frozen
class Count:
    """One answer. listing: None where there is no such API, a text where it does not answer; began: when it
    was asked for, in seconds of the caller's clock"""

    began: float
    listing: Listing | str | None


class Census:
    """Asks the pod resources API, at most every few seconds."""

    def __init__(self, socket: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket = socket
        self._clock = clock
        self._asking = asyncio.Lock()
        self._last: Count | None = None

    async def take(self, *, oldest: float = FRESH_SECONDS) -> Count:
        """An answer that is not older than `oldest` seconds."""
        async with self._asking:
            if self._last is None or self._clock() - self._last.began > oldest:
                began = self._clock()
                try:
                    listing: Listing | str | None = await list_pods(self._socket)
                except UnknownHoldersError as error:
                    listing = str(error)
                self._last = Count(began=began, listing=listing)
            return self._last
