# SPDX-License-Identifier: Apache-2.0
"""Both ends of the status socket. Sub-commands ask the running plugin, by a line of JSON each way."""

import asyncio
import contextlib
import inspect
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.errors import UNHEEDED, Failures, PluginError
from xpu_plugin.log import printable


LONGEST_LINE = 1 << 16  # bytes of a question
LONGEST_ANSWER = 16 << 20  # bytes; thousands of devices need about two mebibytes
LONGEST_REFUSAL = 500  # characters of a foreign text in an error
ASK_SECONDS = 5.0  # for the client to send its question, and to read the answer
ANSWER_SECONDS = 30.0  # for the plugin to make an answer

Answer = Callable[..., object]
"""Answers a question by its arguments with what JSON can say, or what is awaited for it; raises ValueError or
TypeError for bad ones."""


class ControlError(PluginError):
    """No running plugin answers, or it does not know the question."""


class ControlServer:
    """Answers questions by name, until closed. Takes over the listener.

    failures: takes the unforeseen error of an answer; the question is refused
    """

    def __init__(self, answers: Mapping[str, Answer], failures: Failures = UNHEEDED) -> None:
        self._answers = answers
        self._failures = failures
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LONGEST_LINE)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A peer may break off, or send nothing.
            with contextlib.suppress(OSError, TimeoutError, ValueError):
                async with asyncio.timeout(ASK_SECONDS):
                    line = await reader.readline()
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self._answer(line)
                async with asyncio.timeout(ASK_SECONDS):
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            question = json.loads(line)
            name = question.pop("ask")
            answer = self._answers.get(name)
            if answer is None:
                return _refusal(f"this plugin does not know {name!r}")
            found = answer(**question)
            return {"answer": await found if inspect.isawaitable(found) else found}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            return _refusal(f"not a question: {error}")
        except Exception as error:  # noqa: BLE001 - other questions are answered
            self._failures.failed(error)
            return _refusal(f"the plugin failed to answer: {error}")


def _refusal(text: str) -> dict[str, object]:
    return {"error": text}


def ask(path: Path, name: str, **arguments: object) -> Any:
    """Ask the plugin behind a socket; return the JSON value. Raises ControlError with one printable line.

    Time and memory are bounded by the need of a plugin's answer, with any listener at the socket.
    """
    question = json.dumps({"ask": name, **arguments}).encode() + b"\n"
    where = printable(str(path))
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_SECONDS)
            connection.connect(os.fspath(path))
            connection.sendall(question)
            answer = json.loads(_line(connection))
    except OSError as error:
        raise ControlError(f"{where}: {error.strerror or error}") from None
    except (ValueError, RecursionError):  # an empty answer, too, of a plugin that ended meanwhile
        answer = None
    match answer:
        case {"answer": said}:
            return said
        case {"error": str(why)}:
            raise ControlError(f"{where}: {printable(why[:LONGEST_REFUSAL])}")
    raise ControlError(f"{where}: the program that answers is not a running plugin")


def _line(connection: socket.socket) -> bytes:
    """Read a line. Raises OSError, and ValueError for a line that is too long."""
    line = bytearray()
    until = time.monotonic() + ASK_SECONDS + ANSWER_SECONDS
    while not line.endswith(b"\n") and (remaining := until - time.monotonic()) > 0:
        connection.settimeout(remaining)
        part = connection.recv(LONGEST_LINE)
        if not part:
            return bytes(line)
        line += part
        if len(line) > LONGEST_ANSWER:
            raise ValueError("too much")
    if not line.endswith(b"\n"):
        raise TimeoutError("timed out")
    return bytes(line)
