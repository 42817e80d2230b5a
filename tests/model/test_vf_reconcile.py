# SPDX-License-Identifier: Apache-2.0
"""How cards come to have the desired VF count: walks in virtual time, each of one rule."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import device, found
from xpu_plugin.model.devices import Device, DeviceKind
from xpu_plugin.model.health import ASKED_BEFORE, CHANGING, RECORD_UNREAD, VF_CHANGE_PLANNED, VF_UNDECIDED
from xpu_plugin.model.inventory import Facts, Policy, after_scan
from xpu_plugin.model.reservation import LOOK_SECONDS, Prove, Wait
from xpu_plugin.model.vf_plan import UNKNOWN, Card, CardPlan, DesiredVfs, Proof, VfAction, by_argument, cards
from xpu_plugin.model.vf_reconcile import (
    CHECK_SECONDS,
    DRIFT_SECONDS,
    MOST_REFUSALS,
    RETRY_SECONDS,
    REVIEW_SECONDS,
    Decision,
    Limits,
    Memory,
    News,
    Request,
    Rescan,
    SetVfs,
    VfReason,
    View,
    answered,
    decide,
    inherited,
)


A, B, C = "0000:3b:00.0", "0000:5e:00.0", "0000:86:00.0"
POLICY = Policy(resource="baidu.com/xpu")
NONE, ONE, TWO, THREE, KEEP = map(by_argument, (0, 1, 2, 3, None))
LATE = Limits(settle=10.0, timeout=60.0, pending=0.0)
"""Long after the start, when nothing is kept back for a wish to come."""
START = replace(LATE, pending=60.0)
JOB = "default/job/main"


def devices_of(address: str, vfs: int, *, most: int = 3, seen: int | None = None) -> list[Device]:
    """One card with so many VFs, of which so many are in sight."""
    if not vfs:
        return [device(address, max_vfs=most)]
    numbers = range(vfs if seen is None else seen)
    return [
        device(address, kind=DeviceKind.PF, split=f"of{vfs}", max_vfs=most),
        *(device(f"{address[:-4]}01.{n}-of{vfs}", number=10 + n, card=address) for n in numbers),
    ]


def card_of(address: str, vfs: int, *, most: int = 3, seen: int | None = None) -> Card:
    facts = after_scan(Facts(), found(*devices_of(address, vfs, most=most, seen=seen)))
    return cards(facts, POLICY)[address]


class Story:
    """What is decided, and what is known meanwhile. Cards have so many VFs at first."""

    def __init__(self, desired: DesiredVfs, limits: Limits = LATE, **vfs: int) -> None:
        self.now = 1000.0
        self.desired, self.limits = desired, limits
        self.cards = {globals()[name]: card_of(globals()[name], number) for name, number in vfs.items()}
        self.proofs: dict[str, Proof] = {}
        self.taken: frozenset[str] = frozenset()
        self.held: frozenset[str] = frozenset()
        self.stale_ids: frozenset[str] = frozenset()
        self.scans = 1
        self.stuck = False
        self.unread: float | None = None
        self.driver, self.orders = "4.0.12", 0
        self.ended = float("-inf")
        self.memory = Memory(started=self.now)
        self.news: list[News] = []
        self.last: Decision | None = None

    def view(self) -> View:
        return View(
            now=self.now,
            desired=self.desired,
            cards=dict(sorted(self.cards.items())),
            proofs=self.proofs,
            taken=self.taken,
            held=self.held,
            stale_ids=self.stale_ids,
            scans=self.scans,
            stuck=self.stuck,
            unread=self.unread,
            driver=self.driver,
            orders=self.orders,
            ended=self.ended,
        )

    def next(self) -> Wait | Prove | Rescan | SetVfs:
        """The next action; it is not carried out."""
        decision = decide(self.memory, self.view(), self.limits)
        self.memory = decision.memory
        self.news += decision.news
        self.last = decision
        return decision.action

    @property
    def kept_back(self) -> dict[str, object]:
        assert self.last
        return dict(self.last.kept_back)

    def step(self, address: str = A) -> CardPlan:
        """What is said of a card."""
        assert self.last
        return next(step for step in self.last.report.steps if step.card == address)

    def told(self) -> list[tuple[str, str]]:
        """The news since the last time."""
        news, self.news = self.news, []
        return [(str(one.reason), one.card) for one in news]

    # --- what happens ---

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def looked(
        self, *addresses: str, holders: Iterable[str] = (), doubt: str = "", fading: Iterable[str] = ()
    ) -> None:
        proof = Proof(at=self.now, done=self.now, holders=tuple(holders), doubt=doubt, fading=tuple(fading))
        self.proofs = {**self.proofs, **dict.fromkeys(addresses, proof)}

    def scanned(self, address: str | None = None, vfs: int = 0, *, seen: int | None = None) -> None:
        self.scans += 1
        if address is not None:
            self.cards[address] = card_of(address, vfs, seen=seen)

    def answered(self, failure: str = "", *, refused: bool = False, asked: bool = True) -> None:
        self.memory = answered(
            self.memory, self.view(), self.limits, failure=failure, refused=refused, asked=asked
        )

    def inherited(self, request: Request) -> None:
        self.memory = inherited(self.memory, self.view(), self.limits, request)

    # --- by far ---

    def withdrawn(self, address: str = A) -> None:
        """Up to where a card has been looked at and settles."""
        self.proofs = {own: proof for own, proof in self.proofs.items() if own != address}
        assert self.next() == Prove((address,))
        self.looked(address)
        assert self.next() == Wait(self.limits.settle)
        assert self.kept_back == {address: VF_CHANGE_PLANNED}

    def sent(self, number: int, address: str = A) -> None:
        """Up to where the driver has been asked."""
        self.withdrawn(address)
        self.passes(self.limits.settle)
        assert self.next() == Prove((address,))
        self.looked(address)
        assert self.next() == SetVfs(self.cards[address], number)
        assert self.kept_back == {address: CHANGING}

    def applied(self, number: int, address: str = A) -> None:
        """Up to where a card is as wished, by one order."""
        self.sent(number, address)
        self.answered()
        assert self.next() == Rescan(self.limits.timeout)
        self.scanned(address, number)
        assert self.next() == Wait(0.0)

    def waits(self, seconds: float) -> None:
        """It waits for so long, and then it has been so long."""
        assert self.next() == Wait(seconds)
        self.passes(seconds)


# --- what there is to do ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "vfs", "limits"),
    [
        (NONE, 0, LATE),
        (TWO, 2, LATE),
        (KEEP, 0, LATE),
        (KEEP, 3, LATE),
        (UNKNOWN, 0, LATE),
        (UNKNOWN, 3, LATE),
        (UNKNOWN, 0, replace(START, apply=False)),
    ],
)
def test_nothing_is_done_with_a_card_as_desired_and_nobody_is_asked(
    desired: DesiredVfs, vfs: int, limits: Limits
) -> None:
    story = Story(desired, limits, A=vfs)
    assert story.next() == Wait(None)
    assert story.kept_back == {}
    assert story.step().action is VfAction.KEEP
    assert story.told() == []


def test_policy_never_looks_at_nobody_keeps_nothing_back_and_tells_once() -> None:
    story = Story(TWO, replace(START, apply=False), A=0, B=2)
    assert story.next() == Wait(None)
    assert story.kept_back == {}
    assert story.step().action is VfAction.BLOCKED
    assert story.step().reason == "--vf-policy is never"
    assert story.step(B).action is VfAction.KEEP
    assert story.told() == [("VFBlocked", A)]
    assert story.next() == Wait(None)
    assert story.told() == []


@pytest.mark.parametrize("limits", [LATE, replace(LATE, apply=False)])
def test_a_card_that_is_held_as_it_was_split_before_is_looked_at_until_it_is_not(limits: Limits) -> None:
    """Also where nothing is to be changed: no other part would find out that its holder has ended."""
    story = Story(DesiredVfs(number=None, origin="argument"), limits, A=2, B=0)
    story.stale_ids = frozenset({A, C})  # C is not in sight
    for _ in range(3):
        assert story.next() == Prove((A,))
        story.looked(A, holders=["default/train/main"])
        assert story.next() == Wait(LOOK_SECONDS)
        story.passes(LOOK_SECONDS)
    story.stale_ids = frozenset({C})
    assert story.next() == Wait(None)
    assert story.told() == []


def test_what_fails_by_itself_is_told_once_and_nobody_is_asked() -> None:
    story = Story(by_argument(4), A=2)
    assert story.next() == Wait(None)
    assert story.step().action is VfAction.FAILED
    assert story.told() == [("VFFailed", A)]
    story.passes(3600.0)
    assert story.next() == Wait(None)
    assert story.told() == []


# --- a change -----------------------------------------------------------------------------------------


def test_a_card_is_looked_at_withheld_looked_at_again_and_split() -> None:
    story = Story(TWO, A=0)
    assert story.next() == Prove((A,))
    assert story.kept_back == {}
    assert story.step().reason == "waiting for a check of its users"
    story.looked(A)
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}
    assert (story.step().action, story.step().reason) == (
        VfAction.APPLY,
        "withheld, waiting for --pod-list-delay",
    )
    story.passes(10.0)
    assert story.next() == Prove((A,))
    assert story.kept_back == {A: VF_CHANGE_PLANNED}
    story.looked(A)
    assert story.next() == SetVfs(story.cards[A], 2)
    assert story.kept_back == {A: CHANGING}
    assert (story.step().action, story.step().reason) == (VfAction.APPLY, "being changed")
    story.passes(3.0)
    story.answered()
    assert story.next() == Rescan(60.0)
    assert story.kept_back == {A: CHANGING}
    assert story.told() == []
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    assert story.kept_back == {}
    assert [(one.reason, one.text) for one in story.news] == [
        (VfReason.APPLIED, f"{A} has 2 VFs now, 0 before")
    ]
    assert story.next() == Wait(None)
    assert story.told() == [("VFApplied", A)]
    assert story.step().action is VfAction.KEEP


def test_it_settles_for_as_long_as_it_takes_however_often_it_is_asked() -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    story.passes(4.0)
    story.scanned()
    assert story.next() == Wait(6.0)
    story.passes(5.5)
    assert story.next() == Wait(0.5)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


def test_a_look_that_began_before_the_end_of_the_settling_does_not_count() -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    story.proofs = {A: Proof(at=story.now + 9.9, done=story.now + 12.0)}
    story.passes(12.0)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert isinstance(story.next(), SetVfs)


def test_a_look_is_as_old_as_its_end() -> None:
    story = Story(TWO, A=0)
    story.proofs = {A: Proof(at=story.now - LOOK_SECONDS - 2.0, done=story.now - 1.0)}
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


def test_an_order_is_never_given_without_a_second_look_also_without_settling() -> None:
    story = Story(TWO, replace(LATE, settle=0.0), A=0)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert story.next() == Wait(0.0)
    story.passes(0.001)
    story.looked(A)
    assert isinstance(story.next(), SetVfs)


def test_another_number_goes_by_way_of_none_and_is_told_once() -> None:
    story = Story(THREE, A=2)
    story.sent(0)
    story.answered()
    assert story.next() == Rescan(60.0)
    story.scanned(A, 0)
    assert story.next() == SetVfs(story.cards[A], 3)
    assert story.kept_back == {A: CHANGING}
    assert story.told() == []
    story.passes(2.0)
    story.answered()
    assert story.next() == Rescan(60.0)
    story.scanned(A, 3)
    assert story.next() == Wait(0.0)
    assert story.news[0].text == f"{A} has 3 VFs now, 2 before"
    assert story.told() == [("VFApplied", A)]
    assert story.kept_back == {}


@pytest.mark.parametrize("seen", [devices_of(A, 2, seen=1), devices_of(A, 2)[1:]], ids=["a VF", "the PF"])
def test_a_change_counts_when_the_card_and_all_vfs_are_in_sight(seen: list[Device]) -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    assert story.next() == Rescan(60.0)
    story.scanned()
    story.cards = cards(after_scan(Facts(), found(*seen)), POLICY)
    story.waits(CHECK_SECONDS)
    assert story.kept_back == {A: CHANGING}
    assert story.next() == Rescan(60.0 - CHECK_SECONDS)
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    assert story.told() == [("VFApplied", A)]


def test_no_wait_for_a_scan_outlasts_the_time_there_is() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    story.passes(59.75)
    story.scanned(A, 0)
    assert story.next() == Wait(0.25)


def test_scans_are_some_time_apart_and_one_that_comes_by_itself_counts() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    story.scanned(A, 0)
    assert story.next() == Wait(CHECK_SECONDS)
    story.passes(CHECK_SECONDS / 2)
    assert story.next() == Wait(CHECK_SECONDS / 2)
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)


def test_a_scan_from_before_the_drivers_answer_tells_nothing() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.scanned(A, 0)
    story.answered()
    assert story.next() == Rescan(60.0)


def test_cards_are_changed_one_after_the_other() -> None:
    story = Story(TWO, A=0, B=0)
    assert story.next() == Prove((A, B))
    story.looked(A, B)
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}
    assert (story.step(B).action, story.step(B).reason) == (VfAction.APPLY, "waiting for its turn")
    story.passes(10.0)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert story.next() == SetVfs(story.cards[A], 2)
    story.answered()
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    story.applied(2, B)
    assert story.told() == [("VFApplied", A), ("VFApplied", B)]
    assert story.next() == Wait(None)


# --- who uses a card ----------------------------------------------------------------------------------


def test_a_held_card_is_not_withheld_is_told_once_and_looked_at_again_and_again() -> None:
    story = Story(TWO, A=0)
    for _ in range(3):
        assert story.next() == Prove((A,))
        story.looked(A, holders=[JOB])
        story.waits(LOOK_SECONDS)
        assert story.kept_back == {}
    assert story.step().holders == (JOB,)
    assert story.step().reason == f"held by {JOB}"
    assert story.told() == [("VFBlocked", A)]
    story.applied(2)
    assert story.told() == [("VFApplied", A)]


@pytest.mark.parametrize(
    ("turns", "news"),
    [
        # Another holder is no news, another desired count is.
        (
            [(TWO, Proof(holders=(JOB,))), (TWO, Proof(holders=("a/b/c",))), (THREE, Proof(holders=(JOB,)))],
            "x-x",
        ),
        # A card that was well in between.
        ([(TWO, Proof(holders=(JOB,))), (NONE, Proof(holders=(JOB,))), (TWO, Proof(holders=(JOB,)))], "x-x"),
        # A holder after a doubt, and no doubt after a holder.
        ([(TWO, Proof(doubt="x")), (TWO, Proof(holders=(JOB,))), (TWO, Proof(doubt="x"))], "xx-"),
        (
            [
                (TWO, Proof(doubt="x")),
                (TWO, Proof(holders=(JOB,))),
                *[(TWO, Proof(doubt="x")), (TWO, Proof(holders=(JOB,)))],
            ],
            "xx--",
        ),
    ],
)
def test_a_blocked_card_is_told_of_when_there_is_news(
    turns: list[tuple[DesiredVfs, Proof]], news: str
) -> None:
    story = Story(TWO, A=0)
    for (story.desired, proof), new in zip(turns, news, strict=True):
        story.looked(A, holders=proof.holders, doubt=proof.doubt)
        assert story.next() == Wait(None if story.desired is NONE else LOOK_SECONDS)
        assert story.told() == [("VFBlocked", A)] * (new == "x")
        story.passes(LOOK_SECONDS)


def held_at_the_second_look(story: Story) -> None:
    story.passes(10.0)
    assert story.next() == Prove((A,))
    story.looked(A, holders=[JOB])


def granted_while_it_settles(story: Story) -> None:
    story.passes(1.0)
    story.taken = frozenset({A})


def granted_during_the_second_look(story: Story) -> None:
    """Which did not see it."""
    story.passes(10.0)
    assert story.next() == Prove((A,))
    story.looked(A)
    story.taken = frozenset({A})


def falls_ill(story: Story) -> None:
    """Its recovery makes no other picture, and so wakes no reader."""
    story.cards = cards(after_scan(Facts(), found(device(A, state=207))), POLICY)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (held_at_the_second_look, f"held by {JOB}"),
        (granted_while_it_settles, "granted to a container just now"),
        (granted_during_the_second_look, "granted to a container just now"),
        (falls_ill, "unhealthy"),
    ],
)
def test_a_card_that_is_used_or_sick_is_given_back_and_settles_anew(
    happens: Callable[[Story], None], reason: str
) -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    happens(story)
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.kept_back == {}
    assert story.step().action is VfAction.BLOCKED
    assert reason in story.step().reason
    assert story.told() == [("VFBlocked", A)]
    story.cards, story.taken = {A: card_of(A, 0)}, frozenset()
    story.withdrawn()
    story.taken = frozenset({A})
    story.next()
    assert story.step().action is VfAction.BLOCKED
    assert story.told() == [], "told already"
    story.taken = frozenset()
    story.applied(2)


def test_a_holder_that_is_known_by_name_is_told_also_when_its_grant_is_known() -> None:
    story = Story(TWO, A=0)
    story.taken = frozenset({A})
    story.looked(A, holders=[JOB])
    story.next()
    assert story.step().reason == f"held by {JOB}"
    assert story.step().holders == (JOB,)


def test_the_end_of_a_container_calls_for_a_look_at_once() -> None:
    story = Story(TWO, A=0)
    assert story.next() == Prove((A,))
    story.looked(A, holders=[JOB])
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.last is not None
    assert story.last.awaits_an_end
    story.passes(0.5)
    story.ended = story.now
    story.passes(0.1)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert story.next() == Wait(LATE.settle)
    assert not story.last.awaits_an_end


def test_a_card_that_only_the_checkpoint_names_for_a_pod_that_is_gone_is_withheld_and_not_changed() -> None:
    story = Story(TWO, A=0)
    assert story.next() == Prove((A,))
    story.looked(A, fading=[JOB])
    assert story.next() == Wait(LATE.settle)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}
    story.passes(LATE.settle)
    assert story.next() == Prove((A,))
    story.looked(A, fading=[JOB])
    assert story.next() == Wait(0.0)
    assert story.kept_back == {}
    assert story.step().action is VfAction.APPLY
    assert story.step().reason == (
        f"the kubelet's checkpoint still names {JOB}, of which the pod is gone; it is tried again later"
    )
    story.waits(RETRY_SECONDS[0])
    story.sent(2)


def test_a_grant_of_another_card_changes_nothing() -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    story.taken = frozenset({B})
    story.passes(1.0)
    assert story.next() == Wait(9.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


# --- another wish -------------------------------------------------------------------------------------


@pytest.mark.parametrize("desired", [NONE, KEEP, by_argument(9), None])
def test_a_withheld_card_that_is_to_stay_or_is_gone_is_given_back_at_once(desired: DesiredVfs | None) -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    if desired is None:
        del story.cards[A]
    else:
        story.desired = desired
    assert story.next() == Wait(None)
    assert story.kept_back == {}


def test_a_withheld_card_of_which_another_number_is_desired_gets_that() -> None:
    story = Story(TWO, A=0)
    story.withdrawn()
    story.desired = THREE
    story.passes(4.0)
    assert story.next() == Wait(6.0)
    story.passes(6.0)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert story.next() == SetVfs(story.cards[A], 3)


@pytest.mark.parametrize(
    ("desired", "action", "told"),
    [
        (ONE, SetVfs(card_of(A, 0), 1), []),
        (NONE, Wait(0.0), [("VFApplied", A)]),
        (KEEP, Wait(None), []),
        (by_argument(9), Wait(None), [("VFFailed", A)]),
    ],
)
def test_another_desired_count_between_two_orders_is_followed(
    desired: DesiredVfs, action: Wait | SetVfs, told: list[tuple[str, str]]
) -> None:
    story = Story(THREE, A=2)
    story.sent(0)
    story.answered()
    story.scanned(A, 0)
    story.desired = desired
    assert story.next() == action
    assert story.told() == told
    assert story.kept_back == ({A: CHANGING} if desired is ONE else {})


@pytest.mark.parametrize(
    ("desired", "steps"), [(ONE, [(0, SetVfs(card_of(A, 2), 0)), (1, SetVfs(card_of(A, 0), 1))]), (KEEP, [])]
)
def test_what_is_desired_while_the_driver_is_at_it_is_done_next(
    desired: DesiredVfs, steps: list[tuple[int, SetVfs]]
) -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.desired = desired
    story.answered()
    assert story.next() == Rescan(60.0)
    story.scanned(A, 2)
    for vfs, order in steps:
        assert story.next() == order
        story.answered()
        story.scanned(A, vfs)
    assert story.next() == Wait(0.0 if steps else None)
    assert story.kept_back == {}
    assert story.told() == [("VFApplied", A)] * bool(steps)


# --- what goes wrong ----------------------------------------------------------------------------------


def test_a_card_that_vanishes_while_it_is_changed_is_waited_for() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    del story.cards[A]
    story.scanned()
    assert story.next() == Wait(CHECK_SECONDS)
    assert story.kept_back == {A: CHANGING}
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    assert story.told() == [("VFApplied", A)]


def test_a_card_that_vanishes_for_good_while_it_is_changed_is_given_up() -> None:
    story = Story(TWO, A=0, B=2)
    story.sent(2)
    story.answered()
    story.passes(60.0)
    del story.cards[A]
    story.scanned()
    assert story.next() == Wait(0.0)
    assert story.kept_back == {}
    assert "the library shows nothing of the card" in story.memory.pauses[A].reason
    assert story.next() == Wait(None)


def test_while_the_driver_holds_a_killed_worker_its_card_stays_closed() -> None:
    """It may still do what that one asked for, against the scans meanwhile."""
    story = Story(TWO, A=0)
    story.sent(2)
    story.stuck = True
    story.answered("no answer within 60 s")
    for _ in range(3):
        assert story.next() == Wait(CHECK_SECONDS)
        story.scanned(A, 0)
        story.passes(60.0)
    assert story.kept_back == {A: CHANGING}
    story.stuck = False
    assert story.next() == Wait(0.0)
    assert isinstance(story.next(), Rescan)
    assert story.step().action is VfAction.APPLY, "there is time for a scan"
    story.scanned(A, 2)
    story.next()
    assert story.told()[-1] == ("VFApplied", A)
    assert story.kept_back == {}


def refused(story: Story) -> None:
    story.answered("the driver refuses")
    assert story.next() == Rescan(60.0)
    story.scanned(A, 0)


def wrong(story: Story) -> None:
    story.answered()
    story.passes(60.0)
    story.scanned(A, 1)


FAILURES = [
    (refused, "the driver refuses"),
    (wrong, "asked for 2 VFs, the library shows 1 VFs"),
]


@pytest.mark.parametrize(("fail", "reason"), FAILURES)
def test_a_change_that_failed_gives_the_card_back_pauses_it_and_is_told(
    fail: Callable[[Story], None], reason: str
) -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    fail(story)
    assert story.next() == Wait(0.0)
    assert story.kept_back == {}
    assert story.step().action is VfAction.FAILED
    assert story.step().reason == f"{reason}; it is tried again later"
    assert story.news[-1].text == f"{A}: {reason}; it is tried again later"
    assert story.told() == [("VFFailed", A)]
    story.passes(RETRY_SECONDS[0] - 1.0)
    story.scanned(A, 0)
    assert story.next() == Wait(1.0)
    assert story.kept_back == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no scan has shown the result"),
        ("the driver refuses", "the driver refuses; no scan has shown the result"),
    ],
)
def test_a_card_without_a_scan_since_the_request_stays_withheld_and_is_reported(
    answer: str, reason: str
) -> None:
    """The driver may have changed it, and the picture is older."""
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered(answer)
    assert story.next() == Rescan(60.0)
    story.passes(60.0)
    for _ in range(3):
        assert story.next() == Rescan(RETRY_SECONDS[0])
        assert story.kept_back == {A: CHANGING}
        assert (story.step().action, story.step().reason) == (VfAction.FAILED, reason)
        story.passes(RETRY_SECONDS[0])
    assert story.told() == [("VFFailed", A)]
    story.scanned(A, 2)
    story.next()
    assert story.kept_back == {}
    assert story.told()[-1] == ("VFApplied", A)


def test_an_answer_that_was_no_success_does_not_count_when_the_card_is_as_desired() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered("the worker crashed")
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    assert story.told() == [("VFApplied", A)]


def test_a_failure_on_the_way_by_none_is_not_gone_on_from() -> None:
    story = Story(THREE, A=2)
    story.sent(0)
    story.answered("the worker crashed")
    story.scanned(A, 0)
    assert story.next() == Wait(0.0)
    assert story.told() == [("VFFailed", A)]
    assert story.kept_back == {}
    story.waits(RETRY_SECONDS[0])
    story.applied(3)


def pauses(story: Story, times: int) -> list[float]:
    """The pauses after so many changes that the driver refuses."""
    lengths = []
    for _ in range(times):
        story.sent(2)
        refused(story)
        assert story.next() == Wait(0.0)
        action = story.next()
        assert isinstance(action, Wait)
        assert action.seconds is not None
        assert story.kept_back == {}
        lengths.append(action.seconds)
        story.passes(action.seconds)
    return lengths


def test_pauses_grow_to_ten_minutes_and_the_same_failure_is_told_once() -> None:
    story = Story(TWO, A=0)
    assert pauses(story, 9) == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0]
    assert story.told() == [("VFFailed", A)]


def test_another_failure_is_news() -> None:
    story = Story(TWO, A=0)
    pauses(story, 1)
    story.sent(2)
    wrong(story)
    story.next()
    assert story.told() == [("VFFailed", A), ("VFFailed", A)]


def test_after_a_success_pauses_begin_anew() -> None:
    story = Story(TWO, A=0)
    assert pauses(story, 3)[-1] == 40.0
    story.applied(2)
    assert story.told() == [("VFFailed", A), ("VFApplied", A)]
    assert A not in story.memory.pauses
    story.desired = NONE
    story.applied(0)
    story.desired = TWO
    assert pauses(story, 1) == [10.0]
    assert story.told() == [("VFApplied", A), ("VFFailed", A)]


def test_after_a_long_time_pauses_begin_anew() -> None:
    story = Story(TWO, A=0)
    assert pauses(story, 2)[-1] == 20.0
    story.looked(A, holders=[JOB])
    story.next()
    story.passes(2 * RETRY_SECONDS[1])
    assert pauses(story, 1) == [10.0]


def test_another_desired_count_ends_all_pauses() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    refused(story)
    assert story.next() == Wait(0.0)
    story.desired = ONE
    story.applied(1)


def test_a_paused_card_does_not_keep_the_others_waiting() -> None:
    story = Story(TWO, A=0, B=0)
    story.looked(B, holders=[JOB])
    story.withdrawn()
    story.passes(10.0)
    story.next()
    story.looked(A)
    story.next()
    refused(story)
    assert story.next() == Wait(0.0)
    story.applied(2, B)


# --- a card that the driver refuses again and again ---------------------------------------------------


def refusals(story: Story, times: int, answer: str = "the driver refuses 2 VFs") -> None:
    """So many changes of A that the driver refuses, each after the pause of the one before."""
    for _ in range(times):
        story.sent(2)
        story.answered(answer, refused=True)
        assert story.next() == Rescan(60.0)
        story.scanned(A, 0)
        assert story.next() == Wait(0.0)
        story.next()
        story.passes(RETRY_SECONDS[1])


def test_a_card_that_is_refused_five_times_with_the_same_answer_is_left_alone() -> None:
    story = Story(TWO, A=0)
    refusals(story, MOST_REFUSALS - 1)
    assert story.told() == [("VFFailed", A)]
    refusals(story, 1)
    for _ in range(100):
        assert story.next() == Wait(REVIEW_SECONDS)
        story.passes(REVIEW_SECONDS)
        story.scanned()
    assert story.kept_back == {}
    assert story.step().action is VfAction.FAILED
    assert story.step().reason == (
        "the driver refuses 2 VFs; the card was idle and the answer the same 5 times, so it is left alone: "
        "set another number, or correct the cause and send SIGHUP to the plugin"
    )
    assert story.told() == [("VFFailed", A)], "once more, as there is something to do now"


def test_a_card_that_is_left_alone_keeps_no_other_waiting() -> None:
    story = Story(TWO, A=0)
    refusals(story, MOST_REFUSALS)
    story.scanned(B, 0)
    story.applied(2, B)
    assert story.told()[-1] == ("VFApplied", B)
    assert story.next() == Wait(REVIEW_SECONDS)


def another_number(story: Story) -> None:
    story.desired = ONE
    story.next()
    story.desired = TWO


def order(story: Story) -> None:
    story.orders += 1


def another_driver(story: Story) -> None:
    story.driver = "4.0.13"


def another_node(story: Story) -> None:
    story.cards[A] = cards(after_scan(Facts(), found(device(A, number=7, max_vfs=3))), POLICY)[A]


def another_split(story: Story) -> None:
    story.scanned(A, 1)


@pytest.mark.parametrize("happens", [another_number, order, another_driver, another_node, another_split])
def test_a_card_is_left_alone_until_desired_count_host_or_administrator_say_otherwise(
    happens: Callable[[Story], None],
) -> None:
    story = Story(TWO, A=0)
    refusals(story, MOST_REFUSALS)
    assert story.next() == Wait(REVIEW_SECONDS)
    happens(story)
    story.sent(2 if not story.cards[A].vfs else 0)


def test_an_order_ends_the_pause_of_a_card_that_was_refused_and_no_other() -> None:
    story = Story(TWO, A=0, B=2)
    story.next()
    story.scanned(B, 1)  # by another program
    story.sent(2)
    story.answered("the driver refuses", refused=True)
    story.scanned(A, 0)
    assert story.next() == Wait(0.0)
    assert {*story.memory.pauses} == {A, B}
    story.orders += 1
    story.next()
    assert {*story.memory.pauses} == {B}


def success(story: Story) -> None:
    story.applied(2)
    story.desired = NONE
    story.applied(0)
    story.desired = TWO


def another_answer(story: Story) -> None:
    refusals(story, 1, "another answer")


def no_refusal(story: Story) -> None:
    story.sent(2)
    story.answered("the worker crashed")
    story.scanned(A, 0)
    assert story.next() == Wait(0.0)
    story.passes(RETRY_SECONDS[1])


@pytest.mark.parametrize("happens", [success, another_answer, no_refusal])
def test_only_the_same_answer_in_a_row_counts(happens: Callable[[Story], None]) -> None:
    story = Story(TWO, A=0)
    refusals(story, MOST_REFUSALS - 1)
    happens(story)
    refusals(story, MOST_REFUSALS - 1)
    assert story.next() == Prove((A,))


def test_a_card_that_is_left_alone_and_is_as_desired_all_the_same_is_well() -> None:
    story = Story(TWO, A=0)
    refusals(story, MOST_REFUSALS)
    story.scanned(A, 2)
    assert story.next() == Wait(None)
    assert story.step().action is VfAction.KEEP


# --- what a former process has asked for --------------------------------------------------------------


@pytest.mark.parametrize("desired", [TWO, KEEP, UNKNOWN, ONE])
@pytest.mark.parametrize("apply", [True, False])
def test_what_a_former_process_has_asked_for_keeps_its_card_closed_until_a_scan_shows_it(
    desired: DesiredVfs, apply: bool
) -> None:
    story = Story(desired, replace(LATE, apply=apply), A=0, B=2)
    story.inherited(Request(A, 2))
    assert story.memory.request == Request(A, 2), "which stays on record"
    for _ in range(5):
        left = story.limits.timeout - (story.now - 1000.0)
        assert story.next() == Rescan(left)
        assert story.kept_back == {A: ASKED_BEFORE}
        assert "a former process of this plugin has asked the driver for 2 VFs" in story.step().reason
        story.scanned(A, 0)
        story.waits(CHECK_SECONDS)
    story.scanned(A, 2)
    story.next()
    assert story.kept_back == {}
    assert story.memory.request is None
    assert ("VFFailed", A) not in story.told()


@pytest.mark.parametrize("seen", [2, None])
def test_what_a_former_process_has_asked_for_is_waited_for_so_long_and_that_is_told(seen: int | None) -> None:
    story = Story(DesiredVfs(number=None, origin="argument"), A=0, B=0)
    story.inherited(Request(A, 3))
    story.passes(59.9)
    if seen is None:
        del story.cards[A]
        story.scanned()
    else:
        story.scanned(A, 3, seen=seen)
    action = story.next()
    assert isinstance(action, Wait)
    assert action.seconds == pytest.approx(0.1)
    story.passes(0.1)
    assert story.kept_back == {A: ASKED_BEFORE}
    assert story.next() == Wait(0.0)
    assert story.kept_back == {}
    assert story.told() == [("VFFailed", A)]
    assert story.next() == Wait(None)


def test_what_a_former_process_has_begun_is_gone_on_with_only_after_a_look() -> None:
    story = Story(THREE, A=2, B=0)
    story.inherited(Request(A, 0))
    story.next()
    assert story.step(B).reason == "waiting for a check of its users", "one card at a time"
    story.scanned(A, 0)
    assert story.next() == Prove((A, B))
    story.looked(A, holders=[JOB])
    story.looked(B)
    story.next()
    assert story.kept_back == {B: VF_CHANGE_PLANNED}


def test_while_the_record_cannot_be_read_every_card_that_may_be_split_is_closed_for_a_while() -> None:
    story = Story(TWO, A=0, B=2)
    story.cards[C] = card_of(C, 0, most=0)
    story.unread = story.now
    for _ in range(12):
        assert story.next() == Wait(LOOK_SECONDS)
        assert story.kept_back == {A: RECORD_UNREAD, B: RECORD_UNREAD}
        for address in (A, B):
            assert story.step(address).action is VfAction.BLOCKED
            assert "vf-change.json in --state-dir cannot be read" in story.step(address).reason
        story.passes(LOOK_SECONDS)
    assert story.told() == [("VFBlocked", A), ("VFBlocked", B)]
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.kept_back == {}, "open again, and none is changed"
    assert "vf-change.json in --state-dir cannot be read" in story.step(A).reason
    assert (story.step(B).action, story.step(C).reason) == (VfAction.KEEP, "this card cannot be split")
    assert story.told() == []
    story.unread = None
    story.applied(2)


def test_a_record_that_cannot_be_read_closes_no_card_that_is_not_ours_and_hides_no_policy() -> None:
    story = Story(TWO, replace(LATE, apply=False), A=0, B=0)
    story.cards[B] = replace(story.cards[B], excluded="excluded by --deny")
    story.unread = story.now
    story.next()
    assert story.step(A).reason == "--vf-policy is never"
    assert (story.step(B).action, story.step(B).reason) == (VfAction.KEEP, "excluded by --deny")


@pytest.mark.parametrize(("vfs", "number"), [(0, 2), (3, 0)])
def test_a_card_about_which_the_driver_was_not_asked_is_open_at_once(vfs: int, number: int) -> None:
    story = Story(TWO, A=vfs)
    story.sent(number)
    story.answered("the request cannot be recorded", asked=False)
    assert story.next() == Wait(RETRY_SECONDS[0])
    assert story.kept_back == {}
    assert story.step().action is VfAction.FAILED
    assert story.told() == [("VFFailed", A)]
    story.passes(RETRY_SECONDS[0])
    story.sent(number)


# --- drift --------------------------------------------------------------------------------------------


def test_what_somebody_else_splits_is_told_paused_and_put_back() -> None:
    story = Story(TWO, A=2)
    assert story.next() == Wait(None)
    story.scanned(A, 0)
    assert story.next() == Wait(DRIFT_SECONDS[0])
    assert story.news[0].text == f"another program has split {A}: 2 VFs before, 0 now"
    assert story.told() == [("VFDrift", A)]
    assert story.kept_back == {}
    assert story.step().action is VfAction.APPLY
    assert story.step().reason.startswith("another program has split")
    story.passes(DRIFT_SECONDS[0])
    story.applied(2)
    assert story.told() == [("VFApplied", A)]


def test_pauses_after_drift_grow_to_an_hour() -> None:
    story = Story(TWO, A=2)
    lengths = []
    for _ in range(8):
        story.next()
        story.scanned(A, 0)
        action = story.next()
        assert isinstance(action, Wait)
        assert action.seconds is not None
        lengths.append(action.seconds)
        story.passes(action.seconds)
        story.applied(2)
    assert lengths == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]
    assert story.told() == [("VFDrift", A), ("VFApplied", A)] * 8


def test_a_failure_after_drift_is_tried_again_as_soon_as_any_first_failure() -> None:
    story = Story(TWO, A=2)
    story.next()
    story.scanned(A, 0)
    story.waits(DRIFT_SECONDS[0])
    story.sent(2)
    refused(story)
    assert story.next() == Wait(0.0)
    assert story.next() == Wait(RETRY_SECONDS[0])


@pytest.mark.parametrize(("desired", "vfs"), [(TWO, 2), (KEEP, 0)], ids=["undone", "kept"])
def test_drift_that_is_undone_or_kept_needs_nothing(desired: DesiredVfs, vfs: int) -> None:
    story = Story(desired, A=2)
    for number in (2, 0, vfs):
        story.scanned(A, number)
        action = story.next()
    assert action == Wait(None)
    assert story.step().action is VfAction.KEEP
    assert story.told() == [("VFDrift", A)] * (desired is TWO)
    story.desired = by_argument(vfs)
    story.next()
    story.desired = ONE  # which is no drift either
    story.next()
    assert story.told() == []


def test_a_card_that_was_away_is_as_it_is_found() -> None:
    story = Story(TWO, A=2)
    story.next()
    card = story.cards.pop(A)
    story.scanned()
    story.next()
    story.cards[A] = card_of(A, 0)
    assert card.vfs == 2
    story.scanned()
    assert story.next() == Prove((A,))
    assert story.told() == []


# --- the start ----------------------------------------------------------------------------------------


def test_before_the_desired_count_is_known_whole_cards_are_kept_back_that_could_be_split() -> None:
    story = Story(UNKNOWN, START, A=0, B=2)
    story.cards[C] = card_of(C, 0, most=0)
    assert story.next() == Wait(60.0)
    assert story.kept_back == {A: VF_UNDECIDED}
    story.passes(59.0)
    assert story.next() == Wait(1.0)
    story.passes(1.0)
    assert story.next() == Wait(None)
    assert story.kept_back == {}


def test_a_card_of_which_nobody_knows_whether_it_can_be_split_is_not_kept_back() -> None:
    story = Story(UNKNOWN, START, A=0)
    facts = after_scan(Facts(), found(device(A, max_vfs=None)))
    story.cards = cards(facts, POLICY)
    assert story.next() == Wait(None)
    assert story.kept_back == {}


def test_cards_that_are_held_or_were_just_granted_are_not_kept_back() -> None:
    story = Story(UNKNOWN, START, A=0, B=0)
    story.held = frozenset({A})
    story.next()
    assert story.kept_back == {B: VF_UNDECIDED}
    story.taken = frozenset({B})
    assert story.next() == Wait(None)
    assert story.kept_back == {}


@pytest.mark.parametrize("before", [UNKNOWN, TWO])
@pytest.mark.parametrize("desired", [KEEP, NONE])
def test_a_desired_count_for_which_nothing_is_to_be_done_gives_the_cards_back_at_once(
    before: DesiredVfs, desired: DesiredVfs
) -> None:
    story = Story(before, START, A=0, B=0)
    story.looked(A, B)
    story.next()
    assert story.kept_back.keys() == {A, B}
    story.desired = desired
    assert story.next() == Wait(None)
    assert story.kept_back == {}


def test_with_a_desired_count_whole_cards_are_kept_back_until_they_have_been_looked_at() -> None:
    story = Story(TWO, START, A=0, B=0, C=2)
    assert story.next() == Prove((A, B))
    assert story.kept_back == {A: VF_UNDECIDED, B: VF_UNDECIDED}
    story.looked(A)
    story.looked(B, holders=[JOB])
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


@pytest.mark.parametrize(("vfs", "first"), [(2, A), (0, B)], ids=["both are split", "a whole one goes first"])
def test_a_split_card_is_not_kept_back_at_the_start(vfs: int, first: str) -> None:
    story = Story(THREE, START, A=2, B=vfs)
    assert story.next() == Prove((A, B))
    assert story.kept_back.keys() == {address for address in (B,) if not vfs}
    story.looked(A, B)
    assert story.next() == Wait(10.0)
    assert story.kept_back == {first: VF_CHANGE_PLANNED}


def test_at_the_start_whole_cards_settle_together() -> None:
    story = Story(TWO, START, A=0, B=0)
    assert story.next() == Prove((A, B))
    story.looked(A, B)
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED, B: VF_CHANGE_PLANNED}
    story.passes(10.0)
    assert story.next() == Prove((A,))
    story.looked(A)
    assert story.next() == SetVfs(story.cards[A], 2)
    assert story.kept_back == {A: CHANGING, B: VF_CHANGE_PLANNED}
    story.passes(6.0)
    story.answered()
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    assert story.kept_back == {B: VF_CHANGE_PLANNED}
    assert story.next() == Prove((B,))
    assert story.kept_back == {B: VF_CHANGE_PLANNED}
    story.looked(B)
    assert story.next() == Wait(0.0)
    assert story.next() == SetVfs(story.cards[B], 2)


def test_a_card_that_settles_with_the_others_and_is_granted_is_given_back() -> None:
    story = Story(TWO, START, A=0, B=0)
    story.looked(A, B)
    story.next()
    assert story.kept_back == {A: VF_CHANGE_PLANNED, B: VF_CHANGE_PLANNED}
    story.taken = frozenset({B})
    story.next()
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


def test_cards_that_settle_together_do_so_no_longer_than_a_desired_count_may_take_to_come() -> None:
    story = Story(TWO, START, A=0, B=0)
    story.looked(A, B)
    story.next()
    story.passes(10.0)
    story.looked(A)
    assert isinstance(story.next(), SetVfs)
    story.passes(49.9)
    story.answered()
    assert story.next() == Rescan(60.0)
    assert story.kept_back == {A: CHANGING, B: VF_CHANGE_PLANNED}
    story.passes(0.1)
    story.next()
    assert story.kept_back == {A: CHANGING}
    story.scanned(A, 2)
    assert story.next() == Wait(0.0)
    story.withdrawn(B)


# --- at any time --------------------------------------------------------------------------------------


DESIRED = st.sampled_from([UNKNOWN, NONE, ONE, TWO, THREE, KEEP, by_argument(9)])
LIMITS = st.sampled_from([LATE, START, replace(START, apply=False), replace(START, settle=0.0)])


def happen(draw: st.DrawFn, story: Story) -> None:
    """Something, or nothing."""
    address = draw(st.sampled_from([A, B]))
    match draw(st.sampled_from(["nothing", "nothing", "time", "desired", "taken", "free", "split", "gone"])):
        case "time":
            story.passes(draw(st.sampled_from([0.1, 1.0, 6.0, 60.0, 4000.0])))
        case "desired":
            story.desired = draw(DESIRED)
        case "taken":
            story.taken |= {address}
        case "free":
            story.taken -= {address}
        case "split":
            vfs = draw(st.integers(0, 3))
            story.scanned(address, vfs, seen=draw(st.sampled_from([None, 0])) if vfs else None)
        case "gone":
            story.cards.pop(address, None)
            story.scanned()


def carry_out(draw: st.DrawFn, story: Story, action: Wait | Prove | Rescan | SetVfs) -> None:
    match action:
        case Wait(seconds):
            story.passes(draw(st.sampled_from([0.0, 0.5, 1.0])) * (100.0 if seconds is None else seconds))
        case Prove(addresses):
            for address in addresses:
                story.looked(address, holders=draw(st.sampled_from([(), (), (), (JOB,)])))
        case Rescan(seconds):
            if draw(st.booleans()):
                story.scanned()
            else:
                story.passes(seconds)
        case SetVfs(card, number):
            if draw(st.booleans()) and card.address in story.cards:
                story.cards[card.address] = card_of(card.address, number)
            story.passes(1.0)
            story.answered(draw(st.sampled_from(["", "", "the driver refuses"])))


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Anywhere on the way."""
    story = Story(draw(DESIRED), draw(LIMITS), A=draw(st.integers(0, 3)), B=draw(st.integers(0, 3)))
    for _ in range(draw(st.integers(0, 25))):
        happen(draw, story)
        carry_out(draw, story, story.next())
    happen(draw, story)
    return story


