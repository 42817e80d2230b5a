# SPDX-License-Identifier: Apache-2.0
"""Values that one part sets and others watch, and a bounded queue of events; for one event loop."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar


T = TypeVar("T")

OUTBOX_MOST = 64
"""Events that wait in an outbox."""


class Value(Generic[T]):
    """A value with one writer and any number of readers.

    `set` never waits for a reader. A slow reader skips values.
    """

    def __init__(self, current: T) -> None:
        self._current = current
        self._version = 0
        self._wakes: list[asyncio.Event] = []

    @property
    def current(self) -> T:
        return self._current

    @property
    def version(self) -> int:
        """Number of changes."""
        return self._version

    def set(self, value: T) -> None:
        """Set the value and wake all readers; do nothing if it equals the current one."""
        if value == self._current:
            return
        self._current = value
        self._version += 1
        for wake in self._wakes:
            wake.set()

    async def beyond(self, version: int) -> T:
        """Return the current value as soon as its version differs."""
        if self._version == version:
            changed = asyncio.Event()
            with self.waking(changed):
                while self._version == version:
                    changed.clear()
                    await changed.wait()
        return self._current

    async def values(self) -> AsyncIterator[T]:
        """Yield the current value at once, then newer ones. A slow reader skips some. Never ends."""
        while True:
            version = self._version
            yield self._current
            await self.beyond(version)

    @contextlib.contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """Set the event at once, and at each change within this context.

        A loop that waits for several values has one event. It clears the event before it reads them.
        """
        self._wakes.append(event)
        event.set()
        try:
            yield
        finally:
            self._wakes.remove(event)


async def until(value: Value[T], wanted: T) -> None:
    """Wait until a value is this one."""
    async for current in value.values():
        if current == wanted:
            return


class Signal(Value[int]):
    """An event that happens repeatedly, with its number."""

    def __init__(self) -> None:
        super().__init__(0)

    def fire(self) -> None:
        """Wake all readers."""
        self.set(self.current + 1)


class Outbox(Generic[T]):
    """Events that wait to be sent: many writers, one reader. Beyond `most` the oldest is dropped.

    So it does not grow without a reader, as on a node without an API server.
    """

    def __init__(self, most: int = OUTBOX_MOST) -> None:
        self._events: deque[T] = deque(maxlen=most)
        self._filled = asyncio.Event()
        self.dropped = 0

    def put(self, event: T) -> None:
        """Add an event; return at once."""
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._filled.set()

    async def get(self) -> T:
        """Remove and return the oldest event, as soon as there is one."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()
