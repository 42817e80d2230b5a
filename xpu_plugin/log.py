# SPDX-License-Identifier: Apache-2.0
"""Logging: one event a line on standard error, as text or as JSON."""

import json
import logging
import sys
import time


LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


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
            "message": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return printable(json.dumps(event, ensure_ascii=False))


def printable(line: str) -> str:
    """The line with all else escaped, in a way that JSON knows too."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def configure(*, level: str, form: str) -> None:
    """Send every logger's events to standard error."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
