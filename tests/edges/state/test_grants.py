# SPDX-License-Identifier: Apache-2.0
"""The record of grants: whole or not at all, and never worth more than availability."""

import asyncio
import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.waiting import until
from xpu_plugin.edges.state import record as record_module
from xpu_plugin.edges.state import replacing
from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.grants import GrantRecord, Shown
from xpu_plugin.edges.state.state_file import MOST_BYTES


A, B, C = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "5e"))
HOLDER = Shown("default/job/main", "a kubelet")


def written(directory: Path) -> dict[str, str]:
    """What a plugin that starts now would know."""
    return GrantRecord(directory).paths


def start(record: GrantRecord, *ids: str) -> dict[str, str]:
    """Grant the ids and start their container."""
    paths = {id: f"/dev/xpu{n}" for n, id in enumerate((A, B, C)) if id in ids}
    record.granted(paths)
    asyncio.run(record.started(paths))
    return paths


def test_a_record_that_is_not_there_is_empty_and_nothing_is_written_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert GrantRecord(tmp_path / "state").paths == {}
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_a_grant_is_known_at_once_and_written_when_its_container_starts(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path / "state")
    record.granted({A: "/dev/xpu4"})
    assert record.paths == {A: "/dev/xpu4"}
    assert list(tmp_path.iterdir()) == []
    asyncio.run(record.started({A: "/dev/xpu4"}))
    assert written(tmp_path / "state") == {A: "/dev/xpu4"}


def test_the_holder_is_on_record_until_the_device_is_granted_anew_or_forgotten(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A, B)
    asyncio.run(record.saw(lambda: {A: HOLDER, B: Shown("default/other/main", "a kubelet"), C: HOLDER}))
    assert GrantRecord(tmp_path).holders == {A: HOLDER, B: Shown("default/other/main", "a kubelet")}
    record.granted({A: "/dev/xpu9"})
    assert A not in record.holders
    asyncio.run(record.forget(lambda: [B]))
    assert GrantRecord(tmp_path).holders == {}
    asyncio.run(record.started({A: "/dev/xpu9"}))
    asyncio.run(record.saw(lambda: {A: Shown("default/next/main", "a kubelet")}))
    assert GrantRecord(tmp_path).holders == {A: Shown("default/next/main", "a kubelet")}


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, {A, B}), ({"listed": []}, set()), ({"listed": [A]}, {A})],
    ids=["a release that granted to listed containers only", "none listed", "no holders"],
)
def test_a_record_of_a_release_that_wrote_less_is_read(
    more: dict[str, object], expected: set[str], tmp_path: Path
) -> None:
    document = {"grants": {A: "/dev/xpu0", B: "/dev/xpu1"}, **more}
    (tmp_path / "grants.json").write_text(json.dumps(document))
    record = GrantRecord(tmp_path)
    assert (set(record.paths), record.listed, record.holders) == ({A, B}, expected, {})


def test_later_grants_replace_earlier_ones_of_the_same_device(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A, B)
    record.granted({A: "/dev/xpu9"})
    asyncio.run(record.started({A: "/dev/xpu9"}))
    assert record.paths == written(tmp_path) == {A: "/dev/xpu9", B: "/dev/xpu1"}


def test_what_another_plugin_wrote_meanwhile_is_taken_in_and_kept(tmp_path: Path) -> None:
    """As by the plugin that is being replaced, while its successor waits."""
    waiting, working = GrantRecord(tmp_path), GrantRecord(tmp_path)
    start(working, A, B)
    waiting.granted({C: "/dev/xpu2"})
    asyncio.run(waiting.reread())
    assert waiting.paths == {A: "/dev/xpu0", B: "/dev/xpu1", C: "/dev/xpu2"}
    asyncio.run(waiting.started({C: "/dev/xpu2"}))
    assert written(tmp_path) == {A: "/dev/xpu0", B: "/dev/xpu1", C: "/dev/xpu2"}


