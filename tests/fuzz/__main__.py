# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing, by atheris: `python -m tests.fuzz [--runs N] [--seconds S] [--seed S] [TARGET...]`

Each target is searched for so many runs or seconds, until the first of these ends, in a process of its own,
beginning with good input. What it found stays in build/fuzz, where the next search goes on. A finding is
printed with its traceback, and its input kept in build/fuzz/found: `python -m tests.fuzz --input FILE TARGET`
runs it again. Ends with status 1 when there was one, with 2 for bad input.
"""

import argparse
import gc
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import FunctionType

import atheris

from tests.fuzz.targets import RUNS, TARGETS, WORDS, seeds


CORPUS = Path(__file__).parents[2] / "build/fuzz"
LONGEST = 4096  # bytes
HUNG_SECONDS = 10  # of one run


def search(name: str, flags: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    logging.disable()  # each refusal would be logged
    for own in gc.get_objects():
        if isinstance(own, FunctionType) and str(own.__module__).startswith("xpu_plugin."):
            atheris.instrument_func(own)
    atheris.Setup([sys.argv[0], *flags], TARGETS[name])
    atheris.Fuzz()


def begin(name: str, options: argparse.Namespace) -> int:
    """Search one target in a child; returns its exit status."""
    corpus, found = CORPUS / name, CORPUS / "found"
    for directory in (corpus, found):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = CORPUS / f"{name}.dict"
    words.write_text("".join(f'"{word}"\n' for word in dict.fromkeys(WORDS[name])))
    flags = [
        f"-runs={options.runs or RUNS[name]}",
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-max_len={LONGEST}",
        f"-timeout={HUNG_SECONDS}",
        f"-dict={words}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(corpus),
    ]
    start = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", "--search", name, "--", *flags]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        told = [line for line in ended.stdout.splitlines() if not line.startswith(("INFO: ", "WARNING: "))]
        print("\n".join(told[-60:]))
    verdict = "FAILED" if ended.returncode else "passed"
    runs = [line.split()[-1] for line in ended.stdout.splitlines() if "number_of_executed_units" in line]
    print(
        f"{verdict} {name}: {runs[0] if runs else '?'} runs in {time.monotonic() - start:.0f} s", flush=True
    )
    return ended.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--runs", type=int, help="of each target")
    parser.add_argument("--seconds", type=int, default=0, help="0: as long as the runs take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="a file to run once, of one target")
    parser.add_argument("--search", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        search(options.search, options.targets)
    names = options.targets or list(TARGETS)
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.input:
        TARGETS[names[0]](options.input.read_bytes())
        return 0
    failed = sum(begin(name, options) != 0 for name in names)
    print(f"{len(names) - failed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
