# SPDX-License-Identifier: Apache-2.0
"""The reducer: facts in, what is offered out."""

from dataclasses import replace
from functools import reduce

import pytest

from tests.support.devices import CONTROL, LOST_CALL, device, found
from xpu_plugin.model.devices import Device, DeviceKind, Found
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    HEALTHY,
    LOST,
    NOT_ANSWERING,
    PROBE_PLANNED,
    PROBE_STUCK,
    PROBING,
    RECORD_UNREAD,
    VF_CHANGE_PLANNED,
    VF_UNDECIDED,
    Health,
    card_held,
    driver_error,
)
from xpu_plugin.model.inventory import (
    Facts,
    Inventory,
    Policy,
    after_scan,
    after_verdicts,
    entries,
    held_otherwise,
    is_old,
    may_be_ours,
    stale_ids,
    unusable_serials,
)


A, B, C = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "5e"))
POLICY = Policy(resource="baidu.com/xpu")
SICK = Health("state-error", "state 207")


def after(*scans: Found, facts: Facts | None = None) -> Facts:
    return reduce(after_scan, scans, facts or Facts())


def health(facts: Facts, policy: Policy = POLICY) -> dict[str, Health]:
    return {id: entry.health for id, entry in entries(facts, policy).items()}


def card(id: str = A, **fields: object) -> Device:
    return device(id, **{"number": (A, B, C).index(id), **fields})


def pf(of: str = A, vfs: int = 3) -> Device:
    return replace(card(of), kind=DeviceKind.PF, split=f"of{vfs}")


def vfs(count: int = 3, of: str = A) -> list[Device]:
    return [device(f"{of[:-4]}01.{n}-of{count}", number=10 + n) for n in range(count)]


# --- scans --------------------------------------------------------------------------------------------


def test_a_scan_offers_what_it_found_with_what_it_heard_of_its_health() -> None:
    facts = after(found(card(A), card(B, state=207), card(C, state=None, failure=LOST_CALL)))
    reasons = {id: health.reason for id, health in health(facts).items()}
    assert reasons == {A: None, B: "state-error", C: "call-failed"}
    assert facts.control == CONTROL


def test_a_later_scan_replaces_verdicts_of_a_sweep() -> None:
    facts = after_verdicts(after(found(card(A))), {A: SICK})
    assert health(facts) == {A: SICK}
    assert health(after_scan(facts, found(card(A)))) == {A: HEALTHY}


def test_a_sweep_leaves_the_verdicts_of_devices_it_does_not_speak_of() -> None:
    facts = after_verdicts(after(found(card(A), card(B))), {A: SICK})
    assert health(after_verdicts(facts, {B: NOT_ANSWERING})) == {A: SICK, B: NOT_ANSWERING}
    assert health(after_verdicts(facts, {A: HEALTHY})) == {A: HEALTHY, B: HEALTHY}


def test_the_control_node_is_that_of_the_last_scan() -> None:
    assert after(found(card(A)), found(card(A), control=None)).control is None


# --- kept back ----------------------------------------------------------------------------------------


def kept_back(facts: Facts, why: Health = VF_CHANGE_PLANNED, *cards: str) -> Facts:
    return replace(facts, kept_back=dict.fromkeys(cards or (A,), why))


@pytest.mark.parametrize("why", [VF_UNDECIDED, VF_CHANGE_PLANNED, CHANGING, ASKED_BEFORE, RECORD_UNREAD])
def test_a_card_that_is_kept_back_is_unhealthy_for_that_reason_and_no_other_card_is(why: Health) -> None:
    assert health(kept_back(after(found(card(A), card(B))), why)) == {A: why, B: HEALTHY}


def test_what_is_sick_or_lost_is_called_so_although_it_is_kept_back() -> None:
    one, two, three = vfs()
    facts = after_verdicts(after(found(pf(), one, two, three), found(pf(), one, two)), {one.id: SICK})
    assert health(kept_back(facts)) == {one.id: SICK, two.id: VF_CHANGE_PLANNED, three.id: LOST}


# --- probes -------------------------------------------------------------------------------------------


def probed(facts: Facts, probe: Health) -> dict[str, Health]:
    return health(replace(facts, probed={A: probe}))


def test_a_probe_withholds_the_other_devices_of_its_card_and_no_other_card() -> None:
    one, two, three = vfs()
    sick = driver_error("a line", "a rule")
    facts = after(found(pf(), one, two, three, card(B)))
    facts = replace(facts, driver_errors={one.id: sick})
    others = dict.fromkeys((two.id, three.id), PROBE_PLANNED)
    assert probed(facts, PROBE_PLANNED) == {one.id: sick, **others, B: HEALTHY}
    for probe in (PROBING, PROBE_STUCK):
        shown = probed(facts, probe)
        assert (shown[two.id], shown[three.id], shown[B]) == (probe, probe, HEALTHY)
        own = shown[one.id]
        assert own.in_change
        assert not own.well
        assert own.text == f"{probe.text}; {sick.text}"
        assert own.reason == (sick.reason if probe == PROBING else PROBE_STUCK.reason)


