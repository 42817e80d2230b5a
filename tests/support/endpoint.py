# SPDX-License-Identifier: Apache-2.0
"""Our endpoint of two healthy cards, to be run against a kubelet's real sockets."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import CONTROL, device, found
from tests.support.grants import Memory
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet import endpoint as endpoint_module
from xpu_plugin.edges.kubelet.directory import KUBELET_SOCKET, PluginDirectory, identity_of, socket_stem
from xpu_plugin.edges.kubelet.endpoint import Endpoint
from xpu_plugin.edges.kubelet.lock import InstanceLock
from xpu_plugin.edges.kubelet.rivals import RivalWatch
from xpu_plugin.edges.kubelet.service import Contents, DevicePluginService
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.inventory import Policy, after_scan
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.simulation.kubelet import Kubelet


IDS = ["0000:3b:00.0", "0000:3c:00.0"]

CARDS = [device(id, number=number, index=number) for number, id in enumerate(IDS)]

PREFIX = "xpu-device-plugin"

NAME = re.compile(r"xpu-device-plugin-[0-9a-f]{8}\.sock")


class Plugin:
    """An endpoint that can be run, with a picture of two healthy cards."""

    def __init__(self, directory: Path, resource: str = RESOURCE, **watching: Any) -> None:
        self.picture = Picture(Policy(resource=resource))
        self.picture.submit(lambda facts: after_scan(facts, found(*CARDS)))
        nodes = {f"xpu{card.node.number}": card.node.identity for card in CARDS} | {"xpuctrl": (CONTROL, 1)}
        self.directory = directory
        self.lock = InstanceLock(directory)
        self.tenures = Tenures(self.lock)
        usual = {"plugins": PluginDirectory(directory), "stage": self.tenures.stage}
        self.watch = RivalWatch(resource, **{**usual, **watching})
        self.looks = 0  # at holders
        self.restarts: list[Callable[[], Awaitable[None]]] = []  # what happens during such a look, once each
        self.service = DevicePluginService(
            resource,
            self.picture,
            contents=Contents(node=nodes.get),
            grants=Memory(directory.parent / "state"),
            watch=self.watch,
        )
        self.endpoint = Endpoint(
            self.service,
            directory=directory,
            stem=socket_stem(resource, RESOURCE),
            turn=self.tenures,
            watch=self.watch,
            holders=self,
        )

    async def before_registration(self) -> None:
        self.looks += 1
        if self.restarts:
            await self.restarts.pop()()

    @property
    def socket(self) -> Path:
        """Our socket as it is bound now."""
        assert self.endpoint.path is not None, "bound"
        return self.endpoint.path

    def sockets(self) -> list[str]:
        """The names of all sockets that are called like ours."""
        return [path.name for path in self.directory.glob(f"{PREFIX}*")]

    def begin(self) -> None:
        """Take the lock at once, for an endpoint that is run alone."""
        assert self.lock.attempt()
        self.tenures.stage.set(Stage.WORKING)

    async def _wait(self) -> None:
        async for _ in self.tenures.begin():
            pass  # there is nothing to take over

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        task, waiting = (asyncio.create_task(run) for run in (self.endpoint.run(), self._wait()))
        try:
            yield
            assert not task.done(), task
        finally:
            for part in (task, waiting):
                part.cancel()
                await asyncio.gather(part, return_exceptions=True)
            self.lock.release()


class Looks:
    """Counts how often an endpoint looks at the kubelet's socket: the time that matters to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0

        def counted(path: Path) -> SocketIdentity | None:
            self.number += path.name == KUBELET_SOCKET
            return identity_of(path)

        monkeypatch.setattr(endpoint_module, "identity_of", counted)

    async def more(self, number: int) -> None:
        goal = self.number + number
        await until(lambda: self.number >= goal, f"{number} more looks at the kubelet")


async def listed(kubelet: Kubelet, resource: str = RESOURCE) -> None:
    """Wait until the kubelet has our list by an open stream."""
    await kubelet.until(
        lambda: kubelet.streams_open and kubelet.allocatable(resource) == len(IDS), timeout=SECONDS
    )


async def registered(kubelet: Kubelet, times: int) -> None:
    await kubelet.until(lambda: len(kubelet.registrations) >= times, timeout=SECONDS)
