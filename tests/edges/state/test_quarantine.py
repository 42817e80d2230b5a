# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices: what was written is known to the next life, and no file is worth more
than going on."""

import asyncio
from pathlib import Path

import pytest

from xpu_plugin.edges.state.quarantine import QuarantineRecord


A, B = "0000:3b:00.0", "0000:3c:00.0"


def written(directory: Path) -> dict[str, str]:
    """What a plugin that starts now would know."""
    return dict(QuarantineRecord(directory).content)


def test_what_is_written_is_all_that_the_next_life_knows(tmp_path: Path) -> None:
    record = QuarantineRecord(tmp_path / "state")
    asyncio.run(record.write({A: "call-failed", B: "state-error"}))
    assert record.content == written(tmp_path / "state") == {A: "call-failed", B: "state-error"}
    asyncio.run(record.write({B: "in-reset"}))
    assert record.content == written(tmp_path / "state") == {B: "in-reset"}


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
