# SPDX-License-Identifier: Apache-2.0
"""What a process and its descendants take, by the kernel's word: CPU, memory, threads."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


_CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED, of all threads that a process has or had
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) (\S+) (\d+) *(.*)")


def cpu_ms(pids: Iterable[int]) -> float:
    """CPU time that these processes have taken, to the nanosecond; those that are gone count nothing."""
    total = 0
    for pid in pids:
        try:
            total += time.clock_gettime_ns((~pid << 3) | _CLOCK_OF_PROCESS)
        except OSError:
            continue
    return total / 1e6


def threads(pids: Iterable[int]) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids)


@dataclass(frozen=True, slots=True)
class Memory:
    """pss: the kernel's proportional share; alone: the same if no other process had these files mapped.

    A node has no other Python that pages could be shared with, while a machine that measures has, so that
    `alone` is what counts. Both in KiB.
    """

    pss: int
    alone: int


def memory(pids: Iterable[int]) -> Memory:
    """Of several processes together; pages of files that they share with each other count once."""
    pss = own = 0
    shared: dict[tuple[str, ...], int] = defaultdict(int)
    for pid in pids:
        key: tuple[str, ...] = ()
        there = 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if match := _MAPPING.match(line):
                key, there = match.groups(), 0
                continue
            name, _, rest = line.partition(":")
            if name == "Pss":
                pss += int(rest.split()[0])
            elif name in ("Private_Clean", "Private_Dirty"):
                own += int(rest.split()[0])
            elif name in ("Shared_Clean", "Shared_Dirty"):
                there += int(rest.split()[0])
                shared[key] = max(shared[key], there)
    return Memory(pss, own + sum(shared.values()))
