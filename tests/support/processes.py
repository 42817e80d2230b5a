# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of processes: whether they live, what they have open, and what they cost."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import SECONDS, until


MIB = 1024  # KiB
DESCRIPTOR_SLACK = 8
"""gRPC keeps a few for a while; what leaks does so each time."""
THREAD_SLACK = 4
"""Of gRPC, and the executor in which the record of grants is written, which are made when first needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Of a process and everything it has started. memory: resident, in KiB; shared pages count in each"""

    processes: int
    threads: int
    descriptors: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> "Level":
        """Raises nothing: what ends meanwhile does not count."""
        processes = threads = files = memory = 0
        for one in tree(pid):
            try:
                files += len(descriptors(one))
                fields = status(one)
                threads += int(fields["Threads"])
                memory += int(fields["VmRSS"].split()[0])
            except (OSError, KeyError):  # the latter for a zombie, which has no memory
                continue
            processes += 1
        return cls(processes=processes, threads=threads, descriptors=files, memory=memory)

    def exceeds(self, other: "Level", *, memory: int) -> bool:
        """Whether this is more than the other and what varies by itself. memory: KiB of growth allowed"""
        return (
            self.processes > other.processes
            or self.threads > other.threads + THREAD_SLACK
            or self.descriptors > other.descriptors + DESCRIPTOR_SLACK
            or self.memory > other.memory + memory
        )


def _by_parent() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.setdefault(int(fields[1]), []).append(int(directory.name))
    return found


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    by_parent = _by_parent()
    found = [pid]
    for one in found:
        found += by_parent.get(one, [])
    return found


def children() -> set[int]:
    """Processes started by this one and not reaped yet."""
    return set(_by_parent().get(os.getpid(), []))


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def peak(pid: int) -> int:
    """The most memory that a process has had at once, in KiB."""
    return int(status(pid)["VmHWM"].split()[0])


async def settles(pid: int, before: Level, *, memory: int = 16 * MIB) -> Level:
    """Wait until a process tree costs no more than before."""
    last = before

    def enough() -> bool:
        nonlocal last
        last = Level.of(pid)
        return not last.exceeds(before, memory=memory)

    try:
        await until(enough, f"no more than {before}", SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}, but {last}") from None
    return last


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits to be reaped by another process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def processes_that_know(directory: Path) -> list[int]:
    """Living processes that have the directory's path in their environment or arguments."""
    needle = os.fsencode(directory)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if needle in known and not has_ended(int(process.name)):
            found.append(int(process.name))
    return found


def descriptors(pid: int | str = "self") -> list[str]:
    """What a process's open descriptors refer to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # the one that lists the directory
    return sorted(found)


def descriptor(pid: int, number: int) -> str:
    """What one of a process's descriptors refers to."""
    return str(Path(f"/proc/{pid}/fd/{number}").readlink())


def unix_sockets(path: Path) -> int:
    """How many sockets there are at a path: who listens, and each connection taken there and not closed."""
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    return sum(line.endswith(str(path)) for line in lines)  # the name may begin with more slashes