@given(stories())
def test_deciding_again_with_nothing_new_decides_the_same_and_tells_nothing(story: Story) -> None:
    """But for orders, after which `answered` is due, and for "decide again at once"."""
    action = story.next()
    for _ in range(4):
        if action != Wait(0.0):
            break
        action = story.next()
    assert action != Wait(0.0)
    if isinstance(action, SetVfs):
        return
    kept_back = story.kept_back
    story.told()
    assert story.next() == action
    assert story.kept_back == kept_back
    assert story.told() == []


@given(stories())
def test_waits_are_bounded_while_anything_is_kept_back_or_to_be_done(story: Story) -> None:
    action = story.next()
    assert story.last
    if isinstance(action, Wait):
        undone = any(
            step.action is VfAction.APPLY or step.reason.startswith(("held", "granted"))
            for step in story.last.report.steps
        )
        if story.kept_back or (undone and story.limits.apply):
            assert action.seconds is not None
        if action.seconds is not None:
            assert 0.0 <= action.seconds <= DRIFT_SECONDS[1]
    if isinstance(action, Rescan):
        assert 0.0 < action.seconds <= story.limits.timeout


@given(stories())
def test_one_card_at_most_is_kept_back_after_the_start(story: Story) -> None:
    story.passes(60.0)
    story.next()
    assert len(story.kept_back) <= 1


