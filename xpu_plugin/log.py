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
    """A message that holds a line break, as a library's text may, stays one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return "\\n".join(super().formatMessage(record).splitlines())


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
        return json.dumps(event, ensure_ascii=False)


def configure(*, level: str, form: str) -> None:
    """Send every logger's events to standard error."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
