# SPDX-License-Identifier: Apache-2.0
"""Healthy is a call that succeeded and said 201; everything else is not, and says why. Over time: what acts
at once, what heals when, and who is quarantined."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpu_plugin.model.health import (
    HEALTHY,
    LIBRARY_GONE,
    LOST,
    NODE_MISSING,
    RECOVERING,
    Health,
    Rules,
    begin,
    cleared,
    heard,
    inherited,
    judge,
    missed,
    quarantined,
)
from xpu_plugin.xpuml import Arch


KL2 = [None, Arch.UNKNOWN, Arch.KL2, Arch.KL3]
KL1_CARD_ERRORS = [100, 102]


@given(
    code=st.just(0) | st.integers(-(2**31), 2**31 - 1),
    state=st.just(201) | st.none() | st.integers(0, 2**32 - 1),
    arch=st.none() | st.integers(0, 4),
)
def test_healthy_is_exactly_success_and_running(code: int, state: int | None, arch: int | None) -> None:
    """On every generation, for any number, also ones that no header knows."""
    health = judge(code, state, arch)
    assert health.healthy is (code == 0 and state == 201)
    assert str(health) == ("Healthy" if health.healthy else "Unhealthy")
    assert bool(health.reason) is bool(health.text) is not health.healthy
    assert "\n" not in health.text


@pytest.mark.parametrize(
    ("states", "archs", "reason"),
    [
        ([0], KL2, "unused"),
        ([205], KL2, "in-reset"),
        ([207], KL2, "state-error"),
        ([208], KL2, "in-exception"),
        # 205 is "error" on KL1, not "resetting", and the other way round.
        ([202, 203, 204, 205, *KL1_CARD_ERRORS], [Arch.KL1], "state-error"),
        ([103, 104], [Arch.KL1], "in-reset"),
        ([103, 104, 4711], [Arch.KL2], "state-error"),  # no header knows them
    ],
)
def test_states_have_their_reason(states: list[int], archs: list[int | None], reason: str) -> None:
    for state, arch in product(states, archs):
        health = judge(0, state, arch)
        assert health.reason == reason
        assert str(state) in health.text
        assert health.of_card is (reason == "in-reset" or (arch == Arch.KL1 and state in KL1_CARD_ERRORS))


@pytest.mark.parametrize(
    ("code", "text"), [(999, "unknown (999)"), (9, "driver not loaded (9)"), (-5, "(-5)"), (25, "(25)")]
)
def test_a_failed_call_is_unhealthy_and_names_the_code(code: int, text: str) -> None:
    health = judge(code, 201)
    assert health.reason == "call-failed"
    assert text in health.text


# --- over time ------------------------------------------------------------------------------------

RULES = Rules(failures=2, recovery=10.0, flaps=5, window=600.0)


@pytest.mark.parametrize(
    ("state", "arch", "held", "healthy"),
    [
        (202, Arch.KL1, False, True),
        (202, Arch.KL1, True, False),
        (202, Arch.KL2, False, False),
        (203, Arch.KL1, False, False),
        (201, Arch.KL1, True, True),
    ],
)
def test_low_power_of_a_kl1_chip_that_nobody_has_is_no_illness(
    state: int, arch: int, held: bool, healthy: bool
) -> None:
    assert judge(0, state, arch, held=held).healthy is healthy


FAILED = judge(999, None)
SICK = judge(0, 207)
RESET = judge(0, 205)


def told(*answers: tuple[float, Health], rules: Rules = RULES) -> list[Health]:
    """What is said after each of the answers; each with the seconds since the one before."""
    now, history, said = 0.0, None, []
    for seconds, answer in answers:
        now += seconds
        history = begin(answer, now) if history is None else heard(history, answer, now, rules)
        said.append(history.health)
    return said


def test_the_first_answer_counts_at_once() -> None:
    for answer in (HEALTHY, FAILED, SICK):
        assert told((0, answer)) == [answer]


def test_an_error_state_acts_at_once_and_a_failed_call_when_it_is_repeated() -> None:
    assert told((0, HEALTHY), (1, SICK)) == [HEALTHY, SICK]
    assert told((0, HEALTHY), (1, FAILED), (1, FAILED)) == [HEALTHY, HEALTHY, FAILED]
    assert told((0, HEALTHY), (1, FAILED), (1, HEALTHY), (1, FAILED))[-1] == HEALTHY, "not in a row"
    assert told((0, HEALTHY), (1, FAILED), (1, SICK), (1, FAILED))[1:] == [HEALTHY, SICK, FAILED]
    one = replace(RULES, failures=1)
    assert told((0, HEALTHY), (1, FAILED), rules=one)[-1] == FAILED


def test_a_device_that_is_sick_when_it_is_first_asked_heals_as_any_other() -> None:
    assert told((0, SICK), (1, HEALTHY), (9.9, HEALTHY), (0.1, HEALTHY)) == [SICK, SICK, SICK, HEALTHY]


@pytest.mark.parametrize("missing", [LOST, NODE_MISSING, LIBRARY_GONE])
def test_who_is_back_is_not_called_missing_any_more(missing: Health) -> None:
    assert told((0, HEALTHY), (1, missing), (1, HEALTHY), (10, HEALTHY))[2:] == [RECOVERING, HEALTHY]


def test_the_reason_is_that_of_the_last_bad_answer() -> None:
    assert told((0, HEALTHY), (1, RESET), (1, SICK), (1, HEALTHY))[1:] == [RESET, SICK, SICK]


def test_more_changes_than_are_borne_quarantine_a_device_until_it_is_quiet() -> None:
    flap = [(1.0, SICK), (1.0, HEALTHY), (10.0, HEALTHY)]
    said = told((0, HEALTHY), *flap * 3)
    assert [health.reason for health in said[-4:]] == [None, "state-error", "state-error", "quarantined"]
    assert "state-error" in said[-1].text

    quiet = told((0, HEALTHY), *flap * 3, (589.9, HEALTHY), (0.1, HEALTHY))
    assert [health.reason for health in quiet[-2:]] == ["quarantined", None]
    again = told((0, HEALTHY), *flap * 3, (500, SICK), (1, HEALTHY), (599.9, HEALTHY), (0.1, HEALTHY))
    assert [health.reason for health in again[-3:]] == ["quarantined", "quarantined", None]


def test_a_quarantine_that_is_over_shows_an_illness_that_is_not() -> None:
    flap = [(1.0, SICK), (1.0, HEALTHY), (10.0, HEALTHY)]
    said = told((0, HEALTHY), *flap * 3, (1, RESET), (599.9, RESET), (0.1, RESET))
    assert [health.reason for health in said[-3:]] == ["quarantined", "quarantined", "in-reset"]


def test_changes_that_are_far_apart_are_borne_for_ever() -> None:
    flap = [(150.0, SICK), (100.0, HEALTHY), (10.0, HEALTHY)]
    assert {health.reason for health in told((0, HEALTHY), *flap * 50)} == {None, "state-error"}


def test_a_device_that_could_not_be_asked_keeps_its_verdict_and_begins_its_recovery_anew() -> None:
    well = begin(HEALTHY, 0.0)
    assert missed(well) == well
    sick = missed(heard(begin(SICK, 0.0), HEALTHY, 1.0, RULES))
    assert sick.health == SICK
    later = heard(sick, HEALTHY, 11.0, RULES)
    assert later.health == SICK
    assert heard(later, HEALTHY, 21.0, RULES).health == HEALTHY


def test_a_quarantine_of_another_instance_is_taken_over_or_lifted() -> None:
    history = begin(HEALTHY, 0.0)
    taken = inherited(history, "call-failed")
    assert taken.health == quarantined("call-failed")
    assert inherited(taken, None) == history
    assert inherited(replace(history, turns=(1.0,)), None).turns == (1.0,), (
        "no quarantine, so its causes stay"
    )


def test_a_quarantine_that_is_cleared_leaves_what_the_device_says() -> None:
    history = begin(HEALTHY, 0.0, quarantine="call-failed")
    assert history.health.reason == "quarantined"
    assert "call-failed" in history.health.text
    assert cleared(history).health == HEALTHY
    assert cleared(begin(SICK, 0.0, quarantine="call-failed")).health == SICK
