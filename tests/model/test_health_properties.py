# SPDX-License-Identifier: Apache-2.0
"""Health under any course of answers: what holds at every moment, for any answers at any times."""

from itertools import pairwise

from hypothesis import event, example, given
from hypothesis import strategies as st

from xpu_plugin.model.health import (
    HEALTHY,
    LIBRARY_GONE,
    LOST,
    NODE_MISSING,
    NOT_ANSWERING,
    Health,
    History,
    Rules,
    begin,
    cleared,
    heard,
    judge,
    missed,
    shared,
)


SICK, RESET, FAILED = judge(0, 207), judge(0, 205), judge(999, None)
ANSWERS = (HEALTHY, HEALTHY, HEALTHY, SICK, RESET, FAILED, LOST, NODE_MISSING, NOT_ANSWERING, LIBRARY_GONE)
MISSED, CLEARED = "missed", "cleared"

# Eighths of seconds: sums of them are exact.
RULES = st.builds(
    Rules,
    failures=st.integers(1, 4),
    recovery=st.integers(0, 40).map(lambda eighths: eighths / 8),
    flaps=st.integers(1, 4),
    window=st.integers(8, 400).map(lambda eighths: eighths / 8),
)
PAUSES = st.integers(0, 80).map(lambda eighths: eighths / 8)
ANSWER = st.sampled_from(ANSWERS)
COURSES = st.lists(st.tuples(PAUSES, ANSWER), min_size=1, max_size=60)
FLAPPING = st.lists(
    st.tuples(st.integers(0, 40).map(lambda eighths: eighths / 8), st.sampled_from([HEALTHY, SICK])),
    min_size=20,
    max_size=80,
)
COURSES_WITH_GAPS = st.lists(
    st.tuples(PAUSES, st.sampled_from([*ANSWERS, MISSED, CLEARED])), min_size=1, max_size=60
)


def histories(
    course: list[tuple[float, Health | str]], rules: Rules
) -> list[tuple[float, Health | str, History]]:
    """When, what was heard, and what is known then; of a device with a good first answer."""
    now, history = 0.0, begin(HEALTHY, 0.0)
    course_of: list[tuple[float, Health | str, History]] = [(now, HEALTHY, history)]
    for seconds, answer in course:
        now += seconds
        if isinstance(answer, Health):
            history = heard(history, answer, now, rules)
        else:
            history = missed(history) if answer == MISSED else cleared(history)
        course_of.append((now, answer, history))
    return course_of


@given(COURSES_WITH_GAPS, RULES, st.integers(-(10**6), 10**6))
def test_only_differences_of_times_matter(
    course: list[tuple[float, Health | str]], rules: Rules, later: int
) -> None:
    now, history = float(later), begin(HEALTHY, float(later))
    for seconds, answer in course:
        now += seconds
        if isinstance(answer, Health):
            history = heard(history, answer, now, rules)
        else:
            history = missed(history) if answer == MISSED else cleared(history)
    assert history.health == histories(course, rules)[-1][2].health


@given(COURSES, RULES)
def test_what_a_device_says_or_lacks_for_certain_acts_at_once(
    course: list[tuple[float, Health]], rules: Rules
) -> None:
    for _, answer, history in histories(list(course), rules):
        if not isinstance(answer, Health) or answer.healthy or answer == FAILED:
            continue
        assert not history.health.healthy
        if history.quarantine is None:
            assert history.health == answer


@given(COURSES, RULES)
def test_failed_calls_alone_take_so_many_in_a_row(course: list[tuple[float, Health]], rules: Rules) -> None:
    failures = 0
    steps = histories(list(course), rules)
    for (_, _, before), (_, answer, history) in pairwise(steps):
        failures = failures + 1 if answer == FAILED else 0
        if answer == FAILED and before.health.healthy:
            assert history.health.healthy is (failures < rules.failures)
            event("excused" if history.health.healthy else "not excused")


