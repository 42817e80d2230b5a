# SPDX-License-Identifier: Apache-2.0
"""Who is measured: our plugin in several modes, the references, and any command that is given."""

import json
import shlex
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.kubelet import PODS, Session
from xpu_plugin.simulation.library import environment
from xpu_plugin.simulation.machine import Machine, cards


OURS, LABEL, FAST = "ours", "ours-label", "ours-100ms"
REPLAY, FLOOR, GO = "reference-replay", "constant-answer", "constant-go"
SECONDS = {OURS: 1.0, LABEL: 1.0, FAST: 0.1, REPLAY: 5.0}
"""Between two looks at all devices; a subject that is not here is not asked about faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """command: with {directory}, {devices} and {machine} to be filled in; probes: its HTTP port"""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    probes: int | None = None

    def session(self, place: Path, devices: int, **what: object) -> Session:
        """A session of its own in `place`, with the machine of so many devices."""
        machine = machine_file(place, devices)
        values = {"{devices}": str(devices), "{machine}": str(machine), "{place}": str(machine.parent)}
        command = list(self.command)
        for name, value in values.items():
            command = [part.replace(name, value) for part in command]
        return Session(
            command=command,
            directory=str(place / f"{self.name}-{devices}"),
            environment={
                name: value.replace("{directory}", f"{place}/{self.name}-{devices}")
                for name, value in self.environment.items()
            },
            log=str(place / f"{self.name}-{devices}.log"),
            machine=str(machine) if self.name in SECONDS else None,
            interval=SECONDS.get(self.name, 1.0),
            probes=self.probes,
            **what,  # type: ignore[arg-type]
        )


def machine_file(place: Path, devices: int) -> Path:
    return place / f"machine-{devices}" / "machine"


def make_machine(place: Path, devices: int) -> None:
    """So many R200 in `place`. Without habits (docs/simulator.md) the library has no limit of 99 devices."""
    file = machine_file(place, devices)
    machine = Machine(file, dev_root=file.parent / "dev", sysfs_root=file.parent / "sys")
    machine.init(cards(devices), {"quirks": "off"})


def simulator(place: Path, devices: int) -> dict[str, str]:
    """What a process needs in its environment to meet that machine in the library."""
    file = machine_file(place, devices)
    return environment(file, file.parent / "dev", file.parent / "sys")


def write_kubeconfig(file: Path, url: str, authority: Path) -> None:
    document = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "it", "user": {"token": "none"}}],
    }
    file.write_text(json.dumps(document))


def subjects(
    plugin: str, peers: Iterable[tuple[str, str]], *, kubeconfig: Path | None, node: str
) -> dict[str, Subject]:
    """plugin: the command of ours; kubeconfig: of a stand-in for the API server, None if there is none"""
    ours = (
        *shlex.split(plugin),
        "--xpuml-library=simulator",
        "--simulator-file={machine}",
        "--dev-root={place}/dev",
        "--sysfs-root={place}/sys",
        "--device-plugin-dir={directory}",
        f"--pod-resources-socket={{directory}}/{PODS}",
        "--state-dir={directory}/state",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [
        Subject(name=OURS, command=ours),
        Subject(name=FAST, command=(*ours, "--health-interval=0.1")),
        Subject(
            name=REPLAY,
            command=(sys.executable, "-m", "tests.benchmarks.replay", "{directory}", "{machine}"),
        ),
        Subject(
            name=FLOOR,
            command=(sys.executable, "-m", "tests.benchmarks.constant", "{directory}", "{devices}"),
        ),
        *(Subject(name=name, command=tuple(shlex.split(command))) for name, command in peers),
    ]
    if kubeconfig:
        label = (
            *ours,
            f"--kubeconfig={kubeconfig}",
            f"--node-name={node}",
            f"--metrics-address=127.0.0.1:{port}",
        )
        found.insert(1, Subject(name=LABEL, command=label, probes=port))
    return {subject.name: subject for subject in found}
