# SPDX-License-Identifier: Apache-2.0
"""A thread for file work: the event loop never waits for a disk."""

import asyncio
import contextlib
import errno
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import cache
from typing import Any, ParamSpec, TypeVar


P = ParamSpec("P")
T = TypeVar("T")


class DiskThread:
    """One daemon thread that makes calls one after the other.

    It starts at once and is kept, so that a later lack of threads stops no work; without one, each call tries
    again. A call that hangs delays the calls behind it, and not the event loop. It delays the end of the
    process only while it waits in the kernel for a disk.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._awaited: Future[Any] | None = None  # by `call_now`
        self._given_up = False
        with contextlib.suppress(OSError):
            self._start()

    def call_now(self, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and wait for it, before the event loop serves. Raises TimeoutError after `seconds`, and
        after `give_up`."""
        self._start()
        done: Future[T] = Future()
        self._awaited = done
        if self._given_up:
            raise TimeoutError

        def work() -> None:
            result, error = None, None
            try:
                result = function(*args, **kwargs)
            except BaseException as raised:  # noqa: BLE001 - it is raised where the result is awaited
                error = raised
            with contextlib.suppress(InvalidStateError):  # given up
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(result)  # type: ignore[arg-type]  # without an error it is a T

        self._calls.put(work)
        try:
            return done.result(seconds)
        finally:
            self._awaited = None

    def give_up(self) -> None:
        """End the wait of `call_now`, as the process ends. For a signal handler, which interrupts it."""
        self._given_up = True
        if self._awaited is not None:
            with contextlib.suppress(InvalidStateError):
                self._awaited.set_exception(TimeoutError())

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the function's result, or raise its error; OSError without a thread. The call is made also
        after a cancellation."""
        self._start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

        def settle(outcome: tuple[T | None, BaseException | None]) -> None:
            if not done.done():
                done.set_result(outcome)

        def work() -> None:
            outcome: tuple[T | None, BaseException | None]
            try:
                outcome = function(*args, **kwargs), None
            except BaseException as raised:  # noqa: BLE001 - it is raised where the result is awaited
                outcome = None, raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, outcome)
            del outcome  # as below

        self._calls.put(work)
        result, error = await done
        if error is not None:
            # An error holds its frames, sometimes with megabytes. No such frame may hold the error: both
            # would stay until a garbage collection.
            del done
            try:
                raise error
            finally:
                del error
        return result  # type: ignore[return-value]  # without an error it is a T

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise BlockingIOError(errno.EAGAIN, "no thread can be started") from None
            self._thread = thread

    def _work(self) -> None:
        while True:
            self._calls.get()()


@cache
def state_thread() -> DiskThread:
    """Return the thread for the files in --state-dir."""
    return DiskThread("state")
