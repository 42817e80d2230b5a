# SPDX-License-Identifier: Apache-2.0
"""The socket of a hand-over: whole lines in order, a descriptor, and nothing from a stranger."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.waiting import SECONDS
from xpu_plugin.edges import handover
from xpu_plugin.edges.handover import SOCKET, Door, LostError, Peer, connected
from xpu_plugin.edges.state.disk import state_thread


pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Peer, Peer]]:
    one, other = (Peer(end) for end in socket.socketpair(socket.AF_UNIX))
    yield one, other
    one.close()
    other.close()


async def test_lines_arrive_in_order_also_after_the_end_of_the_sender(ends: tuple[Peer, Peer]) -> None:
    one, other = ends
    async with asyncio.timeout(SECONDS):
        await one.send("first", {"number": 1})
        await one.send("second")
        one.close()
        line = await other.receive()
        assert (line.say, line.fields, line.descriptor) == ("first", {"number": 1}, None)
        assert (await other.receive()).say == "second"
        with pytest.raises(LostError, match="ended"):
            await other.receive()
        with pytest.raises(LostError):
            await other.send("late")


async def test_a_side_that_has_hung_up_hears_on(ends: tuple[Peer, Peer]) -> None:
    one, other = ends
    async with asyncio.timeout(SECONDS):
        one.hang_up()
        assert other.ended
        assert not one.ended
        await other.send("late")
        assert (await one.receive()).say == "late"


async def test_a_descriptor_comes_with_its_line_and_no_child_inherits_it(ends: tuple[Peer, Peer]) -> None:
    one, other = ends
    reader, writer = os.pipe()
    async with asyncio.timeout(SECONDS):
        await one.send("done", descriptor=writer)
        os.close(writer)
        line = await other.receive()
    assert line.descriptor is not None
    assert not os.get_inheritable(line.descriptor)
    os.write(line.descriptor, b"x")
    os.close(line.descriptor)
    assert os.read(reader, 2) == b"x"
    os.close(reader)


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"\xff\n", b"{}\n", b'{"say": 1}\n', b"[" * 100_000 + b"\n"], ids=repr
)
async def test_a_malformed_line_counts_as_the_end(line: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    peer = Peer(ours)
    theirs.sendall(line)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(LostError, match="malformed"):
            await peer.receive()
    peer.close()
    theirs.close()


async def test_a_line_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "LONGEST_LINE", 1000)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    peer = Peer(ours)
    theirs.sendall(b"x" * 2000)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(LostError, match="too long"):
            await peer.receive()
    peer.close()
    theirs.close()


async def test_a_door_replaces_a_stale_socket_and_is_for_its_owner(place: Path) -> None:
    directory = place / ("d" * 150)  # more than the address of a socket has
    assert await connected(directory) is None
    former, door = Door(directory), Door(directory)
    await former.open()
    await door.open()
    assert (directory / SOCKET).stat().st_mode & 0o777 == 0o600
    await former.close()
    assert (directory / SOCKET).is_socket(), "it is another one's"
    async with asyncio.timeout(SECONDS):
        peer = await connected(directory)
        assert peer is not None
        caller = await door.caller()
        await peer.send("hello")
        assert (await caller.receive()).say == "hello"
    peer.close()
    caller.close()
    await door.close()
    assert not (directory / SOCKET).exists()
    assert await connected(directory) is None


async def test_another_user_is_not_heard(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(place)
    await door.open()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert await connected(place) is None
    await door.close()


async def test_a_disk_that_does_not_answer_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "DISK_SECONDS", 600.0)
    door = Door(tmp_path)
    await door.open()
    answers = threading.Event()
    hanging = asyncio.create_task(state_thread().call(answers.wait))
    try:
        async with asyncio.timeout(SECONDS):
            await door.close()
    finally:
        answers.set()
        await hanging
    assert await connected(tmp_path) is None
