# SPDX-License-Identifier: Apache-2.0
"""Waiting for something that gives no notice of itself, with a deadline."""

import asyncio
import time
from collections.abc import Callable


SECONDS = 60.0
"""How long anything may take on a loaded machine. Nothing here waits that long when all is well."""

PROMPT_SECONDS = 5.0
"""What takes milliseconds, on a loaded machine. What would hang takes longer than this, or for ever."""

_POLL_SECONDS = 0.01


async def until(
    predicate: Callable[[], object], what: str = "no such state", seconds: float = SECONDS
) -> None:
    """Wait for something that gives no notice of itself."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        await asyncio.sleep(_POLL_SECONDS)


def wait_until(
    predicate: Callable[[], object], what: str = "no such state", seconds: float = SECONDS
) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        time.sleep(_POLL_SECONDS)
