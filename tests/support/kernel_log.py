# SPDX-License-Identifier: Apache-2.0
"""A stand-in for /dev/kmsg, into which a test writes records as the kernel prints them."""

import itertools
import os
import time
from pathlib import Path

from xpu_plugin.simulation.kernel_log import Trouble, kernel_log_lines


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

    def line(self, card: str, trouble: Trouble, word: str) -> str:
        """Return the line with a word, of those that `says` writes."""
        return next(line for line in kernel_log_lines(card, trouble) if word in line)

    def says(self, card: str, *troubles: Trouble, pid: int = 4242, at: float | None = None) -> None:
        """Write the driver's lines about a card by its PCI address. pid: of the process that they blame"""
        for trouble in troubles:
            for line in kernel_log_lines(card, trouble, pid=pid):
                self.write(line, at=at)
