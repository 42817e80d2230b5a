# SPDX-License-Identifier: Apache-2.0
"""The floor: a plugin that knows its answers beforehand, and has nothing to do but send them.

`python -m tests.benchmarks.constant DIRECTORY DEVICES`. It shows what the measuring kubelet, the kernel's
sockets and an interpreter cost; no plugin can be faster by much, and none is meant to be as fast.
"""

import select
import socket
import sys
import time
from pathlib import Path

from tests.benchmarks.http2 import ClosedError, Connection, Stream
from xpu_plugin.proto import deviceplugin_pb2 as api


SECONDS = 5.0
NAME = "constant.sock"
RESOURCE = "baidu.com/xpu"


def devices(number: int) -> list[api.Device]:
    return [api.Device(ID=f"0000:{n // 256:02x}:{n % 256:02x}.0", health="Healthy") for n in range(number)]


def register(directory: Path, endpoint: str) -> None:
    """Raises OSError or ClosedError when there is no kubelet."""
    kubelet = Connection.to(str(directory / "kubelet.sock"), SECONDS)
    try:
        options = api.DevicePluginOptions(get_preferred_allocation_available=True)
        request = api.RegisterRequest(
            version="v1beta1", endpoint=endpoint, resource_name=RESOURCE, options=options
        )
        kubelet.unary("/v1beta1.Registration/Register", request.SerializeToString())
    finally:
        kubelet.close()


def answers(number: int) -> dict[bytes, bytes]:
    """Method -> the one answer to it."""
    first = [device.ID for device in devices(number)[:8]]
    paths = ("/dev/xpu0", "/dev/xpuctrl")
    specs = [api.DeviceSpec(host_path=path, container_path=path, permissions="rw") for path in paths]
    granted = api.ContainerAllocateResponse(devices=specs, envs={"XPU_DEVICE_IDS": "0000:00:00.0"})
    preferred = api.ContainerPreferredAllocationResponse(deviceIDs=first)
    return {
        b"GetDevicePluginOptions": b"",
        b"ListAndWatch": api.ListAndWatchResponse(devices=devices(number)).SerializeToString(),
        b"Allocate": api.AllocateResponse(container_responses=[granted]).SerializeToString(),
        b"GetPreferredAllocation": api.PreferredAllocationResponse(
            container_responses=[preferred]
        ).SerializeToString(),
    }


class Endpoint:
    """A plugin's socket, with answers by method; ListAndWatch's streams stay open."""

    def __init__(self, directory: Path, by_method: dict[bytes, bytes]) -> None:
        self._path = directory / NAME
        self._answers = by_method
        self._connections: list[Connection] = []
        self.watchers: list[tuple[Connection, Stream]] = []
        self.bind()

    def bind(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(16)

    def bound(self) -> bool:
        return self._path.is_socket()

    def serve(self, seconds: float) -> None:
        """Answer any request within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sockets = [self._listener, *(connection.socket for connection in self._connections)]
            ready, _, _ = select.select(sockets, [], [], left)
            if self._listener in ready:
                accepted, _ = self._listener.accept()
                self._connections.append(Connection(accepted, server=True))
            for connection in list(self._connections):
                if connection.socket in ready:
                    try:
                        self._take(connection)
                    except ClosedError:
                        self._connections.remove(connection)
                        self.watchers = [one for one in self.watchers if one[0] is not connection]
                        connection.close()

    def _take(self, connection: Connection) -> None:
        for stream in connection.receive():
            if not (stream.messages and stream.ended):
                continue
            stream.messages.clear()
            method = next(name for name in self._answers if name in stream.headers)
            watching = method == b"ListAndWatch"
            connection.answer(stream, self._answers[method], last=not watching)
            if watching:
                self.watchers.append((connection, stream))


def main() -> None:
    directory, number = Path(sys.argv[1]), int(sys.argv[2])
    endpoint = Endpoint(directory, answers(number))
    register(directory, NAME)
    while True:
        endpoint.serve(0.02)
        if not endpoint.bound():
            try:
                endpoint.bind()
                register(directory, NAME)
            except (OSError, ClosedError):
                (directory / NAME).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
