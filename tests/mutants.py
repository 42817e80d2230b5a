# SPDX-License-Identifier: Apache-2.0
"""The mutation score of xpu_plugin/model, by mutmut: `python -m tests.mutants [--mutants N] [--seed S]`

A mutant is the code with one change in one function. The tests of tests/model that call this function run on
it: a test that fails kills the mutant, else it survives. Constants of a module and decorated functions (also
properties) have no mutants. The sample depends on the seed and on the functions alone: a change of the tests
does not change it, and the scores of before and after compare.

Prints one line with the score, and writes the diffs of all survivors to build/mutants/survivors.diff.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name


ROOT = Path(__file__).parents[1]
TREE = ROOT / "build/mutants/tree"
SURVIVORS = ROOT / "build/mutants/survivors.diff"
ALIVE = ("survived", "no tests")


def copy_sources() -> None:
    """Make a new tree, as mutmut keeps results in the old one."""
    shutil.rmtree(TREE, ignore_errors=True)
    for room in ("xpu_plugin", "tests"):
        shutil.copytree(ROOT / room, TREE / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", TREE)


def mutants() -> dict[str, Path]:
    """All mutants by name, with their files."""
    return {
        get_mutant_name(path, name): path
        for path in sorted(Path("xpu_plugin/model").rglob("*.py"))
        for name in mutate_file_contents(str(path), path.read_text()).mutant_names
    }


def sample(names: list[str], number: int, seed: int) -> list[str]:
    """Choose by hash: a new function changes only its own share of the sample."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:number]


def status(name: str, path: Path) -> str:
    data = SourceFileMutationData(path=path)
    data.load()
    return str(status_by_exit_code[data.exit_code_by_key[name]])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=200, metavar="N", help="so many; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chooses them; default: %(default)s")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), metavar="N", help="default: all cores"
    )
    options = parser.parse_args()
    copy_sources()
    os.chdir(TREE)  # mutmut reads its settings there, and works there
    paths = mutants()
    chosen = sample(list(paths), options.mutants, options.seed)
    mutmut = [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run"]
    ended = subprocess.run(
        [*mutmut, f"--max-children={options.processes}", *chosen],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        print(ended.stdout[-10_000:])
        return 1
    results = {name: status(name, paths[name]) for name in sorted(chosen)}
    alive = [name for name in results if results[name] in ALIVE]
    SURVIVORS.write_text(
        "".join(
            f"# {name}: {results[name]}\n{get_diff_for_mutant(name, path=paths[name])}\n\n" for name in alive
        )
    )
    counts = Counter(results.values())
    told = ", ".join(
        f"{word} {counts.pop(word, 0)}" for word in ("killed", "survived", "no tests", "timeout")
    )
    others = "".join(f", {word} {count}" for word, count in counts.items())
    score = 100 * (1 - len(alive) / len(chosen))
    print(f"mutants {len(chosen)} of {len(paths)}, seed {options.seed}: {told}{others}; score {score:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