def test_a_card_whose_state_turns_bad_in_a_probe_stays_closed() -> None:
    facts = after_verdicts(after(found(card(A))), {A: SICK})
    shown = probed(facts, PROBING)[A]
    assert shown.reason == SICK.reason
    assert shown.in_change


# --- lost devices -------------------------------------------------------------------------------------


def test_a_lost_card_stays_listed_and_no_verdict_heals_it() -> None:
    facts = after(found(card(A), card(B)), found(card(A)))
    assert health(facts) == {A: HEALTHY, B: LOST}
    assert health(after_scan(facts, found(card(A)))) == {A: HEALTHY, B: LOST}
    assert health(after_verdicts(facts, {B: HEALTHY, C: HEALTHY})) == {A: HEALTHY, B: LOST}


def test_a_lost_card_that_comes_back_is_healthy_also_at_another_node() -> None:
    facts = after(found(card(A), card(B)), found(card(A)), found(card(A), card(B, number=7)))
    assert health(facts) == {A: HEALTHY, B: HEALTHY}
    assert entries(facts, POLICY)[B].device.path == "/dev/xpu7"
    assert facts.lost == {}


@pytest.mark.parametrize(
    ("claimed", "now"),
    [
        (A, [pf(vfs=2), *vfs(2)]),
        (A, vfs(2)),  # the card itself is not in sight
        (vfs(1)[0].id, [pf(vfs=3), *vfs(3)]),
        (vfs(3)[2].id, [pf(vfs=1), *vfs(1)]),
        (vfs(3)[2].id, [card(A)]),
    ],
)
def test_a_card_that_is_held_as_it_was_split_before_is_for_nobody_else(
    claimed: str, now: list[Device]
) -> None:
    facts = after_scan(Facts(), found(*now, card(B)), claimed=[claimed, B])
    assert stale_ids(facts) == {A: [claimed]}
    held = card_held([claimed])
    assert health(facts) == {device.id: held for device in now if device.kind is not DeviceKind.PF} | {
        B: HEALTHY
    }
    assert not held.grantable
    assert health(after_scan(facts, found(*now, card(B)))) == health(facts), "until more is known"
    assert set(health(replace(facts, claimed=frozenset({B}))).values()) == {HEALTHY}


@pytest.mark.parametrize(
    ("claimed", "now"),
    [
        (A, [card(A)]),
        (vfs(3)[1].id, [pf(), *vfs(3)]),
        (vfs(3)[1].id, [pf(), vfs(3)[0], vfs(3)[2]]),  # not in sight, and no other device has its place
        (C, [card(A)]),  # not in sight with all its card
        ("0000:ff:00.0", [card(A)]),
        ("2", [pf(), *vfs(3)]),  # old ids have facts of their own
        ("abc", [card(A)]),
    ],
)
def test_a_card_that_is_split_as_its_holders_know_it_is_open(claimed: str, now: list[Device]) -> None:
    facts = after_scan(Facts(), found(*now), claimed=[claimed])
    assert stale_ids(facts) == {}
    assert set(health(facts).values()) == {HEALTHY}


def test_a_card_that_is_split_under_the_holder_of_an_old_id_is_for_nobody_else() -> None:
    facts = replace(after(found(pf(vfs=2), *vfs(2))), held={"0": POLICY.resource})
    assert pf().node.number == 0
    assert stale_ids(facts) == {A: ["0"]}
    assert set(health(facts).values()) == {card_held(["0"])}
    offered = replace(facts, held={"10": POLICY.resource}, claimed=frozenset({"10"}))
    assert stale_ids(offered) == {}, "offered under that id"


def test_what_is_sick_is_called_so_although_its_card_is_held() -> None:
    facts = after_scan(Facts(), found(pf(vfs=2), *vfs(2)), claimed=[A])
    sick = after_verdicts(facts, {vfs(2)[0].id: SICK})
    assert list(health(sick).values()) == [SICK, card_held([A])]
    assert set(health(replace(facts, kept_back={A: VF_CHANGE_PLANNED})).values()) == {card_held([A])}


# --- policy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "deny", "offered"),
    [
        ((), (), {A, B, C}),
        ((A,), (), {A}),
        ((A, "R300"), (), {A, B}),
        ((), (A,), {B, C}),
        ((), ("r300",), {A, C}),
        ((A, B), (B,), {A}),
        (("02K00Y",), (), {C}),
        (("stranger",), (), set()),
    ],
)
def test_deny_beats_allow_and_no_allow_allows_all(
    allow: tuple[str, ...], deny: tuple[str, ...], offered: set[str]
) -> None:
    facts = after(found(card(A), card(B, model="R300"), card(C, serial="02k00y")))
    assert set(entries(facts, Policy(resource="baidu.com/xpu", allow=allow, deny=deny))) == offered


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("allow", [(), (A,)])
def test_a_pf_with_vfs_is_never_offered_even_if_it_is_allowed_by_name(
    lost: bool, allow: tuple[str, ...]
) -> None:
    facts = after(found(pf(), *vfs()), *([found()] if lost else []))
    assert A not in entries(facts, Policy(resource="baidu.com/xpu", allow=allow))


