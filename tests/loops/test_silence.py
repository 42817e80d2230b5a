# SPDX-License-Identifier: Apache-2.0
"""Silence is counted while the process runs, and ends with a round."""

from tests.support.clock import Clock
from xpu_plugin.loops.silence import Silence


def test_silence_lasts_from_one_round_to_the_next() -> None:
    clock = Clock()
    silence = Silence(clock)
    for seconds in (0.5, 1.0, 1.5):
        clock.now += 0.5
        assert silence.look(1.0) == seconds
    silence.end()
    assert silence.look(1.0) == 0.0
    clock.now += 0.5
    assert silence.look(1.0) == 0.5


def test_a_late_look_counts_as_if_it_had_come_in_time() -> None:
    clock = Clock()
    silence = Silence(clock)
    clock.now += 3600.0
    assert silence.look(1.0) == 1.0
    clock.now += 0.5
    assert silence.look(1.0) == 1.5
