# SPDX-License-Identifier: Apache-2.0
"""Delays that grow, waits that an event can end, and pauses by key (`Cooldown`)."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar


K = TypeVar("K", bound=Hashable)


def delays(first: float, most: float) -> Iterator[float]:
    """Yield seconds to wait: `first`, then twice as long each time, up to `most`. Each is shortened by up to
    a quarter, so that the nodes of a cluster do not try in step."""
    delay = first
    while True:
        yield delay * random.uniform(0.75, 1.0)  # noqa: S311 - nothing secret
        delay = min(delay * 2, most)


async def pause(wake: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`, and clear it. The caller then checks everything anew. Cheaper
    than `wait_for`, as it cancels nothing."""
    timer = asyncio.get_running_loop().call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
    wake.clear()


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, at most `seconds`. Return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Cooldown(Generic[K]):
    """Keys that are left alone for a while, each time longer, until they are forgotten.

    first, most: seconds, as for `delays`
    """

    def __init__(self, first: float, most: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = first, most
        self._clock = clock
        self._delays: dict[K, Iterator[float]] = {}
        self._until: dict[K, float] = {}
        self._reasons: dict[K, str] = {}

    def begin(self, key: K, reason: str = "") -> float:
        """Leave a key alone from now on; return for how many seconds."""
        if key not in self._delays:
            self._delays[key] = delays(*self._seconds)
        seconds = next(self._delays[key])
        self.put_off(key, seconds)
        self._reasons[key] = reason
        return seconds

    def put_off(self, key: K, seconds: float) -> None:
        """Leave a key alone for so many seconds, without an effect on the next `begin`."""
        self._until[key] = self._clock() + seconds

    def until(self, key: K) -> float:
        """Return the end of a key's pause, by the clock; `-inf` for an unknown key."""
        return self._until.get(key, float("-inf"))

    def __contains__(self, key: K) -> bool:
        """Return whether a key is left alone now."""
        return self._clock() < self.until(key)

    def reason(self, key: K) -> str:
        """Return the reason of a key's last pause."""
        return self._reasons.get(key, "")

    def forget(self, key: K) -> None:
        """End a key's pause, and let its pauses begin anew."""
        for kept in (self._delays, self._until, self._reasons):
            kept.pop(key, None)

    def forget_all_but(self, keys: Collection[K]) -> None:
        """Forget all keys but these."""
        for key in self._until.keys() - set(keys):
            self.forget(key)
