# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the former plugin: `former.py SOCKET RESOURCE` offers each /dev/xpuN as device "N".

What it has of that one is what it leaves to its successor: containers that hold devices by the number of
their node, without a PreStartContainer. It registers once, with the kubelet beside its socket, and stays
until SIGTERM.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc


class Former(api_grpc.DevicePluginServicer):
    """Devices "0", "1" and so on, all healthy for ever."""

    def __init__(self) -> None:
        self.leaving = threading.Event()

    def GetDevicePluginOptions(  # noqa: N802
        self, request: api.Empty, context: grpc.ServicerContext
    ) -> api.DevicePluginOptions:
        return api.DevicePluginOptions()

    def ListAndWatch(  # noqa: N802
        self, request: api.Empty, context: grpc.ServicerContext
    ) -> Iterator[api.ListAndWatchResponse]:
        ids = sorted(path.name.removeprefix("xpu") for path in Path("/dev").glob("xpu[0-9]*"))
        yield api.ListAndWatchResponse(devices=[api.Device(ID=id, health="Healthy") for id in ids])
        self.leaving.wait()

    def Allocate(  # noqa: N802
        self, request: api.AllocateRequest, context: grpc.ServicerContext
    ) -> api.AllocateResponse:
        return api.AllocateResponse(
            container_responses=[
                api.ContainerAllocateResponse(
                    devices=[
                        api.DeviceSpec(container_path=path, host_path=path, permissions="rw")
                        for path in (*(f"/dev/xpu{id}" for id in container.devices_ids), "/dev/xpuctrl")
                    ]
                )
                for container in request.container_requests
            ]
        )


def main(socket: Path, resource: str) -> None:
    former = Former()
    signal.signal(signal.SIGTERM, lambda *_: former.leaving.set())
    server = grpc.server(ThreadPoolExecutor())
    api_grpc.add_DevicePluginServicer_to_server(former, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    with grpc.insecure_channel(f"unix://{socket.parent / 'kubelet.sock'}") as channel:
        api_grpc.RegistrationStub(channel).Register(  # type: ignore[no-untyped-call]
            api.RegisterRequest(version="v1beta1", endpoint=socket.name, resource_name=resource), timeout=5
        )
    former.leaving.wait()
    server.stop(grace=None).wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
