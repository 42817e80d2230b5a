# SPDX-License-Identifier: Apache-2.0
"""Events: one a line on standard error, as text or as JSON, in UTC."""

import json
import logging
import re
import time
from collections.abc import Iterator

import pytest

from xpu_plugin import log


TEXT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (DEBUG|INFO|WARNING|ERROR) +(.*)")
logger = logging.getLogger("xpu_plugin.somewhere")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The root logger is everybody's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node whose clock is not set to UTC."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_text_line_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form="text")
    logger.warning("device %s", "is sick")
    (line,) = lines(capsys)
    match = TEXT.fullmatch(line)
    assert match
    assert match.groups()[1:] == ("WARNING", "device is sick")


def test_a_json_line_has_time_level_message_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form="json")
    logger.error("device %s", "“is sick”")
    (line,) = lines(capsys)
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {"level": "error", "message": "device “is sick”", "logger": "xpu_plugin.somewhere"}


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("form", log.FORMATS)
def test_the_time_is_that_of_the_event_in_utc(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form=form)
    record = logger.makeRecord("x", logging.INFO, "", 0, "event", (), None)
    record.created, record.msecs = 1700000000.5, 500.0
    logger.handle(record)
    (line,) = lines(capsys)
    assert "2023-11-14T22:13:20.500Z" in line


@pytest.mark.parametrize("form", log.FORMATS)
def test_an_event_is_one_line_whatever_a_message_contains(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts of the library and of arguments get into messages."""
    log.configure(level="info", form=form)
    logger.info("the library says %s", "two\nlines")
    (line,) = lines(capsys)
    assert "two" in line
    assert "lines" in line


@pytest.mark.parametrize("form", log.FORMATS)
def test_control_characters_of_a_message_do_not_reach_a_terminal(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever can ask for a device by a name gets that name logged."""
    log.configure(level="info", form=form)
    logger.info("device %s does not exist", "a\x1b[31m\0\x9b\N{LINE SEPARATOR}\udcff")
    (line,) = lines(capsys)
    assert line.isprintable()
    assert r"\u001b" in line


def test_a_json_event_with_an_exception_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form="json")
    logger.error("it failed", exc_info=RuntimeError("first\nsecond"))
    (line,) = lines(capsys)
    event = json.loads(line)
    assert event["message"] == "it failed"
    assert event["exception"] == "RuntimeError: first\nsecond"


def test_a_text_event_with_an_exception_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form="text")
    logger.error("it failed", exc_info=RuntimeError("why"))
    assert lines(capsys)[-1] == "RuntimeError: why"


@pytest.mark.parametrize("level", log.LEVELS)
def test_events_below_the_level_are_not_logged(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level=level, form="json")
    for each in log.LEVELS:
        logger.log(getattr(logging, each.upper()), each)
    shown = [json.loads(line)["level"] for line in lines(capsys)]
    assert shown == list(log.LEVELS[log.LEVELS.index(level) :])


def test_the_last_configuration_counts_and_events_are_logged_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(level="error", form="json")
    log.configure(level="info", form="text")
    logger.info("once")
    (line,) = lines(capsys)
    assert TEXT.fullmatch(line)
