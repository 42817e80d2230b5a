# SPDX-License-Identifier: Apache-2.0
"""The real daemon with other timings: a program with a record of them, as JSON, for its first argument.

It runs without the tests' other modules: a daemon's search path has the plugin alone.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xpu_plugin import cli
from xpu_plugin.model import rivals, vf_reconcile
from xpu_plugin.model.handover import HandoverPace
from xpu_plugin.model.timings import Timings


def impatient(timings: Timings, *, before: str = "") -> tuple[str, ...]:
    """Arguments of the interpreter for a daemon with these timings. before: code that is run first"""
    file = str(Path(__file__).resolve())
    given = json.dumps(asdict(timings))
    if before:
        return ("-c", f"{before}\nimport runpy\nrunpy.run_path({file!r}, run_name='__main__')", given)
    return (file, given)


def read(text: str) -> Timings:
    """The timings that `impatient` wrote."""
    document = tuples(json.loads(text))
    vfs, rivalry, handover = (document.pop(name) for name in ("vfs", "rivalry", "handover"))
    return Timings(
        **document,
        vfs=vf_reconcile.VfPace(**vfs),
        rivalry=rivals.RivalPace(**rivalry),
        handover=HandoverPace(**handover),
    )


def tuples(document: dict[str, Any]) -> dict[str, Any]:
    """Lists, of which JSON made the pairs, as pairs again."""
    return {
        name: tuple(value) if isinstance(value, list) else tuples(value) if isinstance(value, dict) else value
        for name, value in document.items()
    }


if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[2:], timings=read(sys.argv[1])))
