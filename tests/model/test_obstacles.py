# SPDX-License-Identifier: Apache-2.0
"""What is absent, what refuses, and what to do about it."""

import errno
import os

import pytest

from xpu_plugin.model.obstacles import Obstacle


SOCKET = "/var/lib/kubelet/device-plugins/kubelet.sock"


@pytest.mark.parametrize(
    ("code", "absent", "remedy"),
    [
        (errno.ENOENT, True, None),
        (errno.ENOTDIR, True, None),
        (errno.ECONNREFUSED, True, None),
        (errno.EACCES, False, "privileged"),
        (errno.EPERM, False, "SELinux"),
        (errno.ENOTSOCK, False, "mounts"),
        (errno.EPROTOTYPE, False, "mounts"),
        (errno.ELOOP, False, "circle"),
        (errno.EROFS, False, "writable"),
        (errno.ENOSPC, False, "space"),
        (errno.ESTALE, False, "delete the plugin's pod"),
        (errno.ENOTCONN, False, "delete the plugin's pod"),
        (errno.EMFILE, False, None),
        (errno.EIO, False, None),
    ],
)
def test_a_refusal_is_no_absence(code: int, absent: bool, remedy: str | None) -> None:
    obstacle = Obstacle(path=SOCKET, code=code)
    assert obstacle.absent is absent
    assert (remedy or "") in (obstacle.remedy or "")
    assert (obstacle.remedy is None) is (remedy is None)


def test_the_words_name_path_and_errno() -> None:
    denied = Obstacle(path=SOCKET, code=errno.EACCES)
    assert denied.reason == f"{SOCKET}: Permission denied (EACCES)"
    assert str(denied) == f"{denied.reason}; {denied.remedy}"
    broken = Obstacle(path=SOCKET, code=errno.EIO)
    assert str(broken) == broken.reason == f"{SOCKET}: {os.strerror(errno.EIO)} (EIO)"
