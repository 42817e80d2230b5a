# SPDX-License-Identifier: Apache-2.0
"""How long devices have been silent, without the time in which this process was stopped."""

from collections.abc import Callable


class Silence:
    """Seconds since the last round in which all devices answered.

    They are added up look by look. A look that comes late shows that this process did not run meanwhile, as
    by SIGSTOP: that is no silence of a device.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._seconds = 0.0

    def end(self) -> None:
        """All devices have answered just now."""
        self._looked_at = self._clock()
        self._seconds = 0.0

    def look(self, expected: float) -> float:
        """The seconds up to now. expected: seconds since the last look, at most, while this process runs"""
        now = self._clock()
        self._seconds += min(now - self._looked_at, expected)
        self._looked_at = now
        return self._seconds
