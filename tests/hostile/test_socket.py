# SPDX-License-Identifier: Apache-2.0
"""The plugin's socket in hostile hands: all of it is refused or ignored, memory stays bounded, and the
kubelet's own connection notices nothing."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import grpc
import pytest

from tests.hostile.http2 import (
    CONTINUATION,
    DATA,
    HEADERS,
    LONGEST_FRAME,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    begin,
    call,
    frame,
    header,
    kinds,
    message,
    number,
)
from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.processes import MIB, Level, peak, settles, unix_sockets
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet.service import LONGEST_MESSAGE, LONGEST_REFUSAL, MOST_CONTAINERS, MOST_STREAMS
from xpu_plugin.model.timings import Timings
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.simulation.kubelet import Kubelet


INVALID, UNKNOWN = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, UNIMPLEMENTED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED
GROWTH = 64 * MIB
"""The memory that a client may take of the plugin, for a moment."""

# The real daemon, but for its patience with connections.
IMPATIENT = impatient(Timings(handshake=1.0, idle=1.0))
# The real daemon with few descriptors.
POOR = (
    "-c",
    """
import resource, sys
from xpu_plugin import cli
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.exit(cli.main(sys.argv[1:]))
""",
)

pytestmark = pytest.mark.usefixtures("leaves_no_process")


async def works(kubelet: Kubelet) -> None:
    """A pod is admitted and starts."""
    kubelet.free(await kubelet.allocate(RESOURCE, 1))


@asynccontextmanager
async def unharmed(kubelet: Kubelet, daemon: Daemon) -> AsyncIterator[None]:
    """During the body the kubelet is served and keeps its stream, and nothing stays or was much."""
    await works(kubelet)
    before, top, lists = Level.of(daemon.pid), peak(daemon.pid), kubelet.lists(RESOURCE)
    yield
    await works(kubelet)
    assert (kubelet.streams_open, kubelet.lists(RESOURCE), len(kubelet.registrations)) == (1, lists, 1)
    assert peak(daemon.pid) < top + GROWTH
    await settles(daemon.pid, before, memory=GROWTH)


class Peer:
    """A connection on which anything may be said."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.heard = b""
        self.closed = False

    async def says(self, raw: bytes) -> None:
        """Say it, as far as the other end listens."""
        with suppress(OSError):  # it has closed meanwhile
            await asyncio.get_running_loop().sock_sendall(self.socket, raw)

    async def listens(self) -> None:
        """Until the other end closes."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while more := await loop.sock_recv(self.socket, 1 << 16):
                self.heard += more
        self.closed = True

    def close(self) -> None:
        self.socket.close()


@contextmanager
def peers(node: Node, count: int, address: str | tuple[str, int] = "") -> Iterator[list[Peer]]:
    with ExitStack() as stack:
        found = [Peer(address or str(node.socket)) for _ in range(count)]
        for peer in found:
            stack.callback(peer.close)
        yield found


@asynccontextmanager
async def meanwhile(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """During the body this goes on, and no longer."""
    tasks = [asyncio.create_task(each) for each in work]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# --- frames ---------------------------------------------------------------------------------------

HELLO = PREFACE + frame(SETTINGS)
CLOSED, REFUSED, IGNORED = "the connection is closed", "the call is refused", "nothing but an answer"
OUTCOMES: dict[str, Callable[[Peer], object]] = {
    CLOSED: lambda peer: peer.closed,
    REFUSED: lambda peer: {HEADERS, RST_STREAM} & set(kinds(peer.heard)),
    IGNORED: lambda peer: peer.heard,
}

FRAMES: dict[str, tuple[str, bytes]] = {
    "noise": (CLOSED, random.Random(1).randbytes(4096)),
    "HTTP/1.1": (CLOSED, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "TLS": (CLOSED, bytes.fromhex("1603010200010001fc0303") + bytes(500)),
    "a frame of 16 MiB": (CLOSED, HELLO + frame(DATA, b"x" * 100, length=LONGEST_FRAME)),
    "settings of odd size": (CLOSED, PREFACE + frame(SETTINGS, bytes(5))),
    "settings of a huge window": (CLOSED, PREFACE + frame(SETTINGS, b"\0\4" + b"\xff" * 4)),
    "a window that grows by nothing": (CLOSED, HELLO + frame(WINDOW_UPDATE, bytes(4))),
    "a window that overflows": (IGNORED, HELLO + frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff") * 4),
    "an unknown kind of frame": (IGNORED, HELLO + frame(99, b"x" * 100)),
    "headers continued before they began": (CLOSED, HELLO + frame(CONTINUATION, b"x", stream=1)),
    "headers without end": (
        IGNORED,
        HELLO + begin(1, flags=0) + frame(CONTINUATION, header("x", "y" * 1000), stream=1) * 5000,
    ),
    "many headers": (IGNORED, HELLO + begin(1, block=call() + header("x", "y" * 100) * 150)),
    "a header from nowhere": (CLOSED, HELLO + begin(1, block=b"\xff\xff\xff\xff\x0f")),
    "a header of 1 GiB": (CLOSED, HELLO + begin(1, block=b"\0" + number(1 << 30, 7))),
    "a header table of 1 GiB": (CLOSED, HELLO + begin(1, block=number(1 << 30, 5, 0x20) + call())),
    "a stream of the server's": (IGNORED, HELLO + begin(2)),
    "headers of no stream": (IGNORED, HELLO + begin(0)),
    "a promise": (IGNORED, HELLO + frame(PUSH_PROMISE, b"\0\0\0\2" + call(), stream=1, flags=4)),
    "bytes of a stream that was not begun": (IGNORED, HELLO + frame(DATA, b"x", stream=7)),
    "20000 calls begun and reset": (
        IGNORED,
        HELLO + b"".join(begin(n) + frame(RST_STREAM, b"\0\0\0\x08", stream=n) for n in range(1, 40000, 2)),
    ),
    "20000 calls begun and left": (REFUSED, HELLO + b"".join(begin(n) for n in range(1, 40000, 2))),
    "50000 pings": (CLOSED, HELLO + frame(PING, b"12345678") * 50000),
    "50000 settings": (IGNORED, HELLO + frame(SETTINGS) * 50000),
    "50000 empty pieces": (CLOSED, HELLO + begin(1) + frame(DATA, stream=1) * 50000),
    "a message of 4 GiB": (
        REFUSED,
        HELLO + begin(1) + frame(DATA, message(b"", length=(1 << 32) - 1), stream=1),
    ),
    "a message said to be compressed": (
        REFUSED,
        HELLO + begin(1) + frame(DATA, message(b"x", compressed=1), stream=1, flags=1),
    ),
    "half a message": (IGNORED, HELLO + begin(1) + frame(DATA, message(b"x", length=100), stream=1, flags=1)),
    "no message": (IGNORED, HELLO + begin(1, flags=5)),
    "two messages": (REFUSED, HELLO + begin(1) + frame(DATA, message(b"") * 2, stream=1, flags=1)),
}


async def test_frames_that_no_client_sends(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        for name, (outcome, raw) in FRAMES.items():
            with peers(node, 1) as [peer]:
                async with meanwhile(peer.listens(), peer.says(raw)):
                    await works(kubelet)
                    await until(partial(OUTCOMES[outcome], peer), f"{name}: {outcome}")
    await daemon.says_exactly("granted", times=len(FRAMES) + 2)  # what the kubelet has asked for


async def test_a_conversation_with_any_byte_changed(node: Node, kubelet: Kubelet) -> None:
    """What a kubelet says when it allocates, garbled in 200 ways: none makes the plugin end, stop or grant
    anything but what was asked for."""
    daemon = node.start()
    await shows(kubelet, IDS)
    request = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=[IDS[1]])])
    good = HELLO + begin(1) + frame(DATA, message(request.SerializeToString()), stream=1, flags=1)
    headers = range(len(HELLO), len(HELLO + begin(1)))
    chance = random.Random(2)
    async with unharmed(kubelet, daemon):
        for _ in range(20):
            with peers(node, 10) as those:
                for peer in those:
                    raw = bytearray(good)
                    for _ in range(chance.randint(1, 4)):
                        at = chance.randrange(len(PREFACE), len(raw))
                        raw[at] = chance.randrange(128 if at in headers else 256)  # for the others see below
                    await peer.says(bytes(raw))
                await works(kubelet)
    granted = {line.split("ids=")[1].split()[0] for line in daemon.log.splitlines() if " granted " in line}
    assert granted <= {IDS[0], IDS[1]}


async def test_a_method_whose_name_is_no_text_makes_grpc_give_up_and_the_plugin_serve_anew(
    node: Node, kubelet: Kubelet
) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    await works(kubelet)
    before = Level.of(daemon.pid)
    for time in (1, 2):
        with peers(node, 1) as [peer]:
            await peer.says(HELLO + begin(1, block=call(b"/v1beta1.DevicePlugin/All\xffcate")))
            await daemon.says(
                "serving anew resource=baidu.com/xpu error=\"'utf-8' codec can't decode byte 0xff", times=time
            )
            await kubelet.until(lambda time=time: len(kubelet.registrations) == time + 1, timeout=SECONDS)  # type: ignore[misc]
        await shows(kubelet, IDS)
        await works(kubelet)
    await settles(daemon.pid, before)
    assert unix_sockets(node.socket) == 2
    await daemon.stop()
    node.daemons.clear()  # gRPC has logged tracebacks


async def test_calls_that_one_connection_may_have_at_once_are_few(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        with peers(node, 8) as those:
            for peer in those:
                await peer.says(HELLO + b"".join(begin(2 * n + 1) for n in range(20 * MOST_STREAMS)))
            async with meanwhile(*(peer.listens() for peer in those)):
                await until(
                    lambda: all(kinds(peer.heard).get(RST_STREAM, 0) >= 19 * MOST_STREAMS for peer in those),
                    "all calls but a few refused",
                )
                await works(kubelet)


# --- slow ones ------------------------------------------------------------------------------------


async def test_connections_that_are_silent_or_slow_are_closed(node: Node, kubelet: Kubelet) -> None:
    """Before they have said that they speak HTTP/2, and after that when they have no call."""
    daemon = node.start(program=IMPATIENT)
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        with peers(node, 200) as those:
            for number_, peer in enumerate(those):
                await peer.says((b"", PREFACE[:5], PREFACE, HELLO)[number_ % 4])
            await works(kubelet)
            async with meanwhile(*(peer.listens() for peer in those)):
                await until(lambda: all(peer.closed for peer in those), "the end of all of them")
        assert kubelet.streams_open == 1, "the connection has a call"


async def test_a_call_that_comes_by_the_byte_holds_up_nobody_and_costs_nothing_that_stays(
    node: Node, kubelet: Kubelet
) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    slow = HELLO + begin(1) + frame(DATA, message(b"", length=1000), stream=1)
    async with unharmed(kubelet, daemon):
        with peers(node, 50) as those:
            for octet in slow:
                for peer in those:
                    await peer.says(bytes([octet]))
            await until(lambda: unix_sockets(node.socket) == 52, "all connections open")
            await works(kubelet)
        await until(lambda: unix_sockets(node.socket) == 2, "the end of all of them")


async def test_when_connections_take_all_descriptors_the_kubelet_is_served_and_all_comes_back(
    node: Node, kubelet: Kubelet
) -> None:
    daemon = node.start(program=POOR)
    await shows(kubelet, IDS)
    await works(kubelet)
    before = Level.of(daemon.pid)
    with peers(node, 100):
        await daemon.says("File descriptor limit reached")
        await works(kubelet)
        node.machine.set_card(1, {"state": "207"})
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
    node.machine.set_card(1, {"state": ""})
    await shows(kubelet, IDS)
    assert len(kubelet.registrations) == 1
    await settles(daemon.pid, before)


async def test_strangers_at_the_other_sockets_are_closed_soon_and_harm_nobody(
    node: Node, kubelet: Kubelet
) -> None:
    """At the port of the probes, which others than root can reach, and at the status socket."""
    status = node.place / "run/status.sock"
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port: tuple[str, int] = any_port.getsockname()
    daemon = node.start(f"--status-socket={status}", f"--metrics-address=127.0.0.1:{port[1]}")
    await shows(kubelet, IDS)
    said = (
        b"",
        b"GET /hea",
        b"\xff" * 70_000,
        b'{"ask": [[[[',
        b"[" * 60_000 + b"\n",
        b"null\n",
        b'{"ask": {}}\n',
    )
    async with unharmed(kubelet, daemon):
        with peers(node, 70, str(status)) as ours, peers(node, 70, port) as public:
            those = [*ours, *public]
            async with meanwhile(*(peer.listens() for peer in those)):
                for number_, peer in enumerate(those):
                    await peer.says(said[number_ % len(said)])
                await works(kubelet)
                await until(lambda: all(peer.closed for peer in those), "the end of all of them")


# --- messages -------------------------------------------------------------------------------------

ALLOCATE, PREFER, START = "Allocate", "GetPreferredAllocation", "PreStartContainer"


def asks(*containers: Sequence[str]) -> bytes:
    requests = [api.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    return api.AllocateRequest(container_requests=requests).SerializeToString()


def starts(*ids: str) -> bytes:
    return api.PreStartContainerRequest(devices_ids=ids).SerializeToString()


def prefers(ids: Sequence[str], size: int) -> bytes:
    container = api.ContainerPreferredAllocationRequest(available_deviceIDs=ids, allocation_size=size)
    return api.PreferredAllocationRequest(container_requests=[container]).SerializeToString()


MANY = [f"{n:x}" for n in range(40_000)]
LONG = "x" * (LONGEST_MESSAGE - 100)
OK = grpc.StatusCode.OK

MESSAGES: dict[str, tuple[str, bytes, grpc.StatusCode]] = {
    "noise": (ALLOCATE, random.Random(3).randbytes(1000), INVALID),
    "noise to start with": (START, b"\xff" * 100, INVALID),
    "noise to prefer": (PREFER, b"\x08", INVALID),
    "bytes that are no text": (ALLOCATE, b"\x0a\x04\x0a\x02\xff\xfe", INVALID),
    "a length beyond the end": (ALLOCATE, b"\x0a\xff\xff\xff\xff\x0f", INVALID),
    "groups in groups": (ALLOCATE, b"\x13" * 10_000, INVALID),
    "nothing": (ALLOCATE, b"", OK),
    "a container without ids": (ALLOCATE, asks([]), INVALID),
    "the empty id": (ALLOCATE, asks([""]), UNKNOWN),
    "control characters": (ALLOCATE, asks(["a\nERROR b\x1b[31m\0"]), UNKNOWN),
    "a name of another script": (ALLOCATE, asks(["\N{CJK UNIFIED IDEOGRAPH-5361}" * 80_000]), UNKNOWN),
    "a path": (START, starts("../../../../etc/passwd"), UNKNOWN),
    "an old id that is no number": (START, starts("9" * 5000), UNKNOWN),
    "an id of 256 KiB": (ALLOCATE, asks([LONG]), UNKNOWN),
    "that id twice": (ALLOCATE, asks([LONG[: len(LONG) // 2 - 100]] * 2), INVALID),
    "thousands of ids": (ALLOCATE, asks(MANY), UNKNOWN),
    "thousands of ids twice": (ALLOCATE, asks(MANY[: len(MANY) // 2] * 2), INVALID),
    "one id thousands of times": (ALLOCATE, asks([IDS[1]] * 18_000), INVALID),
    "thousands of ids to start with": (START, starts(*MANY), UNKNOWN),
    "thousands of ids to prefer": (PREFER, prefers(MANY, 4), OK),
    "a preference for more than there are": (PREFER, prefers(IDS, (1 << 31) - 1), OK),
    "a preference for less than none": (PREFER, prefers(IDS, -(1 << 31)), OK),
    "more containers than a node has": (ALLOCATE, b"\x0a\x00" * (LONGEST_MESSAGE // 2), INVALID),
    "a few containers too many": (PREFER, b"\x0a\x00" * (MOST_CONTAINERS + 1), INVALID),
    "more than 256 KiB": (PREFER, b"\x0a\x00" * LONGEST_MESSAGE, EXHAUSTED),
    "a method that there is not": ("Reset", b"", UNIMPLEMENTED),
}


async def answer(node: Node, method: str, body: bytes) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        calling: Any = channel.unary_unary(f"/v1beta1.DevicePlugin/{method}", bytes, bytes)
        try:
            await calling(body, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return OK, ""


async def test_messages_that_no_kubelet_sends(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        for name, (method, body, code) in MESSAGES.items():
            asking = asyncio.create_task(answer(node, method, body))
            await works(kubelet)
            got, text = await asking
            assert got is code, (name, text[:200])
            assert len(text) <= LONGEST_REFUSAL + 3, name
    lines = daemon.log.splitlines()
    assert daemon.log.isprintable() or all(line.isprintable() for line in lines)
    assert max(map(len, lines[1:])) < LONGEST_REFUSAL + 300
    assert "ERROR" not in {line.split()[1] for line in lines if len(line.split()) > 1}
    assert daemon.log.count("malformed") == 0
    await daemon.says_exactly("no message of the kubelet's path=/v1beta1.DevicePlugin/", times=6)


async def test_a_stream_asked_for_with_noise_is_a_stream(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon), grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        watch: Any = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch", bytes, bytes)
        stream = watch(os.urandom(100), timeout=SECONDS)
        listed = api.ListAndWatchResponse.FromString(await stream.read())
        assert [device.ID for device in listed.devices] == IDS
        stream.cancel()
