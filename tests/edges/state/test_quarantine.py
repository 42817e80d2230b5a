# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices: what was written is known to the next life, and no file is worth more
than going on."""

import asyncio
import os
from pathlib import Path

import pytest

from xpu_plugin.edges.state import state_file
from xpu_plugin.edges.state.quarantine import QuarantineRecord


A, B = "0000:3b:00.0", "0000:3c:00.0"


def written(directory: Path) -> dict[str, str]:
    """What a plugin that starts now would know."""
    return dict(QuarantineRecord(directory).reasons)


def test_a_record_that_is_not_there_is_empty_and_nothing_is_written_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert written(tmp_path / "state") == {}
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_what_is_written_is_all_that_the_next_life_knows(tmp_path: Path) -> None:
    record = QuarantineRecord(tmp_path / "state")
    asyncio.run(record.write({A: "call-failed", B: "state-error"}))
    assert record.reasons == written(tmp_path / "state") == {A: "call-failed", B: "state-error"}
    asyncio.run(record.write({B: "in-reset"}))
    assert record.reasons == written(tmp_path / "state") == {B: "in-reset"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"quarantined": []}', b'{"quarantined": 5}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_record_counts_as_empty_and_is_told_of(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "quarantine.json").write_bytes(content)
    assert written(tmp_path) == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_directory_that_cannot_be_written_is_complained_of_once_each_time_it_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    record = QuarantineRecord(blocked / "state")  # also for root
    for _ in range(2):
        asyncio.run(record.write({A: "lost"}))
        assert record.reasons == {}
    assert sum("cannot write" in entry.message for entry in caplog.records) == 1

    blocked.unlink()
    asyncio.run(record.write({A: "lost"}))
    assert written(blocked / "state") == {A: "lost"}
    caplog.clear()
    (blocked / "state/quarantine.json").unlink()
    (blocked / "state").rmdir()
    blocked.rmdir()
    blocked.touch()
    asyncio.run(record.write({}))
    assert sum("cannot write" in entry.message for entry in caplog.records) == 1


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
    with pytest.raises(ValueError, match="more than"):
        state_file.read(file)


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").touch()
    with pytest.raises(OSError, match="directory"):
        state_file.StateFile(tmp_path / "a").replace("text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
