# SPDX-License-Identifier: Apache-2.0
"""The common part of sub-commands that scan the devices or print tables repeatedly."""

import asyncio
import io
import select
import sys
from collections.abc import Sequence

from xpu_plugin.edges.worker.client import LibraryError, WorkerClient
from xpu_plugin.model.devices import Scan


SCANS = 3  # attempts, if device nodes come and go meanwhile


async def scanned(worker: WorkerClient) -> Scan:
    """Scan by a worker of our own. Raises WorkerError, LibraryError, XpumlError."""
    for _ in range(SCANS):
        scan = await worker.scan()
        if scan is not None:
            return scan
    raise LibraryError("device nodes come and go; try again")


def table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], nothing: str) -> str:
    """Return rows below their columns' names, or `nothing`."""
    if not rows:
        return nothing
    return aligned([tuple(name.upper() for name in columns), *rows])


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    """Return lines of equally many cells, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


async def pause(seconds: float) -> None:
    """Wait before the next print. Raises BrokenPipeError if the reader has closed our output."""
    await asyncio.sleep(seconds)
    look = select.poll()
    try:
        look.register(sys.stdout.fileno(), 0)
    except io.UnsupportedOperation:
        return  # a stream in memory, which has no other end
    if any(event & select.POLLERR for _, event in look.poll(0)):
        raise BrokenPipeError
