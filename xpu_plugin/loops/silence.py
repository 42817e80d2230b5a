# SPDX-License-Identifier: Apache-2.0
"""The time without answers, less the time in which this process was stopped."""

from collections.abc import Callable


class Silence:
    """Seconds since the last round in which all devices answered.

    They are added up look by look. A late look shows that this process did not run meanwhile (SIGSTOP, for
    example); that is no silence of a device.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._seconds = 0.0

    def end(self) -> None:
        """Begin anew, as all devices have just answered."""
        self._looked_at = self._clock()
        self._seconds = 0.0

    def look(self, expected: float) -> float:
        """Return the seconds up to now. expected: maximum seconds since the last look while this process
        runs"""
        now = self._clock()
        self._seconds += min(now - self._looked_at, expected)
        self._looked_at = now
        return self._seconds