def test_a_card_names_all_its_vfs_in_allow() -> None:
    facts = after(found(pf(), *vfs(), card(B)))
    assert set(entries(facts, Policy(resource="baidu.com/xpu", allow=(A,)))) == {vf.id for vf in vfs()}


def test_names_that_match_no_device_are_told() -> None:
    policy = Policy(resource="baidu.com/xpu", allow=(A, "R300"), deny=("slip",))
    assert policy.unmatched([card(A)]) == ["R300", "slip"]


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("02K00Y6218V0003A",), True),
        (("slip",), True),
        ((B, B.upper(), f"{B}-of2"), False),
        (("R300", "r200-vf-8g", "P800-OAM", "XPU-3690-16G"), False),
        ((A,), False),
    ],
)
def test_a_serial_number_is_refused_where_the_library_tells_none(
    names: tuple[str, ...], refused: bool
) -> None:
    """A name that no device has and that is no id nor model may be one: then nothing may be offered."""
    for policy in (Policy(resource="a/b", deny=names), Policy(resource="a/b", allow=names)):
        assert (unusable_serials(policy, [card(A)]) is not None) is refused
        assert unusable_serials(policy, [replace(card(A), serial="02K00Y6218V0007B")]) is None
        assert unusable_serials(policy, []) is None, "nothing is offered yet"


def test_resources_are_one_for_all_or_one_a_profile() -> None:
    facts = after(found(card(A), card(B, model="R300")))
    assert {entry.resource for entry in entries(facts, POLICY).values()} == {"baidu.com/xpu"}
    each = entries(facts, replace(POLICY, per_profile=True))
    assert {id: entry.resource for id, entry in each.items()} == {A: "baidu.com/R200", B: "baidu.com/R300"}
    inventory = Inventory(generation=1, control=CONTROL, entries=each)
    assert inventory.resources == {"baidu.com/R200", "baidu.com/R300"}
    assert [entry.id for entry in inventory.of("baidu.com/R300")] == [B]
    assert inventory.of("baidu.com/xpu") == []


# --- held otherwise -----------------------------------------------------------------------------------


def held(facts: Facts, **ids: str) -> Facts:
    return replace(facts, held={id.removeprefix("n"): resource for id, resource in ids.items()})


def test_a_device_held_under_an_old_id_is_listed_under_it_instead_of_its_own() -> None:
    """ "1" is N of the node, not an index: here the device of /dev/xpu1 has another index."""
    facts = held(after(found(card(A), card(B, index=5))), n1="baidu.com/xpu", n9="baidu.com/xpu")
    assert set(entries(facts, POLICY)) == {A, "1"}
    assert entries(facts, POLICY)["1"].device.id == B
    assert health(after_verdicts(facts, {B: SICK}))["1"] == SICK
    assert health(kept_back(facts, VF_CHANGE_PLANNED, B))["1"] == VF_CHANGE_PLANNED
    assert set(entries(facts, replace(POLICY, deny=(B,)))) == {A}


def test_a_lost_device_does_not_take_the_old_id_of_whoever_has_its_node_now() -> None:
    """B, once /dev/xpu1, is gone, and C was given that number."""
    facts = held(after(found(card(A), card(B)), found(card(A), card(C, number=1))), n1="baidu.com/xpu")
    offered = entries(facts, POLICY)
    assert {id: entry.device.id for id, entry in offered.items()} == {A: A, "1": C, B: B}
    assert offered[B].health == LOST


@pytest.mark.parametrize(
    ("id", "old"),
    [
        ("0", True),
        ("17", True),
        ("01", False),
        ("", False),
        ("-1", False),
        (A, False),
        ("²", False),
        ("٢", False),
    ],
)
def test_old_ids_are_plain_decimal_numbers(id: str, old: bool) -> None:
    assert is_old(id) is old


@pytest.mark.parametrize(
    ("id", "may"),
    [("2", True), ("1023", True), ("10234", False), (f"{A}-half1", True), ("GPU-1", False), ("", False)],
)
def test_an_id_that_may_be_ours_has_our_form_or_is_the_number_of_a_node(id: str, may: bool) -> None:
    assert may_be_ours(id) is may


def test_of_all_that_is_held_only_what_would_be_offered_otherwise_matters() -> None:
    policy = replace(POLICY, per_profile=True)
    pairs = [
        ("0", "baidu.com/xpu"),  # by the former plugin
        (A, "baidu.com/xpu"),  # by us, before --resource-per-profile
        (B, "baidu.com/R200"),  # as it is offered now
        ("3", "nvidia.com/gpu"),  # of another plugin
        (C, "baidu.com/xpu"),  # not on this node
    ]
    devices = {A: card(A), B: card(B)}
    assert held_otherwise(pairs, devices, policy) == {"0": "baidu.com/xpu", A: "baidu.com/xpu"}
