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

    `set` never waits for a reader, and a slow reader skips what came in between.
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
        """How often the value has changed."""
        return self._version

    def set(self, value: T) -> None:
        """Set it and wake all readers; do nothing if it equals the current value."""
        if value == self._current:
            return
        self._current = value
        self._version += 1
        for wake in self._wakes:
            wake.set()

    async def beyond(self, version: int) -> T:
        """The current value, as soon as its version is another one."""
        if self._version == version:
            changed = asyncio.Event()
            with self.waking(changed):
                while self._version == version:
                    changed.clear()
                    await changed.wait()
        return self._current

    async def values(self) -> AsyncIterator[T]:
        """The current value at once, then each newer one; a slow reader skips. Never ends."""
        while True:
            version = self._version
            yield self._current
            await self.beyond(version)

    @contextlib.contextmanager
    def waking(self, event: asyncio.Event) -> Iterator[None]:
        """Within this, the event is set at each change. It is set at once too: the reader looks first.

        So a loop that waits for several things has one event, which it clears before it looks.
        """
        self._wakes.append(event)
        event.set()
        try:
            yield
        finally:
            self._wakes.remove(event)


class Signal(Value[int]):
    """An event that happens again and again, with its number."""

    def __init__(self) -> None:
        super().__init__(0)

    def fire(self) -> None:
        """Wake all readers."""
        self.set(self.current + 1)


class Outbox(Generic[T]):
    """Events that wait to be sent: many writers, one reader. Beyond `most` the oldest is dropped.

    Without a reader, as on a node without an API server, nothing grows.
    """

    def __init__(self, most: int = OUTBOX_MOST) -> None:
        self._events: deque[T] = deque(maxlen=most)
        self._filled = asyncio.Event()
        self.dropped = 0

    def put(self, event: T) -> None:
        """Have it sent; returns at once."""
        self.dropped += len(self._events) == self._events.maxlen
        self._events.append(event)
        self._filled.set()

    async def get(self) -> T:
        """The oldest event, as soon as there is one; it is taken out."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()
