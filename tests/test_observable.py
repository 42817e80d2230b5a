# SPDX-License-Identifier: Apache-2.0
"""Values that are watched, and the outbox of events."""

import asyncio

from xpu_plugin.observable import Outbox, Value


SECONDS = 5.0


def test_a_value_counts_its_changes_and_an_equal_one_is_none() -> None:
    value: Value[tuple[int, ...]] = Value((1, 2))
    assert (value.current, value.version) == ((1, 2), 0)
    value.set((1, 2))
    assert value.version == 0
    value.set((3,))
    assert (value.current, value.version) == ((3,), 1)


async def test_a_reader_with_another_version_does_not_wait() -> None:
    value = Value("a")
    value.set("b")
    assert await asyncio.wait_for(value.beyond(0), SECONDS) == "b"


async def test_a_reader_waits_for_a_change_and_skips_what_came_in_between() -> None:
    value = Value(0)
    readers = [asyncio.create_task(value.beyond(0)) for _ in range(3)]
    await asyncio.sleep(0)
    value.set(0)
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    for number in range(1, 5):
        value.set(number)
    assert await asyncio.wait_for(asyncio.gather(*readers), SECONDS) == [4, 4, 4]


async def test_a_change_that_is_taken_back_is_a_change() -> None:
    value = Value(0)
    reader = asyncio.create_task(value.beyond(0))
    await asyncio.sleep(0)
    value.set(1)
    value.set(0)
    assert await asyncio.wait_for(reader, SECONDS) == 0
    assert value.version == 2


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    value = Value(0)
    reader = asyncio.create_task(value.beyond(0))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait({reader})
    assert reader.cancelled()
    assert value._wakes == []


def test_an_event_is_set_at_once_and_at_each_change_but_not_afterwards() -> None:
    first, second, wake = Value(0), Value("a"), asyncio.Event()
    with first.waking(wake), second.waking(wake):
        assert wake.is_set()
        wake.clear()
        first.set(1)
        assert wake.is_set()
        wake.clear()
        second.set("b")
        assert wake.is_set()
        wake.clear()
        first.set(1)
        assert not wake.is_set()
    first.set(3)
    second.set("c")
    assert not wake.is_set()


async def test_events_leave_an_outbox_in_order() -> None:
    outbox: Outbox[str] = Outbox()
    reader = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    for event in ("a", "b", "c"):
        outbox.put(event)
    assert await asyncio.wait_for(reader, SECONDS) == "a"
    assert [await outbox.get(), await outbox.get()] == ["b", "c"]
    assert outbox.dropped == 0


async def test_an_outbox_without_a_reader_drops_the_oldest_and_counts_them() -> None:
    outbox: Outbox[int] = Outbox(most=2)
    for event in range(5):
        outbox.put(event)
    assert outbox.dropped == 3
    assert [await outbox.get(), await outbox.get()] == [3, 4]
