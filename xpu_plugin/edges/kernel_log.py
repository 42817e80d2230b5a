# SPDX-License-Identifier: Apache-2.0
"""The kernel's log, /dev/kmsg: its records in order, those of the ring first."""

import asyncio
import errno
import os
import re
import stat
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen


LONGEST_RECORD = 8192  # bytes; the kernel prints no longer ones (CONSOLE_EXT_LOG_MAX)
MOST_RECORDS = 64
"""Records of one turn of the event loop, some 0.3 ms."""
FLOOD_SECONDS = 0.005
"""Pause after a whole turn of records, so that a flood takes a small part of the time."""
LATE_SECONDS = 5.0
"""A record that is late by more is dated back, as after a stop of this process."""

_HEAD = re.compile(rb"([0-9]{1,10}),([0-9]{1,20}),([0-9]{1,20}),([^,;]*)(?:,[^;]*)?;(.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


class KernelLogError(PluginError):
    """The log cannot be followed. The text tells path and reason."""


@frozen
class Record:
    """One record."""

    facility: int
    number: int  # grows by one with each record since the boot
    stamp: float  # seconds since the boot, by the clock of the log
    text: str


@frozen
class Batch:
    """Records that were read together, each with its time in seconds of the monotonic clock."""

    records: tuple[tuple[Record, float], ...]
    lost: int  # times that records were overwritten before they were read
    old: bool  # from before the log was opened


class KernelLog:
    """Follows the log. `batches` may be called again after its end.

    lost: as in Batch, in total
    trouble: why the log cannot be read; None while it is followed, and before the start
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self.following = False
        self.lost = 0
        self.trouble: str | None = None

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the records of the ring, and then each new one at once. Raises KernelLogError."""
        try:
            descriptor = opened(self.path)
            self.following, self.trouble = True, None
            try:
                async for batch in self._read(descriptor):
                    yield batch
            finally:
                self.following = False
                os.close(descriptor)
        except OSError as error:
            self.trouble = f"{self.path}: {advice(error)}"
            raise KernelLogError(self.trouble) from None

    async def _read(self, descriptor: int) -> AsyncGenerator[Batch, None]:
        dates, pieces, old = _Dates(), Pieces(), True
        while True:
            found: list[tuple[Record, float]] = []
            lost, empty = 0, False
            for _ in range(MOST_RECORDS):
                try:
                    chunk = os.read(descriptor, LONGEST_RECORD)
                except BlockingIOError:
                    empty = True
                    break
                except InterruptedError:
                    continue
                except OSError as error:
                    if error.errno == errno.EPIPE:  # the next read returns the oldest record that is left
                        lost += 1
                        continue
                    if error.errno == errno.EINVAL:  # a record longer than the buffer, which is skipped
                        continue
                    raise
                if not chunk:
                    raise OSError(errno.ENODATA, "it has ended")
                now = self._clock()
                found += [(record, dates.of(record, now)) for record in pieces.records(chunk)]
                if len(found) >= MOST_RECORDS:  # a FIFO returns many at once
                    break
            self.lost += lost
            if found or lost or (empty and old):
                yield Batch(records=tuple(found), lost=lost, old=old)
            if empty:
                old = False
                dates.up_to_date()
                await readable(descriptor)
            else:
                await asyncio.sleep(0 if old else FLOOD_SECONDS)


class _Dates:
    """The times of records on the monotonic clock.

    The clock of the log is not adjusted, so it drifts by seconds within weeks. A record that is read at once
    shows by how much.
    """

    def __init__(self) -> None:
        self._usual = self._last = 0.0  # seconds from a record's stamp to its reading

    def of(self, record: Record, now: float) -> float:
        self._last = now - record.stamp
        late = self._last - self._usual
        return now - late if late > LATE_SECONDS else now

    def up_to_date(self) -> None:
        """Take note that no record waits."""
        self._usual = self._last


class Pieces:
    """Records of the bytes that were read: /dev/kmsg returns one record each time, a FIFO any number."""

    def __init__(self) -> None:
        self._rest = b""
        self._before = ""

    def records(self, chunk: bytes) -> list[Record]:
        """Return the complete records. Lines that begin with a blank are a record's properties."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest if len(rest) <= LONGEST_RECORD else b""
        found = []
        for line in lines:
            if not line.startswith(b" ") and (record := parsed(line, self._before)) is not None:
                self._before = record.text
                found.append(record)
        return found


def parsed(line: bytes, before: str = "") -> Record | None:
    """Return a record by its first line; None for a malformed one. before: the text that it may continue"""
    match = _HEAD.fullmatch(line)
    if match is None:
        return None
    priority, number, stamp, flag, text = match.groups()
    plain = _ESCAPE.sub(lambda code: bytes([int(code[1], 16)]), text).decode(errors="replace")
    return Record(
        facility=int(priority) >> 3,
        number=int(number),
        stamp=int(stamp) / 1e6,
        text=(before + plain)[-LONGEST_RECORD:] if flag == b"+" else plain,
    )


def opened(path: Path) -> int:
    """Open the log for reading, without a wait; no child inherits it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
        os.close(descriptor)
        raise OSError(errno.ENODEV, "it is no character device")
    return descriptor


async def readable(descriptor: int) -> None:
    """Wait until there is something to read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def advice(error: OSError) -> str:
    """Return the reason of a failure, with a remedy where one is known."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            f"{reason}: run the pod privileged, or with the capability SYSLOG; on a host with SELinux or "
            "AppArmor see its audit log"
        )
    if error.errno == errno.ENOENT:
        return f"{reason}: mount the /dev of the host"
    return reason


def trouble(path: Path) -> str | None:
    """Return why a log cannot be read; None if it can."""
    try:
        os.close(opened(path))
    except OSError as error:
        return f"{path}: {advice(error)}"
    return None
