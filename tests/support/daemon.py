# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process of its own, on a node of four simulated cards with a kubelet's directories."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.support.impatient import impatient
from tests.support.machines import R200, RESOURCE, Board, make_machine
from tests.support.processes import processes_that_know
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import Kubelet
from xpu_plugin.simulation.machine import Machine
from xpu_plugin.xpuml import Call


IDS = [f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")]

SOCKETS = "xpu-device-plugin-*.sock"

EXIT_SECONDS = PROMPT_SECONDS
"""From SIGTERM to the end on a busy machine; the promise is a second. What hangs in a test hangs longer."""

PLAIN = ("-m", "xpu_plugin")

# The real daemon, but for the ten seconds between two looks at who holds what.
IMPATIENT = impatient(Timings(holders=0.1))


class Daemon:
    """One life of the plugin."""

    def __init__(
        self,
        place: Path,
        arguments: Sequence[str],
        *,
        program: Sequence[str] = PLAIN,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        began = time.monotonic_ns()
        self.output_file, self.log_file = place / f"stdout-{began}", place / f"stderr-{began}"
        with self.output_file.open("wb") as output, self.log_file.open("wb") as log:
            self.process = self.start(
                [sys.executable, "-P", *program, *arguments],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log.fileno(),
                cwd=place,
            )
        self.pid = self.process.pid

    def start(self, command: Sequence[str], *, stderr: int, **options: Any) -> subprocess.Popen[bytes]:
        """For a daemon with its log elsewhere."""
        return subprocess.Popen(command, stderr=stderr, **options)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    async def says(self, words: str, times: int = 1) -> None:
        def said() -> bool:
            return self.log.count(words) >= times

        with suppress(AssertionError):  # the log tells more
            await until(lambda: said() or self.process.poll() is not None)
        assert said(), f"{words!r} is not in the log:\n{self.log}"

    async def says_exactly(self, words: str, times: int) -> None:
        """Wait as `says` does: the log is written beside the work that it tells of. More often is a fault."""
        await self.says(words, times)
        assert self.log.count(words) == times

    async def ends(self) -> int:
        with suppress(AssertionError):  # the log tells more
            await until(lambda: self.process.poll() is not None)
        assert self.process.returncode is not None, f"the plugin has not ended:\n{self.log}"
        return self.process.returncode

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Signal it and return the seconds until its end, which has to be a good one."""
        begin = time.monotonic()
        self.process.send_signal(number)
        assert await self.ends() == 0, self.log
        return time.monotonic() - begin

    async def kill(self) -> None:
        self.process.kill()
        assert await self.ends() == -signal.SIGKILL


class Node:
    """A machine of four cards, the kubelet's directories, and plugins started there."""

    daemon_type: type[Daemon] = Daemon

    def __init__(self, place: Path, board: Board = R200) -> None:
        self.place = place
        self.machine: Machine = make_machine(place, model=board.model)
        self.plugins = place / "plugins"
        self.plugins.mkdir()
        self.daemons: list[Daemon] = []

    @property
    def socket(self) -> Path:
        """The plugin's only socket; it has another name each time it is bound."""
        [path] = self.plugins.glob(SOCKETS)
        return path

    def options(self) -> dict[str, str]:
        options = {
            "device-plugin-dir": self.plugins,
            "pod-resources-socket": self.place / "pods/kubelet.sock",
            "pods-api-socket": self.place / "pods-api/pods-api.sock",
            "state-dir": self.place / "state",
            "dev-root": self.machine.dev_root,
            "sysfs-root": self.machine.sysfs_root,
            "xpuml-library": "simulator",
            "simulator-file": self.machine.path,
            "health-interval": 0.05,
            "health-recovery": 0.1,
            "call-timeout": 0.5,
        }
        return {name: str(value) for name, value in options.items()}

    def start(self, *arguments: str, program: Sequence[str] = PLAIN) -> Daemon:
        given = {argument.lstrip("-").partition("=")[0] for argument in arguments}
        own = [f"--{name}={value}" for name, value in self.options().items() if name not in given]
        self.daemons.append(self.daemon_type(self.place, [*own, *arguments], program=program))
        return self.daemons[-1]

    def kubelet(self) -> Kubelet:
        return Kubelet(self.plugins, pod_resources_dir=self.place / "pods")

    def assert_tidy(self) -> None:
        assert list(self.plugins.glob("xpu-*")) == []
        assert processes_that_know(self.place) == []


AnyNode = TypeVar("AnyNode", bound=Node)


@asynccontextmanager
async def a_node(place: Path, kind: Callable[[Path], AnyNode]) -> AsyncIterator[AnyNode]:
    """A node at `place`; in the end all plugins stop well, and none has shown a traceback."""
    node = kind(place)
    try:
        yield node
        for daemon in node.daemons:
            if daemon.process.poll() is None:
                daemon.process.terminate()
                # The latter if it has only just been started.
                assert await daemon.ends() in (0, -signal.SIGTERM), daemon.log
    finally:
        for daemon in node.daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()
    await until(lambda: processes_that_know(place) == [], "the end of all workers")
    for daemon in node.daemons:
        assert daemon.output == ""
        assert "Traceback" not in daemon.log, daemon.log


async def shows(
    kubelet: Kubelet, ids: Sequence[str], resource: str = RESOURCE, *, seconds: float = SECONDS
) -> None:
    """Wait until exactly these devices are listed, by an open stream and all healthy."""
    await kubelet.until(
        lambda: (
            kubelet.streams_open
            and {device.id: device.healthy for device in kubelet.devices(resource).values()}
            == dict.fromkeys(ids, True)
        ),
        timeout=seconds,
        what=f"{ids} on {resource}",
    )


def probed(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def in_flight(pid: int) -> str | None:
    """The native call in which a worker is, by its progress word."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if "memfd:xpu-progress" in str(link.readlink()):
                word = int.from_bytes(link.read_bytes(), sys.byteorder)
                call = Call.from_word(word)
                return call.function if call else None
    except OSError:
        pass  # it ended meanwhile
    return None
