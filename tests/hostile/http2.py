# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 and gRPC by the byte, for messages that no client library sends.

h2 and hyperframe build valid frames only. These tests need lengths that lie, frames out of order and headers
that break the rules.
"""

import struct


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
LONGEST_FRAME = (1 << 24) - 1


def frame(
    kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int | None = None
) -> bytes:
    """One frame. length: the length that it states"""
    size = len(payload) if length is None else length
    return struct.pack("!I", size)[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def text(value: str | bytes) -> bytes:
    """A string of HPACK, not compressed."""
    raw = value.encode() if isinstance(value, str) else value
    return number(len(raw), 7) + raw


def number(value: int, prefix: int, first: int = 0) -> bytes:
    """An integer of HPACK with so many bits in its first byte."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    octets = [first | most]
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def header(name: str, value: str | bytes) -> bytes:
    """A field that is not to be remembered."""
    return b"\0" + text(name) + text(value)


def call(path: str | bytes = "/v1beta1.DevicePlugin/Allocate", *more: bytes) -> bytes:
    """The header block that begins a call."""
    pseudo = b"\x83\x86" + b"\x04" + text(path) + b"\x01" + text("localhost")
    return pseudo + header("content-type", "application/grpc") + header("te", "trailers") + b"".join(more)


def begin(stream: int, *, flags: int = END_HEADERS, block: bytes | None = None) -> bytes:
    return frame(HEADERS, call() if block is None else block, flags=flags, stream=stream)


def message(body: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """One gRPC message."""
    return struct.pack("!BI", compressed, len(body) if length is None else length) + body


def kinds(heard: bytes) -> dict[int, int]:
    """How many frames there are of each kind."""
    found: dict[int, int] = {}
    while len(heard) >= 9:
        found[heard[3]] = found.get(heard[3], 0) + 1
        heard = heard[9 + int.from_bytes(heard[:3], "big") :]
    return found
