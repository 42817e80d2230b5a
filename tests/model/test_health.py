# SPDX-License-Identifier: Apache-2.0
"""Healthy is a call that succeeded and said 201; everything else is not, and says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpu_plugin.model.health import HEALTHY, LIBRARY_GONE, LOST, NOT_ANSWERING, Health, judge
from xpu_plugin.xpuml import Arch


KL2_STATES = {0: "unused", 205: "in-reset", 207: "state-error", 208: "in-exception"}
KL1_STATES = (202, 203, 204, 205, 100, 102, 103, 104)


@given(
    code=st.integers(-(2**31), 2**31 - 1), state=st.none() | st.integers(0, 2**32 - 1), arch=st.integers(0, 4)
)
def test_healthy_is_exactly_success_and_running(code: int, state: int | None, arch: int) -> None:
    """For any number, also ones that no header knows."""
    health = judge(code, state, arch)
    assert health.healthy is (code == 0 and state == 201)
    assert bool(health.reason) is bool(health.text) is not health.healthy
    assert "\n" not in health.text


@pytest.mark.parametrize("arch", [None, *Arch])
def test_201_is_healthy_on_every_generation(arch: int | None) -> None:
    assert judge(0, 201, arch) == HEALTHY


@pytest.mark.parametrize(("state", "reason"), KL2_STATES.items())
@pytest.mark.parametrize("arch", [None, Arch.UNKNOWN, Arch.KL2, Arch.KL3])
def test_states_have_their_reason(state: int, reason: str, arch: int | None) -> None:
    health = judge(0, state, arch)
    assert health.reason == reason
    assert str(state) in health.text


@pytest.mark.parametrize("state", KL1_STATES)
def test_an_error_of_a_kl1_card_is_not_called_what_the_number_means_on_kl2(state: int) -> None:
    """205 is "error" there, not "resetting"."""
    assert judge(0, state, Arch.KL1).reason == "state-error"


def test_a_state_that_no_header_knows_is_unhealthy() -> None:
    assert judge(0, 4711, Arch.KL2).reason == "state-error"


@pytest.mark.parametrize(
    ("code", "text"), [(999, "unknown (999)"), (9, "driver not loaded (9)"), (-5, "(-5)"), (25, "(25)")]
)
def test_a_failed_call_is_unhealthy_and_names_the_code(code: int, text: str) -> None:
    health = judge(code, 201)
    assert health.reason == "call-failed"
    assert text in health.text


def test_a_health_is_shown_in_the_kubelets_words() -> None:
    assert str(HEALTHY) == "Healthy"
    assert [str(health) for health in (LOST, NOT_ANSWERING, LIBRARY_GONE, Health("x", "y"))] == [
        "Unhealthy"
    ] * 4
