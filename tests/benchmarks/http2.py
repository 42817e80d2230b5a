# SPDX-License-Identifier: Apache-2.0
"""As much of gRPC over HTTP/2 as a kubelet and a plugin say to each other, in a few microseconds a call.

h2 is not used: its client takes as long for a call as some of the plugins that are compared.

Both ends of a connection, on a blocking socket. Headers are sent as literals and never decoded: a call that
ends without a message has failed, and a server finds the method's name in them only when it was sent
from here. Flow control is obeyed one way (what is sent waits for room) and declined the other (what comes is
given all the room there is).
"""

import socket
import struct
from collections import deque
from dataclasses import dataclass, field


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER = struct.Struct("!BHBBI")  # length (8 + 16 bits), type, flags, stream
_MESSAGE = struct.Struct("!BI")  # compressed, length
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_INITIAL_WINDOW = 4  # the number of a setting
_DEFAULT_WINDOW = 65535
_MOST = (1 << 31) - 1
_FRAME = 16384  # bytes that every peer takes
_RECEIVE = 1 << 18


class ClosedError(Exception):
    """The other end is gone."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header; `name` is the length-prefixed name, or an index."""
    return name + bytes([len(value)]) + value


def _named(name: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name


_CONTENT = _literal(b"\x0f\x10", b"application/grpc")
_ANSWER = b"\x88" + _CONTENT
_TRAILERS = _literal(_named(b"grpc-status"), b"0")
_GREETING = _frame(_SETTINGS, 0, 0, struct.pack("!HI", _INITIAL_WINDOW, _MOST)) + _frame(
    _WINDOW, 0, 0, struct.pack("!I", _MOST - _DEFAULT_WINDOW)
)


def _request_headers(path: str) -> bytes:
    return (
        b"\x83\x86"  # POST, http
        + _literal(b"\x04", path.encode())
        + _literal(b"\x01", b"localhost")
        + _CONTENT
        + b"\x00\x02te\x08trailers"
    )


@dataclass(slots=True)
class Stream:
    """One call. messages: that have come and were not taken; headers: what came first, as it came"""

    number: int
    window: int
    headers: bytes = b""
    last: bytes = b""
    messages: deque[bytes] = field(default_factory=deque)
    ended: bool = False
    part: bytearray = field(default_factory=bytearray)


class Connection:
    """received: bytes that came, and `sent` bytes that went, since the beginning."""

    def __init__(self, connected: socket.socket, *, server: bool) -> None:
        self.socket = connected
        self.streams: dict[int, Stream] = {}
        self.received = self.sent = 0
        self._preface = len(PREFACE) if server else 0
        self._buffer = bytearray()
        self._next = 1
        self._window = self._initial = _DEFAULT_WINDOW
        self._credit = 0
        self._paths: dict[str, bytes] = {}
        self._write(_GREETING if server else PREFACE + _GREETING)

    @classmethod
    def to(cls, path: str, seconds: float) -> "Connection":
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.settimeout(seconds)
            connecting.connect(path)
            return cls(connecting, server=False)
        except OSError:
            connecting.close()
            raise

    def close(self) -> None:
        self.socket.close()

    # --- sending --------------------------------------------------------------------------------

    def call(self, path: str, message: bytes) -> Stream:
        """Begin a call with this as its only message."""
        stream = self.streams[self._next] = Stream(self._next, self._initial)
        self._next += 2
        headers = self._paths.get(path)
        if headers is None:
            headers = self._paths[path] = _request_headers(path)
        self._send(stream, headers, message, b"", end=True)
        return stream

    def answer(self, stream: Stream, message: bytes, *, last: bool = True) -> None:
        """Send a message of an answer; with `last` the call has succeeded and is over."""
        headers = b"" if stream.last == _ANSWER else _ANSWER
        stream.last = _ANSWER
        self._send(stream, headers, message, _TRAILERS if last else b"", end=False)
        if last:
            self.streams.pop(stream.number, None)

    def _send(self, stream: Stream, headers: bytes, message: bytes, trailers: bytes, *, end: bool) -> None:
        number = stream.number
        out = _frame(_HEADERS, _END_HEADERS, number, headers) if headers else b""
        body = _MESSAGE.pack(0, len(message)) + message
        if len(body) <= min(_FRAME, self._window, stream.window):
            self._window -= len(body)
            stream.window -= len(body)
            out += _frame(_DATA, _END_STREAM if end else 0, number, body)
        else:
            self._write(out)
            out = b""
            while body:
                while (room := min(_FRAME, self._window, stream.window)) <= 0:
                    self.receive()
                part, body = body[:room], body[room:]
                self._window -= len(part)
                stream.window -= len(part)
                self._write(_frame(_DATA, _END_STREAM if end and not body else 0, number, part))
        if trailers:
            out += _frame(_HEADERS, _END_HEADERS | _END_STREAM, number, trailers)
        if out:
            self._write(out)

    def _write(self, frames: bytes) -> None:
        try:
            self.socket.sendall(frames)
        except TimeoutError:
            raise
        except OSError as error:
            raise ClosedError(str(error)) from None
        self.sent += len(frames)

    # --- receiving ------------------------------------------------------------------------------

    def receive(self) -> list[Stream]:
        """Take what has come, waiting for something to come. The streams that it belonged to.

        Raises ClosedError, or TimeoutError by the socket's timeout.
        """
        try:
            part = self.socket.recv(_RECEIVE)
        except TimeoutError:
            raise
        except OSError as error:
            raise ClosedError(str(error)) from None
        if not part:
            raise ClosedError("the other end closed")
        self.received += len(part)
        buffer = self._buffer
        buffer += part
        if self._preface:
            if len(buffer) < self._preface:
                return []
            del buffer[: self._preface]
            self._preface = 0
        touched = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            high, low, kind, flags, number = _HEADER.unpack_from(buffer, at)
            end = at + _HEADER.size + (high << 16 | low)
            if len(buffer) < end:
                break
            stream = self._take(kind, flags, number & _MOST, bytes(buffer[at + _HEADER.size : end]))
            if stream is not None:
                touched.append(stream)
            at = end
        del buffer[:at]
        return touched

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> Stream | None:
        if kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                setting, value = struct.unpack_from("!HI", payload, at)
                if setting == _INITIAL_WINDOW:
                    for stream in self.streams.values():
                        stream.window += value - self._initial
                    self._initial = value
            self._write(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            (more,) = struct.unpack("!I", payload)
            if number == 0:
                self._window += more
            elif number in self.streams:
                self.streams[number].window += more
        elif kind in (_DATA, _HEADERS, _RESET):
            return self._take_part(kind, flags, number, payload)
        return None

    def _take_part(self, kind: int, flags: int, number: int, payload: bytes) -> Stream:
        stream = self.streams.get(number)
        if stream is None:
            stream = self.streams[number] = Stream(number, self._initial)
        if kind == _HEADERS:
            stream.headers = stream.headers or payload
            stream.last = payload
        elif kind == _DATA:
            self._credit += len(payload)
            if self._credit > 1 << 28:
                self._write(_frame(_WINDOW, 0, 0, struct.pack("!I", self._credit)))
                self._credit = 0
            stream.part += payload[1 : -payload[0] or None] if flags & _PADDED else payload
            self._split(stream)
        if kind == _RESET or flags & _END_STREAM:
            stream.ended = True
        return stream

    def _split(self, stream: Stream) -> None:
        while len(stream.part) >= _MESSAGE.size:
            _, length = _MESSAGE.unpack_from(stream.part)
            end = _MESSAGE.size + length
            if len(stream.part) < end:
                return
            stream.messages.append(bytes(stream.part[_MESSAGE.size : end]))
            del stream.part[:end]

    def finish(self, stream: Stream) -> bytes:
        """The message of a call that has one answer, as soon as it is over. RuntimeError if refused."""
        while not stream.ended:
            self.receive()
        del self.streams[stream.number]
        if not stream.messages:
            raise RuntimeError(f"the call was refused: {stream.last!r}")
        return stream.messages.popleft()

    def unary(self, path: str, message: bytes) -> bytes:
        return self.finish(self.call(path, message))
