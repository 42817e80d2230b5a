# SPDX-License-Identifier: Apache-2.0
"""When apply decides anew. What it decides and does is in tests/model and tests/test_virtual_functions.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.support.devices import device, found
from tests.support.machines import RESOURCE
from tests.support.waiting import until
from xpu_plugin.edges.driver import Driver
from xpu_plugin.edges.vf_record import VfRecord
from xpu_plugin.loops.apply import Apply
from xpu_plugin.loops.idleness import Idleness
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.sweep import Sweep
from xpu_plugin.model.change import Limits
from xpu_plugin.model.inventory import Policy, after_scan
from xpu_plugin.model.vf import UNKNOWN, Wish, by_argument


CARD = "0000:3b:00.0"

pytestmark = pytest.mark.usefixtures("leaves_no_task")


@asynccontextmanager
async def applying(wish: Wish, directory: Path) -> AsyncIterator[tuple[Apply, Callable[[], int]]]:
    """An apply that runs over one whole card that nobody uses, and how often it has decided."""
    picture = Picture(Policy(resource=RESOURCE))
    picture.submit(lambda facts: after_scan(facts, found(device(CARD))))
    decided: list[object] = []
    idleness = SimpleNamespace(
        granted=lambda ids: None,
        taken=frozenset,
        cards_of=lambda held: frozenset(),
        adopt=lambda held: None,
    )
    apply = Apply(
        cast("Driver", SimpleNamespace(stuck=False)),
        picture,
        cast("Sweep", SimpleNamespace(scans=1, driver_version=str)),
        cast("Idleness", idleness),
        record=VfRecord(directory),
        limits=Limits(pending=600.0),
        wish=wish,
        alone=lambda: asyncio.sleep(0),
        tell=lambda report, news: decided.append(report),
    )
    apply.begin(())
    task = asyncio.ensure_future(apply.run())
    try:
        await until(lambda: decided, "a first decision")
        for _ in range(20):
            await asyncio.sleep(0)  # and those that follow from it at once
        yield apply, lambda: len(decided)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_grant_while_nothing_is_planned_does_not_have_every_card_looked_at(place: Path) -> None:
    """Or each Allocate would take the longer the more devices there are."""
    async with applying(by_argument(0), place) as (apply, decided):
        before = decided()
        apply.granted([CARD])
        for _ in range(20):
            await asyncio.sleep(0)
        assert decided() == before


async def test_a_grant_while_a_card_is_kept_back_is_taken_into_account_at_once(place: Path) -> None:
    async with applying(UNKNOWN, place) as (apply, decided):
        before = decided()
        apply.granted([CARD])
        await until(lambda: decided() > before, "another decision")
