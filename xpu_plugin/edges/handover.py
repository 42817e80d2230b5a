# SPDX-License-Identifier: Apache-2.0
"""The hand-over's socket in --state-dir, and the lines of JSON on it."""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen


SOCKET = "handover.sock"
LONGEST_LINE = 4 << 20  # bytes; the grants of ten thousand devices need about one mebibyte
DISK_SECONDS = 5.0  # for the directory
HIDE_SECONDS = 0.2  # for the removal of the socket: one without a listener does no harm, and the end is near
_CHUNK = 1 << 16  # bytes of one read
_CREDENTIALS = struct.Struct("3i")  # process, user and group of a peer
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class LostError(PluginError):
    """The connection has ended, or the peer sends lines that are none."""


@frozen(kw_only=False)
class Line:
    """One line. descriptor: a file that came with it; the receiver closes it"""

    say: str
    fields: Mapping[str, Any]
    descriptor: int | None = None


class Peer:
    """One connection. Lines go out whole and in order; they arrive although the sender has ended."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._read = bytearray()
        self._descriptors: list[int] = []
        self._sending = asyncio.Lock()

    @property
    def trusted(self) -> bool:
        """Whether the other process belongs to our user."""
        size = _CREDENTIALS.size
        given = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, _ = _CREDENTIALS.unpack(given)
        return bool(user == os.getuid())

    @property
    def ended(self) -> bool:
        """Whether the other side sends no more, as far as the kernel knows; lines may be unread."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | _FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def send(
        self, say: str, fields: Mapping[str, object] | None = None, *, descriptor: int | None = None
    ) -> None:
        """Send a line. It is in the kernel when this returns. Raises LostError."""
        line = json.dumps({"say": say, **(fields or {})}).encode() + b"\n"
        async with self._sending:
            try:
                if descriptor is not None:
                    # A line this short goes out whole, or not at all.
                    socket.send_fds(self._connection, [line], [descriptor], _FLAGS)
                else:
                    await asyncio.get_running_loop().sock_sendall(self._connection, line)
            except OSError as error:
                raise LostError(error.strerror or str(error)) from None

    async def receive(self) -> Line:
        """Return the next line. Raises LostError at the end, and for one that is too long or malformed."""
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > LONGEST_LINE:
                raise LostError("a line is too long")
            if not await self._more():
                raise LostError("the connection has ended")
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        try:
            fields = json.loads(line)
            say = fields.pop("say")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise LostError("a malformed line") from None
        if not isinstance(say, str):
            raise LostError("a malformed line")
        return Line(say, fields, self._descriptors.pop() if self._descriptors else None)

    async def _more(self) -> bool:
        """Read what has come; return whether that was not the end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                part, descriptors, _, _ = socket.recv_fds(self._connection, _CHUNK, 1, _FLAGS)
            except BlockingIOError:
                await _readable(loop, self._connection)
                continue
            except OSError:
                return False
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._descriptors += descriptors
            self._read += part
            return bool(part)

    def hang_up(self) -> None:
        """Send no more. The other side sees the end; its lines are read on."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def shut(self) -> None:
        """End both directions. Lines that have come before can be received."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


class Door:
    """The listener of the instance with the lock."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / SOCKET
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None

    async def open(self) -> None:
        """Listen. It replaces any file there, as only the instance with the lock listens. Raises OSError."""
        self._listener, self._identity = await _on_disk(_listen, self.path)

    async def caller(self) -> Peer:
        """Return the next connection of our user."""
        assert self._listener is not None  # noqa: S101 - it is open
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            peer = Peer(connection)
            if peer.trusted:
                return peer
            peer.close()

    async def hide(self) -> None:
        """Remove the socket, unless another instance has replaced it."""
        identity, self._identity = self._identity, None
        if identity is not None:
            with contextlib.suppress(OSError):
                await _on_disk(_remove, self.path, identity, seconds=HIDE_SECONDS)

    async def close(self) -> None:
        """Stop listening. No `caller` may be awaited any more."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        await self.hide()


async def connected(directory: Path) -> Peer | None:
    """Connect to the instance with the lock; None if it does not listen. Raises no error."""
    try:
        peer = Peer(await _on_disk(_connect, directory / SOCKET))
    except OSError:
        return None
    if peer.trusted:
        return peer
    peer.close()
    return None


async def _on_disk(function: Any, *arguments: Any, seconds: float = DISK_SECONDS) -> Any:
    """Call a function on the thread that may wait for the disk. Raises OSError."""
    async with asyncio.timeout(seconds):
        return await state_thread().call(function, *arguments)


def _listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as address:
            listener.bind(address)
            path.chmod(0o600)
            listener.listen()  # no process can connect before that
        status = path.stat()
    except BaseException:
        listener.close()
        raise
    return listener, (status.st_dev, status.st_ino)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _remove(path: Path, identity: tuple[int, int]) -> None:
    status = path.stat()
    if (status.st_dev, status.st_ino) == identity:
        path.unlink()


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A short path to a socket, as the address of a socket has 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
