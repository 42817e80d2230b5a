# SPDX-License-Identifier: Apache-2.0
"""Waits that can be ended, and what is left alone for a while."""

import asyncio

import pytest

from xpu_plugin.waiting import Cooldown, pause


LONG = 3600.0


async def test_a_pause_ends_with_its_event() -> None:
    wake = asyncio.Event()
    pausing = asyncio.create_task(pause(wake, LONG))
    await asyncio.sleep(0)
    assert not pausing.done()
    wake.set()
    await pausing
    assert not wake.is_set()


async def test_an_event_that_has_been_set_is_not_waited_for() -> None:
    wake = asyncio.Event()
    wake.set()
    await pause(wake, LONG)
    assert not wake.is_set()


async def test_a_pause_ends_with_its_time() -> None:
    wake = asyncio.Event()
    await pause(wake, 0.001)
    assert not wake.is_set()


async def test_a_pause_that_is_given_up_sets_nothing_later() -> None:
    wake = asyncio.Event()
    pausing = asyncio.create_task(pause(wake, 0.001))
    await asyncio.sleep(0)
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    await pause(asyncio.Event(), 0.002)  # longer than that
    assert not wake.is_set()


# --- what is left alone for a while -----------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def cooldown(clock: Clock) -> Cooldown[str]:
    return Cooldown(10.0, 40.0, clock=clock)


def test_a_key_is_left_alone_until_its_pause_is_over() -> None:
    clock = Clock()
    keys = cooldown(clock)
    assert "a" not in keys
    seconds = keys.begin("a", "it hung")
    assert "a" in keys
    assert "b" not in keys
    assert keys.until("a") == clock.now + seconds
    assert keys.reason("a") == "it hung"
    clock.now += seconds
    assert "a" not in keys


def test_pauses_grow_up_to_the_longest_and_each_key_has_its_own() -> None:
    keys = cooldown(Clock())
    for most in (10.0, 20.0, 40.0, 40.0):
        assert most * 0.75 <= keys.begin("a") <= most
    assert keys.begin("b") <= 10.0


def test_what_is_put_off_grows_no_pause() -> None:
    clock = Clock()
    keys = cooldown(clock)
    keys.begin("a")
    keys.put_off("a", 1000.0)
    assert keys.until("a") == clock.now + 1000.0
    assert keys.begin("a") <= 20.0


def test_pauses_of_a_forgotten_key_begin_anew() -> None:
    keys = cooldown(Clock())
    for key in ("a", "b", "c"):
        keys.begin(key)
        keys.begin(key)
    keys.forget("a")
    keys.forget("never known")
    keys.forget_all_but({"b", "d"})
    assert ("a" in keys, "b" in keys, "c" in keys) == (False, True, False)
    assert keys.begin("a") <= 10.0
    assert keys.begin("b") >= 30.0
    assert keys.begin("c") <= 10.0
    assert keys.reason("never known") == ""
