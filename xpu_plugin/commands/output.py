# SPDX-License-Identifier: Apache-2.0
"""What sub-commands share that look at the devices and print a table."""

from collections.abc import Sequence

from xpu_plugin.edges.driver import Driver, LibraryError
from xpu_plugin.model.devices import Found, identify


SCANS = 3  # attempts, when device nodes come and go meanwhile


async def scanned(driver: Driver) -> Found:
    """The devices by a worker of our own. Raises WorkerError, LibraryError, XpumlError."""
    for _ in range(SCANS):
        scan = await driver.scan()
        if scan is not None:
            return identify(scan)
    raise LibraryError("device nodes come and go; try again")


def print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], nothing: str) -> None:
    """Print rows below their columns' names, or `nothing`."""
    if not rows:
        print(nothing)
        return
    table = [tuple(name.upper() for name in columns), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(columns))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