def test_what_has_ended_is_forgotten_on_disk_too(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A, B)
    see(record, A, B)
    record.granted({C: "/dev/xpu2"})
    asyncio.run(record.forget(lambda: [A, C]))
    assert record.paths == written(tmp_path) == {B: "/dev/xpu1"}
    assert record.listed == listed(tmp_path) == {B}
    (file,) = tmp_path.iterdir()
    before = file.stat()
    asyncio.run(record.forget(lambda: [A]))
    assert file.stat() == before


def test_what_is_granted_anew_while_its_end_waits_to_be_written_is_kept(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A)
    ended = {A}

    async def meet() -> None:
        async with record._writing:
            waiting = asyncio.create_task(record.forget(lambda: ended))
            await asyncio.sleep(0)
            record.granted({A: "/dev/xpu7"})
            ended.clear()
        await waiting
        await record.started({A: "/dev/xpu7"})

    asyncio.run(meet())
    assert record.paths == written(tmp_path) == {A: "/dev/xpu7"}


def test_the_file_is_replaced_never_written_into(tmp_path: Path) -> None:
    """A reader, also after a crash at any point, sees the whole old or the whole new file."""
    record = GrantRecord(tmp_path)
    start(record, A)
    (file,) = tmp_path.iterdir()
    with file.open() as old:
        start(record, B)
        assert json.load(old)["grants"] == {A: "/dev/xpu0"}
    assert written(tmp_path) == {A: "/dev/xpu0", B: "/dev/xpu1"}
    assert list(tmp_path.iterdir()) == [file]


