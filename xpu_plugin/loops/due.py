# SPDX-License-Identifier: Apache-2.0
"""Whether a scan is due, which several parts may want."""

import asyncio


class Due:
    """A scan that is wanted, and the event by which the monitor wakes."""

    def __init__(self) -> None:
        self.wanted = True  # the first one
        self.forget = False
        """Whether the next scan forgets lost devices."""
        self.wake = asyncio.Event()

    def want(self, *, forget: bool = False) -> None:
        """Have all devices scanned at once."""
        self.wanted, self.forget = True, self.forget or forget
        self.wake.set()
