# SPDX-License-Identifier: Apache-2.0
"""The wire's end in the server, over a real pair of sockets."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.support.waiting import SECONDS
from xpu_plugin.edges.worker.connection import Connection
from xpu_plugin.edges.worker.frames import HEADER, LONGEST_ANSWER
from xpu_plugin.observable import Signal


def frame(text: bytes) -> bytes:
    return HEADER.pack(len(text)) + text


class Line:
    """Both ends: `theirs` is blocking; `stirred` counts and tells."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.signal = Signal()

    @property
    def stirred(self) -> int:
        return self.signal.current


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.ours.close()
    line.theirs.close()


async def test_a_request_and_its_answer(line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    for text in (b"", b"one", b"x" * 300_000):
        exchange = asyncio.ensure_future(connection.exchange(text))
        received = await asyncio.to_thread(line.theirs.recv, HEADER.size + len(text), socket.MSG_WAITALL)
        assert received == frame(text)
        sending = asyncio.create_task(asyncio.to_thread(line.theirs.sendall, frame(text[::-1])))
        assert await asyncio.wait_for(exchange, SECONDS) == text[::-1]
        await sending
    assert line.stirred == 0
    connection.close()


async def test_an_answer_in_pieces(line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    exchange = asyncio.ensure_future(connection.exchange(b"?"))
    for number, byte in enumerate(frame(b"answer")):
        await asyncio.sleep(0)
        assert not exchange.done(), number
        line.theirs.sendall(bytes([byte]))
    assert await asyncio.wait_for(exchange, SECONDS) == b"answer"
    connection.close()


async def test_what_is_no_frame_is_refused_before_it_is_read(line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    line.theirs.sendall(HEADER.pack(LONGEST_ANSWER + 1))
    with pytest.raises(ValueError, match=f"an answer of {LONGEST_ANSWER + 1} bytes"):
        await asyncio.wait_for(connection.exchange(b"?"), SECONDS)
    connection.close()


async def test_an_end_with_half_an_answer(line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    exchange = asyncio.ensure_future(connection.exchange(b"?"))
    line.theirs.sendall(frame(b"answer")[:-1])
    line.theirs.close()
    with pytest.raises(EOFError):
        await asyncio.wait_for(exchange, SECONDS)
    with pytest.raises(EOFError):
        await asyncio.wait_for(connection.exchange(b"again"), SECONDS)
    assert line.stirred == 0


@pytest.mark.parametrize("what", ["speaks", "ends"])
async def test_who_stirs_unasked_is_told_of_once(what: str, line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    if what == "speaks":
        line.theirs.sendall(frame(b"unasked"))
    else:
        line.theirs.close()
    await asyncio.wait_for(line.signal.beyond(0), SECONDS)
    if (
        what == "speaks"
    ):  # and what was said is not lost: it is taken for an answer, which its number will refute
        assert await asyncio.wait_for(connection.exchange(b"?"), SECONDS) == b"unasked"
        line.theirs.close()
    with pytest.raises(EOFError):
        await asyncio.wait_for(connection.exchange(b"?"), SECONDS)
    assert line.stirred == 1


async def test_a_connection_that_was_closed_says_nothing_more(line: Line) -> None:
    connection = await Connection.over(line.ours, line.signal)
    exchange = asyncio.ensure_future(connection.exchange(b"?"))
    await asyncio.sleep(0)
    connection.close()
    with pytest.raises(EOFError):
        await asyncio.wait_for(exchange, SECONDS)
    line.theirs.close()
    assert line.ours.fileno() == -1
    assert line.stirred == 0
