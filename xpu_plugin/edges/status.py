# SPDX-License-Identifier: Apache-2.0
"""Both ends of the status socket: sub-commands ask the running plugin, a line of JSON each way."""

import asyncio
import contextlib
import inspect
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


LONGEST_LINE = 1 << 16  # bytes of a question; an answer may be longer
ASK_SECONDS = 5.0  # for a question to come, and for its answer to be taken
ANSWER_SECONDS = 30.0  # for the plugin to find out what it has to ask others for

Answer = Callable[..., object]
"""Answers a question by its arguments with what JSON can say, or what is awaited for it; raises ValueError or
TypeError for bad ones."""


class StatusError(Exception):
    """There is no running plugin to talk to, or it does not know what is asked."""


class StatusServer:
    """Answers questions by name, until closed. Takes the listener over."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LONGEST_LINE)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A peer that breaks off, or says nothing, is nobody's business.
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


def _refusal(text: str) -> dict[str, object]:
    return {"error": text}


def ask(path: Path, name: str, **arguments: object) -> Any:
    """Ask the plugin behind a socket; `Any` is what JSON is made of. Raises StatusError."""
    question = json.dumps({"ask": name, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_SECONDS)
            connection.connect(os.fspath(path))
            connection.settimeout(ASK_SECONDS + ANSWER_SECONDS)
            connection.sendall(question)
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline())
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror or error}") from None
    except ValueError:  # also of a plugin that ended meanwhile, which says nothing
        answer = None
    match answer:
        case {"answer": said}:
            return said
        case {"error": str(why)}:
            raise StatusError(f"{path}: {why}")
    raise StatusError(f"{path}: what answers is no running plugin")
