# SPDX-License-Identifier: Apache-2.0
"""A program in place of xpu-smi."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.programs import program


def fake(directory: Path, script: str) -> Path:
    """A program that runs this shell script."""
    return program(directory / "xpu-smi", script)


def printing(directory: Path, groups: Sequence[int]) -> Path:
    """A program that prints the matrix of so many devices, of which those of one number are linked."""
    count = range(len(groups))
    rows = ["\t" + "\t".join(f"XPU{n}" for n in count) + "\tNIC0\tCPU Affinity"]
    for one in count:
        cells = ["X" if one == other else "XL" if groups[one] == groups[other] else "SYS" for other in count]
        rows.append("\t".join([f"XPU{one}", *cells, "SYS", "0-47"]))
    text = "\n".join(rows)
    return fake(directory, f'[ "$*" = "topo -m" ] || exit 9\ncat <<"END"\n{text}\n\nLegend:\n  X = Self\nEND')
