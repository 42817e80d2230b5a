# SPDX-License-Identifier: Apache-2.0
"""Waits that grow, waits that can be woken, and leaving alone for a while what has cost too much."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar


K = TypeVar("K", bound=Hashable)


def delays(first: float, most: float) -> Iterator[float]:
    """Seconds to wait: `first` and then twice as long each time up to `most`, each less up to a quarter,
    so that the nodes of a cluster do not try in step."""
    delay = first
    while True:
        yield delay * random.uniform(0.75, 1.0)  # noqa: S311 - nothing secret
        delay = min(delay * 2, most)


async def pause(wake: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`, and clear it: who waits so in a loop looks at everything anew
    each time, whatever it was. Quieter than `wait_for`, as nothing is cancelled."""
    timer = asyncio.get_running_loop().call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()
    wake.clear()


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, at most `seconds`; whether it was."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Cooldown(Generic[K]):
    """Keys that are left alone for a while: each time longer, until they are forgotten.

    first, most: seconds, as `delays` takes them
    """

    def __init__(self, first: float, most: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = first, most
        self._clock = clock
        self._delays: dict[K, Iterator[float]] = {}
        self._until: dict[K, float] = {}
        self._reasons: dict[K, str] = {}

    def begin(self, key: K, reason: str = "") -> float:
        """Leave it alone from now on; for how many seconds."""
        if key not in self._delays:
            self._delays[key] = delays(*self._seconds)
        seconds = next(self._delays[key])
        self.put_off(key, seconds)
        self._reasons[key] = reason
        return seconds

    def put_off(self, key: K, seconds: float) -> None:
        """Leave it alone for that long. The next `begin` takes no notice of it."""
        self._until[key] = self._clock() + seconds

    def until(self, key: K) -> float:
        """When it need not be left alone any more, by the clock; `-inf` for a key that is not known."""
        return self._until.get(key, float("-inf"))

    def __contains__(self, key: K) -> bool:
        """Whether it is left alone now."""
        return self._clock() < self.until(key)

    def reason(self, key: K) -> str:
        """Why it was left alone last."""
        return self._reasons.get(key, "")

    def forget(self, key: K) -> None:
        """It is well: it need not be left alone, and its pauses begin anew."""
        for kept in (self._delays, self._until, self._reasons):
            kept.pop(key, None)

    def forget_all_but(self, keys: Collection[K]) -> None:
        """The same for all others that are known."""
        for key in self._until.keys() - set(keys):
            self.forget(key)
