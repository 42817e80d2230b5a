# SPDX-License-Identifier: Apache-2.0
"""Parts that fail: those that watch are started again, one that serves is known at once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.support.waiting import until
from xpu_plugin.log import RingHandler
from xpu_plugin.loops import supervision
from xpu_plugin.loops.supervision import Run, Supervisor, Vital, described


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "STEADY_SECONDS", 60.0)


@asynccontextmanager
async def kept(supervisor: Supervisor, part: str, run: Run) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(supervisor.keep(part, run))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


def failing(*errors: BaseException) -> tuple[Run, asyncio.Event]:
    """A part that raises these, one each time it is started, and then runs on; and the event of that."""
    left, runs = iter(errors), asyncio.Event()

    async def run() -> None:
        for error in left:
            raise error
        runs.set()
        await asyncio.Event().wait()

    return run, runs


async def test_a_part_that_raises_is_started_again_and_counted() -> None:
    supervisor = Supervisor((0.001, 0.004))
    run, runs = failing(ValueError("odd"), MemoryError(), ExceptionGroup("", [OSError("inner")]))
    async with kept(supervisor, "audit", run):
        assert supervisor.failures == {}
        await asyncio.wait_for(runs.wait(), 5)
        assert supervisor.failures == {"audit": 3}
        assert supervisor.down["audit"].startswith("OSError: inner")


async def test_the_same_failure_is_told_once_another_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run, runs = failing(*(ValueError("odd") for _ in range(5)), TypeError("other"))
    async with kept(Supervisor((0.001, 0.004)), "audit", run):
        await asyncio.wait_for(runs.wait(), 5)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert 'part=audit error="ValueError: odd (supervision.py:' in said[0]
    assert "TypeError: other" in said[1]
    assert all(record.exc_info is None for record in caplog.records)


async def test_a_part_that_runs_steadily_counts_as_up_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(supervision, "STEADY_SECONDS", 0.05)
    supervisor = Supervisor((0.001, 0.004))
    run, runs = failing(ValueError("odd"))
    async with kept(supervisor, "audit", run):
        await asyncio.wait_for(runs.wait(), 5)
        assert supervisor.down
        await until(lambda: not supervisor.down, "the part to be up")
        assert supervisor.failures == {"audit": 1}
    assert "works again part=audit" in caplog.text


async def test_pauses_grow_and_begin_anew_after_a_steady_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def counted(first: float, most: float) -> Iterator[float]:
        pause = first
        while True:
            pauses.append(pause)
            yield 0.0
            pause *= 2

    monkeypatch.setattr(supervision, "delays", counted)
    run, runs = failing(*(ValueError() for _ in range(3)))
    async with kept(Supervisor((0.001, 0.004)), "audit", run):
        await asyncio.wait_for(runs.wait(), 5)
    assert pauses == [0.001, 0.002, 0.004]
    monkeypatch.setattr(supervision, "STEADY_SECONDS", 0.0)
    pauses.clear()
    run, runs = failing(*(ValueError() for _ in range(3)))
    async with kept(Supervisor((0.001, 0.004)), "audit", run):
        await asyncio.wait_for(runs.wait(), 5)
    assert pauses == [0.001] * 3


async def test_a_part_that_returns_has_done_its_work() -> None:
    async def run() -> None:
        pass

    async with kept(Supervisor((0.001, 0.004)), "once", run) as task:
        await asyncio.wait_for(task, 5)


async def test_being_cancelled_is_no_failure() -> None:
    supervisor = Supervisor((0.001, 0.004))
    run, runs = failing()
    async with kept(supervisor, "audit", run) as task:
        await asyncio.wait_for(runs.wait(), 5)
    assert task.cancelled()
    assert supervisor.failures == {"audit": 0}
    assert supervisor.down == {}


async def test_a_part_that_fails_alone_ends_nothing_beside_it() -> None:
    supervisor = Supervisor((0.001, 0.004))
    bad, _ = failing(*(ValueError() for _ in range(100)))
    good, runs = failing()
    async with asyncio.TaskGroup() as observing, Vital() as serving:
        tasks = [observing.create_task(supervisor.keep("bad", bad))]
        tasks.append(observing.create_task(supervisor.keep("good", good)))
        await until(lambda: supervisor.failures.get("bad", 0) > 3, "some failures")
        assert runs.is_set()
        assert not serving.ended.is_set()
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()


async def test_a_failure_keeps_its_traceback_for_whom_it_may_concern() -> None:
    supervisor = Supervisor((0.001, 0.004))
    run, runs = failing(ValueError("odd"))
    with RingHandler() as decisions:
        async with kept(supervisor, "audit", run):
            await asyncio.wait_for(runs.wait(), 5)
    (failure,) = decisions.all
    assert (failure["what"], failure["part"]) == ("failure", "audit")
    assert "ValueError: odd" in str(failure["traceback"])


async def test_a_vital_part_that_fails_is_known_before_the_others_have_ended() -> None:
    """As one of them may hang, in gRPC or a disk."""
    held = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await held.wait()

    async def fails() -> None:
        raise ValueError("odd")

    serving = Vital()

    async def run() -> None:
        async with serving:
            serving.start("hangs", hangs())
            await asyncio.sleep(0)
            serving.start("fails", fails())

    group = asyncio.ensure_future(run())
    await asyncio.wait_for(serving.ended.wait(), 5)
    assert not group.done()
    assert (serving.part, str(serving.error)) == ("fails", "odd")
    held.set()
    with pytest.raises(ExceptionGroup):
        await group


async def test_what_fails_before_the_parts_run_is_known_too() -> None:
    serving = Vital()
    with pytest.raises(ExceptionGroup):
        async with serving:
            raise ValueError("odd")
    assert (serving.part, str(serving.error)) == ("start", "odd")


async def test_a_vital_group_that_is_cancelled_has_not_failed() -> None:
    serving = Vital()

    async def run() -> None:
        async with serving:
            await asyncio.Event().wait()

    group = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    group.cancel()
    await asyncio.wait({group})
    assert group.cancelled()
    assert serving.error is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("two\nlines"), "ValueError: two lines"),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 300}..."),
        (ExceptionGroup("", [ExceptionGroup("", [KeyError("inner")]), ValueError()]), "KeyError: 'inner'"),
    ],
)
def test_an_error_is_described_in_one_short_line(error: Exception, text: str) -> None:
    assert described(error) == text
