# SPDX-License-Identifier: Apache-2.0
"""Simulated machines, and compiled libraries to put in place of theirs."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from xpu_plugin.edges.worker.client import Target
from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import Machine, cards
from xpu_plugin.xpuml import OLD_FUNCTIONS, REQUIRED_FUNCTIONS


RESOURCE = "baidu.com/xpu"

MISSING = ",".join(name for name in OLD_FUNCTIONS if name not in REQUIRED_FUNCTIONS)
"""All old functions that a library may lack, for `missing-functions` of the simulator."""


@dataclass(frozen=True)
class Board:
    """A model of cards: the addresses of four of them on a machine, and the ids of their VFs."""

    model: str
    numbers: tuple[int, int]
    """Two numbers of VFs that a card can have."""
    first_vf: str
    """The last part of the address of its first VF."""

    def __str__(self) -> str:
        return self.model

    @property
    def addresses(self) -> list[str]:
        return [card["pci"] for card in cards(4, self.model)]

    def vfs(self, card: str, number: int) -> list[str]:
        bus, first = card[: -len(self.first_vf)], self.first_vf
        return [f"{bus}{first[:-1]}{int(first[-1]) + n}-of{number}" for n in range(number)]

    def split(self, *numbers: int) -> list[str]:
        """The ids of all four cards with so many VFs each."""
        pairs = zip(self.addresses, numbers, strict=True)
        return sorted(id for card, number in pairs for id in (self.vfs(card, number) or [card]))


R200 = Board("R200", numbers=(2, 3), first_vf="01.0")
P800 = Board("P800", numbers=(2, 4), first_vf="00.1")

on_both = pytest.mark.parametrize("board", [R200, P800], ids=str)
"""For tests that depend on the model of cards; see the fixture `board`."""


def make_machine(directory: Path, *given: dict[str, str], number: int = 4, **settings: str) -> Machine:
    """A machine in `directory`: so many cards of its model, R200 by default, or cards given by their keys."""
    machine = Machine(directory / "machine", dev_root=directory / "dev", sysfs_root=directory / "sys")
    dashed = {key.replace("_", "-"): value for key, value in settings.items()}
    machine.init(given or cards(number, settings.get("model", "R200")), dashed)
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


def settings_of(machine: Machine, place: Path) -> dict[str, str]:
    """The environment by which a sub-command finds the machine, and all else in `place`."""
    settings = {
        "XPUML_LIBRARY": "simulator",
        "SIMULATOR_FILE": machine.path,
        "DEV_ROOT": machine.dev_root,
        "SYSFS_ROOT": machine.sysfs_root,
        "STATUS_SOCKET": place / "status.sock",
        "DEVICE_PLUGIN_DIR": place / "plugins",
        "POD_RESOURCES_SOCKET": place / "pods.sock",
        "STATE_DIR": place / "state",
    }
    return {f"XPU_PLUGIN_{name}": str(value) for name, value in settings.items()}


def compile_library(source: Path, directory: Path) -> Path:
    """A shared library from one C file."""
    library = directory / f"{source.stem}.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O0", "-Wall", "-o", library, source], check=True)
    return library
