# SPDX-License-Identifier: Apache-2.0
"""What a plugin costs while it runs, as /proc tells: processes, threads, descriptors and memory."""

from dataclasses import dataclass
from pathlib import Path

from tests.standins import SECONDS, descriptors, until


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


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(fields[1]), []).append(int(directory.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def peak(pid: int) -> int:
    """The most memory that a process has had at once, in KiB."""
    return int(status(pid)["VmHWM"].split()[0])


async def settles(pid: int, before: Level, *, memory: int = 16 * MIB) -> Level:
    """Wait until a process tree costs no more than before."""
    await until(lambda: not Level.of(pid).exceeds(before, memory=memory), f"no more than {before}", SECONDS)
    return Level.of(pid)
