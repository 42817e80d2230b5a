# SPDX-License-Identifier: Apache-2.0
"""Incidents and verdicts: enough of them, each surely of another pod, make a device sick. Nothing else
does."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import device
from xpu_plugin.edges.kernel_log_rules import read_rules
from xpu_plugin.model.devices import DeviceKind, Process
from xpu_plugin.model.incidents import (
    Case,
    Holder,
    Incident,
    Memory,
    after_idle_incident,
    after_incident,
    after_success,
    begun,
    belongs,
    devices_at,
    ended,
    joined,
    merged,
    user_of,
)
from xpu_plugin.model.inventory import Facts
from xpu_plugin.model.kernel_log_rules import Line


RULES = read_rules(None)
CARD = "0000:16:00"


def incident(
    at: float, *, number: int = 0, of_pods: bool = True, old: bool = False, pid: int | None = None
) -> Incident:
    line = Line(
        card=CARD,
        reason="r",
        text="t",
        at=at,
        number=number or int(at),
        of_pods=of_pods,
        of_idle=True,
        pid=pid,
    )
    return begun(line, old=old)


def case_of(*incidents: tuple[float, Holder], old: float | None = None) -> Case:
    case = Case()
    if old is not None:
        case = after_incident(case, incident(old, old=True), Holder(), RULES)
    for at, holder in incidents:
        case = after_incident(case, incident(at), holder, RULES)
    return case


A, B = Holder(pod="n/a"), Holder(pod="n/b")


def test_two_pods_within_the_window_make_a_device_sick() -> None:
    sick = case_of((100.0, A), (200.0, B)).sickness
    assert sick is not None
    assert "n/a, n/b" in sick.health.text
    assert sick.health.reason == "driver-error"


def test_beyond_the_window_the_first_one_does_not_count() -> None:
    assert case_of((100.0, A), (100.0 + RULES.window, B)).sickness is not None
    assert case_of((100.0, A), (101.0 + RULES.window, B)).sickness is None


@given(st.lists(st.floats(0, 1e6), max_size=100))
def test_one_pod_never_makes_a_device_sick(times: list[float]) -> None:
    case = case_of(*((at, A) for at in sorted(times)))
    assert case.sickness is None
    assert len(case.incidents) <= 16


def test_an_unknown_pod_is_another_one_only_if_its_device_was_granted_later() -> None:
    assert case_of((200.0, A), old=100.0).sickness is None
    assert case_of((200.0, replace(A, since=50.0)), old=100.0).sickness is None
    assert case_of((200.0, replace(A, since=150.0)), old=100.0).sickness is not None
    assert case_of((100.0, A), (200.0, Holder())).sickness is None
    assert case_of((100.0, A), (200.0, Holder(since=150.0))).sickness is not None


def test_a_success_in_between_starts_the_count_anew() -> None:
    case = after_success(case_of((100.0, A)), 150.0)
    assert after_incident(case, incident(200.0), B, RULES).sickness is None
    case = after_success(case_of((100.0, A)), 50.0)  # it ended before the incident
    assert after_incident(case, incident(200.0), B, RULES).sickness is not None


def test_incidents_that_are_only_reported_do_not_count() -> None:
    case = after_incident(Case(), incident(100.0, of_pods=False), A, RULES)
    assert after_incident(case, incident(200.0), B, RULES).sickness is None


def test_an_incident_without_a_user_counts_unless_a_line_names_a_process() -> None:
    assert after_idle_incident(Case(), incident(100.0), RULES).sickness is not None
    assert after_idle_incident(Case(), incident(100.0, pid=7), RULES).sickness is None


def test_lines_from_before_the_end_of_a_verdict_do_not_count() -> None:
    case = ended(case_of((100.0, A), (200.0, B)), 300.0)
    assert case.sickness is None
    case = after_incident(case, incident(250.0), A, RULES)
    assert after_idle_incident(case, incident(250.0), RULES) == case == Case(ended=300.0)
    case = after_incident(case, incident(350.0), A, RULES)
    assert case.sickness is None
    assert after_incident(case, incident(400.0), B, RULES).sickness is not None


def test_a_verdict_that_is_later_than_a_reset_stays() -> None:
    assert ended(case_of((100.0, A), (200.0, B)), 150.0).sickness is not None


def test_the_weightiest_line_names_an_incident() -> None:
    line = Line(card=CARD, reason="weak", text="w", at=1.0, pid=5)
    strong = replace(line, reason="strong", text="s", at=2.0, of_pods=True, pid=6)
    own = joined(joined(begun(line), strong), replace(strong, reason="third"))
    assert (own.reason, own.text, own.pids, own.of_pods) == ("strong", "s", frozenset({5, 6}), True)
    assert belongs(own, replace(line, at=1.0 + RULES.together), RULES)
    assert not belongs(own, replace(line, at=1.1 + RULES.together), RULES)
    assert not belongs(own, replace(line, card="0000:17:00"), RULES)


def test_of_a_card_with_several_devices_only_a_process_tells_one() -> None:
    vfs = [
        replace(device(f"0000:16:00.{n}-of2", number=n), card="0000:16:00.0", kind=DeviceKind.VF)
        for n in (1, 2)
    ]
    here = {vfs[0].address: (Process(pid=1, host_pid=42),), vfs[1].address: (Process(pid=42, host_pid=43),)}
    assert user_of(vfs, {42}, here) == vfs[0]
    assert user_of(vfs, {42, 43}, here) is None
    assert user_of(vfs, set(), here) is None
    assert user_of(vfs, {42}, {}) is None
    whole = device("0000:16:00.0")
    assert user_of([whole], set(), {}) == whole
    pf = replace(whole, kind=DeviceKind.PF)
    facts = Facts(devices={own.id: own for own in (pf, *vfs)})
    assert devices_at(CARD, facts) == vfs
    assert devices_at("0000:17:00", facts) == []


def test_two_memories_become_one_and_no_end_is_undone() -> None:
    sick, clear = case_of((100.0, A), (200.0, B)), Case(ended=300.0)
    one, other = Memory(cases={"x": sick}, number=5), Memory(cases={"x": clear}, number=9)
    assert merged(one, other) == merged(other, one) == Memory(cases={"x": clear}, number=9)
    assert merged(one, Memory()) == merged(Memory(), one) == one
    first, second = Memory(cases={"x": case_of((100.0, A))}), Memory(cases={"x": case_of((200.0, B))})
    assert len(merged(first, second).cases["x"].incidents) == 2
