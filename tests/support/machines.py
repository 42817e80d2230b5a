# SPDX-License-Identifier: Apache-2.0
"""Simulated machines, and compiled libraries to put in place of theirs."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from xpu_plugin.edges.driver import Target
from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import Machine, cards


RESOURCE = "baidu.com/xpu"


def make_machine(directory: Path, *given: dict[str, str], number: int = 4, **settings: str) -> Machine:
    """A machine in `directory`: so many R200, or cards given by their keys."""
    machine = Machine(directory / "machine", dev_root=directory / "dev", sysfs_root=directory / "sys")
    dashed = {key.replace("_", "-"): value for key, value in settings.items()}
    machine.init(given or cards(number), dashed)
    return machine


def target_of(
    machine: Machine, *libraries: str | Path, environment: Mapping[str, str] | None = None
) -> Target:
    """What a worker opens to meet the machine."""
    assert machine.dev_root
    assert machine.sysfs_root
    return Target(
        libraries=tuple(map(str, libraries or (shipped(),))),
        dev_root=machine.dev_root,
        sysfs_root=machine.sysfs_root,
        simulated=True,
        environment={**machine.environment(), **(environment or {})},
    )


def compile_library(source: Path, directory: Path) -> Path:
    """A shared library from one C file."""
    library = directory / f"{source.stem}.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O0", "-Wall", "-o", library, source], check=True)
    return library
