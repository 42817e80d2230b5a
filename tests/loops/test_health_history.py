# SPDX-License-Identifier: Apache-2.0
"""What devices answered, over time and over restarts: a quarantine is kept until it is over or lifted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.locks import Lock
from tests.support.waiting import until
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.loops import recorded as recorded_module
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.model.health import HEALTHY, LOST, Health, Rules


A, B = "0000:3b:00.0", "0000:3c:00.0"
SICK = Health("state-error", "state 207")
RULES = Rules(failures=2, recovery=10.0, flaps=2, window=100.0)


class Life:
    """A plugin's memory, at a time of our choice, from its start until it is killed."""

    def __init__(self, directory: Path) -> None:
        self.now = 0.0
        self.verdicts = HealthHistory(RULES, QuarantineRecord(directory), clock=lambda: self.now)
        self.writing = asyncio.create_task(self.verdicts.run(Lock()))

    async def kill(self) -> None:
        self.writing.cancel()
        await asyncio.gather(self.writing, return_exceptions=True)

    def hear(self, id: str, answer: Health, *, after: float = 0.0) -> str | None:
        self.now += after
        return self.verdicts.hear({id: answer})[id].reason

    def flap(self, id: str = A) -> None:
        """As often as it takes."""
        self.hear(id, HEALTHY)
        for _ in range(2):
            self.hear(id, SICK)
            self.hear(id, HEALTHY)
            self.hear(id, HEALTHY, after=RULES.recovery)
        assert self.hear(id, HEALTHY) == "quarantined"


Start = Callable[[], Life]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    lives: list[Life] = []

    def make() -> Life:
        lives.append(Life(tmp_path))
        return lives[-1]

    yield make
    for life in lives:
        await life.kill()


def written(directory: Path) -> dict[str, str]:
    return dict(QuarantineRecord(directory).content)


async def test_each_device_has_a_history_of_its_own(start: Start) -> None:
    life = start()
    assert life.verdicts.hear({A: HEALTHY, B: SICK}) == {A: HEALTHY, B: SICK}
    assert life.hear(B, HEALTHY) == "state-error"
    assert life.hear(B, HEALTHY, after=10.0) is None


async def test_a_device_that_could_not_be_asked_keeps_its_verdict(start: Start) -> None:
    life = start()
    life.verdicts.hear({A: HEALTHY, B: SICK})
    assert life.verdicts.miss([A, B, "0000:3d:00.0"]) == {A: HEALTHY, B: SICK}
    life.hear(B, HEALTHY)
    life.verdicts.miss([B])
    assert life.hear(B, HEALTHY, after=10.0) == "state-error", "its recovery begins anew"
    assert life.hear(B, HEALTHY, after=10.0) is None


async def test_what_is_not_kept_begins_anew(start: Start) -> None:
    life = start()
    life.verdicts.hear({A: SICK, B: SICK})
    life.verdicts.keep([A])
    assert life.verdicts.hear({A: HEALTHY, B: HEALTHY}) == {A: SICK, B: HEALTHY}


async def test_a_quarantine_survives_a_restart_and_begins_its_time_anew(start: Start, tmp_path: Path) -> None:
    life = start()
    life.flap()
    assert life.hear(B, HEALTHY) is None
    await until(lambda: written(tmp_path) == {A: "state-error"}, "written down")
    await life.kill()

    life = start()
    assert life.hear(A, HEALTHY) == "quarantined"
    assert life.hear(B, HEALTHY) is None
    assert life.hear(A, HEALTHY, after=99.0) == "quarantined"
    assert life.hear(A, HEALTHY, after=1.0) is None
    await until(lambda: written(tmp_path) == {}, "forgotten")
    await life.kill()
    assert start().hear(A, HEALTHY) is None


async def test_whoever_goes_and_comes_back_is_still_in_quarantine(start: Start) -> None:
    life = start()
    life.flap()
    assert life.hear(A, LOST) == "quarantined"
    life.verdicts.keep([])
    assert life.hear(A, HEALTHY, after=1000.0) == "quarantined"


async def test_a_quarantine_is_lifted_by_hand(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    life = start()
    life.flap()
    await until(lambda: written(tmp_path), "written down")
    assert life.verdicts.clear(B) is None
    assert life.verdicts.clear(A) == {A: HEALTHY}
    assert life.verdicts.clear(A) is None
    assert "quarantine lifted by hand id=0000:3b:00.0" in caplog.messages
    await until(lambda: not written(tmp_path), "forgotten")
    assert life.hear(A, SICK) == "state-error", "what led to it is forgotten"


async def test_a_quarantine_of_an_absent_device_is_lifted_by_hand(start: Start, tmp_path: Path) -> None:
    life = start()
    life.flap()
    life.verdicts.keep([])
    assert life.verdicts.clear(A) == {}
    assert life.hear(A, HEALTHY) is None


async def test_a_record_that_could_not_be_written_is_written_later(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorded_module, "RETRY_SECONDS", (0.05, 0.05))
    obstacle = tmp_path / "quarantine.json"
    obstacle.mkdir()
    aside = tmp_path / "quarantine.json.damaged"  # a directory with something in it is not replaced
    aside.mkdir()
    (aside / "kept").touch()
    life = start()
    life.flap()
    await until(lambda: any("cannot write" in message for message in caplog.messages), "a complaint")
    obstacle.rmdir()
    await until(lambda: written(tmp_path) == {A: "state-error"}, "written down")


async def test_a_record_that_can_be_read_only_later_counts_beside_what_began_meanwhile(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_module, "RETRY_SECONDS", (0.05, 0.05))
    file = tmp_path / "quarantine.json"
    file.symlink_to(file)
    life = start()
    life.hear(A, HEALTHY)
    life.flap(B)
    file.unlink()
    file.write_text('{"quarantined": {"0000:3b:00.0": "in-reset"}}')
    await until(lambda: life.hear(A, HEALTHY) == "quarantined", "read after all")
    assert life.hear(B, HEALTHY) == "quarantined"
    await until(lambda: written(tmp_path) == {A: "in-reset", B: "state-error"}, "both written down")