def test_a_wrong_number_of_vfs_is_named_when_scans_have_shown_it_in_time() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    for _ in range(1000):
        action = story.next()
        match action:
            case Rescan(seconds):
                story.passes(min(seconds, 0.1))
                if seconds > 0.1:
                    story.scanned(A, 1)
            case Wait(float() as seconds) if seconds:
                story.passes(seconds)
            case _:
                break
    assert story.step().reason.startswith("asked for 2 VFs, the library shows 1 VFs")


def test_a_bad_label_is_told_once_and_again_when_it_is_another_or_was_good() -> None:
    story = Story(TWO, A=2)
    bad, worse = (replace(TWO, problem=f"label: {text!r} is not accepted") for text in ("abc", "-1"))
    for desired, news in ((bad, 1), (bad, 0), (worse, 1), (TWO, 0), (bad, 1)):
        story.desired = desired
        story.next()
        assert story.told() == [("VFFailed", "")] * news
        assert story.last
        assert story.last.report.problem == desired.problem


def test_a_card_that_is_none_of_our_business_is_neither_changed_nor_told_of() -> None:
    story = Story(TWO, A=0)
    story.cards[A] = replace(story.cards[A], excluded="excluded by --deny")
    assert story.next() == Wait(None)
    assert story.kept_back == {}
    assert (story.step().action, story.step().reason) == (VfAction.KEEP, "excluded by --deny")