GARBAGE = {
    "empty": b"",
    "cut off": b'{"grants": {"0000:3b:00.0": "/de',
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"7",
    "other keys": b'{"version": 2}',
    "a list of grants": b'{"grants": ["0000:3b:00.0"]}',
    "nothing": b'{"grants": null}',
    "a number of listed": b'{"grants": {"0000:3b:00.0": "/dev/xpu0"}, "listed": 7}',
    "nothing for listed": b'{"grants": {"0000:3b:00.0": "/dev/xpu0"}, "listed": null}',
    "a word for listed": b'{"grants": {"0000:3b:00.0": "/dev/xpu0"}, "listed": true}',
    "too deep": b"[" * 100_000,
    "too large": b'{"grants": {"' + b"x" * MOST_BYTES + b'": "/dev/xpu0"}}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_counts_as_empty_is_said_and_is_kept_aside_by_the_next_start(
    garbage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(GrantRecord(tmp_path), A)
    (file,) = tmp_path.iterdir()
    file.write_bytes(garbage)
    record = GrantRecord(tmp_path)
    assert (record.paths, record.listed) == ({}, set())
    (event,) = caplog.records
    assert str(file) in event.getMessage()
    start(record, B)
    assert written(tmp_path) == {B: "/dev/xpu1"}
    assert (tmp_path / "grants.json.damaged").read_bytes() == garbage


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_counts_as_damaged_and_is_kept_aside(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "grants.json")
    record = GrantRecord(tmp_path)
    assert record.paths == {}
    assert len(caplog.records) == 1
    start(record, A)
    assert written(tmp_path) == {A: "/dev/xpu0"}
    assert (tmp_path / "grants.json.damaged").exists()


@pytest.fixture
def no_descriptors(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """No file of the records can be opened until the returned function is called."""
    opened, lacking = os.open, True

    def open_if_there_are(path: str | Path, *arguments: object, **others: object) -> int:
        if lacking and str(path).endswith(".json"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, *arguments, **others)  # type: ignore[arg-type]  # as it was called

    def come_back() -> None:
        nonlocal lacking
        lacking = False

    monkeypatch.setattr(os, "open", open_if_there_are)
    return come_back


def test_a_record_that_cannot_be_read_now_is_read_before_anything_is_written(
    tmp_path: Path, no_descriptors: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "grants.json"
    file.write_text(json.dumps({"grants": {A: "/dev/xpu0", C: "/dev/xpu2"}, "listed": [A]}))
    before = file.read_bytes()
    record = GrantRecord(tmp_path)
    assert record.unread
    start(record, B)
    see(record, B)
    asyncio.run(record.forget(lambda: [A]))
    assert file.read_bytes() == before
    assert len(caplog.records) == 1, "it is said once"
    no_descriptors()
    start(record, B)
    assert written(tmp_path) == {A: "/dev/xpu0", B: "/dev/xpu1", C: "/dev/xpu2"}
    assert not record.unread
    assert A in listed(tmp_path)


def test_drafts_of_a_killed_process_are_removed_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".grants.json-x7f3").write_text("half")
    start(GrantRecord(tmp_path), A)
    assert [path.name for path in tmp_path.iterdir()] == ["grants.json"]


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A state directory that cannot be made, not even by root: it lies below a regular file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "state"


def test_a_directory_that_cannot_be_written_costs_the_record_only(
    read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = GrantRecord(read_only)
    caplog.clear()
    start(record, A)
    start(record, B)
    assert record.paths == {A: "/dev/xpu0", B: "/dev/xpu1"}
    (event,) = caplog.records  # once, not for each start
    assert str(read_only) in event.getMessage()
    assert "containers that restart may be refused" in event.getMessage()


def test_what_could_not_be_written_is_tried_again_at_the_next_start(
    read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = GrantRecord(read_only)
    start(record, A)
    read_only.parent.unlink()
    start(record, A)
    assert written(read_only) == {A: "/dev/xpu0"}
    caplog.clear()
    (read_only / "grants.json").unlink()
    read_only.rmdir()
    read_only.parent.rmdir()
    read_only.parent.touch()
    start(record, B)
    assert len(caplog.records) == 1  # it worked in between, so this is news


def test_a_failed_write_leaves_the_old_file_whole_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a full disk."""
    record = GrantRecord(tmp_path)
    start(record, A)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        start(record, B)
    assert written(tmp_path) == {A: "/dev/xpu0"}
    assert [file.name for file in tmp_path.iterdir()] == ["grants.json"]
    assert "No space left on device" in caplog.text


# --- what the kubelet has listed ------------------------------------------------------------------------


def listed(directory: Path) -> set[str]:
    """What a plugin that starts now would know to have been listed."""
    return GrantRecord(directory).listed


def see(record: GrantRecord, *ids: str) -> None:
    asyncio.run(record.saw(lambda: dict.fromkeys(ids, HOLDER)))


def test_what_the_kubelet_has_listed_is_written_and_read_again(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A, B)
    assert listed(tmp_path) == set()
    see(record, A)
    assert record.listed == listed(tmp_path) == {A}
    see(record, B)
    assert listed(tmp_path) == {A, B}
    assert written(tmp_path) == {A: "/dev/xpu0", B: "/dev/xpu1"}


def test_a_device_that_is_granted_anew_has_not_been_listed(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A, B)
    see(record, A, B)
    record.granted({A: "/dev/xpu0"})
    assert record.listed == {B}
    asyncio.run(record.started({A: "/dev/xpu0"}))
    assert listed(tmp_path) == {B}, "also when its path is the same as before"
    see(record, A)
    assert listed(tmp_path) == {A, B}


def test_listed_before_its_container_starts_is_written_with_the_start(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    record.granted({A: "/dev/xpu0"})
    see(record, A)
    assert list(tmp_path.iterdir()) == []
    asyncio.run(record.started({A: "/dev/xpu0"}))
    assert listed(tmp_path) == {A}


def test_what_is_granted_anew_while_the_list_waits_to_be_written_is_not_listed(tmp_path: Path) -> None:
    """The list showed the container of before; that of now may be an init container, which it never shows."""
    record = GrantRecord(tmp_path)
    start(record, A)
    shown = {A}

    async def meet() -> None:
        async with record._writing:
            waiting = asyncio.create_task(record.saw(lambda: dict.fromkeys(shown, HOLDER)))
            await asyncio.sleep(0)
            record.granted({A: "/dev/xpu0"})
            shown.clear()
        await waiting

    asyncio.run(meet())
    assert listed(tmp_path) == set()


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    record = GrantRecord(tmp_path)
    start(record, A)
    (file,) = tmp_path.iterdir()
    before = file.stat()
    start(record, A)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    see(record, A)
    before = file.stat()
    for ids in ((A,), (), (B,)):
        see(record, *ids)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_was_listed_is_known_also_where_it_cannot_be_written(
    read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = GrantRecord(read_only)
    caplog.clear()
    start(record, A)
    see(record, A)
    assert record.listed == {A}
    assert len(caplog.records) <= 1
    read_only.parent.unlink()
    asyncio.run(record.started({A: "/dev/xpu0"}))
    assert listed(read_only) == {A}


def test_what_was_listed_and_could_not_be_written_is_tried_again_at_the_next_list(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    record = GrantRecord(directory)
    start(record, A)
    aside = directory.rename(tmp_path / "aside")
    directory.touch()
    see(record, A)
    directory.unlink()
    aside.rename(directory)
    assert listed(directory) == set()
    see(record, A)
    assert listed(directory) == {A}


# --- a disk that does not answer --------------------------------------------------------------------------


class Frozen:
    """A way to replace files that waits until it is thawed."""

    def __init__(self) -> None:
        self.thawed = threading.Event()
        self._replace = replacing.replace

    def __call__(self, path: str, text: bytes, **how: bool) -> None:
        self.thawed.wait()
        self._replace(path, text, **how)


async def test_a_container_waits_a_bounded_time_and_the_next_one_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = Frozen()
    monkeypatch.setattr(replacing, "replace", frozen)
    record = GrantRecord(tmp_path, patience=0.1)
    try:
        async with asyncio.timeout(5):
            await record.started({A: "/dev/xpu0"})
        record.patience = 3600.0
        async with asyncio.timeout(5):
            await record.started({B: "/dev/xpu1"})
            await record.saw(lambda: {A: HOLDER})
            await record.forget(lambda: [A])
        assert sum("the disk does not answer" in event.message for event in caplog.records) == 1
        assert not (tmp_path / "grants.json").exists()
    finally:
        frozen.thawed.set()
    async with asyncio.timeout(5):
        await record.started({C: "/dev/xpu2"})
    wanted = {A: "/dev/xpu0", B: "/dev/xpu1", C: "/dev/xpu2"}
    await until(lambda: written(tmp_path) == wanted, "all of them on the disk")
    await until(lambda: not record._working, "word of it")  # before that the disk counts as one that is away
    async with asyncio.timeout(5):
        await record.forget(lambda: [A])
    assert written(tmp_path) == {B: "/dev/xpu1", C: "/dev/xpu2"}


async def test_a_record_that_is_not_read_in_time_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_of = {"grants": {A: "/dev/xpu0"}, "listed": []}
    (tmp_path / "grants.json").write_text(json.dumps(start_of))
    monkeypatch.setattr(record_module, "READ_SECONDS", 0.1)
    held = threading.Event()
    waits = asyncio.ensure_future(state_thread().call(held.wait))
    await asyncio.sleep(0)
    try:
        record = GrantRecord(tmp_path)
        assert record.unread
        assert not await record.reread()
        assert sum('error="the disk does not answer"' in one.message for one in caplog.records) == 1
    finally:
        held.set()
    await waits
    monkeypatch.setattr(record_module, "READ_SECONDS", 5.0)
    assert await record.reread()
    assert record.paths == {A: "/dev/xpu0"}


async def test_between_two_instances_nothing_is_written_and_then_all_or_nothing(tmp_path: Path) -> None:
    kept, left = GrantRecord(tmp_path), GrantRecord(tmp_path)
    await kept.started({A: "/dev/xpu0"})
    await left.reread()
    for record in (kept, left):
        record.hold()
        record.granted({B: "/dev/xpu1"})
        await record.started({B: "/dev/xpu1"})
        assert record.due == {B: "/dev/xpu1"}
        assert written(tmp_path) == {A: "/dev/xpu0"}
    left.disown()
    assert left.paths == {A: "/dev/xpu0"}
    await left.written()
    assert written(tmp_path) == {A: "/dev/xpu0"}
    await kept.release()
    assert written(tmp_path) == {A: "/dev/xpu0", B: "/dev/xpu1"}
