# SPDX-License-Identifier: Apache-2.0
"""The socket's life: serve, register, notice every kind of kubelet restart.

A kubelet life is known by its socket's device, inode and change time: the inode alone may come back.
Register returns before the kubelet dials back, and that may fail unseen; so a stream has to open, or we
register again. A kubelet that starts deletes every socket in the directory, ours too.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc

from xpu_plugin.edges.channel import address, held, told
from xpu_plugin.edges.engine import require_room
from xpu_plugin.edges.service import OPTIONS, DevicePluginService, server_of
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc
from xpu_plugin.record import record


logger = logging.getLogger(__name__)

VERSION = "v1beta1"
KUBELET_SOCKET = "kubelet.sock"
SOCKET_PREFIX = "xpu-device-plugin"
DESCRIPTORS = Path("/proc/self/fd")
"""By it a kubelet's very socket is connected to, whatever has its name meanwhile."""

STREAM_POLL_SECONDS = 1.0  # between looks at kubelet.sock while a stream is open
FAST_POLL_SECONDS = 0.01  # between looks for a kubelet that has just gone ...
FAST_FOR_SECONDS = 30.0  # ... for so long; a restart takes two to three
SLOW_POLL_SECONDS = 0.08  # and after that
DIAL_BACK_SECONDS = 10.0  # for the kubelet to open a stream after a registration
REGISTER_SECONDS = 5.0  # deadline of the call
AGAIN_SECONDS = (1.0, 30.0)  # back-off of registrations within one kubelet life: first, most
LOCK_SECONDS = 1.0  # between attempts to become the only plugin
STOP_SECONDS = 0.2  # for calls in progress when a server stops

Delays = Callable[[float, float], Iterator[float]]
"""A back-off: (first, most) seconds -> what to wait, time after time."""

# Within a kubelet's first moments its socket is there and nobody listens yet.
_REFUSED_SECONDS = (0.01, 1.0)
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # no connection state shared between attempts
    # Of a call on a connection that is just ending gRPC makes a new attempt at once, and again: now and then
    # that takes a gigabyte within a second (grpcio 1.85, at one kubelet restart in some thousand).
    ("grpc.enable_retries", 0),
)


@record(kw_only=False)
class Identity:
    """One life of a kubelet, or one socket file of ours."""

    device: int
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "Identity | None":
        """The identity of the socket at `path`; None when there is none."""
        try:
            status = os.stat(path)  # noqa: PTH116 - called a hundred times a second while a kubelet is away
        except OSError:
            return None
        if not stat.S_ISSOCK(status.st_mode):
            return None
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns)


