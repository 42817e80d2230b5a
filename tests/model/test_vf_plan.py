# SPDX-License-Identifier: Apache-2.0
"""Wishes, cards and what follows for each: examples."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import LOST_CALL, device, found
from xpu_plugin.model.boards import BOARDS, Board
from xpu_plugin.model.devices import Device, DeviceKind
from xpu_plugin.model.health import NOT_ANSWERING, PROBE_PLANNED, PROBE_STUCK, PROBING, Health
from xpu_plugin.model.inventory import Facts, Policy, after_scan, after_verdicts
from xpu_plugin.model.vf_plan import (
    LABEL,
    UNKNOWN,
    Card,
    CardPlan,
    DesiredVfs,
    Proof,
    Report,
    VfAction,
    VfState,
    by_argument,
    by_label,
    cards,
    parse,
    plan,
    within_handles,
)


A, B = "0000:3b:00.0", "0000:5e:00.0"
POLICY = Policy(resource="baidu.com/xpu")
IDLE = Proof()
TWO = by_argument(2)
P800 = next(board for board in BOARDS if board.name == "P800")
UNLISTED = Board(name="P900")


def pf(address: str = A, vfs: int = 2) -> Device:
    return device(address, kind=DeviceKind.PF, split=f"of{vfs}", max_vfs=3)


def vfs(count: int, address: str = A, seen: int | None = None) -> list[Device]:
    numbers = range(count if seen is None else seen)
    return [device(f"{address[:-4]}01.{n}-of{count}", number=10 + n, card=address) for n in numbers]


def card_of(*devices: Device, policy: Policy = POLICY, facts: Facts | None = None) -> Card:
    (card,) = cards(facts or after_scan(Facts(), found(*devices)), policy).values()
    return card


# --- the wish -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("3", 3), ("63", 63), ("keep", None)])
def test_a_number_or_keep_is_a_desired_count(text: str, number: int | None) -> None:
    assert parse(text) == number


@pytest.mark.parametrize("text", ["", "abc", "-1", "64", "99", "1.0", " 1", "01", "٣", "Keep", "1\n"])
def test_anything_else_is_refused_by_name_with_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match="accepted: a whole number from 0 to 63, or keep") as error:
        parse(text)
    assert repr(text) in str(error.value)


def test_the_label_goes_before_the_argument_and_without_one_the_argument_counts() -> None:
    assert by_label(UNKNOWN, "3", 0).number == 3
    assert by_label(UNKNOWN, None, 2) == by_argument(2)
    assert by_label(by_label(UNKNOWN, "3", 2), None, 2) == by_argument(2)
    assert by_label(by_argument(2), "keep", 2).number is None


def test_a_bad_label_leaves_the_desired_count_as_it_was_and_says_so() -> None:
    before = by_label(UNKNOWN, "3", 0)
    after = by_label(before, "abc", 0)
    assert (after.number, after.origin) == (before.number, before.origin)
    assert LABEL in after.problem
    assert "'abc'" in after.problem
    assert by_label(after, "2", 0).problem == ""


def test_a_bad_label_that_is_the_first_word_keeps_all_as_it_is() -> None:
    desired = by_label(UNKNOWN, "", 2)
    assert desired.number is None
    assert desired.origin is not None
    assert desired.problem


# --- cards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "number", "complete", "counts"),
    [
        ([device(A)], 0, True, (1, 2, 3)),
        ([pf(), *vfs(2)], 2, True, (1, 2, 3)),
        ([pf(), *vfs(2, seen=1)], 2, False, (1, 2, 3)),
        ([device(f"{A}-half0"), device(f"{A}-half1", number=1)], 0, True, ()),
    ],
)
def test_a_card_has_as_many_vfs_as_it_says(
    devices: list[Device], number: int, complete: bool, counts: tuple[int, ...]
) -> None:
    card = card_of(*devices)
    assert (card.vfs, card.complete, card.vf_counts, card.trouble) == (number, complete, counts, "")


def test_a_card_of_which_only_vfs_are_in_sight_is_in_trouble() -> None:
    card = card_of(*vfs(2))
    assert card.index is None
    assert "does not answer" in card.trouble


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (replace(POLICY, deny=(A,)), "excluded by --deny"),
        (replace(POLICY, deny=("R200",)), "excluded by --deny"),
        (replace(POLICY, allow=(B,)), "not named by --allow"),
    ],
)
def test_cards_that_are_not_to_be_offered_are_not_changed_and_say_why(policy: Policy, reason: str) -> None:
    kept = step(TWO, device(A), policy=policy)
    assert (kept.action, kept.reason) == (VfAction.KEEP, reason)
    assert step(TWO, device(A), policy=replace(POLICY, allow=(A,))).action is VfAction.APPLY


def test_vfs_of_a_card_in_a_probe_are_not_changed_nor_any_while_the_program_runs() -> None:
    facts = after_scan(Facts(), found(device(A), device(B)))

    def trouble(probe: Health) -> list[str]:
        probed = replace(facts, probed={A: probe})
        return [card.trouble for card in cards(probed, POLICY).values()]

    assert trouble(PROBE_PLANNED) == [f"{A}: {PROBE_PLANNED.text}", ""]
    assert trouble(PROBE_STUCK) == [f"{A}: {PROBE_STUCK.text}", ""]
    assert trouble(PROBING) == [f"{A}: {PROBING.text}"] * 2


def test_a_sick_card_and_a_vf_that_does_not_answer_are_trouble_and_a_sick_vf_is_not() -> None:
    assert "unhealthy" in card_of(device(A, state=207)).trouble
    sick = [replace(vfs(2)[0], state=207), vfs(2)[1]]
    assert card_of(pf(), *sick).trouble == ""
    silent = [replace(vfs(2)[0], state=None, failure=LOST_CALL), vfs(2)[1]]
    assert "-of2 is unhealthy" in card_of(pf(), *silent).trouble
    facts = after_verdicts(after_scan(Facts(), found(device(A))), {A: NOT_ANSWERING})
    assert "unhealthy" in card_of(facts=facts).trouble


# --- the plan -----------------------------------------------------------------------------------------


def step(
    desired: DesiredVfs, *devices: Device, proof: Proof | None = IDLE, policy: Policy = POLICY
) -> CardPlan:
    facts = after_scan(Facts(), found(*devices))
    (step,) = plan(desired, cards(facts, policy), {A: proof} if proof else {})
    return step


@pytest.mark.parametrize(
    ("desired", "devices", "action"),
    [
        (TWO, [device(A)], VfAction.APPLY),
        (TWO, [pf(vfs=3), *vfs(3)], VfAction.APPLY),
        (by_argument(0), [pf(), *vfs(2)], VfAction.APPLY),
        (by_argument(4), [pf(), *vfs(2)], VfAction.FAILED),
        # It cannot be split, sick or not; or that is not known.
        (TWO, [device(A, max_vfs=0)], VfAction.UNSUPPORTED),
        (TWO, [device(A, max_vfs=0, state=207)], VfAction.UNSUPPORTED),
        (by_argument(0), [device(A, max_vfs=0)], VfAction.KEEP),
        (TWO, [device(A, max_vfs=None)], VfAction.BLOCKED),
        (TWO, [device(A, state=207)], VfAction.BLOCKED),
    ],
)
def test_an_idle_card_is_changed_if_it_can_be(
    desired: DesiredVfs, devices: list[Device], action: VfAction
) -> None:
    planned = step(desired, *devices)
    assert planned.action is action
    assert ("accepts 0 to 3 VFs, not 4" in planned.reason) is (action is VfAction.FAILED)


@pytest.mark.parametrize(
    ("board", "most", "number", "accepted"),
    [
        (P800, 4, 3, "0, 2 or 4"),
        (P800, 4, 1, "0, 2 or 4"),
        (P800, 3, 4, "0 or 2"),
        (P800, 4, 4, None),
        (P800, 4, 2, None),
        (UNLISTED, 6, 7, "0 to 6"),
        (UNLISTED, 6, 5, None),
    ],
)
@pytest.mark.parametrize("present", [0, 2])
def test_a_number_that_the_card_does_not_accept_leaves_its_vfs(
    board: Board, most: int, number: int, accepted: str | None, present: int
) -> None:
    own = replace(device(A) if not present else pf(vfs=present), board=board, max_vfs=most)
    planned = step(by_argument(number), own, *(vfs(present) if present else ()))
    if accepted is None:
        assert planned.action is (VfAction.KEEP if number == present else VfAction.APPLY)
    else:
        assert planned.action is VfAction.FAILED
        assert planned.reason == f"this card accepts {accepted} VFs, not {number}"


# --- handles ------------------------------------------------------------------------------------------


EIGHT = tuple(f"0000:{bus:02x}:00.0" for bus in (0x03, 0x16, 0x2B, 0x3F, 0x84, 0x97, 0xB6, 0xC9))


def p800(address: str, vfs: int, state: int = 201) -> list[Device]:
    """A P800 with so many VFs, at functions of its own slot."""
    kind, split = (DeviceKind.PF, f"of{vfs}") if vfs else (DeviceKind.WHOLE, "whole")
    own = device(address, kind=kind, split=split, model="P800", board=P800, max_vfs=4, state=state)
    return [own] + [device(f"{address[:-1]}{n}-of{vfs}", card=address, board=P800) for n in range(1, vfs + 1)]


def actions(
    devices: Iterable[Device],
    number: int,
    *,
    unnamed: int = 0,
    policy: Policy = POLICY,
    claims: Mapping[str, int] | None = None,
) -> dict[str, CardPlan]:
    facts = replace(after_scan(Facts(), found(*devices)), unnamed=unnamed)
    desired = by_argument(number)
    observed = within_handles(cards(facts, policy), desired, facts, policy, claims=claims)
    return {step.card: step for step in plan(desired, observed, dict.fromkeys(observed, IDLE))}


def counts(steps: Mapping[str, CardPlan]) -> list[VfAction]:
    return [steps[card].action for card in EIGHT]


def test_cards_in_pci_order_get_handles_until_none_is_left() -> None:
    steps = actions((own for card in reversed(EIGHT) for own in p800(card, 0)), 4)
    assert counts(steps) == [VfAction.APPLY] * 6 + [VfAction.FAILED] * 2
    for card in EIGHT[6:]:
        assert steps[card].reason == (
            "handle-budget: with 4 VFs of this card the host would have 36 nodes /dev/xpuN, PFs included; "
            "accepted: 32 (--vf-handle-limit)"
        )
    done = actions((own for n, card in enumerate(EIGHT) for own in p800(card, 4 if n < 6 else 0)), 4)
    assert counts(done) == [VfAction.KEEP] * 6 + [VfAction.FAILED] * 2


def test_a_card_whose_turn_is_past_keeps_the_vfs_that_it_has() -> None:
    """Of 24 present nodes four cards more than two VFs each; the rest would be beyond 32."""
    steps = actions((own for card in EIGHT for own in p800(card, 2)), 4)
    assert counts(steps) == [VfAction.APPLY] * 4 + [VfAction.FAILED] * 4
    # While a card is being changed it has no VFs; none of the others takes its place.
    changing = actions((own for n, card in enumerate(EIGHT) for own in p800(card, 0 if n == 3 else 2)), 4)
    assert counts(changing) == counts(steps)


def test_a_card_keeps_the_nodes_of_the_vfs_that_a_change_has_taken() -> None:
    """All shall have two VFs, and 16 nodes are enough for four cards. The last one had four and has none."""
    devices = [own for n, card in enumerate(EIGHT) for own in p800(card, 2 if n < 2 else 0)]
    apply, failed, keep = VfAction.APPLY, VfAction.FAILED, VfAction.KEEP
    policy = replace(POLICY, handles=16)
    assert counts(actions(devices, 2, policy=policy)) == [keep] * 2 + [apply] * 2 + [failed] * 4
    steps = actions(devices, 2, policy=policy, claims={EIGHT[7]: 4})
    assert counts(steps) == [keep] * 2 + [apply] + [failed] * 4 + [apply]
    denied = replace(policy, deny=(EIGHT[7],))
    steps = actions(devices, 2, policy=denied, claims={EIGHT[7]: 4})
    assert counts(steps) == [keep] * 2 + [apply] * 2 + [failed] * 3 + [keep], "it gets none"


def test_a_card_that_is_not_changed_counts_with_what_it_has() -> None:
    devices = [own for card in EIGHT for own in p800(card, 4 if card == EIGHT[7] else 0)]
    denied = actions(devices, 4, policy=replace(POLICY, deny=(EIGHT[7],)))
    assert counts(denied) == [VfAction.APPLY] * 5 + [VfAction.FAILED] * 2 + [VfAction.KEEP]
    sick = [own for card in EIGHT for own in p800(card, 0, state=207 if card == EIGHT[0] else 201)]
    assert counts(actions(sick, 4)) == [VfAction.BLOCKED, *[VfAction.APPLY] * 5, *[VfAction.FAILED] * 2]


def test_nodes_without_a_device_count() -> None:
    devices = [own for card in EIGHT for own in p800(card, 0)]
    assert counts(actions(devices, 4, unnamed=1)).count(VfAction.APPLY) == 5
    assert counts(actions(devices, 2, unnamed=1)).count(VfAction.APPLY) == 8


def test_a_card_waits_for_the_nodes_of_one_that_gets_fewer() -> None:
    """Six cards have four VFs, and all shall have two: 24 nodes in the end, but 34 if the rest came first."""
    devices = [own for n, card in enumerate(EIGHT) for own in p800(card, 4 if n < 6 else 0)]
    steps = actions(devices, 2)
    assert counts(steps) == [VfAction.APPLY] * 6 + [VfAction.BLOCKED] * 2
    assert "waits until another card has fewer VFs" in steps[EIGHT[6]].reason
    assert "34 nodes" in steps[EIGHT[6]].reason


@pytest.mark.parametrize(("limit", "changed"), [(None, 6), (0, 8), (40, 8), (39, 7), (12, 1), (11, 0)])
def test_the_administrators_limit_counts_for_that_of_the_model(limit: int | None, changed: int) -> None:
    devices = [own for card in EIGHT for own in p800(card, 0)]
    steps = actions(devices, 4, policy=replace(POLICY, handles=limit))
    assert counts(steps) == [VfAction.APPLY] * changed + [VfAction.FAILED] * (8 - changed)


def test_boards_without_a_limit_have_none() -> None:
    many = [device(f"0000:{bus:02x}:00.0") for bus in range(30)]
    assert {step.action for step in actions(many, 3).values()} == {VfAction.APPLY}
    limited = actions(many, 3, policy=replace(POLICY, handles=33))
    assert [step.action for step in limited.values()] == [VfAction.APPLY] + [VfAction.FAILED] * 29


@given(
    present=st.lists(st.sampled_from([0, 2, 4]), min_size=1, max_size=8),
    number=st.sampled_from([0, 2, 4]),
    limit=st.integers(8, 40),
    data=st.data(),
)
def test_no_order_of_changes_leads_beyond_the_limit(
    present: list[int], number: int, limit: int, data: st.DataObject
) -> None:
    """Cards go through n, 0 and m; at most one is in between."""
    policy, now = replace(POLICY, handles=limit), dict(zip(EIGHT, present, strict=False))
    most = max(limit, len(now) + sum(now.values()))
    for _ in range(20):
        steps = actions([own for card, vfs in now.items() for own in p800(card, vfs)], number, policy=policy)
        due = sorted(card for card, step in steps.items() if step.action is VfAction.APPLY)
        if not due:
            break
        card = data.draw(st.sampled_from(due))
        now[card] = number if not now[card] else 0
        total = len(now) + sum(now.values())
        assert total <= most
        if now[card] == 0 and number:
            middle = [own for each, vfs in now.items() for own in p800(each, vfs)]
            assert (
                actions(middle, number, policy=policy, claims={card: number})[card].action is VfAction.APPLY
            )
            now[card] = number
            assert len(now) + sum(now.values()) <= most
    assert not any(step.action in (VfAction.APPLY, VfAction.BLOCKED) for step in steps.values())


def test_a_card_as_desired_is_kept_whoever_uses_it() -> None:
    proof = Proof(holders=("default/job/main",))
    assert step(TWO, pf(), *vfs(2), proof=proof).action is VfAction.KEEP
    assert step(by_argument(0), device(A), proof=proof).action is VfAction.KEEP
    assert step(by_argument(None), device(A), proof=proof).action is VfAction.KEEP
    assert step(UNKNOWN, pf(), *vfs(2)).action is VfAction.KEEP


def test_a_used_card_is_blocked_by_name_and_one_without_proof_for_that() -> None:
    held = step(TWO, device(A), proof=Proof(holders=("default/job/main", "process 7 at /dev/xpu0")))
    assert held.action is VfAction.BLOCKED
    assert held.reason == "held by default/job/main, process 7 at /dev/xpu0"
    assert held.holders == ("default/job/main", "process 7 at /dev/xpu0")
    doubtful = step(TWO, device(A), proof=Proof(doubt="there is no kubelet"))
    assert doubtful.action is VfAction.BLOCKED
    assert doubtful.reason == "cannot prove idle: there is no kubelet"
    assert step(TWO, device(A), proof=None).action is VfAction.BLOCKED


# --- the report ---------------------------------------------------------------------------------------


def told(*actions: VfAction) -> list[CardPlan]:
    return [
        CardPlan(card=f"0000:{n:02x}:00.0", desired=2, actual=0, action=action)
        for n, action in enumerate(actions)
    ]


@pytest.mark.parametrize(
    ("actions", "state"),
    [
        ((), VfState.SUCCESS),
        ((VfAction.KEEP, VfAction.KEEP), VfState.SUCCESS),
        ((VfAction.KEEP, VfAction.APPLY), VfState.PENDING),
        ((VfAction.APPLY, VfAction.BLOCKED), VfState.BLOCKED),
        ((VfAction.BLOCKED, VfAction.FAILED, VfAction.KEEP), VfState.FAILED),
        ((VfAction.UNSUPPORTED, VfAction.KEEP), VfState.SUCCESS),
        ((VfAction.UNSUPPORTED, VfAction.APPLY), VfState.PENDING),
        ((VfAction.UNSUPPORTED, VfAction.UNSUPPORTED), VfState.FAILED),
    ],
)
def test_the_node_is_as_bad_as_its_worst_card(actions: tuple[VfAction, ...], state: VfState) -> None:
    assert Report(steps=tuple(told(*actions))).state is state


def test_a_desired_count_that_does_not_count_is_a_failure_with_its_reason() -> None:
    report = Report(steps=tuple(told(VfAction.KEEP)), problem="label x: 'abc' is not accepted")
    assert report.state is VfState.FAILED
    assert json.loads(report.detail())["problem"] == report.problem


def test_the_detail_says_all_of_each_card() -> None:
    blocked = step(TWO, device(A), proof=Proof(holders=("default/job/main",)))
    assert json.loads(Report(steps=(blocked,)).detail()) == {
        "cards": [
            {
                "address": A,
                "desired": 2,
                "actual": 0,
                "state": "blocked",
                "reason": "held by default/job/main",
                "holders": ["default/job/main"],
            }
        ]
    }
    kept = Report(steps=(CardPlan(card=A, desired=None, actual=2, action=VfAction.KEEP),))
    assert json.loads(kept.detail())["cards"][0]["desired"] == "keep"
    unsupported = Report(steps=tuple(told(VfAction.UNSUPPORTED)))
    assert json.loads(unsupported.detail())["cards"][0]["state"] == "unsupported"
