# SPDX-License-Identifier: Apache-2.0
"""The real daemon over the simulator, and a kubelet that remembers everything it was ever told."""

import asyncio
import fcntl
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.processes import Level, settles
from xpu_plugin.model.timings import Timings
from xpu_plugin.proto.podresources_v1_pb2 import ListPodResourcesResponse
from xpu_plugin.simulation.kubelet import CHECKPOINT, Kubelet, Release


# The real daemon, but for some pauses.
TIMINGS = Timings(
    holders=0.1,
    unresponsive=(0.1, 0.3),
    doubt=0.1,
    scan=(0.05, 0.2),
    again=(0.05, 0.3),
)
IMPATIENT = impatient(TIMINGS)
F_SETPIPE_SZ, PIPE_BYTES = 1031, 4096
# The grace is longer than a hang lasts until it is found: else the round that it holds up takes all along.
CALL_SECONDS = 0.6
OPTIONS = (
    "--health-grace=2.5",
    "--health-flaps=1000",
    "--rescan-interval=0.2",
    f"--call-timeout={CALL_SECONDS}",
)


class Watched(Kubelet):
    """Remembers which devices were ever listed, and which of them as unhealthy.

    odd_answer: makes the answer of the pod resources API, instead of the true one
    odd_checkpoint: makes the file, instead of the true one; it is removed before
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.sick: set[str] = set()
        self.known: set[str] = set()
        self.odd_answer: Callable[[ListPodResourcesResponse], bytes] | None = None
        self.odd_checkpoint: Callable[[Path], object] | None = None

    def pod_resources_answer(self) -> bytes:
        return self.odd_answer(self.pod_resources()) if self.odd_answer else super().pod_resources_answer()

    def write_checkpoint(self) -> None:
        if self.odd_checkpoint is None:
            super().write_checkpoint()
            return
        path = self.directory / CHECKPOINT
        path.unlink(missing_ok=True)
        self.odd_checkpoint(path)

    def _take(self, resource: str, response: Any) -> None:
        super()._take(resource, response)
        self.known |= self.devices(resource).keys()
        self.sick |= {device.id for device in self.devices(resource).values() if not device.healthy}


class Relay:
    """A pipe with little room, and a reader that copies to a file and may pause."""

    def __init__(self, file: Path) -> None:
        self._reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, F_SETPIPE_SZ, PIPE_BYTES)
        self.reads = threading.Event()
        self.reads.set()
        self._thread = threading.Thread(target=self._copy, args=(file,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """For the end of what writes, of which this side has closed its writer."""
        self.reads.set()
        self._thread.join()

    def _copy(self, file: Path) -> None:
        with os.fdopen(self._reader, "rb", buffering=0) as reader, file.open("ab", buffering=0) as log:
            while part := reader.read(PIPE_BYTES):
                log.write(part)
                self.reads.wait()


class Relayed(Daemon):
    """A plugin with a log that may have no reader."""

    def start(self, command: Sequence[str], *, stderr: int, **options: Any) -> subprocess.Popen[bytes]:
        self.relay = Relay(self.log_file)
        try:
            return super().start(command, stderr=self.relay.writer, **options)
        finally:
            os.close(self.relay.writer)

    async def ends(self) -> int:
        status = await super().ends()
        await asyncio.to_thread(self.relay.wait)
        return status


class Scene(Node):
    """A node with a kubelet that watches."""

    daemon_type = Relayed

    def begin(self, *arguments: str, program: Collection[str] = IMPATIENT) -> Daemon:
        given = {argument.partition("=")[0] for argument in arguments}
        own = [option for option in OPTIONS if option.partition("=")[0] not in given]
        return self.start(*own, *arguments, program=tuple(program))

    def watched(self, release: Release = Release.V1_20) -> Watched:
        return Watched(self.plugins, pod_resources_dir=self.place / "pods", release=release)


@asynccontextmanager
async def unharmed(
    kubelet: Watched, daemon: Daemon, *, sick: Collection[str] = (), registrations: int = 0
) -> AsyncIterator[Level]:
    """After the body, all devices are offered and can be had, none but `sick` was ever
    unhealthy, there were so many more registrations, and nothing has become more."""
    await shows(kubelet, IDS)
    kubelet.free(await kubelet.allocate(RESOURCE, 4))
    before, asked = Level.of(daemon.pid), len(kubelet.registrations)
    kubelet.sick.clear()
    yield before
    await shows(kubelet, IDS)
    kubelet.free(await kubelet.allocate(RESOURCE, 4))
    assert kubelet.sick == set(sick), kubelet.sick
    assert kubelet.known == set(IDS)
    assert len(kubelet.registrations) == asked + registrations
    assert daemon.process.poll() is None
    await settles(daemon.pid, before)
