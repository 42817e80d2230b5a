# SPDX-License-Identifier: Apache-2.0
"""Kubelets that count, or have bad manners, and the pod of the plugin itself."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc

from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc
from xpu_plugin.proto import podresources_v1_pb2
from xpu_plugin.simulation.kubelet import Assignment, Kubelet, Registration
from xpu_plugin.simulation.kubelet import Client as KubeletsEnd


def own_pod(kubelet: Kubelet) -> Assignment:
    """The pod in which the plugin runs, as `--pod-name=plugin --pod-namespace=kube-system` says."""
    return kubelet.hold([], resource="none", pod="plugin", namespace="kube-system")


class NotingKubelet(Kubelet):
    """A kubelet that remembers each list: the healthy ids, and in which of its lives it came."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.seen: list[tuple[int, set[str]]] = []

    def _take(self, resource: str, response: api.ListAndWatchResponse) -> None:
        healthy = {device.ID for device in response.devices if device.health == "Healthy"}
        self.seen.append((self._life, healthy))
        super()._take(resource, response)

    def first_list(self) -> set[str]:
        """Of this life."""
        return next(healthy for life, healthy in self.seen if life == self._life)

    def ever(self) -> set[str]:
        """The ids that could be given away at any time."""
        return set().union(*(healthy for _, healthy in self.seen))


class CountingKubelet(Kubelet):
    """A kubelet that counts how often it is asked who holds what."""

    questions = 0

    def pod_resources(self) -> podresources_v1_pb2.ListPodResourcesResponse:
        self.questions += 1
        return super().pod_resources()


class Narrow(Kubelet):
    """Takes in `room` bytes at most of what it has not read."""

    room = 16384

    async def dial(self, registration: Registration) -> KubeletsEnd:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.room),
        )
        channel = grpc.aio.insecure_channel(f"unix:{self.directory / registration.endpoint}", options=options)
        await channel.channel_ready()
        return KubeletsEnd(registration, channel)


class Unread(Narrow):
    """Opens the stream and does not read it, until it is told to and has opened another."""

    reads = False

    async def receive(self, endpoint: KubeletsEnd) -> AsyncGenerator[api.ListAndWatchResponse, None]:
        if self.reads:
            async with aclosing(super().receive(endpoint)) as lists:
                async for response in lists:
                    yield response
            return
        call: Any = endpoint.stub.ListAndWatch(api.Empty())
        try:
            await call.wait_for_connection()
            endpoint.open = True
            self._changed()
            await asyncio.Event().wait()
        finally:
            call.cancel()
            await call.code()


class Hesitant(Kubelet):
    """Answers Register only when the gate is open; `eager`: dials back before it answers."""

    eager = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate = asyncio.Event()
        self.asked = 0

    async def _serve(self, server: grpc.aio.Server, path: Path) -> None:
        if path == self.socket:
            server = grpc.aio.server()
            api_grpc.add_RegistrationServicer_to_server(_HesitantRegistry(self), server)  # type: ignore[no-untyped-call]
        await super()._serve(server, path)


class _HesitantRegistry(api_grpc.RegistrationServicer):
    def __init__(self, kubelet: Hesitant) -> None:
        self._kubelet = kubelet

    async def Register(self, request: api.RegisterRequest, context: Any) -> api.Empty:  # noqa: N802
        self._kubelet.asked += 1
        self._kubelet._changed()
        if self._kubelet.eager:
            self._kubelet._register(request)()
        await self._kubelet.gate.wait()
        if not self._kubelet.eager:
            follow = self._kubelet._register(request)
            context.add_done_callback(lambda _: follow())
        return api.Empty()
