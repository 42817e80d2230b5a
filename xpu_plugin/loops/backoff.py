# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again, and waiting that can be woken."""

import asyncio
import random
from collections.abc import Iterator


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
