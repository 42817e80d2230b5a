# SPDX-License-Identifier: Apache-2.0
"""Durations for a histogram: an immutable value; each addition returns a new one."""

from bisect import bisect_left
from dataclasses import replace

from xpu_plugin.frozen import frozen


@frozen
class Durations:
    """Numbers of durations by length."""

    bounds: tuple[float, ...]  # upper bounds in seconds, ascending
    counts: tuple[int, ...]  # one for each bound, and one for longer durations
    total: float = 0.0  # sum in seconds

    def with_one(self, seconds: float) -> "Durations":
        """Return the same with one more. A clock that went backwards counts as 0 s."""
        place = bisect_left(self.bounds, seconds)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return replace(self, counts=counts, total=self.total + max(seconds, 0.0))

    @property
    def number(self) -> int:
        return sum(self.counts)

    def cumulated(self) -> list[tuple[float, int]]:
        """Return (upper bound, number of durations up to it) for each bound."""
        found, so_far = [], 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            so_far += count
            found.append((bound, so_far))
        return found


def none_yet(*bounds: float) -> Durations:
    return Durations(bounds=bounds, counts=(0,) * (len(bounds) + 1))
