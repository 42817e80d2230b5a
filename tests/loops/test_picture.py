# SPDX-License-Identifier: Apache-2.0
"""The one picture: published whole, only when it changed, without a wait for a reader."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from tests.support.devices import CONTROL, device, found
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.model.devices import Device
from xpu_plugin.model.health import HEALTHY, NOT_ANSWERING, VF_CHANGE_PLANNED, Health
from xpu_plugin.model.inventory import Facts, Inventory, Policy, after_scan, after_verdicts


A, B = "0000:3b:00.0", "0000:3c:00.0"
SECONDS = 5
SICK = Health("state-error", "state 207")


def scanned(*devices: Device, control: int | None = CONTROL) -> Callable[[Facts], Facts]:
    return lambda facts: after_scan(facts, found(*devices, control=control))


def judged(**health: Health) -> Callable[[Facts], Facts]:
    return partial(after_verdicts, verdicts={{"a": A, "b": B}[name]: own for name, own in health.items()})


@pytest.fixture
def picture() -> Picture:
    """Two cards, generation 1."""
    picture = Picture(Policy(resource="baidu.com/xpu"))
    picture.submit(scanned(device(A), device(B, number=1)))
    return picture


def now(picture: Picture) -> Inventory:
    assert picture.current
    return picture.current


def test_the_first_facts_are_published_even_if_there_is_no_device() -> None:
    """A confirmed empty scan is a picture: an empty list is registered."""
    picture = Picture(Policy(resource="baidu.com/xpu"))
    assert picture.current is None
    picture.submit(scanned())
    assert now(picture) == Inventory(generation=NEVER + 1, control=CONTROL, entries={})


def test_turns_are_counted_as_the_kubelet_sees_them_while_the_device_is_there(picture: Picture) -> None:
    assert picture.turns == {A: (0, 0), B: (0, 0)}
    picture.submit(judged(b=SICK))
    picture.submit(judged(b=NOT_ANSWERING))  # another illness is no turn
    picture.submit(judged(b=HEALTHY))
    picture.submit(lambda facts: replace(facts, kept_back={A: VF_CHANGE_PLANNED}))
    assert picture.turns == {A: (0, 1), B: (1, 1)}
    picture.submit(lambda facts: after_scan(facts, found(device(A)), forget=True))
    assert picture.turns == {A: (0, 1)}
    picture.submit(scanned(device(A), device(B, number=1)))
    assert picture.turns == {A: (0, 1), B: (0, 0)}


def test_equal_facts_are_not_published_again(picture: Picture) -> None:
    before = now(picture)
    picture.submit(lambda facts: facts)
    picture.submit(scanned(device(A), device(B, number=1)))
    picture.submit(judged(a=HEALTHY))
    assert picture.current is before


def test_facts_that_change_nothing_offered_are_kept_and_not_published(picture: Picture) -> None:
    before = now(picture)
    picture.submit(lambda facts: replace(facts, held={"9": "baidu.com/xpu"}))
    assert picture.current is before
    assert picture.facts.held == {"9": "baidu.com/xpu"}


def test_every_change_is_the_next_generation(picture: Picture) -> None:
    changes = [
        judged(a=SICK),
        judged(a=replace(SICK, text="another sentence")),
        judged(a=HEALTHY, b=SICK),
        scanned(device(A, number=7), device(B, number=1)),
        scanned(device(A, number=7)),
        scanned(device(A, number=7), control=None),
        lambda facts: replace(facts, held={"7": "baidu.com/xpu"}),
    ]
    for generation, change in enumerate(changes, now(picture).generation + 1):
        before = now(picture)
        picture.submit(change)
        assert now(picture).generation == generation
        assert now(picture) is not before


def test_a_change_that_fails_leaves_the_picture_as_it_was(picture: Picture) -> None:
    before, facts = now(picture), picture.facts

    def broken(facts: Facts) -> Facts:
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        picture.submit(broken)
    assert (picture.current, picture.facts) == (before, facts)


# --- readers ------------------------------------------------------------------------------------------


async def soon(reader: "asyncio.Future[Inventory]") -> Inventory:
    async with asyncio.timeout(SECONDS):
        return await reader


async def settle() -> None:
    """Let every reader run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_reader_waits_for_the_first_picture() -> None:
    picture = Picture(Policy(resource="baidu.com/xpu"))
    reader = asyncio.ensure_future(picture.beyond(NEVER))
    await settle()
    assert not reader.done()
    picture.submit(scanned())
    assert await soon(reader) is picture.current


async def test_a_reader_is_not_woken_without_a_change(picture: Picture) -> None:
    reader = asyncio.ensure_future(picture.beyond(now(picture).generation))
    await settle()
    picture.submit(judged(a=HEALTHY))
    await settle()
    assert not reader.done()
    picture.submit(judged(a=NOT_ANSWERING))
    assert (await soon(reader)).entries[A].health == NOT_ANSWERING


async def test_a_slow_reader_skips_what_came_between_and_nobody_waits_for_it(picture: Picture) -> None:
    seen = now(picture).generation
    reader = asyncio.ensure_future(picture.beyond(seen))
    await settle()
    for health in (SICK, HEALTHY, NOT_ANSWERING):
        picture.submit(judged(a=health))
    inventory = await soon(reader)
    assert inventory is now(picture)
    assert inventory.generation == seen + 3
    assert inventory.entries[A].health == NOT_ANSWERING


# --- what is logged -----------------------------------------------------------------------------------


def test_every_change_is_one_event_and_none_is_none(
    picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def said(change: Callable[[Facts], Facts]) -> list[tuple[str, str]]:
        caplog.clear()
        picture.submit(change)
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    assert said(judged(a=HEALTHY)) == []
    ((level, text),) = said(judged(a=SICK))
    assert level == "WARNING"
    assert A in text
    assert "state-error" in text
    assert said(judged(a=SICK)) == []
    assert said(judged(a=HEALTHY)) == [("INFO", f"device healthy again id={A}")]
    ((level, text),) = said(scanned(device(A), device(B, number=5)))
    assert (level, text) == ("WARNING", f"device moved id={B} former_path=/dev/xpu1 path=/dev/xpu5")


def test_devices_that_appear_and_go_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    picture = Picture(Policy(resource="baidu.com/xpu"))
    picture.submit(scanned(device(A), device(B, number=1, state=207)))
    assert [record.getMessage().split(" ")[:3] for record in caplog.records] == [
        ["device", "offered", f"id={A}"],
        ["device", "offered", f"id={B}"],
    ]
    assert "reason=state-error" in caplog.records[1].getMessage()
    caplog.clear()
    picture.submit(lambda facts: after_scan(facts, found(device(A)), forget=True))
    assert [record.getMessage() for record in caplog.records] == [f"device no longer offered id={B}"]
