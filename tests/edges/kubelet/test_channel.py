# SPDX-License-Identifier: Apache-2.0
"""gRPC at sockets of any path: served, registered with, listed from; the same trouble has the same words."""

import errno
import os
import shutil
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.support.endpoint import IDS, Plugin, listed
from tests.support.machines import RESOURCE
from xpu_plugin.edges.kubelet import channel, pod_resources
from xpu_plugin.edges.kubelet.channel import LONGEST_DETAILS, told
from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError, list_pods
from xpu_plugin.simulation.kubelet import Kubelet


# What URIs give a meaning to, or cannot hold.
NAMES = [
    b"a b", b"a%20b", b"a%2fb", b"a%", b"a#b", b"a?b=c", b"a;b", b"a\\b", b"a\nb", "é".encode(), b"\xff",
]  # fmt: skip
COMMA = b"a,b"  # gRPC's clients, and so the kubelet stand-in, take it for two addresses
LONG = b"x" * 120  # more than a socket's address holds

pytestmark = pytest.mark.usefixtures("leaves_no_task")


def below(place: Path, name: bytes) -> Path:
    return place / os.fsdecode(name)


@pytest.mark.parametrize("name", NAMES)
async def test_a_directory_of_any_name_is_served_and_registered_in(name: bytes, place: Path) -> None:
    directory = below(place, name)
    async with Kubelet(directory) as kubelet, Plugin(directory).run():
        await listed(kubelet)
        assert (await kubelet.allocate(RESOURCE, 1)).ids[0] in IDS
    assert [path.name for path in directory.iterdir()] == ["kubelet_internal_checkpoint"]


@pytest.mark.parametrize("name", [*NAMES, COMMA, LONG])
async def test_a_pod_resources_socket_of_any_name_is_asked(name: bytes, place: Path) -> None:
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        kubelet.hold([IDS[0]], resource=RESOURCE, pod="train")
        below(place, name).mkdir()
        moved = below(place, name) / "kubelet.sock"
        assert kubelet.pod_resources_socket
        shutil.move(kubelet.pod_resources_socket, moved)
        listing = await list_pods(moved)
    assert listing is not None
    assert [holding.ids for holding in listing.holdings] == [(IDS[0],)]


async def test_a_socket_that_may_not_be_looked_at_is_not_taken_for_none(place: Path) -> None:
    (place / "loop").symlink_to("loop")
    with pytest.raises(UnknownHoldersError, match="Too many levels"):
        await list_pods(place / "loop/kubelet.sock")
    assert await list_pods(place / "none/kubelet.sock") is None


async def test_a_pod_resources_socket_that_refuses_is_told_with_errno_and_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by SELinux, which lets the file be looked at. gRPC says no more than that it is unavailable."""
    path = place / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    monkeypatch.setattr(pod_resources, "reached", lambda _: errno.EACCES)
    with pytest.raises(UnknownHoldersError) as raised:
        await list_pods(path)
    assert str(raised.value).startswith(f"{path}: Permission denied (EACCES); run the pod privileged")


async def test_without_proc_an_ordinary_path_is_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_HELD", str(place / "no-proc/"))
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        assert kubelet.pod_resources_socket
        assert await list_pods(kubelet.pod_resources_socket) is not None


async def test_trouble_has_the_path_in_it_and_no_number_of_a_descriptor(place: Path) -> None:
    dead = place / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    texts = set()
    async with AsyncExitStack() as stack:
        for _ in range(3):
            with pytest.raises(UnknownHoldersError) as raised:
                await list_pods(dead)
            texts.add(str(raised.value))
            stack.enter_context((place / "taken").open("a"))  # the next descriptor is another
    (text,) = texts
    assert text.startswith(f"{dead}: UNAVAILABLE: ")
    assert f"unix:{dead}: connect failed" in text
    assert "/proc/" not in text


def test_details_have_a_bound_and_the_same_words_for_any_descriptor() -> None:
    def error(details: str | None) -> grpc.aio.AioRpcError:
        metadata = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, details, None)

    path = Path("/k.sock")
    assert told(error("unix:/proc/self/fd/23: reset {fd:23}"), path) == "INTERNAL: unix:/k.sock: reset {fd:N}"
    assert told(error(None), path) == "INTERNAL: "
    assert len(told(error("x" * 9000), path)) == len("INTERNAL: ") + LONGEST_DETAILS
