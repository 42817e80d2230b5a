# SPDX-License-Identifier: Apache-2.0
"""Who uses a card: what each witness says, and when it is believed. Examples, each of one rule."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

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
LOST = after_scan(SPLIT, found(WHOLE_B))
ELSEWHERE = after_scan(Facts(), found(device(A), WHOLE_B, device("0000:3b:05.0-of1", number=10, card=B)))
JOB = "default/job/main"


# --- the device of an id -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "facts", "card"),
    [
        (A, SPLIT, A),
        (VF, SPLIT, A),
        (B, SPLIT, B),
        # By sysfs before the rule, also where the function is known and its id is not.
        ("0000:3b:05.0-of1", ELSEWHERE, B),
        ("0000:3b:05.0-of3", ELSEWHERE, B),
        # A lost device, and a VF of a card that is split otherwise now.
        (A, LOST, A),
        (VF, LOST, A),
        ("0000:3b:01.1-of2", after_scan(SPLIT, found(device(A), WHOLE_B)), A),
        ("0000:3b:01.2-of3", after_scan(SPLIT, found(device(A), WHOLE_B)), A),
        # The card itself by its address, also while it has VFs or halves.
        (A, after_scan(Facts(), found(device(f"{A}-half0"), device(f"{A}-half1", number=1))), A),
        (f"{A}-half1", WHOLE, A),
        # An old id is the device at the node of that number, and a lost one only if there is no other.
        ("0", SPLIT, A),
        ("1", SPLIT, B),
        ("11", SPLIT, A),
        ("1", after_scan(WHOLE, found(replace(device(A), node=WHOLE_B.node))), A),
        ("1", after_scan(WHOLE, found(device(A))), B),
        # The rule goes from a VF to its card, not from anything to a VF.
        ("0000:3b:02.0", SPLIT, None),
    ],
)
def test_an_id_is_of_the_card_of_its_device(id: str, facts: Facts, card: str | None) -> None:
    assert card_of(id, facts) == card


@pytest.mark.parametrize(
    "id", ["99", "007", "", "GPU-1234", "0000:99:00.0", "0000:99:01.0-of2", "3b:00.0", "-"]
)
def test_nobody_knows_the_card_of_a_stranger(id: str) -> None:
    assert card_of(id, SPLIT) is None


# --- what containers hold -----------------------------------------------------------------------------


def holding(*ids: str, container: str = JOB, resource: str = POLICY.resource) -> Holding:
    return Holding(container=container, resource=resource, ids=ids)


@pytest.mark.parametrize(
    ("holdings", "held", "strange"),
    [
        (
            [holding(VF, container="a/a/a"), holding("0000:3b:01.1-of2", B, container="b/b/b")],
            {A: {"a/a/a", "b/b/b"}, B: {"b/b/b"}},
            set(),
        ),
        # A PCI address counts under any resource, an old id under the names that are ours.
        ([holding(VF, resource="example.com/sriov")], {A: {JOB}}, set()),
        ([holding("1")], {B: {JOB}}, set()),
        ([holding("1", resource="baidu.com/R200")], {B: {JOB}}, set()),
        ([holding("1", resource="example.com/accelerator")], {B: {JOB}}, set()),
        ([holding("1", "99", resource="example.com/gpu")], {}, set()),
        # An old id of ours without a device is told with its holder; other things are not ours.
        ([holding("99")], {}, {f"{JOB} (device 99)"}),
        ([holding("GPU-1", "0000:99:00.0")], {}, set()),
        # A foreign device in the slot after a card.
        ([holding("0000:3b:02.0", resource="example.com/nic")], {}, set()),
    ],
)
def test_containers_are_counted_by_card_also_through_its_vfs(
    holdings: list[Holding], held: dict[str, set[str]], strange: set[str]
) -> None:
    policy = replace(POLICY, resource="example.com/accelerator")
    assert by_card(holdings, SPLIT, policy) == (held, strange)


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


@pytest.mark.parametrize(
    ("grant", "said", "goes_on"),
    [
        # Shown in this life: the list decides, against driver and checkpoint, which name a dead pod for long.
        (Grant(at=LONG_AGO, shown=LIFE), {"unused": False, "checkpoint": [A]}, False),
        # Shown in another life: a kubelet that has restarted lists nothing until the API server has answered.
        (Grant(at=LONG_AGO, shown=OTHER_LIFE), {"unused": False}, True),
        (Grant(at=LONG_AGO, shown=OTHER_LIFE), {"checkpoint": [A]}, True),
        (Grant(at=LONG_AGO, shown=OTHER_LIFE), {}, False),
        (Grant(at=LONG_AGO, inherited=True, shown=FORMER), {"unused": False}, True),
        # The list that names our own pod has.
        (Grant(at=LONG_AGO, shown=OTHER_LIFE), {"own_pod_listed": True, "checkpoint": [A]}, False),
        (Grant(at=LONG_AGO, shown=FORMER), {"own_pod_listed": True, "unused": False}, False),
        (Grant(at=LONG_AGO, inherited=True, shown=FORMER), {"own_pod_listed": True, "unused": False}, False),
        # Never shown: until it has settled, and device and checkpoint are rid of it.
        (Grant(at=NOW - SETTLE), {}, False),
        (Grant(at=NOW - SETTLE), {"own_pod_listed": True}, False),
        (Grant(at=NOW - SETTLE + 0.1), {"own_pod_listed": True}, True),
        (Grant(at=LONG_AGO), {"own_pod_listed": True, "unused": False}, True),
        (Grant(at=LONG_AGO), {"own_pod_listed": True, "checkpoint": [B, A]}, True),
        (Grant(at=LONG_AGO), {"own_pod_listed": True, "checkpoint": [B]}, False),
        (Grant(at=LONG_AGO), {"own_pod_listed": True, "checkpoint": None}, True),
    ],
)
def test_a_grant_that_is_not_listed_ends_when_that_can_be_trusted(
    grant: Grant, said: dict[str, Any], *, goes_on: bool
) -> None:
    assert left(grant, **said) == (grant if goes_on else None)


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


@pytest.mark.parametrize(
    ("given", "terms", "doubt"),
    [
        # Inside of a pod, the list has to name it, at any age of the kubelet.
        (answers(listing(), age=0.0, life=None, checkpoint=None), IN_POD, None),
        (answers(listing(pods=()), age=9e9), IN_POD, f"own pod {OWN_POD}"),
        (answers(listing(pods=("kube-system/plugin2", "default/plugin")), age=9e9), IN_POD, "own pod"),
        # Outside of a pod, the kubelet has to run for long, and to be there still.
        (answers(listing(pods=())), OUTSIDE, None),
        (answers(listing(), age=KUBELET_SECONDS - 0.1), OUTSIDE, "running for less than 60 s"),
        (answers(listing(), life=None, age=9e9), OUTSIDE, "not there, or was restarted just now"),
        (answers(listing(), checkpoint=None), OUTSIDE, "the kubelet's checkpoint cannot be read"),
        # A list that did not come, with consent or without.
        (answers("pods.sock: UNAVAILABLE"), IN_POD, "pods.sock: UNAVAILABLE"),
        (answers("pods.sock: UNAVAILABLE"), OUTSIDE, "pods.sock: UNAVAILABLE"),
        (answers("pods.sock: UNAVAILABLE"), CONSENT, "pods.sock: UNAVAILABLE"),
        # A kubelet without that API: by consent and a checkpoint that can be read.
        (answers(None), IN_POD, "Kubernetes 1.15 or newer"),
        (answers(None), OUTSIDE, "--vf-without-pod-resources"),
        (answers(None), CONSENT, None),
        (answers(None, checkpoint=None), CONSENT, "the kubelet's checkpoint cannot be read"),
        # Consent does not make a list believed that is there.
        (answers(listing(), age=0.0), CONSENT, "running for less than 60 s"),
        (answers(listing(pods=())), replace(CONSENT, own_pod=OWN_POD), "own pod"),
    ],
)
def test_the_kubelet_is_believed_or_there_is_a_reason(
    given: Answers, terms: Terms, doubt: str | None
) -> None:
    said = distrust(given, terms)
    assert bool(said) is (doubt is not None)
    assert (doubt or "") in said


# --- driver and sysfs ---------------------------------------------------------------------------------


SOME = Process(pid=1, host_pid=None)
VF0, VF1 = "0000:3b:01.0", "0000:3b:01.1"
SILENT = Proof(doubt="the driver does not report the processes of 0000:3b:01.1-of2")
UNSEEN = Proof(doubt=f"sysfs does not show the driver of {A}")
BOUND = {A: "kunlun", VF0: "kunlun", VF1: "kunlun"}


@pytest.mark.parametrize(
    ("card", "told", "proof"),
    [
        (CARD, {}, Proof()),
        (OBSERVED[B], {}, Proof()),
        # A process is a holder by its number on the host, or by none; those are named once.
        (
            CARD,
            {
                "processes": {
                    A: (SOME,),
                    VF0: (replace(SOME, host_pid=4711), replace(SOME, host_pid=4712)),
                    VF1: (),
                }
            },
            Proof(
                holders=(
                    "a process at /dev/xpu0",
                    "process 4711 at /dev/xpu10",
                    "process 4712 at /dev/xpu10",
                )
            ),
        ),
        (
            OBSERVED[B],
            {"processes": {B: (SOME, replace(SOME, pid=7))}},
            Proof(holders=("a process at /dev/xpu1",)),
        ),
        # A device for which the driver does not report the processes.
        (CARD, {"processes": {A: (), VF0: (), VF1: None}}, SILENT),
        (CARD, {"processes": {A: (), VF0: ()}}, SILENT),
        # A VF of another driver, or of none.
        (CARD, {"drivers": {**BOUND, VF1: "vfio-pci"}}, Proof(holders=(f"vfio-pci bound to {VF1}",))),
        (CARD, {"drivers": {**BOUND, VF0: None}}, Proof(holders=(f"no driver bound to {VF0}",))),
        # Sysfs shows not the card, or another number of VFs.
        (CARD, {"drivers": {}}, UNSEEN),
        (CARD, {"drivers": dict.fromkeys(BOUND)}, UNSEEN),
        (
            CARD,
            {"drivers": {**BOUND, "0000:3b:01.2": "kunlun"}},
            Proof(doubt=f"sysfs shows 3 VFs of {A}, not 2"),
        ),
        (
            CARD,
            {"drivers": {A: "kunlun", VF0: "kunlun"}},
            Proof(doubt=f"sysfs shows 1 VFs of {A}, not 2"),
        ),
    ],
)
def test_a_card_is_idle_when_driver_and_sysfs_show_no_user(
    card: Card, told: dict[str, Any], proof: Proof
) -> None:
    assert by_usage(card, replace(usage(card), **told)) == proof
    assert proof.idle is (proof == Proof())


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


def test_a_container_whose_pod_left_the_pods_api_without_an_end_holds_its_card() -> None:
    given = replace(answers(listing()), lingering=(holding(VF),))
    for terms in (IN_POD, OUTSIDE):
        assert examined(given, terms=terms)[1][A].holders == (JOB,)


def test_a_container_that_fades_is_named_with_the_proof_of_its_card_alone() -> None:
    _, proofs = examined(replace(answers(listing()), fading=(holding(VF),)))
    assert proofs[A] == Proof(at=NOW, done=NOW + 1.0, fading=(JOB,))
    assert proofs[B].fading == ()


def test_while_the_pods_api_refuses_no_card_is_proven_idle_and_no_grant_ends() -> None:
    given = replace(answers(listing()), refusal="the kubelet initializes", ended={VF: NOW})
    ledger = {VF: Grant(at=0.0)}
    for terms in (IN_POD, OUTSIDE, CONSENT):
        left, proofs = examined(given, terms=terms, ledger=ledger)
        assert left == ledger
        assert not proofs[A].idle
        assert proofs[B].doubt == "the kubelet initializes"


def test_a_container_that_has_ended_ends_its_grant_also_if_no_checkpoint_names_it() -> None:
    given = replace(answers(listing()), finished={JOB: NOW - 1.0})
    ledger = {VF: Grant(at=NOW - 2.0, holder=JOB, known_to=OTHER_LIFE)}
    assert examined(given, ledger=ledger)[0] == {}
    assert examined(given, ledger={VF: replace(ledger[VF], holder="a/b/c")})[0].keys() == {VF}


@pytest.mark.parametrize(("shown", "over"), [(NOW - 40.0, False), (NOW - 25.0, True)])
def test_an_end_from_before_a_start_ends_its_grant_only_if_it_is_shown_after_that(
    shown: float, over: bool
) -> None:
    """A finished init container starts again when its pod loses its sandbox."""
    given = replace(answers(listing()), ended={VF: NOW - 50.0}, seen={VF: shown})
    ledger = {VF: Grant(at=NOW - 30.0, known_to=LIFE)}
    assert (examined(given, ledger=ledger)[0] == {}) is over


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


NAMED = [holding(VF, container="uid/main")]


@pytest.mark.parametrize(
    ("grant", "given", "asked", "goes_on"),
    [
        (Grant(at=LONG_AGO), answers(listing()), None, False),
        (Grant(at=LONG_AGO, shown=OTHER_LIFE), answers(listing()), None, False),
        (Grant(at=LONG_AGO), answers(listing(), checkpoint=NAMED), None, True),
        (Grant(at=LONG_AGO), answers(listing(), checkpoint=None), None, True),
        (Grant(at=LONG_AGO), answers(listing(), usages=IDLE | {A: "it hung"}), None, True),
        (Grant(at=LONG_AGO), answers(listing()), [B], True),
    ],
)
def test_a_grant_ends_with_all_answers_about_its_card_and_frees_it(
    grant: Grant, given: Answers, asked: list[str] | None, *, goes_on: bool
) -> None:
    left, proofs = examined(given, ledger={VF: grant}, asked=asked)
    assert left == ({VF: grant} if goes_on else {})
    if A in proofs:
        assert proofs[A].idle is not goes_on


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
