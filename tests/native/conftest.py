# SPDX-License-Identifier: Apache-2.0
"""A compiled simulator, machines for it, and processes that have it loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xpu_plugin.simulation.machine import Machine, cards

from .guest import Guest, MakeGuest
from .simulator_build import MakeBoth, MakeMachine, build_simulator


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as it is shipped."""
    return build_simulator(tmp_path_factory.mktemp("simulator"))


@pytest.fixture
def make_machine(simulator: Path, tmp_path: Path) -> MakeMachine:
    """A machine with its roots in the test's directory: so many R200, or cards given by their keys."""

    def make(*given: dict[str, str], number: int = 2, sysfs: bool = True, **settings: str) -> Machine:
        sysfs_root = tmp_path / "sys" if sysfs else None
        machine = Machine(
            tmp_path / "machine", dev_root=tmp_path / "dev", sysfs_root=sysfs_root, library=simulator
        )
        dashed = {key.replace("_", "-"): value for key, value in settings.items()}
        machine.init(given or cards(number), dashed)
        return machine

    return make


@pytest.fixture
def make_guest(simulator: Path) -> Iterator[MakeGuest]:
    """Processes with the library, initialised; they end with the test."""
    guests: list[Guest] = []

    def make(machine: Machine, *, library: Path = simulator, init: bool = True, **environment: str) -> Guest:
        guest = Guest(library, {**machine.environment(), **environment})
        guests.append(guest)
        if init:
            assert guest.init() == 0
        return guest

    yield make
    for guest in guests:
        if guest.process.poll() is None:
            guest.process.kill()
        if not guest.process.stdout or not guest.process.stdout.closed:
            guest.close()


@pytest.fixture
def make_both(make_machine: MakeMachine, make_guest: MakeGuest) -> MakeBoth:
    """A machine as by `make_machine`, and an initialised process on it."""

    def make(*given: dict[str, str], **settings: Any) -> tuple[Machine, Guest]:
        machine = make_machine(*given, **settings)
        return machine, make_guest(machine)

    return make
