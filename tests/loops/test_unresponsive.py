# SPDX-License-Identifier: Apache-2.0
"""Devices that are left out: each is asked alone, at times that grow apart, and let go when it answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from tests.support.devices import scan
from tests.support.due import CountedDue
from xpu_plugin.edges.worker.client import LibraryError, Target, WorkerClient, WorkerHungError
from xpu_plugin.loops.unresponsive import Unresponsive
from xpu_plugin.model.devices import Scan


PAUSES = (1000.0, 8000.0)
"""Far beyond what a test takes, as waits are of real time."""


class Scripted(WorkerClient):
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        nowhere = Path("/nonexistent")
        super().__init__(
            Target(libraries=(), dev_root=nowhere, sysfs_root=nowhere, environment={}), call_timeout=1.0
        )
        self.answers: dict[int, Exception | None] = {}
        """What an index raises; None: nodes came and went. All others answer."""
        self.asked: list[int] = []
        self.dismissed = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def scan(
        self, skip: Collection[int] = (), *, only: int | None = None, seconds: float | None = None
    ) -> Scan | None:
        assert not skip
        assert only is not None
        self.asked.append(only)
        await asyncio.sleep(0)
        self.meanwhile()
        if only not in self.answers:
            return scan([], nodes=[])
        if (answer := self.answers[only]) is not None:
            raise answer
        return None

    def dismiss(self) -> None:
        self.dismissed += 1


class Court:
    """Unresponsive devices that are tried again, at a time of our choice."""

    def __init__(self) -> None:
        self.client = Scripted()
        self.now = 100.0
        self.due = CountedDue()
        self.unresponsive = Unresponsive(self.client, self.due, pauses=PAUSES, clock=lambda: self.now)
        self.task = asyncio.create_task(self.unresponsive.run())

    async def pass_time(self, seconds: float) -> list[int]:
        """Move on in time; returns who has been asked meanwhile."""
        before = len(self.client.asked)
        self.now += seconds
        self.unresponsive._changed.set()  # as its own wait is one of real time
        for _ in range(20):
            await asyncio.sleep(0)
        assert not self.task.done()
        return self.client.asked[before:]


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    court = Court()
    yield court
    court.task.cancel()
    await asyncio.gather(court.task, return_exceptions=True)


HUNG = WorkerHungError("no answer within 1 s")


async def test_nobody_is_asked_without_a_conviction(court: Court) -> None:
    assert court.unresponsive.skip == frozenset()
    assert await court.pass_time(10_000.0) == []


async def test_the_convicted_are_asked_one_by_one_and_never_with_others(court: Court) -> None:
    court.client.answers = {1: HUNG, 3: HUNG}
    court.unresponsive.suspect(1, since=99.0)
    court.unresponsive.suspect(3, since=99.5)
    assert court.unresponsive.skip == {1, 3}
    assert sorted(await court.pass_time(1000.0)) == [1, 3]
    assert court.client.dismissed == 2, "no worker stays: it would keep the control node open"
    assert court.due.times == 0


async def test_pauses_grow_to_a_limit(court: Court) -> None:
    court.client.answers = {1: HUNG}
    court.unresponsive.suspect(1, since=99.0)
    for pause in (1000.0, 2000.0, 4000.0, 8000.0, 8000.0):
        assert await court.pass_time(0.7 * pause) == [], "less up to a quarter"
        assert await court.pass_time(0.3 * pause) == [1]


async def test_nobody_is_asked_while_the_driver_changes_a_card_and_no_pause_grows(court: Court) -> None:
    court.client.answers = {1: HUNG}
    court.unresponsive.suspect(1, since=99.0)
    async with court.client.states_only():
        for _ in range(5):
            assert await court.pass_time(1000.0) == []
    assert await court.pass_time(1000.0) == [1]
    assert await court.pass_time(0.7 * 2000.0) == []
    assert await court.pass_time(0.3 * 2000.0) == [1]


async def test_how_long_a_device_has_not_answered_counts_from_its_last_answer(court: Court) -> None:
    court.client.answers = {1: HUNG}
    court.unresponsive.suspect(1, since=95.0)
    assert court.unresponsive.overdue(15.0) == frozenset()
    await court.pass_time(9.9)
    court.unresponsive.suspect(1, since=court.now)  # held already
    assert court.unresponsive.overdue(15.0) == frozenset()
    await court.pass_time(0.1)
    assert court.unresponsive.overdue(15.0) == {1}


async def test_one_that_answers_is_released_and_the_sweep_is_told(court: Court) -> None:
    court.unresponsive.suspect(1, since=99.0)
    court.unresponsive.suspect(2, since=99.0)
    court.client.answers = {2: HUNG}
    await court.pass_time(1000.0)
    assert court.due.times == 1
    assert court.unresponsive.skip == {2}
    assert court.unresponsive.overdue(0.0) == {2}


@pytest.mark.parametrize("answer", [None, HUNG, LibraryError("gone")])
async def test_what_is_no_answer_releases_nobody(court: Court, answer: Exception | None) -> None:
    court.client.answers = {1: answer}
    court.unresponsive.suspect(1, since=99.0)
    assert await court.pass_time(1000.0) == [1]
    assert court.unresponsive.skip == {1}
    assert court.due.times == 0


async def test_one_that_does_it_again_at_once_goes_on_with_its_pauses(court: Court) -> None:
    court.unresponsive.suspect(1, since=99.0)
    assert await court.pass_time(1000.0) == [1]
    court.unresponsive.suspect(1, since=101.0)
    assert court.unresponsive.skip == {1}
    assert await court.pass_time(2900.0) == [], "the third pause: the second was set when it was asked"
    assert await court.pass_time(1100.0) == [1]


async def test_one_that_behaves_for_its_last_pause_is_forgotten(court: Court) -> None:
    court.unresponsive.suspect(1, since=99.0)
    await court.pass_time(1000.0)
    court.unresponsive.answered()
    court.now += 2000.0
    court.unresponsive.answered()
    court.unresponsive.suspect(1, since=court.now)
    assert await court.pass_time(1000.0) == [1], "its pauses begin anew"


async def test_other_nodes_make_all_indexes_void_also_of_whom_is_being_asked(court: Court) -> None:
    court.client.meanwhile = court.unresponsive.clear
    court.unresponsive.suspect(1, since=99.0)
    assert await court.pass_time(1000.0) == [1]
    assert court.unresponsive.skip == frozenset()
    assert court.due.times == 0
    assert await court.pass_time(10_000.0) == []
