# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, bound before there is a server to answer."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


BACKLOG = 16  # connections that wait to be accepted


def listen(address: tuple[str, int]) -> socket.socket:
    """Listen at host and port. An empty host means all addresses, of IPv6 and IPv4 where both exist; port 0
    means any free port. Raises OSError with a plain `strerror`."""
    host, _ = address
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host or both else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(error.errno, (error.strerror or str(error)).partition(" (while ")[0]) from None


@contextlib.contextmanager
def listening_at(path: Path) -> Iterator[socket.socket]:
    """Listen at a socket that only its owner may use; remove it at the end. It replaces a socket without a
    listener. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # the latter: too many connections wait
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                if stat.S_ISSOCK(path.stat().st_mode):  # a file that is no socket refuses as well
                    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        try:
            path.chmod(0o600)
            listener.listen(BACKLOG)  # no process can connect before that
            listener.setblocking(False)
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
