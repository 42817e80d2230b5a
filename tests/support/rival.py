# SPDX-License-Identifier: Apache-2.0
"""A plugin that registers our resource name, as the former one does: it knows nothing of our lock."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from tests.support.machines import RESOURCE
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc


class Rival(api_grpc.DevicePluginServicer):
    """Lists devices "0" and "1", healthy for ever, and refuses to grant them."""

    IDS = frozenset({"0", "1"})

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = grpc.aio.server()
        self._starts = 0

    async def start(self) -> None:
        """Serve at a new socket, and register."""
        await self.bind()
        await self.register()

    async def bind(self) -> None:
        """Serve at a new socket."""
        self._starts += 1
        self._server = grpc.aio.server()
        api_grpc.add_DevicePluginServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"unix:{self._directory / self._socket}")
        await self._server.start()

    async def register(self) -> None:
        """Register, once more."""
        request = api.RegisterRequest(version="v1beta1", endpoint=self._socket, resource_name=RESOURCE)
        async with grpc.aio.insecure_channel(f"unix:{self._directory / 'kubelet.sock'}") as channel:
            await api_grpc.RegistrationStub(channel).Register(request)  # type: ignore[no-untyped-call]

    async def stop(self) -> None:
        """End all streams."""
        await self._server.stop(None)

    async def kill(self) -> None:
        """End all streams, and leave the socket."""
        path, aside = self._directory / self._socket, self._directory / "aside"
        path.rename(aside)
        await self.stop()
        aside.rename(path)

    async def ListAndWatch(  # noqa: N802
        self, request: api.Empty, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[api.ListAndWatchResponse]:
        ids = sorted(self.IDS)
        yield api.ListAndWatchResponse(devices=[api.Device(ID=id, health="Healthy") for id in ids])
        await asyncio.Event().wait()

    async def Allocate(  # noqa: N802
        self, request: api.AllocateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> api.AllocateResponse:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")

    @property
    def _socket(self) -> str:
        return f"rival-{self._starts}.sock"
