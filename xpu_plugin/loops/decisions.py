# SPDX-License-Identifier: Apache-2.0
"""The last decisions and what they rested on, in memory and bounded, for whoever asks afterwards why."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime


KEPT = 256  # decisions; older ones are forgotten


class Decisions:
    """What is noted is made of values that JSON knows."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[dict[str, object]] = deque(maxlen=KEPT)

    def note(self, what: str, **inputs: object) -> None:
        """Remember one. what: a word for its kind; inputs: what came of it, and what it rested on"""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        self._ring.append({"at": at, "what": what, **inputs})

    @property
    def all(self) -> list[dict[str, object]]:
        """The oldest first."""
        return list(self._ring)
