# SPDX-License-Identifier: Apache-2.0
"""The record of driver errors: all of one boot, and nothing of another one."""

from pathlib import Path

import pytest

from xpu_plugin.edges.state.driver_errors import DriverErrorRecord
from xpu_plugin.model.incidents import Attributed, Case, Holder, Memory, Sickness


INCIDENTS = (
    Attributed(at=1.5, number=7, text="a", holder=Holder(pod="n/a", since=0.5)),
    Attributed(at=2.5, number=8, text="b"),
)
MEMORY = Memory(
    cases={
        "sick": Case(incidents=INCIDENTS, sickness=Sickness(at=2.5, line="b", why="w"), ended=0.25),
        "cleared": Case(ended=9.0),
        "counting": Case(incidents=INCIDENTS[1:]),
    },
    number=8,
)
OF_BEFORE = (
    '{"boot": "one", "record": 8, "devices": {"cleared": {"incidents": [], "sick": null, "ended": 9.0}, '
    '"sick": {"incidents": [{"at": 1.5, "record": 7, "line": "a", "pod": "n/a", "granted": 0.5}, {"at": 2.5, '
    '"record": 8, "line": "b", "pod": null, "granted": null}], "sick": {"at": 2.5, "line": "b", "why": "w"}, '
    '"ended": 0.25}, "counting": {"incidents": [{"at": 2.5, "record": 8, "line": "b", "pod": null, '
    '"granted": null}], "sick": null, "ended": null}}}'
)


def record_of(directory: Path, *, boot: str = "one") -> DriverErrorRecord:
    boot_id = directory / "boot_id"
    boot_id.write_text(f"{boot}\n")
    return DriverErrorRecord(directory, boot_id=boot_id)


async def test_the_next_process_of_this_boot_knows_all(tmp_path: Path) -> None:
    assert await record_of(tmp_path).write(MEMORY)
    assert record_of(tmp_path).content == MEMORY


def test_a_file_of_a_former_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "driver-errors.json").write_text(OF_BEFORE)
    assert record_of(tmp_path).content == MEMORY


async def test_the_times_of_another_boot_say_nothing(tmp_path: Path) -> None:
    assert await record_of(tmp_path).write(MEMORY)
    assert record_of(tmp_path, boot="two").content == Memory()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"boot": "one", "record": 1, "devices": {"x": {}}}', OF_BEFORE.replace("1.5", "[]")],
)
def test_a_damaged_record_counts_as_empty(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "driver-errors.json").write_text(text)
    record = record_of(tmp_path)
    assert record.content == Memory()
    assert not record.unread
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
