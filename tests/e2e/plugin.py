# SPDX-License-Identifier: Apache-2.0
"""The plugin as a process on the node, and what the node's kernel and kubelet know about it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .cluster import RESOURCE, Cluster
from .hooks import Hooks
from .machine import CARDS, device_nodes
from .waiting import wait_until


SOCKETS = "xpu-device-plugin-*.sock"
"""Names of the plugin's sockets: each time it binds one it has another name."""
FORMER_SOCKET = "kunlun.sock"
CHECKPOINT_NAME = "kubelet_internal_checkpoint"
MARK = "XPU_E2E_MARK"
"""In the environment of the plugin's processes: a worker that outlives its parent is known by it."""

Start = Callable[..., None]
"""Starts the plugin: with an argument for --sriov-num-vfs, and further options."""

STREAM_SECONDS = 30
EXIT_SECONDS = 10
LOG_SECONDS = 30


class Plugin:
    """One daemon at a time, always with the same options but for those of a start of its own."""

    def __init__(self, command: Sequence[str], *, directory: Path, log: Path, sockets: str = SOCKETS) -> None:
        self._command = tuple(command)
        self._directory = directory
        self._log = log
        self._sockets = sockets
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def sockets(self) -> list[Path]:
        """The sockets in the kubelet's directory that are called like this plugin's."""
        return sorted(self._directory.glob(self._sockets))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, *options: str) -> None:
        """Start the daemon, with further options, and wait until a kubelet has dialled it."""
        self.launch(*options)
        self.wait_for_new_stream(frozenset())

    def launch(self, *options: str) -> None:
        """Start the daemon, with further options, while the kubelet may not answer."""
        assert self._process is None, "the plugin runs already"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("XPU_PLUGIN_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (*self._command, *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean | {MARK: self._mark},
            )

    def kill(self) -> None:
        """End it without a warning, as the out-of-memory killer does."""
        self._end(signal.SIGKILL)

    def terminate(self) -> tuple[int, float]:
        """Ask it to leave; its exit status and how many seconds that took."""
        start = time.monotonic()
        return self._end(signal.SIGTERM), time.monotonic() - start

    def forget_the_lost(self) -> None:
        """Have it scan again and strike off its list what is not there any more."""
        assert self._process is not None, "the plugin does not run"
        self._process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """Leave no process behind; fail if one had to be ended by force."""
        try:
            if self._process is not None:
                self.terminate()
            self.wait_for_no_process()
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process is not None:
                self._process.wait()

    def processes(self) -> dict[int, str]:
        """Every process of this plugin, its workers included: pid -> command line."""
        mark = f"{MARK}={self._mark}".encode()
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it is gone by now
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(directory.name)] = command.decode(errors="replace").strip()
        return found

    def streams(self) -> frozenset[str]:
        """The connections that the kubelet holds to the plugin's sockets, by inode."""
        connected, inodes = "03", set()
        for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
            _, _, _, _, _, state, inode, *path = line.split(maxsplit=7)
            # As it was bound, slashes and all.
            if state == connected and path and self._owns(Path(path[0])):
                inodes.add(inode)
        return frozenset(inodes)

    def _owns(self, path: Path) -> bool:
        return path.parent == self._directory and path.match(self._sockets)

    def wait_for_new_stream(self, before: frozenset[str]) -> None:
        """Wait until a kubelet has dialled the plugin, over and above the connections of `before`."""
        wait_until(
            "a kubelet dials the plugin",
            self._streams_while_running,
            lambda streams: streams - before,
            seconds=STREAM_SECONDS,
        )

    def wait_for_log(self, pattern: str, *, times: int = 1) -> None:
        """Wait until so many lines of the log, of all daemons, match."""
        wait_until(
            f"the plugin's log matches {pattern} ({times})",
            lambda: self.log,
            lambda log: len(re.findall(pattern, log)) >= times,
            seconds=LOG_SECONDS,
        )

    def wait_for_no_process(self) -> None:
        """Wait until no process of the plugin is left."""
        wait_until(
            "every process of the plugin has ended",
            self.processes,
            lambda processes: not processes,
            seconds=EXIT_SECONDS,
        )

    def registered_ids(self) -> frozenset[str]:
        """The healthy ids of our resource that the kubelet has noted in its checkpoint."""
        checkpoint = json.loads((self._directory / CHECKPOINT_NAME).read_text())
        return frozenset(checkpoint["Data"]["RegisteredDevices"].get(RESOURCE) or [])

    def refusals_to_start(self) -> list[str]:
        """The sentences by which it has refused to let containers start."""
        return re.findall(
            rf' request refused request="container start" resource={re.escape(RESOURCE)} error="(.+)"',
            self.log,
        )

    def asked_of_the_driver(self) -> list[tuple[str, int]]:
        """Every call for a number of VFs so far, of all daemons: a card's address, and the number."""
        asked = re.findall(r" asking the driver for VFs vfs=(\d+) card=(\S+)", self.log)
        return [(card, int(number)) for number, card in asked]

    def _streams_while_running(self) -> frozenset[str]:
        assert self._process is not None, "the plugin does not run"
        status = self._process.poll()
        assert status is None, f"the plugin ended by itself with status {status}:\n{self.log}"
        return self.streams()

    def _end(self, sent: signal.Signals) -> int:
        assert self._process is not None, "the plugin does not run"
        self._process.send_signal(sent)
        status = self._process.wait(EXIT_SECONDS)
        self._process = None
        return status


def kubelet_life(directory: Path) -> tuple[int, int, int] | None:
    """What tells one life of the kubelet from the next; None while it is away."""
    try:
        status = (directory / "kubelet.sock").stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def serve(plugin: Plugin, cluster: Cluster, *options: str, cards: int = CARDS) -> None:
    """Start a plugin and wait until the node shows all devices."""
    # Otherwise the number of an earlier plugin would be taken for this one's.
    cluster.wait_for_allocatable(0)
    plugin.start(*options)
    cluster.wait_for_allocatable(cards)


@contextmanager
def closing(plugin: Plugin, cluster: Cluster) -> Iterator[None]:
    """Let nothing of a plugin stay behind, no pod either."""
    try:
        yield
        cluster.delete_pods()
    finally:
        try:
            plugin.close()
        finally:
            print(plugin.log)  # pytest shows it with a failure
    assert plugin.sockets() == []


def leftovers(hooks: Hooks, cluster: Cluster) -> list[str]:
    """What of the suite's is still there, apart from processes."""
    directory = hooks.device_plugin_directory
    sockets = [str(path) for name in (SOCKETS, FORMER_SOCKET) for path in directory.glob(name)]
    return [*cluster.pods(), *cluster.marks(), *device_nodes(), *sockets]
