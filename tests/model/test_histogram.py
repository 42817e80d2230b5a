# SPDX-License-Identifier: Apache-2.0
"""Durations, as a histogram has them."""

import pytest

from xpu_plugin.model.histogram import none_yet


def test_each_counts_in_all_bounds_that_it_does_not_exceed() -> None:
    durations = none = none_yet(0.1, 1.0, 10.0)
    for seconds in (0.05, 0.1, 0.5, 11.0):
        durations = durations.with_one(seconds)
    assert durations.cumulated() == [(0.1, 2), (1.0, 3), (10.0, 3)]
    assert durations.number == 4
    assert durations.total == pytest.approx(11.65)
    assert (none.number, none.total) == (0, 0.0)
    assert none.cumulated() == [(0.1, 0), (1.0, 0), (10.0, 0)]


def test_a_clock_that_goes_backwards_takes_nothing_away() -> None:
    assert none_yet(1.0).with_one(-3.0).total == 0.0
