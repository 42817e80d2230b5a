# SPDX-License-Identifier: Apache-2.0
"""A record of any content: in memory as it was read or written last, with one complaint for each trouble."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xpu_plugin.edges.state.record import Record
from xpu_plugin.edges.state.state_file import StateFile


def number_in(file: Path) -> Record[int | None]:
    return Record(
        file,
        name="a number",
        encode=lambda number: None if number is None else {"number": number},
        decode=lambda document: int(document["number"]),
        empty=None,
        waits="it waits",
        lost="it is counted anew",
    )


def failing(number: int, text: str) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, text)

    return fail


async def test_content_without_json_has_no_file(tmp_path: Path) -> None:
    record = number_in(tmp_path / "number.json")
    assert await record.read()
    assert record.content is None
    assert await record.write(5)
    assert json.loads(record.path.read_text()) == {"number": 5}
    assert not await record.missing()
    assert await record.write(None)
    assert await record.missing()
    assert await record.write(None), "there is nothing to remove any more"


async def test_what_cannot_be_read_keeps_its_content_and_each_trouble_is_told_until_it_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = number_in(tmp_path / "number.json")
    await record.write(5)
    for trouble in ("Input/output error", "Too many open files", "Too many open files"):
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "load", failing(5, trouble))
            assert not await record.read()
        assert (record.unread, record.content) == (True, 5)
    assert [entry.message for entry in caplog.records] == [
        f'cannot read a record; it is tried again record="a number" path={record.path} error="{trouble}" '
        'consequence="it waits"'
        for trouble in ("Input/output error", "Too many open files")
    ]
    assert await record.read()
    assert (record.unread, record.content) == (False, 5)
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "load", failing(24, "Too many open files"))
        assert not record.read_now()
    assert len(caplog.records) == 3


async def test_what_cannot_be_written_is_not_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = number_in(tmp_path / "number.json")
    await record.write(5)
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "replace", failing(28, "No space left on device"))
        for _ in range(2):
            assert not await record.write(6)
        with pytest.raises(OSError, match="No space"):
            await record.replace(6)
    assert record.content == 5
    assert [entry.message for entry in caplog.records] == [
        (
            f'cannot write a record record="a number" path={record.path} error="No space left on device" '
            'consequence="it is counted anew"'
        )
    ]
    assert await record.write(6)


async def test_a_damaged_file_counts_as_empty_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = number_in(tmp_path / "number.json")
    await record.write(5)
    record.path.write_text("{}")
    for _ in range(2):
        assert await record.read()
        assert (record.unread, record.content) == (False, None)
    assert len(caplog.records) == 1
    await record.write(6)
    assert (tmp_path / "number.json.damaged").read_text() == "{}"
