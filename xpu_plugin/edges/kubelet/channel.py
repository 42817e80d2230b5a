# SPDX-License-Identifier: Apache-2.0
"""gRPC over unix sockets with any path, and the words of a failed call.

A URI gives some characters a meaning, gRPC's resolver splits at commas, and the address of a socket has 107
bytes. So a server listens at a quoted path, and a client connects by the number of a descriptor.
"""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import grpc


LONGEST_DETAILS = 500  # characters; the peer may send 8 KiB

_HELD = "/proc/self/fd/"
_DESCRIPTOR = re.compile(rf"{_HELD}[0-9]+")
_NUMBER = re.compile(r"\bfd([:= ]+)[0-9]+")


def address(path: Path) -> str:
    """The URI of a path without commas, for a client; of any path, for a server."""
    return f"unix:{quote(os.fsencode(path))}"


@contextlib.contextmanager
def held(path: Path) -> Iterator[Path]:
    """A short path to the very file that is at `path` now; it is valid within the context. The path itself
    where there is no /proc. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        own = Path(f"{_HELD}{descriptor}")
        yield own if own.exists() else path
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Have gRPC run within the context, with or without another channel or a server. Call
    `engine.require_room` before.

    The end and the start of its threads would take some tenths of a second of a kubelet's restart on a busy
    node.
    """
    grpc.aio.init_grpc_aio()  # type: ignore[attr-defined]  # grpc-stubs lack both
    channel = grpc.insecure_channel(f"unix:{os.devnull}")  # never connects; the last channel ends the threads
    try:
        yield
    finally:
        channel.close()
        grpc.aio.shutdown_grpc_aio()  # type: ignore[attr-defined]


def reached(path: Path) -> int:
    """The errno of a connection to a socket; 0 when it is taken. It does not wait, and it sends nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            connection.connect(os.fspath(path))
    except BlockingIOError:
        return 0  # and has more callers than it takes
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def told(error: grpc.aio.AioRpcError, path: Path) -> str:
    """Code and details of a failed call to the socket at `path`, without numbers of descriptors: the same
    trouble has the same text each time."""
    details = _DESCRIPTOR.sub(lambda _: str(path), error.details() or "")
    details = _NUMBER.sub(r"fd\1N", details)
    return f"{error.code().name}: {details[:LONGEST_DETAILS]}"
