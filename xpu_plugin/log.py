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
MOST_LINES, MOST_BYTES = 4096, 1 << 20  # of lines that wait to be written
FLUSH_SECONDS = 0.3  # at the end, for the lines that still wait
DECISIONS_KEPT = 256  # older ones are forgotten
MEMBERS = ("time", "level", "message", "logger", "exception")  # of a JSON line: no field has such a name

_BARE = re.compile(
    r"""(?!(-?\d+(\.\d+)?([eE][-+]?\d+)?|true|false|null|NaN|-?Infinity)$)[^\s"=\[{][^\s"=]*"""
)
"""A text that needs no quotes: one word that is no JSON value."""

_decisions = logging.Logger("xpu_plugin.decisions")  # noqa: LOG001 - no parent: they are no lines of the log


class Message:
    """A constant phrase with named values, for `logger.warning` and its like.

    Its text is `phrase name=value name=value`, made only for a line that is written. A value is a word, or
    JSON. A value of another type than JSON's counts as its text.
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
    """The last report on one matter, which is reported once until it changes or heals."""

    def __init__(self) -> None:
        self.last: object = None
        """None: no report since the start, or since the matter healed."""

    def changed(self, said: object) -> bool:
        """Return whether this differs from the last report, and keep it as the last one."""
        news = said != self.last
        self.last = said
        return news

    def healed(self) -> bool:
        """Forget the last report, as all is well; return whether there was one."""
        return self.changed(None)


def note(what: str, /, **inputs: object) -> None:
    """Log a decision for the ring. what: a word for its kind; inputs: its outcome and its inputs, as JSON
    values"""
    # Not by `info`: whether a logger without a parent is enabled is cached for ever.
    message = Message(what, **inputs)
    _decisions.handle(_decisions.makeRecord(_decisions.name, logging.INFO, "", 0, message, (), None))


class RingHandler(logging.Handler):
    """The last decisions with their inputs, in memory and bounded, for later questions."""

    def __init__(self) -> None:
        super().__init__()
        self._ring: deque[logging.LogRecord] = deque(maxlen=DECISIONS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self._ring.append(record)

    @property
    def all(self) -> list[dict[str, object]]:
        """The decisions, the oldest first."""
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
    """Return the message without fields; a message of a library has none."""
    message: object = record.msg
    return message.phrase if isinstance(message, Message) else record.getMessage()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    message: object = record.msg
    return message.fields if isinstance(message, Message) else {}


class _UtcFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)


class _TextFormatter(_UtcFormatter):
    """Keeps each message on one line, without effect on a terminal: the text of a library, or an id from the
    socket, may hold control characters."""

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
    """Return the line with all other characters escaped, in a form that JSON knows, too."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


class QueuedHandler(logging.Handler):
    """Puts events into a bounded queue, from which a thread writes them to a descriptor.

    Logging never waits, also if the reader of the descriptor has stopped. Then the oldest lines are dropped;
    once there is room again, one line has their number. `flush`, which logging calls at the end, waits for a
    bounded time.
    """

    def __init__(self, descriptor: int = STDERR) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._busy = False  # the thread writes a line that has left the queue
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
        """Start the thread. Without one, lines wait in the queue, and the next event tries again."""
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
        """Write a line without a time limit; return whether that was possible."""
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
    """Make each write to a full pipe fail instead of wait, also by gRPC, a worker or the interpreter.

    The pipe is opened anew for that, so other processes that write to it are not affected.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # then only our own lines never wait
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
    """Return the number of lines that were not written."""
    return sum(handler.dropped for handler in logging.root.handlers if isinstance(handler, QueuedHandler))
