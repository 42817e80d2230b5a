# SPDX-License-Identifier: Apache-2.0
"""Whether a scan is due, which several parts may want."""

import asyncio


class Due:
    """A scan that is wanted, and the event by which the monitor wakes. The first scan is due at the start."""

    def __init__(self) -> None:
        self._wanted = True
        self._forget = False
        self.wake = asyncio.Event()

    @property
    def wanted(self) -> bool:
        return self._wanted

    def want(self, *, forget: bool = False) -> None:
        """Have all devices scanned at once. forget: lost devices as well"""
        self.want_next(forget=forget)
        self.wake.set()

    def want_next(self, *, forget: bool = False) -> None:
        """Have all devices scanned by the next round, whenever that is."""
        self._wanted, self._forget = True, self._forget or forget

    def begin(self) -> bool:
        """A scan begins: what is wanted from now on is another one. Whether this one forgets lost devices."""
        forget, self._wanted, self._forget = self._forget, False, False
        return forget
