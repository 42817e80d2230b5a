# SPDX-License-Identifier: Apache-2.0
"""Logging: phrases with fields, one a line on standard error, as text or JSON; nothing waits for it."""

import json
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from collections import deque
from typing import Self


LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
STDERR = 2
MOST_LINES, MOST_BYTES = 4096, 1 << 20  # that wait to be written
FLUSH_SECONDS = 0.3  # at the end, for what still waits
DECISIONS_KEPT = 256  # older ones are forgotten
MEMBERS = ("time", "level", "message", "logger", "exception")  # of a JSON line: no field has such a name

_BARE = re.compile(
    r"""(?!(-?\d+(\.\d+)?([eE][-+]?\d+)?|true|false|null|NaN|-?Infinity)$)[^\s"=\[{][^\s"=]*"""
)
"""A text that needs no quotes: it is one word, and nothing that JSON knows."""

_decisions = logging.Logger("xpu_plugin.decisions")  # noqa: LOG001 - no parent: they are no lines of the log


class Message:
    """A constant phrase with named values, as `logger.warning` and its like take it.

    Its text, which is made only for a line that is written, is `phrase name=value name=value`. A value is a
    word, or JSON. Values are those that JSON knows; others are taken by their text.
    """

    __slots__ = ("fields", "phrase")

    def __init__(self, phrase: str, /, **fields: object) -> None:
        self.phrase = phrase
        self.fields = fields

    def __str__(self) -> str:
        return " ".join((self.phrase, *(f"{name}={_shown(value)}" for name, value in self.fields.items())))


def _shown(value: object) -> str:
    if value is not None and not isinstance(value, bool | int | float | list | tuple | dict):
        value = str(value)
        if value.isprintable() and _BARE.fullmatch(value):
            return value
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


class Once:
    """What was said last about one matter: it is said once, until it changes or heals."""

    def __init__(self) -> None:
        self.last: object = None
        """None: nothing since the start, or since the matter has healed."""

    def changed(self, said: object) -> bool:
        """Whether this is news; it is what was said last from now on."""
        news = said != self.last
        self.last = said
        return news

    def healed(self) -> bool:
        """All is well, so that everything is news again; whether anything had been said."""
        return self.changed(None)


def note(what: str, /, **inputs: object) -> None:
    """Log a decision for the ring. what: a word for its kind; inputs: its outcome and what it rests on, in
    values that JSON knows"""
    # Not by `info`: whether a logger without a parent is enabled is cached for ever.
    message = Message(what, **inputs)
    _decisions.handle(_decisions.makeRecord(_decisions.name, logging.INFO, "", 0, message, (), None))


class RingHandler(logging.Handler):
    """The last decisions with their inputs, in memory and bounded, for questions that come afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._ring: deque[logging.LogRecord] = deque(maxlen=DECISIONS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self._ring.append(record)

    @property
    def all(self) -> list[dict[str, object]]:
        """The oldest first."""
        return [{"at": _moment(one), "what": _phrase(one), **_fields(one)} for one in list(self._ring)]

    def __enter__(self) -> Self:
        _decisions.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _decisions.removeHandler(self)


def _moment(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.created % 1 * 1000):03d}+00:00"


def _phrase(record: logging.LogRecord) -> str:
    """Without fields; a library's message is all phrase."""
    message: object = record.msg
    return message.phrase if isinstance(message, Message) else record.getMessage()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    message: object = record.msg
    return message.fields if isinstance(message, Message) else {}


class _UtcFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)


class _TextFormatter(_UtcFormatter):
    """A message that holds a line break or other control characters, as a library's text or an id from the
    socket may, stays one line and says nothing to a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _JsonFormatter(_UtcFormatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        event = {
            "time": f"{moment}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": _phrase(record),
            "logger": record.name,
            **_fields(record),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return printable(_json(event))


def printable(line: str) -> str:
    """The line with all else escaped, in a way that JSON knows too."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


class QueuedHandler(logging.Handler):
    """Puts events into a bounded queue, from which a thread writes them to a descriptor.

    Logging never waits, also where the reader of the descriptor has stopped to read. The oldest lines are
    dropped then; once there is room again, one line tells how many. `flush`, which logging calls at the end,
    waits for a bounded time.
    """

    def __init__(self, descriptor: int = STDERR) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._busy = False  # the thread writes a line that is not in the queue any more
        self._untold = 0
        self.dropped = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - as all handlers of the standard library
            self.handleError(record)
            return
        self._start()
        with self._changed:
            self._lines.append(line)
            self._bytes += len(line)
            while len(self._lines) > MOST_LINES or (self._bytes > MOST_BYTES and len(self._lines) > 1):
                self._bytes -= len(self._lines.popleft())
                self._drop()
            self._changed.notify_all()

    def flush(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, FLUSH_SECONDS)

    def _start(self) -> None:
        """Start the thread; without one, lines wait in the queue and the next event tries again."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a lack of threads, which may pass
                return
            self._thread = thread

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                self._busy = True
                line = self._lines.popleft()
                self._bytes -= len(line)
                lost, self._untold = self._untold, 0
            told = not lost or self._write(
                self._line(
                    _warning(
                        Message("log lines were lost, as standard error was not read in time", lines=lost)
                    )
                )
            )
            written = self._write(line)
            with self._changed:
                self._untold += 0 if told else lost
                if not written:
                    self._drop()

    def _write(self, line: bytes) -> bool:
        """Write it, however long that takes; whether it could be."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True


def _warning(message: Message) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (), None)


def detach(descriptor: int = STDERR) -> None:
    """Let no write to a pipe wait, be it by gRPC, by a worker or by the interpreter: without room it fails.

    The pipe is opened anew for that, so that other processes which write to it notice nothing.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # then only our own lines do not wait
    try:
        os.dup2(own, descriptor)
    finally:
        os.close(own)


def configure(*, level: str, form: str, handler: logging.Handler | None = None) -> None:
    """Send every logger's events to the handler; without one, to standard error."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def dropped() -> int:
    """Lines that have not been written."""
    return sum(handler.dropped for handler in logging.root.handlers if isinstance(handler, QueuedHandler))
