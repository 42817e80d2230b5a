# SPDX-License-Identifier: Apache-2.0
"""The library's sweep, by the binding and as a plain C loop (sweep.c), in turns.

`python -m tests.benchmarks.sweep LIBRARY TIMES` prints what sweep.c prints, made by the binding.
"""

import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from xpu_plugin._xpuml import Library
from xpu_plugin.simulation.library import shipped


HERE = Path(__file__).parent
TIMES = 40  # sweeps a process, of which the first tenth only warms up


def compiled(directory: Path) -> Path:
    """sweep.c as a program in `directory`."""
    program = directory / "sweep"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-O2", "-Wall", "-o", program, HERE / "sweep.c", "-ldl"], check=True)
    return program


def compare(directory: Path, environment: Mapping[str, str], rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU of one sweep of the machine that `environment` leads to: each round's median."""
    loops = {
        "sweep_c_us": [str(compiled(directory))],
        "sweep_binding_us": [sys.executable, "-m", "tests.benchmarks.sweep"],
    }
    figures: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in sorted(loops, reverse=bool(number % 2)):
            command = [*loops[name], str(shipped()), str(TIMES)]
            text = subprocess.run(
                command,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=True,
                cwd=HERE.parents[1],
            ).stdout
            times = list(map(int, text.split()[1:]))
            figures[name].append(statistics.median(times[len(times) // 10 :]) / 1e3)
    return figures


def main() -> None:
    library = Library(sys.argv[1])
    print(library.count())
    for _ in range(int(sys.argv[2])):
        begin = time.process_time_ns()
        library.sweep()
        print(time.process_time_ns() - begin)


if __name__ == "__main__":
    main()
