# SPDX-License-Identifier: Apache-2.0
"""Waits that can be ended."""

import asyncio

import pytest

from xpu_plugin.loops.backoff import pause


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
