# SPDX-License-Identifier: Apache-2.0
"""A stand-in for /dev/kmsg, into which a test writes records as the kernel prints them."""

import itertools
import os
import time
from pathlib import Path


HANG = (
    "[INFO] vstream[0] sess[1] tainted",
    "[XPUW] kl3_wait_for_noc_idle() timeout, val= 00000007 mask= 00000008 reg0228= 007ff000",
    "[INFO] mark sess error(errno= XPUERR_KEXCEPTION), sess= 1, pid= 4242, comm= python",
    "[XPUW] cluster[0]: ..reason[29] task timeout",
)
"""The lines of a card on which a kernel hangs, after the address."""

FAULT = ("[INFO] mark sess error(errno= XPUERR_KEXCEPTION), sess= 1, pid= 4242, comm= python",)
"""A line of a faulty program on a good card."""

RESET = ("[INFO] m3 mode1 reset",)


class KernelLog:
    """A FIFO at `path`. Each record is written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        os.close(self._descriptor)

    def write(self, text: str, *, facility: int = 0, at: float | None = None) -> int:
        """Write a record, and return its number. at: its time on the monotonic clock, or now"""
        number = next(self._numbers)
        stamp = int((time.monotonic() if at is None else at) * 1e6)
        os.write(self._descriptor, f"{facility << 3 | 6},{number},{stamp},-;{text}\n".encode())
        return number

    def says(self, card: str, *lines: str, at: float | None = None) -> None:
        """Write lines of the driver about a card by its PCI address."""
        for line in lines:
            self.write(f"KLRM: (PCI:{card.rpartition('.')[0]}): {line}", at=at)