@given(COURSES_WITH_GAPS, RULES)
def test_healing_takes_good_answers_and_nothing_else_for_the_whole_recovery(
    course: list[tuple[float, Health | str]], rules: Rules
) -> None:
    good_since: float | None = 0.0
    steps = histories(course, rules)
    for (_, _, before), (now, answer, history) in pairwise(steps):
        if answer == HEALTHY:
            good_since = now if good_since is None else good_since
        elif answer != CLEARED:
            good_since = None
        if history.verdict.healthy and not before.verdict.healthy:
            assert good_since is not None
            assert now - good_since >= rules.recovery
            event("healed")
        if good_since is not None and now - good_since >= rules.recovery:
            assert history.verdict.healthy or answer == CLEARED, "and no longer than that"


@given(COURSES | FLAPPING, RULES)
def test_no_window_has_more_changes_than_are_borne_and_the_one_that_quarantines(
    course: list[tuple[float, Health]], rules: Rules
) -> None:
    """As a reader of the health alone sees it. Outages of the whole library are not the device's."""
    own = [(seconds, answer) for seconds, answer in course if answer != LIBRARY_GONE]
    steps = histories(list(own), rules)
    changes = [
        now
        for (_, _, before), (now, _, after) in pairwise(steps)
        if before.health.healthy is not after.health.healthy
    ]
    for change in changes:
        within = [other for other in changes if change <= other < change + rules.window]
        assert len(within) <= rules.flaps + 1
    if any(history.quarantine for _, _, history in steps):
        event("quarantined")


@example(
    [(0.0, SICK), (0.0, HEALTHY), (0.125, HEALTHY), (0.0, SICK), (0.0, HEALTHY), (1.0, HEALTHY)],
    Rules(failures=1, recovery=0.125, flaps=1, window=1.0),
)
@given(COURSES | FLAPPING, RULES)
def test_a_quarantine_ends_only_when_the_answers_have_not_changed_for_the_window(
    course: list[tuple[float, Health]], rules: Rules
) -> None:
    steps = histories(list(course), rules)
    changed_at = 0.0
    for (_, last, before), (now, answer, history) in pairwise(steps):
        assert isinstance(last, Health)
        assert isinstance(answer, Health)
        if last.healthy is not answer.healthy:
            changed_at = now
        if before.quarantine and not history.quarantine:
            assert now - changed_at >= rules.window
            event("freed")
        if history.quarantine:
            assert not history.health.healthy
            assert history.health.reason == "quarantined"
            assert now - changed_at < rules.window


@given(st.integers(1, 30), RULES)
def test_outages_of_the_library_quarantine_nobody(times: int, rules: Rules) -> None:
    course: list[tuple[float, Health | str]] = [
        (1.0, LIBRARY_GONE),
        (1.0, HEALTHY),
        (rules.recovery, HEALTHY),
    ] * times
    *_, (_, _, last) = histories(course, rules)
    assert last.quarantine is None
    assert last.health.healthy


@given(COURSES_WITH_GAPS, RULES)
def test_memory_is_bounded_and_reasons_come_with_words(
    course: list[tuple[float, Health | str]], rules: Rules
) -> None:
    for _, _, history in histories(course, rules):
        assert len(history.turns) <= rules.flaps + 1
        assert bool(history.health.reason) is bool(history.health.text) is not history.health.healthy


HALVES = {f"{card}-half{half}": card for card in ("A", "B") for half in (0, 1)}
SAID = st.dictionaries(
    st.sampled_from([*HALVES, "C"]), st.sampled_from([*ANSWERS, judge(0, 102, 1), judge(0, 103, 1)])
)


@given(SAID)
def test_what_is_said_of_a_card_is_said_of_both_halves_and_nothing_else_changes(
    said: dict[str, Health],
) -> None:
    told = shared(said, HALVES)
    assert shared(told, HALVES).keys() == told.keys() >= said.keys()
    for half, card in HALVES.items():
        own = said.get(half, HEALTHY)
        of_card = {
            said[id].reason for id, other in HALVES.items() if other == card and said.get(id, HEALTHY).of_card
        }
        if own.reason in (None, "call-failed") and of_card:
            assert told[half].reason in of_card
            assert told[half].text
        else:
            assert told.get(half) == said.get(half)
    assert told.get("C") == said.get("C")
