# SPDX-License-Identifier: Apache-2.0
"""The demo, as a user runs it; and with a plugin that fails, which it has to say."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xpu_plugin.commands import demo


COMMAND = (sys.executable, "-P", "-m", "xpu_plugin", "demo")
SECONDS = 45


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo has to put everything, and to leave nothing; pytest's own is too deep for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield Path(directory)


@pytest.mark.parametrize(
    ("options", "cards"), [([], "four R200 cards"), (["--model=P800"], "six P800 cards")]
)
def test_every_step_does_what_it_says(place: Path, options: list[str], cards: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "--once", *options], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    titles = [step.title for step in demo.STEPS]
    assert [title for title in titles if title not in ended.stdout] == []
    assert "BAIDU_COM_XPU_DEVICE_IDS=" in ended.stdout
    assert f"simulated  the machine ({cards}" in ended.stdout
    assert list(place.iterdir()) == []


def test_settings_meant_for_a_real_plugin_do_not_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPU_PLUGIN_DENY", "R200")
    subprocess.run([*COMMAND, "--once"], stdout=subprocess.DEVNULL, timeout=SECONDS, check=True)


def test_it_stays_until_interrupted_and_tells_of_changes(place: Path) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            hint = next(line for line in process.stdout if " simulate set " in line)
            subprocess.run(hint.split(), timeout=SECONDS, check=True)
            change = next(line for line in process.stdout if "->" in line)
            assert "Healthy -> Unhealthy" in change
        finally:
            process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(SECONDS) == 0, rest
    assert "exit status 0" in rest
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("title", [step.title for step in demo.STEPS[:2]])
def test_an_interrupt_before_the_last_step_is_no_success(place: Path, title: str) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if title in line)
        finally:
            process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(SECONDS) == demo.INTERRUPTED, rest
    assert list(place.iterdir()) == []


def test_a_plugin_that_ends_is_reported_with_its_last_words(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "import sys; print('something dreadful'); sys.exit(3)"
    monkeypatch.setattr(demo, "PROCESS", (sys.executable, "-c", script))
    assert demo.main(["--once"]) == 1
    said = capfd.readouterr().out
    assert "FAILED" in said
    assert "it ended with exit status 3" in said
    assert "something dreadful" in said
    assert list(place.iterdir()) == []


def test_a_plugin_that_does_nothing_fails_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PROCESS", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(demo, "START_SECONDS", 0.2)
    assert demo.main(["--once"]) == 1
    said = capfd.readouterr().out
    assert "expected: 6 healthy devices of baidu.com/xpu within 0.2 s" in said
    assert "0 registrations" in said


def test_a_directory_too_deep_for_sockets_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert demo.main(["--once"]) == 1
    assert str(deep) in capfd.readouterr().err
