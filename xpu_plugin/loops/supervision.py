# SPDX-License-Identifier: Apache-2.0
"""Supervision: a part that only observes is restarted when it fails; one that serves ends the plugin."""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import PurePath
from types import TracebackType
from typing import Any, Self

from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, note
from xpu_plugin.model.timings import USUAL
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)

STEADY_SECONDS = 60.0  # without a failure until a part counts as steady, and its pauses begin anew
LONGEST_REASON = 300  # characters of an error's text

Run = Callable[[], Awaitable[None]]


class Supervisor:
    """Runs outer parts. One that raises ends no other part.

    again: seconds before a failed part is restarted
    failures: number of failures of each part
    down: reason of the last failure, for each part that is not steady yet
    """

    def __init__(self, again: tuple[float, float] = USUAL.part) -> None:
        self._again = again
        self._failures: dict[str, int] = {}
        self._down: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def failures(self) -> Mapping[str, int]:
        return self._failures

    @property
    def down(self) -> Mapping[str, str]:
        return self._down

    async def keep(self, part: str, run: Run) -> None:
        """Run a part, and restart it with growing pauses after it has raised. Return when the part
        returns."""
        self._failures.setdefault(part, 0)
        pauses = delays(*self._again)
        while True:
            began = time.monotonic()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - the other parts go on
                if time.monotonic() - began >= STEADY_SECONDS:
                    pauses = delays(*self._again)
                self.failed(part, error)
            else:
                return
            await asyncio.sleep(next(pauses))
            self._await_steady(part)

    def failed(self, part: str, error: Exception) -> None:
        """Count an error of a part, which may run on. It is reported once until the part is steady."""
        self._failures[part] = self._failures.get(part, 0) + 1
        why = described(error)
        if self._down.get(part) != why:
            logger.error(Message("a part of the plugin failed, and is tried again", part=part, error=why))
        self._down[part] = why
        note("failure", part=part, why=why, traceback=traceback.format_exception(error))
        self._await_steady(part)

    def _await_steady(self, part: str) -> None:
        if part in self._timers:
            self._timers[part].cancel()
        self._timers[part] = asyncio.get_running_loop().call_later(STEADY_SECONDS, self._up, part)

    def _up(self, part: str) -> None:
        del self._timers[part], self._down[part]
        logger.info(Message("a part of the plugin works again", part=part))


@frozen(kw_only=False)
class PartOf:
    """One part by its name, for the errors that it survives."""

    keeper: "Supervisor | Vital"
    part: str

    def failed(self, error: Exception, /) -> None:
        self.keeper.failed(self.part, error)


class Vital:
    """A task group of parts that the plugin needs; used as `async with`.

    ended: set when the first part, or the body, raises; the group itself ends with its last part, which may
    hang
    error: the error of that part
    part: its name
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.error: BaseException | None = None
        self.part = "start"
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self.failed(self.part, error)
        await self._group.__aexit__(kind, error, trace)

    def start(self, part: str, run: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(run, name=part).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(task.get_name(), error)

    def failed(self, part: str, error: BaseException) -> None:
        """Count a part as failed, even if it runs on."""
        if self.error is None:
            self.error, self.part = error, part
            self.ended.set()


def described(error: BaseException) -> str:
    """Return an unforeseen error in one line: type, text, and the last place in our code."""
    error = _first(error)
    text = " ".join(str(error).split())
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]}..."
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "xpu_plugin" in PurePath(frame.filename).parts] or frames
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    if not ours:
        return said
    return f"{said} ({PurePath(ours[-1].filename).name}:{ours[-1].lineno})"


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
