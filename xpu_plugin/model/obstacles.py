# SPDX-License-Identifier: Apache-2.0
"""The reason why an existing file or socket cannot be used, and the remedy. A refusal is not an absence."""

import errno
import os

from xpu_plugin.frozen import frozen


_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED})
_DENIED = (
    "run the pod privileged; on a host with SELinux or AppArmor see its audit log (ausearch -m avc, dmesg)"
)
_NO_SOCKET = "another file has the socket's name: see the pod's mounts, then restart the kubelet"
_REMEDIES = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ELOOP: "links lead in a circle: see the pod's mounts",
    errno.ENOTSOCK: _NO_SOCKET,
    errno.EPROTOTYPE: _NO_SOCKET,
    errno.EROFS: "mount the directory writable",
    errno.ENOSPC: "free space and inodes",
    errno.ESTALE: "the mount is stale: delete the plugin's pod",
    errno.ENOTCONN: "the mount is stale: delete the plugin's pod",
}


@frozen
class Obstacle:
    """The error of an attempt to use a file or socket."""

    path: str
    code: int  # errno

    @property
    def absent(self) -> bool:
        """Return whether nothing is there, or no process listens, as before a start."""
        return self.code in _ABSENT

    @property
    def remedy(self) -> str | None:
        return _REMEDIES.get(self.code)

    @property
    def reason(self) -> str:
        """The path and the system's text."""
        name = errno.errorcode.get(self.code, str(self.code))
        return f"{self.path}: {os.strerror(self.code)} ({name})"

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason
