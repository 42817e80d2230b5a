# SPDX-License-Identifier: Apache-2.0
"""The kernel's log: records with their times, floods and the loss of records."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.support.kernel_log import KernelLog as StandIn
from tests.support.waiting import PROMPT_SECONDS
from xpu_plugin.edges import kernel_log as module
from xpu_plugin.edges.kernel_log import (
    Batch,
    KernelLog,
    KernelLogError,
    Pieces,
    Record,
    parsed,
    trouble,
)


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    log = StandIn(tmp_path / "kmsg")
    yield log
    log.close()


def test_a_record_is_parsed_by_its_head() -> None:
    line = rb"12,339,5140900,c,caller=T1;a; b\x5cc\x09\xe7\x99\xbe"
    assert parsed(line) == Record(facility=1, number=339, stamp=5.1409, text="a; b\\c\t百")
    assert parsed(b"6,1,2,-;") == Record(facility=0, number=1, stamp=2e-6, text="")
    assert parsed(b"6,1,2,+;more", "some ") == Record(facility=0, number=1, stamp=2e-6, text="some more")
    assert parsed(rb"6,1,2,-;\xff") == Record(
        facility=0, number=1, stamp=2e-6, text="\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("line", [b"", b"6,1,2", b"x,1,2,-;a", b"6,1,2,-", b"6;1,2,-;a", b" SUBSYSTEM=pci"])
def test_what_is_no_record_is_left_out(line: bytes) -> None:
    assert parsed(line) is None


def test_records_come_whole_however_they_are_cut() -> None:
    text = b"6,1,2,-;one\n SUBSYSTEM=pci\n DEVICE=+pci:0000:16:00.0\n6,2,3,c;two \n6,3,3,+;parts\n"
    for cut in range(len(text)):
        pieces = Pieces()
        found = [*pieces.records(text[:cut]), *pieces.records(text[cut:])]
        assert [record.text for record in found] == ["one", "two ", "two parts"]


def test_a_line_without_end_is_not_kept() -> None:
    pieces = Pieces()
    for _ in range(8):
        assert pieces.records(b"x" * 4096) == []
    assert len(pieces._rest) <= module.LONGEST_RECORD


async def first(log: KernelLog, number: int) -> list[Batch]:
    """The batches with so many records."""
    found: list[Batch] = []
    async with asyncio.timeout(60), aclosing(log.batches()) as batches:
        async for batch in batches:
            found.append(batch)
            if sum(len(own.records) for own in found) >= number:
                break
    return found


async def test_the_ring_comes_first_with_its_times_and_then_each_record_at_once(stand_in: StandIn) -> None:
    now = time.monotonic()
    stand_in.write("last night", at=now - 40000)
    log = KernelLog(stand_in.path, clock=lambda: now)
    async with asyncio.timeout(60), aclosing(log.batches()) as batches:
        ring = await anext(batches)
        assert ring.old
        [(record, at)] = ring.records
        assert record.text == "last night"
        assert at == pytest.approx(now - 40000, abs=0.001)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        stand_in.write("now", at=now - 7.0)  # the log's clock has drifted since the boot
        batch = await waiting
        assert not batch.old
        [(record, at)] = batch.records
        assert record.text == "now"
        assert at == pytest.approx(now, abs=0.001)
        assert log.following
    assert not log.following


async def test_a_record_that_was_read_late_has_its_own_time(stand_in: StandIn) -> None:
    now = time.monotonic()
    log = KernelLog(stand_in.path, clock=lambda: now)
    async with asyncio.timeout(60), aclosing(log.batches()) as batches:
        assert (await anext(batches)).records == ()
        for late in (2.0, 602.0):
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            stand_in.write("a record", at=now - late)
            [(_, at)] = (await waiting).records
            assert at == pytest.approx(now if late == 2.0 else now - 600.0, abs=0.001)


async def test_a_flood_leaves_the_event_loop_to_others(stand_in: StandIn) -> None:
    reading = asyncio.create_task(first(KernelLog(stand_in.path), 5000))
    turns = 0
    while not reading.done():
        with contextlib.suppress(BlockingIOError):  # the FIFO is full, until the reader has its turn
            while not reading.done():
                stand_in.write("a driver in trouble")
        turns += 1
        await asyncio.sleep(0)
    await reading
    assert turns > 5000 / 1100  # as many records are in a full FIFO


async def test_overwritten_records_are_counted_and_the_rest_is_read(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [OSError(errno.EPIPE, "Broken pipe"), OSError(errno.EINVAL, "Invalid argument")]
    read = os.read

    def failing(descriptor: int, size: int) -> bytes:
        if broken:
            raise broken.pop(0)
        return read(descriptor, size)

    stand_in.write("the oldest that is left")
    monkeypatch.setattr(os, "read", failing)
    log = KernelLog(stand_in.path)
    [batch] = await first(log, 1)
    assert batch.lost == log.lost == 1


async def test_a_log_that_ends_is_an_error_and_can_be_opened_again(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path / "kmsg")
    log = KernelLog(stand_in.path)
    stand_in.write("one")
    await first(log, 1)
    stand_in.write("two")
    stand_in.close()  # what a FIFO holds goes with its last user
    with pytest.raises(KernelLogError, match="it has ended"):
        await first(log, 1)
    assert log.trouble == f"{stand_in.path}: it has ended"


@pytest.mark.parametrize("kind", ["missing", "file", "directory"])
async def test_what_cannot_be_followed_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kmsg"
    if kind == "file":
        path.write_text("6,1,2,-;text\n")
    if kind == "directory":
        path.mkdir()
    expected = (
        "No such file or directory: mount the /dev of the host"
        if kind == "missing"
        else "no character device"
    )
    with pytest.raises(KernelLogError, match=expected):
        await first(KernelLog(path), 1)
    assert expected in str(trouble(path))


def test_a_missing_right_is_told_with_its_remedy() -> None:
    assert "capability SYSLOG" in module.advice(PermissionError(errno.EPERM, "Operation not permitted"))


async def test_no_child_inherits_the_log(stand_in: StandIn) -> None:
    descriptor = module.opened(stand_in.path)
    try:
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK | os.W_OK), reason="needs root and /dev/kmsg")
async def test_the_real_log_returns_a_record_of_a_process_with_its_facility() -> None:
    """The kernel makes facility 1 (user) of the 0 that a process asks for."""
    descriptor = os.open("/dev/kmsg", os.O_WRONLY)
    log, text = (
        KernelLog(Path("/dev/kmsg")),
        f"xpu-device-plugin test, simulated (PCI:ffff:fe:1f): {os.getpid()}",
    )
    async with asyncio.timeout(60), aclosing(log.batches()) as batches:
        async for batch in batches:
            if not batch.records:
                break  # the ring is read
            if not batch.old or len(batch.records) < module.MOST_RECORDS:
                break
        os.write(descriptor, f"<4>{text}\n".encode())
        os.close(descriptor)
        began = time.monotonic()
        async for batch in batches:
            if found := [(record, at) for record, at in batch.records if record.text == text]:
                break
    [(record, at)] = found
    assert record.facility == 1
    assert abs(at - began) < PROMPT_SECONDS
