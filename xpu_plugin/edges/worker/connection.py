# SPDX-License-Identifier: Apache-2.0
"""The server's end of the socket to a worker."""

import asyncio
import socket

from xpu_plugin.edges.worker.frames import HEADER, LONGEST_ANSWER
from xpu_plugin.observable import Signal


_ROOM = 1 << 16  # bytes of one read


class Connection(asyncio.BufferedProtocol):
    """One request at a time, with one answer each.

    stirred: fired once when the worker ends, or sends something, while no caller waits for an answer
    """

    def __init__(self, stirred: Signal) -> None:
        self._stirred: Signal | None = stirred
        self._buffer = memoryview(bytearray(_ROOM))
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._ended = False

    @classmethod
    async def over(cls, own: socket.socket, stirred: Signal) -> "Connection":
        """Take over a connected socket."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(stirred), sock=own)
        return connection

    async def exchange(self, request: bytes) -> bytes:
        """Send a request; return the answer. Raises EOFError at the worker's end, ValueError for an invalid
        frame."""
        assert self._transport is not None  # noqa: S101 - for the type checker
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(HEADER.pack(len(request)) + request)
            self._settle()
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        """Close at once."""
        self._stirred = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - as above
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += self._buffer[:nbytes]
        self._settle()

    def connection_lost(self, exception: Exception | None) -> None:
        self._ended = True
        self._settle()

    def _settle(self) -> None:
        if self._answer is None or self._answer.done():
            stirred, self._stirred = self._stirred, None
            if stirred is not None:
                stirred.fire()
            return
        if len(self._received) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._received)
            end = HEADER.size + length
            if length > LONGEST_ANSWER:
                self._answer.set_exception(ValueError(f"an answer of {length} bytes"))
                return
            if len(self._received) >= end:
                self._answer.set_result(bytes(self._received[HEADER.size : end]))
                del self._received[:end]
                return
        if self._ended:
            self._answer.set_exception(EOFError())
