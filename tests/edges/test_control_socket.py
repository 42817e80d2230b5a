# SPDX-License-Identifier: Apache-2.0
"""The status socket: for its owner only, and no input over it does harm."""

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.failures import Failed
from tests.support.processes import unix_sockets
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges import control_socket
from xpu_plugin.edges.control_socket import LONGEST_LINE, ControlError, ControlServer, ask
from xpu_plugin.edges.listeners import listening_at


def echo(*, text: str) -> object:
    if text == "bad":
        raise ValueError("not that text")
    return {"echo": text}


@pytest.fixture
def path(place: Path) -> Path:
    return place / "run/status.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer({"echo": echo, "now": lambda: 1})
    with listening_at(path) as listener:
        await server.start(listener)
        yield server
        server.close()
    await until(lambda: unix_sockets(path) == 0, "no socket left")
    await until(lambda: not path.exists(), "removed")


async def asked(path: Path, name: str, **arguments: object) -> object:
    return await asyncio.to_thread(ask, path, name, **arguments)


async def said(path: Path, sent: bytes) -> bytes:
    """What comes back, until the end, to these bytes and no more."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(SECONDS):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_question_is_answered(server: ControlServer, path: Path) -> None:
    assert await asked(path, "echo", text="ä\n") == {"echo": "ä\n"}
    assert await asked(path, "now") == 1


async def test_only_the_owner_may_use_it(server: ControlServer, path: Path) -> None:
    own, directory = [await asyncio.to_thread(each.stat) for each in (path, path.parent)]
    assert stat.S_ISSOCK(own.st_mode)
    assert stat.S_IMODE(own.st_mode) == 0o600
    assert own.st_uid == os.geteuid()
    assert stat.S_IMODE(directory.st_mode) == 0o700


async def test_what_is_no_question_is_refused_with_a_reason(server: ControlServer, path: Path) -> None:
    with pytest.raises(ControlError, match="does not know 'bogus'"):
        await asked(path, "bogus")
    with pytest.raises(ControlError, match="not that text"):
        await asked(path, "echo", text="bad")
    with pytest.raises(ControlError, match="not a question"):
        await asked(path, "echo", other=1)
    for line in (
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b'"x"\n',
        b"{\n",
        b"\xff\n",
        b'{"ask": []}\n',
        b"[" * 9999 + b"\n",
    ):
        assert "not a question" in json.loads(await said(path, line))["error"]
    assert await asked(path, "now") == 1


async def test_a_line_that_does_not_end_is_not_kept(server: ControlServer, path: Path) -> None:
    assert await said(path, b"x" * (2 * LONGEST_LINE)) == b""
    assert await asked(path, "now") == 1


async def test_who_says_nothing_is_cut_off(
    server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "ASK_SECONDS", 0.1)
    reader, writer = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(SECONDS):
        assert await reader.read() == b""
    writer.close()


async def test_one_that_is_left_over_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with listening_at(path) as listener:
        server = ControlServer({"now": lambda: 1})
        await server.start(listener)
        assert await asked(path, "now") == 1
        server.close()


async def test_a_question_waits_for_whoever_answers(path: Path) -> None:
    with listening_at(path) as listener:
        asking = asyncio.create_task(asked(path, "now"))
        await until(lambda: unix_sockets(path) > 1, "a connection that waits")
        server = ControlServer({"now": lambda: 1})
        await server.start(listener)
        assert await asking == 1
        server.close()


async def test_one_that_somebody_listens_at_is_left_alone(server: ControlServer, path: Path) -> None:
    with pytest.raises(OSError, match="in use"), listening_at(path):
        pass
    assert await asked(path, "now") == 1


def test_one_with_too_many_in_line_is_left_alone(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(listening_at(path))
        answer = 0
        while answer != errno.EAGAIN:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            answer = waiting.connect_ex(str(path))
        with pytest.raises(OSError, match="in use"), listening_at(path):
            pass
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("somebody's")
    with pytest.raises(OSError, match="in use"), listening_at(path):
        pass
    assert path.read_text() == "somebody's"


async def test_asking_where_no_plugin_is(path: Path) -> None:
    with pytest.raises(ControlError, match="No such file"):
        await asked(path, "now")
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(ControlError, match="refused"):
            await asked(path, "now")


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"5\n", b"[]\n", b'{"error": 5}\n'])
async def test_what_answers_otherwise_is_no_plugin(path: Path, answer: bytes) -> None:
    path.parent.mkdir()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(talk, path):
        with pytest.raises(ControlError, match="not a running plugin"):
            await asked(path, "now")


@contextlib.asynccontextmanager
async def stranger(path: Path, *parts: bytes) -> AsyncIterator[None]:
    """Something that takes a question and says these parts, the last of them until the asker goes."""
    path.parent.mkdir()
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readline()
            writer.writelines(parts[:-1])
            while True:
                writer.write(parts[-1])
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        ended.set()

    async with await asyncio.start_unix_server(talk, path):
        yield
        async with asyncio.timeout(SECONDS):
            await ended.wait()


async def test_an_answer_without_an_end_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "LONGEST_ANSWER", 1 << 20)
    async with stranger(path, b"x" * (1 << 16)):
        with pytest.raises(ControlError, match="not a running plugin"):
            await asked(path, "now")


async def test_an_answer_that_drips_has_a_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(control_socket, "ASK_SECONDS", 0.2)
    async with stranger(path, b" "):
        with pytest.raises(ControlError, match="timed out"):
            await asked(path, "now")


@pytest.mark.parametrize(
    "answer", [b"[" * 99999, b'{"answer": ' + b"9" * 5000 + b"}", b'{"answer": "\xff"}', b"\xff\n"]
)
async def test_an_answer_that_cannot_be_read_is_no_plugins(answer: bytes, path: Path) -> None:
    async with stranger(path, answer, b"\n"):
        with pytest.raises(ControlError, match="not a running plugin"):
            await asked(path, "now")


async def test_a_refusal_is_one_short_printable_line(path: Path) -> None:
    refusal = json.dumps({"error": "\x1b[31m\n\x07" + "x" * 9999}).encode()
    async with stranger(path, refusal, b"\n"):
        with pytest.raises(ControlError) as raised:
            await asked(path, "now")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


async def test_an_answer_does_not_have_to_be_waited_for_long(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(control_socket, "ANSWER_SECONDS", 0.1)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ControlError, match="timed out"):
            await asked(path, "now")


async def test_an_answer_that_fails_is_told_and_others_are_given(path: Path) -> None:
    failures = Failed()

    def broken() -> object:
        raise MemoryError("planted")

    with listening_at(path) as listener:
        server = ControlServer({"broken": broken, "now": lambda: 1}, failures)
        await server.start(listener)
        with pytest.raises(ControlError, match="the plugin failed to answer: planted"):
            await asked(path, "broken")
        assert await asked(path, "now") == 1
        server.close()
    assert [str(error) for error in failures.errors] == ["planted"]
