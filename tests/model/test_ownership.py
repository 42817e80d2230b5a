# SPDX-License-Identifier: Apache-2.0
"""Who uses a card: what each witness says, and when it is believed. Examples, each of one rule."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest

from tests.support.devices import device, found
from xpu_plugin.model.devices import Device, DeviceKind, Process, Usage
from xpu_plugin.model.inventory import Facts, Policy, after_scan, card_of
from xpu_plugin.model.ownership import (
    FORMER,
    KUBELET_SECONDS,
    Answers,
    Grant,
    Holding,
    Ledger,
    Listing,
    Terms,
    Word,
    after_word,
    by_card,
    by_usage,
    distrust,
    examine,
    forgotten,
    unused_devices,
)
from xpu_plugin.model.vf_plan import Card, Proof, cards


A, B = "0000:3b:00.0", "0000:5e:00.0"
VF = "0000:3b:01.0-of2"
POLICY = Policy(resource="baidu.com/xpu")
OWN_POD = "kube-system/plugin"
SETTLE = 10.0
NOW = 1000.0  # when the list of the kubelet is asked for
LIFE, OTHER_LIFE = "life 2", "life 1"


def split(count: int = 2) -> list[Device]:
    """Card A at /dev/xpu0, its VFs at /dev/xpu10 and on."""
    pf = device(A, kind=DeviceKind.PF, split=f"of{count}")
    return [pf] + [
        device(f"0000:3b:01.{n}-of{count}", number=10 + n, index=n + 1, card=A) for n in range(count)
    ]


WHOLE_B = device(B, number=1, index=5)
SPLIT = after_scan(Facts(), found(*split(), WHOLE_B))
WHOLE = after_scan(Facts(), found(device(A), WHOLE_B))


# --- the device of an id -------------------------------------------------------------------------------


def test_an_id_that_is_there_is_of_the_card_of_its_device() -> None:
    assert card_of(A, SPLIT) == A
    assert card_of(VF, SPLIT) == A
    assert card_of(B, SPLIT) == B


def test_a_vf_belongs_to_the_card_that_sysfs_told_not_to_the_one_that_the_rule_says() -> None:
    elsewhere = device("0000:3b:05.0-of1", number=10, card=B)
    facts = after_scan(Facts(), found(device(A), WHOLE_B, elsewhere))
    assert card_of("0000:3b:05.0-of1", facts) == B
    assert card_of("0000:3b:05.0-of3", facts) == B  # the function is known, its id is not


def test_a_lost_device_is_still_of_its_card() -> None:
    facts = after_scan(SPLIT, found(WHOLE_B))
    assert not facts.devices.keys() & {A, VF}
    assert card_of(A, facts) == A
    assert card_of(VF, facts) == A


def test_a_vf_of_a_card_that_is_split_otherwise_now_is_still_of_that_card() -> None:
    facts = after_scan(SPLIT, found(device(A), WHOLE_B))
    assert "0000:3b:01.1-of2" not in {**facts.lost, **facts.devices}
    assert card_of("0000:3b:01.1-of2", facts) == A
    assert card_of("0000:3b:01.2-of3", facts) == A


def test_the_card_itself_is_named_by_its_address_also_while_it_has_vfs_or_halves() -> None:
    halves = after_scan(Facts(), found(device(f"{A}-half0"), device(f"{A}-half1", number=1)))
    assert card_of(A, halves) == A
    assert card_of(f"{A}-half1", WHOLE) == A


def test_an_old_id_is_the_device_at_the_node_of_that_number() -> None:
    assert card_of("1", SPLIT) == B
    assert card_of("0", SPLIT) == A
    assert card_of("11", SPLIT) == A


def test_an_old_id_names_the_device_that_is_there_before_a_lost_one_that_was() -> None:
    facts = after_scan(WHOLE, found(replace(device(A), node=WHOLE_B.node)))
    assert facts.lost[B].node == facts.devices[A].node
    assert card_of("1", facts) == A


def test_an_old_id_of_a_lost_device_is_of_its_card() -> None:
    assert card_of("1", after_scan(WHOLE, found(device(A)))) == B


@pytest.mark.parametrize(
    "id", ["99", "007", "", "GPU-1234", "0000:99:00.0", "0000:99:01.0-of2", "3b:00.0", "-"]
)
def test_nobody_knows_the_card_of_a_stranger(id: str) -> None:
    assert card_of(id, SPLIT) is None


# --- what containers hold -----------------------------------------------------------------------------


def holding(*ids: str, container: str = "default/job/main", resource: str = POLICY.resource) -> Holding:
    return Holding(container=container, resource=resource, ids=ids)


def test_containers_are_counted_by_card_also_through_its_vfs() -> None:
    held, strange = by_card(
        [holding(VF, container="a/a/a"), holding("0000:3b:01.1-of2", B, container="b/b/b")], SPLIT, POLICY
    )
    assert held == {A: {"a/a/a", "b/b/b"}, B: {"b/b/b"}}
    assert not strange


def test_a_pci_address_counts_under_whatever_resource() -> None:
    held, strange = by_card([holding(VF, resource="example.com/sriov")], SPLIT, POLICY)
    assert held == {A: {"default/job/main"}}
    assert not strange


@pytest.mark.parametrize("resource", ["baidu.com/xpu", "baidu.com/R200", "example.com/accelerator"])
def test_an_old_id_counts_under_the_names_that_are_ours(resource: str) -> None:
    policy = replace(POLICY, resource="example.com/accelerator")
    held, strange = by_card([holding("1", resource=resource)], SPLIT, policy)
    assert held == {B: {"default/job/main"}}
    assert not strange


def test_an_old_id_under_somebody_elses_name_is_not_ours() -> None:
    assert by_card([holding("1", "99", resource="example.com/gpu")], SPLIT, POLICY) == ({}, set())


def test_an_old_id_of_ours_that_nobody_knows_is_told_with_its_holder() -> None:
    held, strange = by_card([holding("99")], SPLIT, POLICY)
    assert held == {}
    assert strange == {"default/job/main (device 99)"}


def test_other_things_that_nobody_knows_are_nobodys() -> None:
    assert by_card([holding("GPU-1", "0000:99:00.0")], SPLIT, POLICY) == ({}, set())


# --- our own grants -----------------------------------------------------------------------------------


def left(
    grant: Grant,
    *,
    listed: bool = False,
    own_pod_listed: bool = False,
    unused: bool = True,
    checkpoint: Collection[str] | None = (),
) -> Grant | None:
    """What is left of one grant after a list that the kubelet of LIFE gave at NOW."""
    container = Holding(container="default/job/main", resource=POLICY.resource, ids=(A,))
    word = Word(
        began=NOW,
        life=LIFE,
        listing=Listing(pods=frozenset(), holdings=(container,) if listed else ()),
        whole=own_pod_listed,
        checkpoint=checkpoint,
    )
    return after_word({A: grant}, word, SETTLE, [A] if unused else []).get(A)


LONG_AGO = NOW - 10 * SETTLE


def test_a_grant_that_is_listed_goes_on_and_is_known_to_have_been_shown() -> None:
    known = Grant(at=LONG_AGO, shown=LIFE, holder="default/job/main", known_to=LIFE, noted=True)
    assert left(Grant(at=LONG_AGO), listed=True) == known
    assert left(Grant(at=LONG_AGO, shown=OTHER_LIFE, holder="default/x/y"), listed=True) == known


def test_a_grant_that_was_shown_ends_when_it_is_not_any_more_in_the_same_life() -> None:
    """Against driver and checkpoint: a pod that is over leaves its devices there for long."""
    assert left(Grant(at=LONG_AGO, shown=LIFE), unused=False, checkpoint=[A]) is None


def test_a_grant_that_another_life_showed_does_not_end_outside_of_a_pod() -> None:
    """A kubelet that has restarted lists nothing until it has heard from the API server."""
    grant = Grant(at=LONG_AGO, shown=OTHER_LIFE)
    assert left(grant, unused=False) == grant
    assert left(grant, checkpoint=[A]) == grant
    assert left(grant) is None  # then as one that is never listed


def test_a_grant_that_another_life_showed_ends_when_the_list_names_our_own_pod() -> None:
    for life in (OTHER_LIFE, FORMER):
        grant = Grant(at=LONG_AGO, shown=life)
        assert left(grant, own_pod_listed=True, unused=False, checkpoint=[A]) is None


def test_a_grant_that_was_shown_to_the_former_process_does_not_end_with_any_list() -> None:
    grant = Grant(at=LONG_AGO, inherited=True, shown=FORMER)
    assert left(grant, unused=False) == grant
    assert left(grant, own_pod_listed=True, unused=False) is None


def test_a_grant_that_was_never_shown_ends_when_device_and_checkpoint_are_rid_of_it() -> None:
    assert left(Grant(at=NOW - SETTLE)) is None
    assert left(Grant(at=NOW - SETTLE), own_pod_listed=True) is None


def test_a_grant_that_was_never_shown_goes_on_until_it_has_settled() -> None:
    grant = Grant(at=NOW - SETTLE + 0.1)
    assert left(grant, own_pod_listed=True) == grant


def test_a_grant_that_was_never_shown_goes_on_while_its_device_is_used() -> None:
    assert left(Grant(at=LONG_AGO), own_pod_listed=True, unused=False) == Grant(at=LONG_AGO)


def test_a_grant_that_was_never_shown_goes_on_while_the_checkpoint_names_it() -> None:
    grant = Grant(at=LONG_AGO)
    assert left(grant, own_pod_listed=True, checkpoint=[B, A]) == grant
    assert left(grant, own_pod_listed=True, checkpoint=[B]) is None


def test_a_grant_that_was_never_shown_goes_on_while_the_checkpoint_cannot_be_read() -> None:
    assert left(Grant(at=LONG_AGO), own_pod_listed=True, checkpoint=None) == Grant(at=LONG_AGO)


@pytest.mark.parametrize("at", [NOW, NOW + 1.0])
def test_a_grant_younger_than_the_question_is_not_judged_by_the_answer(at: float) -> None:
    for grant in (Grant(at=at, shown=LIFE), Grant(at=at)):
        assert left(grant, own_pod_listed=True) == grant
        # Nor is an earlier holder of the device taken for the new one.
        assert left(grant, own_pod_listed=True, listed=True) == grant


# --- a kubelet that has lost its checkpoint -----------------------------------------------------------

HOLDER = "default/train/main"
SHOWN = Grant(at=LONG_AGO, shown=OTHER_LIFE, holder=HOLDER, known_to=OTHER_LIFE, noted=True)
INIT = Grant(at=LONG_AGO, known_to=OTHER_LIFE, noted=True)


def word(
    *named: str,
    pods: Collection[str] | None = (),
    whole: bool | None = True,
    checkpoint: Collection[str] | None = (),
    own: bool = True,
    life: object = LIFE,
) -> Word:
    """What the kubelet of LIFE says at NOW. pods: that it lists, None where its list is not to be had"""
    holdings = (Holding(container="default/x/main", resource=POLICY.resource, ids=named),)
    listing = None if pods is None else Listing(pods=frozenset(pods), holdings=holdings)
    return Word(began=NOW, life=life, listing=listing, whole=whole, checkpoint=checkpoint, own=own)


@pytest.mark.parametrize(
    ("grant", "said", "goes_on"),
    [
        # The pod is there still, and its device is not counted: it is in use all the same.
        (SHOWN, word(pods=["default/train"]), True),
        (SHOWN, word(pods=["default/train"], whole=False), True),
        # The pod is gone, by a list that can be trusted.
        (SHOWN, word(pods=["default/other"]), False),
        (SHOWN, word(pods=[], whole=False), True),
        (SHOWN, word(pods=None), True),
        # An init container's is never listed: the instance that wrote it down and does not any more tells.
        (INIT, word(), True),
        (replace(INIT, known_to=LIFE), word(), False),
        (replace(INIT, known_to=LIFE), word(checkpoint=[A]), True),
        (replace(INIT, known_to=LIFE), word(checkpoint=None), True),
        (replace(INIT, known_to=LIFE), word(own=False), True),
        (replace(INIT, known_to=LIFE), word(life=None), True),
        # It was granted, and has never been written down.
        (Grant(at=LONG_AGO, known_to=LIFE), word(), True),
        (Grant(at=NOW + 0.1, known_to=LIFE, noted=True), word(), True),
        # Listed for a former release, which did not write down for which pod.
        (Grant(at=LONG_AGO, inherited=True, shown=FORMER, known_to=FORMER), word(), True),
    ],
)
def test_a_grant_ends_with_its_pod_and_not_with_the_kubelets_memory(
    grant: Grant, said: Word, *, goes_on: bool
) -> None:
    assert (A in after_word({A: grant}, said, SETTLE)) is goes_on


@pytest.mark.parametrize(
    ("grant", "said", "goes_on"),
    [
        # A kubelet that has lost its checkpoint and has not heard from the API server yet.
        (SHOWN, word(pods=[], whole=False), True),
        (SHOWN, word(pods=None, whole=False), True),
        # Outside of a pod no list can be seen to be whole.
        (SHOWN, word(pods=[], whole=None), False),
        # Its pod is not known.
        (replace(SHOWN, holder=None), word(pods=[], whole=False), False),
    ],
)
def test_a_device_without_a_process_is_held_while_its_pod_may_be_there(
    grant: Grant, said: Word, *, goes_on: bool
) -> None:
    assert (A in after_word({A: grant}, said, SETTLE, unused=[A])) is goes_on


@pytest.mark.parametrize(
    ("grant", "said", "lost"),
    [
        (SHOWN, word(pods=None), True),  # the look before a registration: the checkpoint is gone
        (SHOWN, word(pods=["default/train"]), True),
        (INIT, word(), True),
        (Grant(at=LONG_AGO, known_to=OTHER_LIFE), word(pods=None), True),  # granted, never seen anywhere
        (Grant(at=LONG_AGO, shown=FORMER, holder=HOLDER, known_to="a text"), word(), True),
        # The kubelet counts it.
        (SHOWN, word(A), False),
        (SHOWN, word(checkpoint=[A]), False),
        (SHOWN, word(checkpoint=[A], own=False), False),
        # This very instance has asked for it, or knew of it: it has not lost anything.
        (replace(SHOWN, known_to=LIFE), word(), False),
        (Grant(at=NOW + 1.0, known_to=OTHER_LIFE), word(), False),
        (Grant(at=NOW, known_to=OTHER_LIFE), word(), False),  # perhaps after the kubelet answered
        # A release that did not write down holders has at least seen it listed.
        (Grant(at=LONG_AGO, inherited=True, shown=FORMER, known_to=FORMER), word(), True),
        (Grant(at=LONG_AGO, inherited=True, shown=FORMER), word(), False),
        (Grant(at=LONG_AGO, inherited=True), word(), False),
    ],
)
def test_forgotten_is_what_only_an_earlier_instance_has_known(
    grant: Grant, said: Word, *, lost: bool
) -> None:
    assert forgotten({A: grant}, said) == ({A} if lost else set())


@pytest.mark.parametrize("said", [word(checkpoint=None), word(life=None)])
def test_where_the_kubelet_cannot_tell_nothing_is_newly_forgotten_nor_remembered(said: Word) -> None:
    assert forgotten({A: SHOWN, B: SHOWN}, said, before=[A, VF]) == {A}
    assert forgotten({A: SHOWN}, word(A, checkpoint=None), before=[A]) == set()


def test_what_the_instance_itself_wrote_down_it_knows() -> None:
    assert after_word({A: SHOWN}, word(pods=None, checkpoint=[A]), SETTLE) == {
        A: replace(SHOWN, known_to=LIFE)
    }
    assert after_word({A: SHOWN}, word(pods=None, checkpoint=[A], own=False), SETTLE) == {A: SHOWN}


# --- whether the kubelet is believed ------------------------------------------------------------------


def listing(*holdings: Holding, pods: Collection[str] = (OWN_POD,)) -> Listing:
    return Listing(pods=frozenset(pods), holdings=holdings)


def usage(card: Card, **processes: tuple[Process, ...] | None) -> Usage:
    return Usage(
        processes={device.address: () for device in card.devices} | processes,
        drivers={device.address: "kunlun" for device in card.devices},
    )


OBSERVED = cards(SPLIT, POLICY)
CARD = OBSERVED[A]
IDLE = {card.address: usage(card) for card in OBSERVED.values()}
IN_POD, OUTSIDE = Terms(own_pod=OWN_POD, settle=SETTLE), Terms(settle=SETTLE)
CONSENT = Terms(without_pod_resources=True, settle=SETTLE)


def answers(
    answer: Listing | str | None = None,
    *,
    checkpoint: Collection[Holding] | None = (),
    life: object = LIFE,
    age: float = KUBELET_SECONDS,
    usages: Mapping[str, Usage | str] = IDLE,
) -> Answers:
    return Answers(
        began=NOW,
        done=NOW + 1.0,
        listing=answer,
        checkpoint=None if checkpoint is None else tuple(checkpoint),
        life=life,
        age=age,
        usages=usages,
    )


def test_a_list_that_names_our_own_pod_is_believed_whatever_the_kubelets_age() -> None:
    assert distrust(answers(listing(), age=0.0, life=None, checkpoint=None), IN_POD) == ""


def test_a_list_that_does_not_name_our_own_pod_is_not_believed() -> None:
    for pods in ((), ("kube-system/plugin2", "default/plugin")):
        doubt = distrust(answers(listing(pods=pods), age=9e9), IN_POD)
        assert doubt == (
            "the kubelet's list of pods does not name this plugin's own pod kube-system/plugin; it does "
            "once the kubelet has reached the API server"
        )


def test_outside_of_a_pod_a_kubelet_that_runs_for_long_is_believed() -> None:
    assert distrust(answers(listing(pods=())), OUTSIDE) == ""


def test_outside_of_a_pod_a_young_kubelet_is_not_believed() -> None:
    doubt = distrust(answers(listing(), age=KUBELET_SECONDS - 0.1), OUTSIDE)
    assert doubt == "the kubelet has been running for less than 60 s"


def test_outside_of_a_pod_the_checkpoint_has_to_be_readable() -> None:
    assert distrust(answers(listing(), checkpoint=None), OUTSIDE) == "the kubelet's checkpoint cannot be read"


def test_outside_of_a_pod_a_kubelet_that_is_gone_or_another_one_is_not_believed() -> None:
    doubt = distrust(answers(listing(), life=None, age=9e9), OUTSIDE)
    assert doubt == "the kubelet is not there, or was restarted just now"


@pytest.mark.parametrize("terms", [IN_POD, OUTSIDE, CONSENT])
def test_a_list_that_did_not_come_is_doubt_in_its_own_words_consent_or_not(terms: Terms) -> None:
    assert distrust(answers("pods.sock: UNAVAILABLE"), terms) == "pods.sock: UNAVAILABLE"


@pytest.mark.parametrize("terms", [IN_POD, OUTSIDE])
def test_a_kubelet_without_that_api_needs_consent(terms: Terms) -> None:
    doubt = distrust(answers(None), terms)
    assert "no pod resources API" in doubt
    assert "Kubernetes 1.15 or newer" in doubt
    assert "--vf-without-pod-resources" in doubt


def test_with_consent_the_checkpoint_has_to_be_readable() -> None:
    assert distrust(answers(None), CONSENT) == ""
    assert distrust(answers(None, checkpoint=None), CONSENT) == "the kubelet's checkpoint cannot be read"


def test_consent_does_not_make_a_list_believed_that_is_there() -> None:
    assert distrust(answers(listing(), age=0.0), CONSENT) != ""
    assert distrust(answers(listing(pods=())), replace(CONSENT, own_pod=OWN_POD)) != ""


# --- driver and sysfs ---------------------------------------------------------------------------------


def test_a_card_of_which_driver_and_sysfs_tell_nobody_is_idle() -> None:
    for card in OBSERVED.values():
        assert by_usage(card, usage(card)) == Proof()
        assert by_usage(card, usage(card)).idle


def test_a_process_is_a_holder_by_its_number_on_the_host_or_by_none() -> None:
    busy = usage(CARD)
    processes = {
        A: (Process(pid=1, host_pid=None),),
        "0000:3b:01.0": (Process(pid=1, host_pid=4711), Process(pid=1, host_pid=4712)),
    }
    proof = by_usage(CARD, replace(busy, processes={**busy.processes, **processes}))
    assert proof.holders == (
        "a process at /dev/xpu0",
        "process 4711 at /dev/xpu10",
        "process 4712 at /dev/xpu10",
    )


def test_processes_that_nobody_can_tell_apart_are_named_once() -> None:
    processes = (Process(pid=1, host_pid=None), Process(pid=7, host_pid=None))
    assert by_usage(OBSERVED[B], usage(OBSERVED[B], **{B: processes})).holders == ("a process at /dev/xpu1",)


def test_a_device_of_which_the_driver_cannot_tell_the_processes_is_doubt() -> None:
    doubtful = usage(CARD, **{"0000:3b:01.1": None})
    assert by_usage(CARD, doubtful) == Proof(
        doubt="the driver does not report the processes of 0000:3b:01.1-of2"
    )


def test_a_device_that_the_driver_does_not_speak_of_is_doubt() -> None:
    silent = usage(CARD)
    silent = replace(silent, processes={A: (), "0000:3b:01.0": ()})
    assert by_usage(CARD, silent) == Proof(
        doubt="the driver does not report the processes of 0000:3b:01.1-of2"
    )


def with_drivers(card: Card, **drivers: str | None) -> Usage:
    own = usage(card)
    return replace(own, drivers={**own.drivers, **drivers})


def test_a_vf_of_another_driver_is_held_by_whoever_has_bound_it() -> None:
    proof = by_usage(CARD, with_drivers(CARD, **{"0000:3b:01.1": "vfio-pci"}))
    assert proof.holders == ("vfio-pci bound to 0000:3b:01.1",)


def test_a_vf_without_a_driver_is_held_by_whoever_has_unbound_it() -> None:
    proof = by_usage(CARD, with_drivers(CARD, **{"0000:3b:01.0": None}))
    assert proof.holders == ("no driver bound to 0000:3b:01.0",)


def test_a_card_that_sysfs_does_not_show_is_doubt() -> None:
    for drivers in ({}, {A: None, "0000:3b:01.0": None, "0000:3b:01.1": None}):
        proof = by_usage(CARD, replace(usage(CARD), drivers=drivers))
        assert proof == Proof(doubt=f"sysfs does not show the driver of {A}")


def test_another_number_of_vfs_in_sysfs_than_in_sight_is_doubt() -> None:
    proof = by_usage(CARD, with_drivers(CARD, **{"0000:3b:01.2": "kunlun"}))
    assert proof == Proof(doubt=f"sysfs shows 3 VFs of {A}, not 2")
    own = usage(CARD)
    less = {address: driver for address, driver in own.drivers.items() if not address.endswith("1.1")}
    assert by_usage(CARD, replace(own, drivers=less)) == Proof(doubt=f"sysfs shows 1 VFs of {A}, not 2")


def test_only_devices_without_a_process_count_as_unused() -> None:
    told = usage(CARD, **{A: None, "0000:3b:01.0": (Process(pid=1, host_pid=None),)})
    assert unused_devices(CARD, told) == {"0000:3b:01.1-of2"}
    assert unused_devices(CARD, replace(told, processes={})) == set()


# --- the proof ----------------------------------------------------------------------------------------


def examined(
    given: Answers,
    *,
    terms: Terms = IN_POD,
    ledger: Ledger | None = None,
    facts: Facts = SPLIT,
    asked: Collection[str] | None = None,
) -> tuple[Ledger, dict[str, Proof]]:
    observed = cards(facts, POLICY)
    wanted = [observed[address] for address in (observed if asked is None else asked)]
    return examine(ledger or {}, wanted, given, terms, facts=facts, policy=POLICY)


def test_a_card_is_idle_when_all_witnesses_say_so_and_the_proof_has_the_time_of_the_questions() -> None:
    ledger, proofs = examined(answers(listing()))
    assert ledger == {}
    assert proofs == dict.fromkeys((A, B), Proof(at=NOW, done=NOW + 1.0))


def test_a_container_holds_the_card_of_its_vf_and_only_that() -> None:
    _, proofs = examined(answers(listing(holding(VF), holding(VF, container="a/b/c"))))
    assert proofs[A].holders == ("a/b/c", "default/job/main")
    assert proofs[B].idle


def test_only_cards_that_are_asked_about_have_a_proof() -> None:
    assert examined(answers(listing()), asked=[B])[1].keys() == {B}


def test_holders_go_before_doubt() -> None:
    usages = {A: "the library hung", B: "the library hung"}
    _, proofs = examined(answers(listing(holding(VF)), usages=usages))
    assert proofs[A] == Proof(holders=("default/job/main",), at=NOW, done=NOW + 1.0)
    assert proofs[B].text == "cannot prove idle: the library hung"


def test_an_old_id_that_nobody_knows_makes_every_card_without_holders_doubtful() -> None:
    _, proofs = examined(answers(listing(holding(VF), holding("99", container="a/b/c"))))
    assert proofs[A].holders == ("default/job/main",)
    assert proofs[B].doubt == "the device held by a/b/c (device 99) is unknown"


def test_a_list_that_is_not_believed_names_no_holder_and_ends_no_grant() -> None:
    ledger = {VF: Grant(at=LONG_AGO, shown=LIFE)}
    left, proofs = examined(answers(listing(holding(B), pods=())), ledger=ledger)
    assert left == ledger
    assert not proofs[B].idle
    assert "does not name this plugin's own pod" in proofs[B].doubt


def test_our_own_grants_are_holders_by_name_in_doubt_too() -> None:
    ledger = {VF: Grant(at=NOW), "0000:3b:01.1-of2": Grant(at=NOW)}
    for given in (answers(listing()), answers("UNAVAILABLE")):
        left, proofs = examined(given, ledger=ledger)
        assert left == ledger
        assert proofs[A].holders == (
            "a container that was granted 0000:3b:01.0-of2, 0000:3b:01.1-of2 and is not known to have ended",
        )
    assert proofs[B].doubt == "UNAVAILABLE"


def test_containers_that_are_listed_go_before_grants_that_are_not_known_to_have_ended() -> None:
    _, proofs = examined(answers(listing(holding(VF))), ledger={VF: Grant(at=LONG_AGO)})
    assert proofs[A].holders == ("default/job/main",)


def test_a_grant_of_a_vf_that_is_no_more_still_holds_its_card() -> None:
    _, proofs = examined(answers(listing()), ledger={VF: Grant(at=NOW)}, facts=WHOLE)
    assert VF in proofs[A].text


def test_a_grant_ends_with_the_list_and_frees_its_card() -> None:
    left, proofs = examined(answers(listing()), ledger={VF: Grant(at=LONG_AGO, shown=OTHER_LIFE)})
    assert left == {}
    assert proofs[A].idle


def test_a_grant_that_the_checkpoint_names_is_not_over_when_it_was_never_listed() -> None:
    ledger = {VF: Grant(at=LONG_AGO)}
    given = answers(listing(), checkpoint=[holding(VF, container="uid/main")])
    left, proofs = examined(given, ledger=ledger)
    assert left == ledger
    assert proofs[A].holders
    assert examined(answers(listing(), checkpoint=None), ledger=ledger)[0] == ledger
    assert examined(answers(listing()), ledger=ledger)[0] == {}


def test_a_grant_of_a_card_that_was_not_asked_about_is_not_over_when_it_was_never_listed() -> None:
    ledger = {VF: Grant(at=LONG_AGO), B: Grant(at=LONG_AGO)}
    assert examined(answers(listing()), ledger=ledger, asked=[B])[0] == {VF: Grant(at=LONG_AGO)}


def test_a_grant_that_was_never_listed_outlasts_a_process_at_its_device_only() -> None:
    ledger = {VF: Grant(at=LONG_AGO), "0000:3b:01.1-of2": Grant(at=LONG_AGO)}
    busy = usage(CARD, **{"0000:3b:01.1": (Process(pid=1, host_pid=None),)})
    left, _ = examined(answers(listing(), usages=IDLE | {A: busy}), ledger=ledger)
    assert left.keys() == {"0000:3b:01.1-of2"}


def test_a_grant_of_what_is_not_there_any_more_ends_when_all_of_its_card_is_unused() -> None:
    ledger = {VF: Grant(at=LONG_AGO)}
    whole = cards(WHOLE, POLICY)[A]
    busy = usage(whole, **{A: (Process(pid=1, host_pid=None),)})
    given = answers(listing(), usages={A: busy})
    assert examined(given, ledger=ledger, facts=WHOLE, asked=[A])[0] == ledger
    given = answers(listing(), usages={A: usage(whole)})
    assert examined(given, ledger=ledger, facts=WHOLE, asked=[A])[0] == {}


def test_a_driver_that_does_not_answer_ends_no_grant_that_was_never_listed() -> None:
    ledger = {VF: Grant(at=LONG_AGO)}
    assert examined(answers(listing(), usages=IDLE | {A: "it hung"}), ledger=ledger)[0] == ledger


def test_without_the_api_and_with_consent_the_checkpoint_names_the_holders() -> None:
    given = answers(None, checkpoint=[holding(VF, container="uid/main")])
    _, proofs = examined(given, terms=CONSENT)
    assert proofs[A].holders == ("uid/main",)
    assert proofs[B].idle
    _, proofs = examined(given)
    assert "--vf-without-pod-resources" in proofs[B].doubt


def test_with_the_api_the_checkpoint_names_nobody() -> None:
    """It keeps a dead pod's devices until the next grant."""
    _, proofs = examined(answers(listing(), checkpoint=[holding(VF, container="uid/main")]))
    assert proofs[A].idle


def test_without_the_api_our_own_pod_is_not_listed_and_what_another_life_showed_goes_on() -> None:
    ledger = {VF: Grant(at=LONG_AGO, shown=OTHER_LIFE)}
    terms = replace(CONSENT, own_pod=OWN_POD)
    busy = usage(CARD, **{"0000:3b:01.0": (Process(pid=1, host_pid=None),)})
    assert examined(answers(None, usages=IDLE | {A: busy}), terms=terms, ledger=ledger)[0] == ledger
    assert examined(answers(None), terms=terms, ledger=ledger)[0] == {}


def test_a_function_at_the_slot_after_a_vf_is_not_of_its_card() -> None:
    """The rule goes from a VF to its card, not from anything to a VF (SPLIT has a VF at 0000:3b:01.0)."""
    assert card_of("0000:3b:02.0", SPLIT) is None


def test_a_foreign_device_in_the_slot_after_a_card_is_not_held_as_that_card() -> None:
    assert by_card([holding("0000:3b:02.0", resource="example.com/nic")], SPLIT, POLICY) == ({}, set())
