# SPDX-License-Identifier: Apache-2.0
"""The thread for disks: there from the start, and nothing waits for it without a bound."""

import asyncio
import gc
import signal
import threading
import time
import weakref

import pytest

from tests.support.waiting import PROMPT_SECONDS, until
from xpu_plugin.edges.state.disk import DiskThread


def none_left(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_call_is_made_by_the_one_thread_that_is_there_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = DiskThread("disk")
    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert await disk.call(lambda: threading.current_thread().name) == "disk"
    assert await disk.call(threading.get_ident) == await disk.call(threading.get_ident)


async def test_what_a_call_raises_is_raised() -> None:
    disk = DiskThread("disk")
    with pytest.raises(ZeroDivisionError):
        await disk.call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        disk.call_now(5, lambda: 1 // 0)
    assert await disk.call(lambda: "still there") == "still there"


async def test_a_lack_of_threads_is_an_error_of_the_call_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as lack:
        lack.setattr(threading.Thread, "start", none_left)
        disk = DiskThread("disk")
        with pytest.raises(BlockingIOError, match="no thread can be started"):
            await disk.call(lambda: None)
        with pytest.raises(BlockingIOError, match="no thread can be started"):
            disk.call_now(5, lambda: None)
    assert await disk.call(lambda: "there") == "there"


def test_a_call_that_is_waited_for_here_has_a_bound() -> None:
    disk, held = DiskThread("disk"), threading.Event()
    assert disk.call_now(5, lambda: "there") == "there"
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        disk.call_now(0.1, held.wait)
    assert time.monotonic() - began < PROMPT_SECONDS
    held.set()


def test_a_signal_handler_ends_such_a_wait_and_those_after_it() -> None:
    disk, held, went_on = DiskThread("disk"), threading.Event(), threading.Event()

    def stuck() -> None:
        held.wait()
        went_on.set()

    def alarm(*_: object) -> None:
        disk.give_up()

    former = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    began = time.monotonic()
    try:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                disk.call_now(60, stuck)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert time.monotonic() - began < 30
    held.set()
    assert went_on.wait(30), "the thread goes on"


async def test_the_event_loop_goes_on_while_the_disk_does_not() -> None:
    disk, held = DiskThread("disk"), threading.Event()
    call = asyncio.ensure_future(disk.call(held.wait))
    await asyncio.sleep(0)
    assert not call.done()
    held.set()
    assert await call


class Witness:
    """Content that is seen to go."""


async def test_an_error_keeps_nothing_of_the_call_that_raised_it() -> None:
    """Without a garbage collection: what was read may have megabytes, each time."""
    seen: list[weakref.ref[Witness]] = []

    def fail() -> None:
        content = Witness()
        seen.append(weakref.ref(content))
        raise ValueError("damaged")

    thread = DiskThread("test")
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="damaged"):
                await thread.call(fail)
        await until(lambda: not any(one() for one in seen), "the end of what was read")
    finally:
        gc.enable()
