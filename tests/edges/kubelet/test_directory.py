# SPDX-License-Identifier: Apache-2.0
"""The sockets in the kubelet's directory: names, identities, sockets of killed plugins."""

import os
import resource
import socket
from pathlib import Path

import pytest

from tests.support.endpoint import PREFIX
from tests.support.machines import RESOURCE
from xpu_plugin.edges.kubelet.directory import identity_of, listens, remove_stale, socket_stem


@pytest.mark.parametrize(
    ("resource", "stem"),
    [
        (RESOURCE, PREFIX),
        ("baidu.com/R200", "xpu-device-plugin-R200"),
        ("baidu.com/R200-VF-16G", "xpu-device-plugin-R200-VF-16G"),
    ],
)
def test_how_names_of_sockets_begin(resource: str, stem: str) -> None:
    assert socket_stem(resource, RESOURCE) == stem


def test_an_identity_is_that_of_a_socket(place: Path) -> None:
    assert identity_of(place / "nothing") is None
    (place / "file").touch()
    assert identity_of(place / "file") is None


def test_without_a_descriptor_no_socket_counts_as_stale(place: Path) -> None:
    path = place / f"{PREFIX}-1.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        assert listens(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not listens(path)


def test_a_full_backlog_is_no_stale_socket(place: Path) -> None:
    path = place / f"{PREFIX}-0123abcd.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as caller:
        busy.bind(str(path))
        busy.listen(0)
        caller.connect(str(path))
        remove_stale(place)
        assert path.exists()