class InstanceLock:
    """At most one plugin works in a device plugin directory: a lock on the directory itself, which ends
    with the process and leaves no file.

    on_waited: awaited whenever it was waited for, before any work is done
    """

    def __init__(self, directory: Path) -> None:
        self.on_waited: Callable[[], Awaitable[None]] | None = None
        self._directory = directory
        self._acquiring = asyncio.Lock()
        self._descriptor: int | None = None
        self._complaint: str | None = None
        self.rival = False  # whether another plugin had it when it was tried last

    def acquire_at_once(self) -> None:
        """Take it if it is free: before anything is read that another plugin may change."""
        self._try()

    async def acquire(self) -> None:
        """Wait until the directory exists and no other plugin has it."""
        async with self._acquiring:
            if self.held():
                return
            while not self._try():  # noqa: ASYNC110 - nothing tells us when another process lets go
                await asyncio.sleep(LOCK_SECONDS)
            self._complaint = None
            if self.on_waited is not None:
                await self.on_waited()

    def held(self) -> bool:
        """Whether what is locked is still the directory at that path."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._directory))  # noqa: PTH116
        except OSError:
            return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        if self.held():
            return True
        self.release()
        if not DESCRIPTORS.is_dir():
            self._complain(
                f"waiting for {DESCRIPTORS}: /proc is not mounted, or hides us; mount it to register"
            )
            return False
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._complain(
                f"waiting for the kubelet's directory {self._directory}: {error.strerror}; where the kubelet "
                "has another one, name it by --device-plugin-dir, in a pod by its hostPath"
            )
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            self.rival = True
            self._complain(f"waiting: another plugin works in {self._directory}")
            return False
        self._descriptor, self.rival = descriptor, False
        return self.held()

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            logger.warning("%s", text)
            self._complaint = text


class Endpoint:
    """One resource's socket and its registration with whatever kubelet there is.

    note: takes each registration, and each new reason why there is none
    """

    def __init__(
        self,
        service: DevicePluginService,
        *,
        directory: Path,
        socket: str,
        lock: InstanceLock,
        delays: Delays,
        note: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._service = service
        self._directory = directory
        self._name = socket
        self._path = directory / socket
        self._kubelet = directory / KUBELET_SOCKET
        self._lock = lock
        self._delays = delays
        self._note = note
        self._server: grpc.aio.Server | None = None
        self._bound: Identity | None = None
        self.resource = service.resource
        self.registrations = 0
        self.failures = 0  # of registrations

    async def run(self) -> None:
        """Serve and stay registered until cancelled; then end the streams and remove the socket."""
        try:
            await self._live()
        finally:
            await self._stop()

    async def _live(self) -> None:
        registered: Identity | None = None  # the kubelet life we are known to
        seen: Identity | None = None  # the one that was there when last looked at
        opened_at: float | None = None  # since when a stream is open
        asked: tuple[Identity | None, float] = (None, 0.0)  # whom we asked last, and when
        try_at = idle_since = time.monotonic()
        again = self._delays(*AGAIN_SECONDS)
        refused = self._delays(*_REFUSED_SECONDS)
        complaint: str | None = None
        while True:
            self._service.streams_changed.clear()
            if self._server is not None and (crash := await _crash(self._server)):
                logger.warning("serving resource=%s anew: gRPC gave up (%s)", self._service.resource, crash)
                await self._stop()
                registered = None
            now = time.monotonic()
            streaming = self._service.streams > 0
            if streaming and opened_at is None:
                opened_at = now
            elif not streaming and opened_at is not None:
                logger.info("the kubelet ended its stream resource=%s", self._service.resource)
                if now - opened_at > DIAL_BACK_SECONDS:
                    again = self._delays(*AGAIN_SECONDS)
                opened_at, idle_since, try_at = None, now, now + next(again)

            kubelet = Identity.of(self._kubelet)
            if opened_at is not None and asked[0] == kubelet and opened_at >= asked[1]:
                registered = kubelet  # it dialled back, whatever became of its answer
            if kubelet != seen:
                seen, idle_since, try_at = kubelet, now, now
                refused = self._delays(*_REFUSED_SECONDS)
            if kubelet is None:
                if complaint is None:
                    complaint = f"waiting for the kubelet's socket {self._kubelet}"
                    logger.info("%s", complaint)
            elif now >= try_at and (kubelet != registered or not streaming):
                began = now
                kubelet, trouble = await self._register()
                seen, asked = kubelet, (kubelet, began)
                if trouble is None or trouble != complaint:
                    self._note(
                        "registration",
                        resource=self._service.resource,
                        kubelet=str(kubelet),
                        known_to=str(registered),
                        trouble=trouble,
                    )
                now = time.monotonic()
                self.registrations += trouble is None
                self.failures += trouble is not None
                if trouble is None:
                    registered, idle_since, try_at = kubelet, now, now + DIAL_BACK_SECONDS
                else:
                    try_at = now + next(again if kubelet == registered else refused)
                    if trouble != complaint:
                        logger.warning("cannot register resource=%s: %s", self._service.resource, trouble)
                complaint = trouble
                continue
            if streaming:
                await self._pause(STREAM_POLL_SECONDS)
            else:
                fast = now - idle_since < FAST_FOR_SECONDS
                await self._pause(FAST_POLL_SECONDS if fast else SLOW_POLL_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Wait; a stream that opens or ends is news at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._service.streams_changed.wait()
        except TimeoutError:
            pass

    async def _register(self) -> tuple[Identity | None, str | None]:
        """Have our socket in place, then say so to the kubelet that is there now; returns which one that was
        and what went wrong, if anything did."""
        await self._lock.acquire()
        if trouble := await self._bind():
            return Identity.of(self._kubelet), trouble
        with contextlib.ExitStack() as stack:
            try:
                kubelet = stack.enter_context(held(self._kubelet))  # that very socket, whatever has its name
            except OSError as error:
                return None, f"{self._kubelet}: {error.strerror}"
            return Identity.of(kubelet), await self._say_so(kubelet)

    async def _say_so(self, kubelet: Path) -> str | None:
        """Register at that socket; returns what went wrong, if anything did."""
        request = api.RegisterRequest(
            version=VERSION,
            endpoint=self._name,
            resource_name=self._service.resource,
            options=OPTIONS,
        )
        async with grpc.aio.insecure_channel(address(kubelet), options=_CHANNEL_OPTIONS) as channel:
            try:
                stub = api_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]  # generated
                await stub.Register(request, timeout=REGISTER_SECONDS)
            except grpc.aio.AioRpcError as error:
                return told(error, self._kubelet)
        logger.info("registered resource=%s endpoint=%s", self._service.resource, self._name)
        return None

    async def _bind(self) -> str | None:
        """Have our socket in place; returns what went wrong, if anything did."""
        if self._server is None or Identity.of(self._path) != self._bound:
            try:
                await self._serve()
            except (OSError, RuntimeError) as error:  # the latter is what gRPC raises
                await self._stop()
                return f"cannot bind {self._path}: {error}"
        return None

    async def _serve(self) -> None:
        """Bind anew. The old server goes first: when it stops it unlinks its path, whoever bound it."""
        await self._stop()
        self._path.unlink(missing_ok=True)
        require_room()
        server = server_of(self._service)
        server.add_insecure_port(address(self._path))
        self._server = server
        try:
            self._path.chmod(0o600)
            self._bound = Identity.of(self._path)
            if self._bound is None:
                raise FileNotFoundError("it was deleted at once")
        finally:
            # Whatever happened: gRPC cannot stop a server that never ran, or is not quite started.
            starting = asyncio.ensure_future(server.start())
            try:
                await asyncio.shield(starting)
            finally:
                await starting

    async def _stop(self) -> None:
        if self._server is None:
            return
        self._service.close()
        server, self._server = self._server, None
        bound, self._bound = self._bound, None
        await server.stop(STOP_SECONDS)
        if bound is not None and Identity.of(self._path) == bound:
            self._path.unlink(missing_ok=True)


async def _crash(server: grpc.aio.Server) -> Exception | None:
    """Why a server takes no more calls although nobody stopped it. A call of a method whose name is no text
    has that effect (grpcio 1.85), and whoever has a stream open, or waits for an answer, is not told."""
    try:
        await server.wait_for_termination(timeout=0)
    except Exception as error:  # noqa: BLE001 - whatever it was
        return error
    return None


def socket_name(resource: str, base: str) -> str:
    """File name of a resource's socket: the plain one for `base`, one with the profile's name otherwise."""
    if resource == base:
        return f"{SOCKET_PREFIX}.sock"
    return f"{SOCKET_PREFIX}-{resource.partition('/')[2]}.sock"
