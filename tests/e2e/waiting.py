# SPDX-License-Identifier: Apache-2.0
"""Waiting for something outside this process: with a deadline, and telling what was seen last."""

import time
from collections.abc import Callable
from typing import TypeVar


T = TypeVar("T")

POLL_SECONDS = 0.05


def wait_until(
    what: str,
    look: Callable[[], T],
    accept: Callable[[T], object],
    *,
    seconds: float,
    pause: float = POLL_SECONDS,
) -> T:
    """Look until the state is acceptable and return it; fail with the last state seen."""
    deadline = time.monotonic() + seconds
    while not accept(state := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {state}")
        time.sleep(pause)
    return state


def watch_that(
    what: str,
    look: Callable[[], T],
    accept: Callable[[T], object],
    *,
    seconds: float,
    pause: float = POLL_SECONDS,
) -> None:
    """Look for so many seconds, and fail as soon as the state is not acceptable."""
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        if not accept(state := look()):
            raise AssertionError(f"{what}: no longer so after {elapsed:.1f} s; last seen: {state}")
        time.sleep(pause)
