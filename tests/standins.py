# SPDX-License-Identifier: Apache-2.0
"""What several tests stand on: simulated machines, compiled libraries, and waiting with a deadline."""

import asyncio
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from xpu_plugin.edges.driver import Target
from xpu_plugin.edges.grants import GrantRecord
from xpu_plugin.edges.kubelet import KUBELET_SOCKET, Identity
from xpu_plugin.edges.kubelet_view import KubeletView
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.model.holders import Terms
from xpu_plugin.model.inventory import Inventory
from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import Machine, cards


RESOURCE = "baidu.com/xpu"
SECONDS = 20.0
"""How long anything may take on a loaded machine. Nothing here waits that long when all is well."""

_POLL_SECONDS = 0.01


# --- machines -------------------------------------------------------------------------------------


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


def nowhere(directory: Path) -> Target:
    """A target without a library and without a device."""
    return Target(libraries=(), dev_root=directory, sysfs_root=directory, simulated=True, environment={})


def kubelet_at(directory: Path) -> KubeletView:
    """The reader of a kubelet that has its sockets and files in `directory`; nothing has to be there."""
    return KubeletView(device_plugin_dir=directory, pod_resources_socket=directory / "pod-resources.sock")


def grants_of(picture: Picture, state: Path, *, clock: Callable[[], float] = time.monotonic) -> Grants:
    """The memory of grants of a plugin on a node without a kubelet; its record is in `state`."""
    terms = Terms(own_pod="kube-system/plugin")
    return Grants(picture, kubelet_at(state), GrantRecord(state), terms, clock=clock)


def compile_library(source: Path, directory: Path) -> Path:
    """A shared library from one C file."""
    library = directory / f"{source.stem}.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O0", "-Wall", "-o", library, source], check=True)
    return library


# --- waiting --------------------------------------------------------------------------------------


async def until(
    predicate: Callable[[], object], what: str = "no such state", seconds: float = SECONDS
) -> None:
    """Wait for something that gives no notice of itself."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        await asyncio.sleep(_POLL_SECONDS)


def wait_until(
    predicate: Callable[[], object], what: str = "no such state", seconds: float = SECONDS
) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        time.sleep(_POLL_SECONDS)


async def shown(
    picture: Picture, predicate: Callable[[Inventory], object], seconds: float = SECONDS
) -> Inventory:
    """Wait for an inventory of which `predicate` is true."""
    generation = NEVER
    try:
        async with asyncio.timeout(seconds):
            while True:
                inventory = await picture.beyond(generation)
                if predicate(inventory):
                    return inventory
                generation = inventory.generation
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s; the last picture: {picture.current}") from None


def health(inventory: Inventory | None) -> dict[str, str | None]:
    """The reason of each entry, None for a healthy one."""
    assert inventory
    return {id: entry.health.reason for id, entry in inventory.entries.items()}


class Looks:
    """Counts how often an endpoint looks at the kubelet's socket: the time that matters to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        original = Identity.of

        def of(path: Path) -> Identity | None:
            self.number += path.name == KUBELET_SOCKET
            return original(path)

        monkeypatch.setattr(Identity, "of", of)

    async def more(self, number: int) -> None:
        goal = self.number + number
        await until(lambda: self.number >= goal, f"{number} more looks at the kubelet")


# --- processes ------------------------------------------------------------------------------------


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits to be reaped by somebody else."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def children() -> set[int]:
    """Processes started by this one and not reaped yet."""
    own = str(os.getpid())
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[1] == own:
            found.add(int(directory.name))
    return found


def processes_that_know(directory: Path) -> list[int]:
    """Living processes that have the directory's path in their environment or arguments."""
    needle = os.fsencode(directory)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if needle in known and not has_ended(int(process.name)):
            found.append(int(process.name))
    return found


def descriptors(pid: int | str = "self") -> list[str]:
    """What a process's open descriptors refer to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # the one that lists the directory
    return sorted(found)


def descriptor(pid: int, number: int) -> str:
    """What one of a process's descriptors refers to."""
    return str(Path(f"/proc/{pid}/fd/{number}").readlink())


def unix_sockets(path: Path) -> int:
    """How many sockets there are at a path: who listens, and each connection taken there and not closed."""
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    return sum(line.endswith(str(path)) for line in lines)  # the name may begin with more slashes
