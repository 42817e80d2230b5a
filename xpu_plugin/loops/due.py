# SPDX-License-Identifier: Apache-2.0
"""Requests for a scan, by several parts."""

import asyncio


class Due:
    """A request for a scan, and the event that wakes the monitor. The first scan is due at the start."""

    def __init__(self) -> None:
        self._wanted = True
        self._forget = False
        self.wake = asyncio.Event()

    @property
    def wanted(self) -> bool:
        return self._wanted

    def want(self, *, forget: bool = False) -> None:
        """Request a scan of all devices at once. forget: forget lost devices, too"""
        self.want_next(forget=forget)
        self.wake.set()

    def want_next(self, *, forget: bool = False) -> None:
        """Request a scan of all devices by the next round."""
        self._wanted, self._forget = True, self._forget or forget

    def begin(self) -> bool:
        """Begin a scan: later requests are for another one. Return whether this one forgets lost devices."""
        forget, self._wanted, self._forget = self._forget, False, False
        return forget
