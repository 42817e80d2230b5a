# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.support.torn DIRECTORY`: deletes coverage data of which the writer was killed.

The plugin kills workers, and tests kill plugins. One that was just writing what it ran leaves a file with
nothing in it, or with lines of the binding, but without the word that they are Cython's; for one such file
`coverage combine` refuses all ("isn't a coverage data file", "Conflicting file tracer name"). What the
killed process ran counts as not run.
"""

import sys
from pathlib import Path

from coverage import CoverageData
from coverage.exceptions import DataError


def discard(directory: Path) -> list[Path]:
    """Delete each file `data.*` that has lines of a .pyx and no tracer for them; return the deleted."""
    files = [path for path in sorted(directory.glob("data.*")) if not path.name.endswith("-journal")]
    torn = [path for path in files if _is_torn(path)]
    for path in torn:
        path.unlink()
    return torn


def _is_torn(path: Path) -> bool:
    data = CoverageData(str(path))
    try:
        data.read()
        return any(name.endswith(".pyx") and not data.file_tracer(name) for name in data.measured_files())
    except DataError:
        return True
    finally:
        data.close()


if __name__ == "__main__":
    for path in discard(Path(sys.argv[1])):
        sys.stdout.write(f"{path}: left out, its process was killed while it wrote this\n")
