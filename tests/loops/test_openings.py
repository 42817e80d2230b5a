# SPDX-License-Identifier: Apache-2.0
"""Nodes that are not listed are opened one by one, at growing pauses, and never while a card is changed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.due import CountedDue
from tests.support.machines import RESOURCE
from xpu_plugin.edges.worker.client import Target, WorkerClient, WorkerHungError
from xpu_plugin.loops import openings as module
from xpu_plugin.loops.openings import Openings
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.health import ASKED_BEFORE, CHANGING, RECORD_UNREAD, VF_CHANGE_PLANNED, Health
from xpu_plugin.model.inventory import Policy


PAUSES = (1000.0, 8000.0)
"""Far beyond what a test takes, as waits are of real time."""


class Scripted(WorkerClient):
    """Nodes that open, or do not."""

    def __init__(self) -> None:
        nowhere = Path("/nonexistent")
        super().__init__(
            Target(libraries=(), dev_root=nowhere, sysfs_root=nowhere, environment={}), call_timeout=1.0
        )
        self.open: set[int] = set()
        self.hanging: set[int] = set()
        self.asked: list[int] = []

    async def opens(self, number: int) -> bool:
        self.asked.append(number)
        await asyncio.sleep(0)
        if number in self.hanging:
            raise WorkerHungError("no answer within 1 s")
        return number in self.open


CARD = "0000:3b:00.0"


class Room:
    """Openings that run, at a time of our choice."""

    def __init__(self) -> None:
        self.client = Scripted()
        self.now = 100.0
        self.due = CountedDue()
        self.picture = Picture(Policy(resource=RESOURCE))
        self.openings = Openings(self.client, self.picture, self.due, clock=lambda: self.now)
        self.task = asyncio.create_task(self.openings.run())

    def change(self, kept_back: Mapping[str, Health]) -> None:
        self.picture.submit(lambda facts: replace(facts, kept_back=kept_back))

    async def pass_time(self, seconds: float) -> list[int]:
        """Move on in time; returns which nodes have been opened meanwhile."""
        before = len(self.client.asked)
        self.now += seconds
        self.openings._changed.set()  # as its own wait is one of real time
        for _ in range(20):
            await asyncio.sleep(0)
        assert not self.task.done()
        return self.client.asked[before:]


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", PAUSES)
    monkeypatch.setattr(module, "BUSY_SECONDS", 100.0)
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    room = Room()
    yield room
    room.task.cancel()
    await asyncio.gather(room.task, return_exceptions=True)


async def test_only_what_is_not_listed_is_opened_at_pauses_that_grow(room: Room) -> None:
    assert await room.pass_time(5000.0) == []
    room.openings.expect([3])
    assert await room.pass_time(999.0) == []
    assert await room.pass_time(1.0) == [3]
    assert await room.pass_time(1999.0) == []
    assert await room.pass_time(1.0) == [3]
    for _ in range(5):
        await room.pass_time(8000.0)
    assert await room.pass_time(7999.0) == []
    assert await room.pass_time(1.0) == [3]
    assert room.due.times == 0


async def test_one_that_opens_is_told_and_goes_on_with_its_pauses_while_it_is_not_listed(room: Room) -> None:
    room.openings.expect([3])
    room.client.open = {3}
    assert await room.pass_time(1000.0) == [3]
    assert room.due.times == 1
    room.openings.expect([3])  # a scan, and it is still left out
    assert await room.pass_time(1999.0) == []
    assert await room.pass_time(1.0) == [3]
    assert room.due.times == 2
    room.openings.expect([])
    assert await room.pass_time(50000.0) == []
    room.openings.expect([3])
    assert await room.pass_time(1000.0) == [3], "from the start again"


async def test_each_has_pauses_of_its_own(room: Room) -> None:
    room.openings.expect([3])
    await room.pass_time(1000.0)
    room.openings.expect([3, 5])
    assert await room.pass_time(1000.0) == [5]
    assert await room.pass_time(1000.0) == [3]


@pytest.mark.parametrize("reason", [VF_CHANGE_PLANNED, CHANGING, ASKED_BEFORE, RECORD_UNREAD])
async def test_no_node_is_opened_while_a_card_is_withheld_or_changed(room: Room, reason: Health) -> None:
    room.openings.expect([3])
    room.change({CARD: reason})
    for _ in range(20):
        assert await room.pass_time(1000.0) == []
    room.change({})
    assert await room.pass_time(100.0) == [3], "and soon after"


async def test_one_that_hangs_is_tried_again_later(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.openings.expect([3])
    room.client.hanging, room.client.open = {3}, {3}
    assert await room.pass_time(1000.0) == [3]
    assert 'path=/dev/xpu3 error="no answer within 1 s' in caplog.text
    assert room.due.times == 0
    room.client.hanging = set()
    assert await room.pass_time(2000.0) == [3]
    assert room.due.times == 1
