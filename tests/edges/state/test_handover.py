# SPDX-License-Identifier: Apache-2.0
"""The record of the last hand-over: of this boot, or none."""

from pathlib import Path

from xpu_plugin.edges.state.handover import Handover, HandoverRecord


async def test_the_next_process_of_this_boot_knows_both_pods(tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")
    record = HandoverRecord(tmp_path, boot_id=boot)
    assert await record.read() is None
    await record.write(Handover("a", "b"))
    assert await HandoverRecord(tmp_path, boot_id=boot).read() == Handover("a", "b")
    boot.write_text("two\n")
    assert await HandoverRecord(tmp_path, boot_id=boot).read() is None


async def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    for text in ("", "[]", '{"from": 1, "to": "b", "boot": ""}'):
        (tmp_path / "handover.json").write_text(text)
        assert await HandoverRecord(tmp_path).read() is None
