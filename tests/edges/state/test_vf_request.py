# SPDX-License-Identifier: Apache-2.0
"""The record of the VFs that the driver was asked for: what the next process knows of it."""

import asyncio
import json
import logging
from pathlib import Path

import pytest

from xpu_plugin.edges.state import record as record_module
from xpu_plugin.edges.state import vf_request
from xpu_plugin.edges.state.state_file import StateFile
from xpu_plugin.edges.state.vf_request import VfRecord
from xpu_plugin.model.vf_reconcile import Request


REQUEST = Request("0000:3b:00.0", 2)


async def record_of(directory: Path, *, boot: str = "one") -> VfRecord:
    boot_id = directory / "boot_id"
    boot_id.write_text(f"{boot}\n")
    record = VfRecord(directory / "state", boot_id=boot_id)
    await record.read()
    return record


async def test_the_next_process_of_the_same_boot_knows_what_was_asked_for(tmp_path: Path) -> None:
    record = await record_of(tmp_path)
    assert record.says(None)
    await record.write(REQUEST)
    assert record.says(REQUEST)
    assert not record.says(None)
    assert (await record_of(tmp_path)).says(REQUEST)
    await record.write(None)
    assert (await record_of(tmp_path)).says(None)


async def test_what_was_asked_for_before_the_host_was_booted_is_void(tmp_path: Path) -> None:
    await (await record_of(tmp_path)).write(REQUEST)
    assert (await record_of(tmp_path, boot="two")).says(None)


async def test_a_change_that_is_not_over_is_known_until_it_is_or_the_host_was_booted(tmp_path: Path) -> None:
    record, begun = await record_of(tmp_path), {"0000:3b:00.0": 3}
    for request in (REQUEST, None):
        await record.write(request, begun=begun)
        after = await record_of(tmp_path)
        assert (after.request, after.begun) == (request, begun)
        assert after.says(request, begun=begun)
        assert not after.says(request)
        assert (await record_of(tmp_path, boot="two")).says(None)
    await record.write(None)
    assert json.loads((tmp_path / "state/vf-change.json").read_text()) == {"change": None}


async def test_a_file_of_a_former_version_has_a_request_alone(tmp_path: Path) -> None:
    file = tmp_path / "state/vf-change.json"
    file.parent.mkdir()
    file.write_text('{"change": {"card": "0000:3b:00.0", "number": 2, "boot": "one"}}')
    assert (await record_of(tmp_path)).says(REQUEST)


@pytest.mark.parametrize(("then", "now"), [("one", ""), ("", "")])
async def test_a_host_that_does_not_tell_its_boot_counts_as_not_booted(
    tmp_path: Path, then: str, now: str
) -> None:
    await (await record_of(tmp_path, boot=then)).write(REQUEST)
    assert (await record_of(tmp_path, boot=now)).says(REQUEST)


async def test_a_host_without_a_boot_id_has_a_record_all_the_same(tmp_path: Path) -> None:
    record = VfRecord(tmp_path / "state", boot_id=tmp_path / "nothing")
    await record.read()
    await record.write(REQUEST)
    assert (await record_of(tmp_path)).unread is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"change": 5}',
        '{"change": {"card": 3, "number": 2, "boot": "one"}}',
        '{"change": {"card": "0000:3b:00.0", "number": "2", "boot": "one"}}',
        '{"change": null, "begun": {"cards": {"0000:3b:00.0": "2"}, "boot": "one"}}',
        '{"change": null, "begun": {"cards": 2, "boot": "one"}}',
        '{"change": null, "begun": 2}',
        "\udc80",
    ],
)
async def test_a_damaged_record_counts_as_empty(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "state/vf-change.json"
    file.parent.mkdir()
    file.write_bytes(text.encode(errors="surrogateescape"))
    record = await record_of(tmp_path)
    assert record.says(None)
    assert "a damaged record counts as empty" in caplog.text


async def test_a_record_that_cannot_be_read_now_is_neither_empty_nor_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await (await record_of(tmp_path)).write(REQUEST)

    def fails(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(StateFile, "load", fails)
        record = await record_of(tmp_path)
        await record.read()
    assert record.unread
    assert not record.says(None)
    assert caplog.text.count('error="Too many open files"') == 1
    await record.read()
    assert record.says(REQUEST)


async def test_after_a_write_that_failed_it_is_not_known_what_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await record_of(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            await record.write(REQUEST)
    assert not record.says(None)
    assert not record.says(REQUEST)
    await record.write(None)
    assert record.says(None)
    assert json.loads(record.path.read_text()) == {"change": None}


async def test_a_disk_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "READ_SECONDS", 0.05)
    monkeypatch.setattr(vf_request, "WRITE_SECONDS", 0.05)
    record = await record_of(tmp_path)
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(record._record, "_disk", Frozen())
    with pytest.raises(TimeoutError) as late:
        await record.write(REQUEST)
    assert record_module.disk_trouble(late.value) == "the disk does not answer"
    assert not record.says(None)
    await record.read()
    assert record.unread


class Frozen:
    """A disk."""

    async def call(self, *_: object) -> None:
        await asyncio.Event().wait()
