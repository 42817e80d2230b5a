# SPDX-License-Identifier: Apache-2.0
"""Durations as a histogram counts them: a value that grows by making another one."""

from bisect import bisect_left
from dataclasses import replace

from xpu_plugin.frozen import frozen


@frozen
class Durations:
    """How many there were by length.

    bounds: upper ones, in ascending seconds; counts: for each of them, and then for all that is longer
    total: all of them together, in seconds
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    def with_one(self, seconds: float) -> "Durations":
        """One more. A clock that went backwards counts as no time."""
        place = bisect_left(self.bounds, seconds)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return replace(self, counts=counts, total=self.total + max(seconds, 0.0))

    @property
    def number(self) -> int:
        return sum(self.counts)

    def cumulated(self) -> list[tuple[float, int]]:
        """(upper bound, how many were not longer) for each bound; what is longer than all is left out."""
        found, so_far = [], 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            so_far += count
            found.append((bound, so_far))
        return found


def none_yet(*bounds: float) -> Durations:
    return Durations(bounds=bounds, counts=(0,) * (len(bounds) + 1))