@pytest.mark.parametrize("reason", VfReason)
def test_news_are_events_good_ones_normal_and_others_warnings(reason: VfReason) -> None:
    event = News(reason=reason, card=A, text=f"{A}: a change").event
    assert event.kind == ("Normal" if reason is VfReason.APPLIED else "Warning")
    assert (event.reason, event.text) == (reason.value, f"{A}: a change")


def test_a_scan_from_before_does_not_count() -> None:
    """The picture may be of a time when another plugin was at work."""
    story = Story(TWO, A=2)
    story.inherited(Request(A, 2))
    assert story.next() == Rescan(60.0)
    assert story.kept_back == {A: ASKED_BEFORE}
    story.scanned()
    assert story.next() == Wait(None)


def test_a_wait_ends_when_the_cards_are_to_be_given_back() -> None:
    story = Story(TWO, replace(START, settle=30.0, pending=20.0), A=0, B=0)
    story.looked(A, B)
    assert story.next() == Wait(20.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED, B: VF_CHANGE_PLANNED}
    story.passes(20.0)
    assert story.next() == Wait(10.0)
    assert story.kept_back == {A: VF_CHANGE_PLANNED}


def test_vfs_in_part_at_the_end_of_time_are_no_success() -> None:
    story = Story(TWO, A=0)
    story.sent(2)
    story.answered()
    story.passes(60.0)
    story.scanned(A, 2, seen=1)
    story.next()
    assert story.told() == [("VFFailed", A)]
