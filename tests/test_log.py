# SPDX-License-Identifier: Apache-2.0
"""Events: one a line on standard error, as text or as JSON, in UTC."""

import fcntl
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.waiting import PROMPT_SECONDS
from xpu_plugin import log


TEXT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (DEBUG|INFO|WARNING|ERROR) +(.*)")
logger = logging.getLogger("xpu_plugin.somewhere")
SECONDS = 5.0


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
    """A node with a clock that is not set to UTC."""
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
def test_an_event_is_one_printable_line_whatever_a_message_contains(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts of the library and of arguments get into messages, and the names that a client asks for."""
    log.configure(level="info", form=form)
    logger.info("device %s does not exist", "two\nlines\x1b[31m\0\x9b\N{LINE SEPARATOR}\udcff")
    (line,) = lines(capsys)
    assert line.isprintable()
    assert "lines" in line
    assert r"\u001b" in line


@pytest.mark.parametrize("form", log.FORMATS)
def test_an_event_shows_its_exception(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level="info", form=form)
    logger.error("it failed", exc_info=RuntimeError("first\nsecond"))
    shown = lines(capsys)
    if form == "text":
        assert shown[-2:] == ["RuntimeError: first", "second"]
    else:
        (event,) = map(json.loads, shown)
        assert (event["message"], event["exception"]) == ("it failed", "RuntimeError: first\nsecond")


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


# --- fields -----------------------------------------------------------------------------------------

PHRASE = "device unhealthy; see the kernel's log"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.from_regex(r"[a-z][a-z_-]{0,9}", fullmatch=True).filter(lambda name: name not in log.MEMBERS)


def parsed(text: str) -> tuple[str, dict[str, object]]:
    """The phrase and the fields of a text: a value is JSON, or else a word."""
    phrase, *rest = re.split(r" (?=[a-z_-]+=)", text, maxsplit=1)
    fields: dict[str, object] = {}
    for line in rest:
        at = 0
        while at < len(line):
            name = line[at : line.index("=", at)]
            at += len(name) + 1
            word = re.compile(r"[^ ]*").match(line, at)
            assert word
            try:
                value, end = json.JSONDecoder().raw_decode(line, at)
            except json.JSONDecodeError:
                value, end = word[0], word.end()
            if line[end : end + 1] not in ("", " "):
                value, end = word[0], word.end()
            fields[name], at = value, end + 1
    return phrase, fields


@given(st.dictionaries(NAMES, VALUES))
@example({"id": "0000:3b:00.0", "path": "/dev/xpu0", "version": "4.0.12.1", "error": 'not so: "a=b"'})
@example({"empty": "", "number": "4", "word": "null", "list": "[1]", "object": "{", "line": "a\n\x1b\u2028"})
def test_a_line_of_text_has_all_fields(fields: dict[str, object]) -> None:
    text = log.printable(str(log.Message(PHRASE, **fields)))
    assert text.isprintable()
    assert parsed(text) == (PHRASE, fields)


@given(st.dictionaries(NAMES, VALUES))
def test_a_json_line_has_the_phrase_and_all_fields_as_members(fields: dict[str, object]) -> None:
    output = io.StringIO()
    log.configure(level="info", form="json", handler=logging.StreamHandler(output))
    logger.warning(log.Message(PHRASE, **fields))
    event = json.loads(output.getvalue())
    assert event.pop("time")
    assert event == {"level": "warning", "message": PHRASE, "logger": "xpu_plugin.somewhere", **fields}


def test_a_value_that_json_does_not_know_is_taken_by_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"path": Path("/a"), "error": ValueError("it is odd"), "paths": [Path("/b")]}
    text = 'odd path=/a error="it is odd" paths=["/b"]'
    assert str(log.Message("odd", **fields)) == text
    log.configure(level="info", form="json")
    logger.warning(log.Message("odd", **fields))
    event = json.loads(lines(capsys)[0])
    assert {name: event[name] for name in fields} == {"path": "/a", "error": "it is odd", "paths": ["/b"]}


def test_a_message_below_the_level_is_not_formatted() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("formatted")

    log.configure(level="warning", form="text")
    logger.info(log.Message("never written", value=Costly()))


# --- what is said once, and decisions --------------------------------------------------------------


def test_what_is_said_is_news_until_it_changes_or_heals() -> None:
    said = log.Once()
    assert not said.healed()
    assert [said.changed(text) for text in ("a", "a", "b", "a")] == [True, False, True, True]
    assert said.last == "a"
    assert said.healed()
    assert not said.healed()
    assert said.changed("a")


def test_decisions_are_kept_after_logging_was_disabled_for_a_while() -> None:
    with log.RingHandler() as decisions:
        logging.disable()
        log.note("one")
        logging.disable(logging.NOTSET)
        log.note("two")
    assert "two" in [decision["what"] for decision in decisions.all]


def test_the_last_decisions_are_kept_with_their_time_and_no_more() -> None:
    with log.RingHandler() as decisions:
        began = time.time()
        for number in range(log.DECISIONS_KEPT + 3):
            log.note("grant", ids=[str(number)], why=None)
    log.note("grant", ids=["afterwards"])
    kept = decisions.all
    assert [one["ids"] for one in kept] == [[str(number + 3)] for number in range(log.DECISIONS_KEPT)]
    at = kept[0].pop("at")
    assert kept[0] == {"what": "grant", "ids": ["3"], "why": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(at))
    assert 0 <= datetime.fromisoformat(str(at)).timestamp() - began + 0.001 < SECONDS
    json.dumps(kept)


@pytest.mark.parametrize("level", log.LEVELS)
def test_decisions_are_kept_at_any_level_and_are_no_lines(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(level=level, form="text")
    with log.RingHandler() as decisions:
        log.note("verdict", id="a")
    assert [one["what"] for one in decisions.all] == ["verdict"]
    assert lines(capsys) == []


# --- a reader that stops to read --------------------------------------------------------------------

F_SETPIPE_SZ = 1031
PIPE_BYTES = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe with little room."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
    yield reader, writer
    os.close(reader)
    # Threads of handlers write on: not into what the next test has at this number.
    with open(os.devnull, "wb") as null:  # noqa: PTH123
        os.dup2(null.fileno(), writer)


def read_until(reader: int, words: str) -> str:
    text = ""
    deadline = time.monotonic() + 10
    while words not in text:
        assert time.monotonic() < deadline, text[-2000:]
        text += os.read(reader, 1 << 16).decode()
    return text


def test_a_queued_event_is_written_as_it_was_when_it_happened(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log.configure(level="info", form="text", handler=log.QueuedHandler(writer))
    devices = ["a"]
    logger.info("devices %s", devices)
    devices.append("b")
    assert TEXT.fullmatch(read_until(reader, "\n").rstrip())
    logger.info("devices %s", devices)
    assert "['a', 'b']" in read_until(reader, "\n")


@pytest.mark.parametrize("form", log.FORMATS)
def test_without_a_reader_nothing_waits_and_the_oldest_lines_are_dropped_counted_and_told(
    form: str, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_LINES", 100)
    reader, writer = pipe
    os.write(writer, b"x" * PIPE_BYTES)
    handler = log.QueuedHandler(writer)
    log.configure(level="info", form=form, handler=handler)
    began = time.monotonic()
    for number in range(2000):
        logger.info("event number=%s.", number)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert log.dropped() == handler.dropped > 1000
    text = read_until(reader, "number=1999.")
    lost = re.findall(r"\blines\W+(\d+)", text)
    assert sum(map(int, lost)) == handler.dropped
    assert len(lost) <= 2, "one more where the thread was slow to take its first line"
    shown = [int(number) for number in re.findall(r"number=(\d+)\.", text)]
    assert shown == sorted(shown)
    assert len(shown) == 2000 - handler.dropped
    assert shown[-100:] == list(range(1900, 2000))


def test_the_queue_is_bounded_in_bytes_too(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MOST_BYTES", 100_000)
    reader, writer = pipe
    handler = log.QueuedHandler(writer)
    log.configure(level="info", form="text", handler=handler)
    for number in range(50):
        logger.info("event number=%s. %s", number, "x" * 10_000)
    assert 38 <= handler.dropped <= 41
    assert "number=49." in read_until(reader, "number=49.")


def test_the_end_waits_for_what_is_being_read_and_not_for_a_reader_that_has_stopped(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    handler = log.QueuedHandler(writer)
    log.configure(level="info", form="text", handler=handler)
    logger.info("a few words")
    handler.flush()
    assert "a few words" in os.read(reader, PIPE_BYTES).decode()
    for _ in range(100):
        logger.info("x" * 1000)
    began = time.monotonic()
    handler.flush()
    assert log.FLUSH_SECONDS <= time.monotonic() - began < log.FLUSH_SECONDS + PROMPT_SECONDS


def test_lines_wait_while_no_thread_can_be_started(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reader, writer = pipe
    with monkeypatch.context() as lack:
        lack.setattr(threading.Thread, "start", none_left)
        log.configure(level="info", form="text", handler=log.QueuedHandler(writer))
        logger.info("one")
    logger.info("two")
    text = read_until(reader, "two")
    assert "one" in text


def test_a_closed_reader_costs_the_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = log.QueuedHandler(writer)
    log.configure(level="info", form="text", handler=handler)
    for _ in range(3):
        logger.info("a line without a reader")
        handler.flush()
    os.close(writer)
    assert handler.dropped == 3


DETACHED = """
import os, sys
from xpu_plugin import log
log.detach()
try:
    for _ in range(100):
        os.write(2, b"x" * 1000)  # as gRPC does, or a worker
except BlockingIOError:
    print("not written")
"""


def test_whoever_else_writes_to_a_pipe_that_is_full_does_not_wait(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    done = subprocess.run(
        [sys.executable, "-c", DETACHED],
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "not written\n"
    assert os.get_blocking(writer), "the pipe is as it was for others"
