# SPDX-License-Identifier: Apache-2.0
"""The kubelet's directory of sockets: its own, ours, those of other plugins, and its checkpoint."""

import errno
import os
import stat
from itertools import islice
from pathlib import Path

from xpu_plugin.edges.kubelet.channel import reached
from xpu_plugin.edges.kubelet.pod_resources import checkpoint_of, reader
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.ownership import Checkpoint
from xpu_plugin.model.registration import SocketIdentity


KUBELET_SOCKET = "kubelet.sock"
SOCKET_PREFIX = "xpu-device-plugin"
SOCKET_SUFFIX = ".sock"
MOST_ENTRIES = 1024  # entries of the kubelet's directory that are read


def identity_of(path: Path) -> SocketIdentity | None:
    """Return the identity of the socket at `path`: one start of a kubelet, or one socket of a plugin. None
    without a socket."""
    try:
        status = os.stat(path)  # noqa: PTH116 - called a hundred times a second while a kubelet is away
    except OSError:
        return None
    if not stat.S_ISSOCK(status.st_mode):
        return None
    return SocketIdentity(status.st_dev, status.st_ino, status.st_ctime_ns)


def in_the_way(path: Path) -> Obstacle | None:
    """Return the reason why `path` is no usable socket; None for a socket, or if nothing is there."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - as above
        code = 0 if stat.S_ISSOCK(mode) else errno.ENOTSOCK
    except OSError as error:
        code = error.errno or errno.EIO
    obstacle = Obstacle(path=os.fspath(path), code=code)
    return None if code == 0 or obstacle.absent else obstacle


class PluginDirectory:
    """The kubelet's directory, with the traces of other plugins."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def checkpoint(self) -> Checkpoint:
        """The kubelet's checkpoint. Raises UnknownHoldersError."""
        return await checkpoint_of(self._path)

    async def neighbours(self) -> frozenset[SocketIdentity]:
        """The sockets of other plugins. Raises OSError."""
        return await reader().call(neighbours, self._path)


def neighbours(directory: Path) -> frozenset[SocketIdentity]:
    """Return the sockets of other plugins in the kubelet's directory. Raises OSError."""
    with os.scandir(directory) as entries:
        return frozenset(
            socket
            for entry in islice(entries, MOST_ENTRIES)
            if entry.name != KUBELET_SOCKET and not entry.name.startswith(SOCKET_PREFIX)
            if (socket := identity_of(Path(entry.path))) is not None
        )


def socket_stem(resource: str, base: str) -> str:
    """Return the prefix of a resource's socket names: with the profile's name, except for `base`."""
    return SOCKET_PREFIX if resource == base else f"{SOCKET_PREFIX}-{resource.partition('/')[2]}"


def listens(path: Path) -> bool:
    """Return whether a process listens at a socket; True in doubt. Does not wait, and sends nothing."""
    code = reached(path)
    return code == 0 or not Obstacle(path=os.fspath(path), code=code).absent


def remove_stale(directory: Path) -> None:
    """Remove our sockets without a listener: those of a killed plugin.

    Only the plugin that holds the lock may do so: another one may be about to listen.
    """
    for path in directory.glob(f"{SOCKET_PREFIX}*{SOCKET_SUFFIX}"):
        if identity_of(path) is not None and not listens(path):
            path.unlink(missing_ok=True)
