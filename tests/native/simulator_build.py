# SPDX-License-Identifier: Apache-2.0
"""Compiles the simulator the way the package's build does."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from xpu_plugin.simulation.machine import Machine

from .guest import Guest


SOURCES = Path(__file__).parents[2] / "_xpuml" / "simulator"
FLAGS = ("-shared", "-fPIC", "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")

MakeMachine = Callable[..., Machine]
MakeBoth = Callable[..., tuple[Machine, Guest]]


def build_simulator(directory: Path) -> Path:
    """Return the path of a new libxpuml.so.1 in the directory."""
    library = directory / "libxpuml.so.1"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    extra = shlex.split(os.environ.get("CFLAGS", ""))
    sources = sorted(str(source) for source in SOURCES.glob("*.c"))
    subprocess.run([*compiler, *FLAGS, *extra, "-o", str(library), *sources], check=True)
    return library
