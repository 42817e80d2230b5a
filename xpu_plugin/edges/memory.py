# SPDX-License-Identifier: Apache-2.0
"""Memory as the kernel counts it: limits of our container, and usage of a process."""

import os
from collections.abc import Iterator
from pathlib import Path


WORKER_SHARE = 3  # a worker may have this part of the limit: two may grow at a time, and the server needs one
LEAST_BYTES = 32 << 20  # that a worker may have in any case: three times what it needs
_UNLIMITED = 1 << 60  # bytes; version 1 of cgroups writes no limit as a number of this size
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def for_a_worker(most: int | None) -> int | None:
    """Return the share of a limit for a worker, in bytes."""
    return None if most is None else max(LEAST_BYTES, most // WORKER_SHARE)


def limit(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the memory limit of our container in bytes; None without a limit, or if it is unknown.

    cgroups: where they are mounted, all of them or our own alone; own: the file that says which ours is
    """
    return _least("memory", ("memory.max", "memory.limit_in_bytes"), cgroups, own)


def most_processes(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the limit of processes and threads, otherwise as `limit`."""
    return _least("pids", ("pids.max", "pids.max"), cgroups, own)


def _least(controller: str, names: tuple[str, str], cgroups: Path, own: Path) -> int | None:
    """Return the lowest limit of a controller. names: of its file in cgroup version 2, and in version 1"""
    try:
        lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    return min((most for line in lines for most in _limits(controller, names, cgroups, line)), default=None)


def _limits(controller: str, names: tuple[str, str], cgroups: Path, line: str) -> Iterator[int]:
    """Yield the limits of one of our cgroups, and of its parents."""
    number, controllers, path = line.split(":", 2)
    if number != "0" and controller not in controllers.split(","):
        return
    top, name = (cgroups, names[0]) if number == "0" else (cgroups / controller, names[1])
    parts = [part for part in path.split("/") if part]
    for depth in range(0 if ".." in parts else len(parts), -1, -1):
        try:
            most = int(top.joinpath(*parts[:depth], name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if most < _UNLIMITED:
            yield most


def taken(pid: int) -> int | None:
    """Return the memory of a process without file pages, in bytes; None if unknown."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - at each request
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return None
    return (resident - shared) * _PAGE_BYTES
