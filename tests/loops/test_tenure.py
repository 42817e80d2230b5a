# SPDX-License-Identifier: Apache-2.0
"""Who may work: after a wait only once the state that another plugin has left is taken over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet import lock as lock_module
from xpu_plugin.edges.kubelet.lock import InstanceLock
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.model.handover import Stage


pytestmark = pytest.mark.usefixtures("leaves_no_task")


class Heir:
    """Takes over when the test lets it."""

    def __init__(self, tenures: Tenures) -> None:
        self.tenures = tenures
        self.begun = 0
        self.done = asyncio.Event()

    async def run(self) -> None:
        async for _ in self.tenures.begin():
            self.begun += 1
            await self.done.wait()


@asynccontextmanager
async def inheriting(tenures: Tenures) -> AsyncIterator[Heir]:
    heir = Heir(tenures)
    task = asyncio.create_task(heir.run())
    try:
        yield heir
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def at_once(tenures: Tenures) -> bool:
    """Whether a part may work now."""
    asking = asyncio.create_task(tenures.acquire())
    for _ in range(20):
        await asyncio.sleep(0)
    done = asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return done


async def test_a_lock_that_was_free_at_the_start_needs_no_taking_over(place: Path) -> None:
    lock = InstanceLock(place)
    lock.acquire_at_once()
    tenures = Tenures(lock)
    async with inheriting(tenures) as heir:
        assert await at_once(tenures)
        assert heir.begun == 0
    lock.release()


async def test_after_a_wait_no_part_works_before_all_is_taken_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.01)
    other, lock = InstanceLock(place), InstanceLock(place)
    other.acquire_at_once()
    tenures = Tenures(lock)
    async with inheriting(tenures) as heir, asyncio.timeout(SECONDS):
        parts = [asyncio.create_task(tenures.acquire()) for _ in range(2)]
        await until(lambda: tenures.rival, "a look at the lock")
        other.release()
        await until(lambda: heir.begun, "the taking over")
        assert tenures.held
        assert not await at_once(tenures)
        assert not any(part.done() for part in parts)
        heir.done.set()
        await asyncio.gather(*parts)
        assert await at_once(tenures)
        assert heir.begun == 1, "for all that wait"
    lock.release()


async def test_another_directory_at_that_path_is_another_tenure(place: Path) -> None:
    directory = place / "plugins"
    directory.mkdir()
    lock = InstanceLock(directory)
    lock.acquire_at_once()
    tenures = Tenures(lock)
    async with inheriting(tenures) as heir, asyncio.timeout(SECONDS):
        heir.done.set()
        directory.rename(place / "former")
        directory.mkdir()
        await tenures.acquire()
        assert heir.begun == 1
        assert tenures.held
    lock.release()


async def test_within_a_hand_over_no_work_begins_and_that_in_progress_is_awaited(place: Path) -> None:
    lock = InstanceLock(place)
    lock.acquire_at_once()
    tenures = Tenures(lock)
    end = asyncio.Event()
    begun: list[int] = []

    async def work(number: int) -> None:
        async with tenures.work():
            begun.append(number)
            await end.wait()

    first = asyncio.create_task(work(1))
    await until(lambda: begun, "work in progress")
    tenures.stage.set(Stage.QUIET)
    second, idle = asyncio.create_task(work(2)), asyncio.create_task(tenures.idle())
    assert await at_once(tenures), "it may register"
    assert (begun, idle.done()) == ([1], False)
    end.set()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(first, idle)
        assert begun == [1]
        tenures.stage.set(Stage.WORKING)
        await second
    tenures.stage.set(Stage.FROZEN)
    assert not await at_once(tenures)
    lock.release()
