# SPDX-License-Identifier: Apache-2.0
"""When a device with a driver error is probed, and the meaning of the end of a probe."""

import pytest

from xpu_plugin.model.health import PROBE_PLANNED, PROBE_STUCK, PROBING, Health
from xpu_plugin.model.probe import Decision, Memory, ProbeResult, Run, View, decide, result_of
from xpu_plugin.model.reservation import LOOK_SECONDS, Prove, Wait
from xpu_plugin.model.vf_plan import Proof


A, B = "0000:3b:00.0", "0000:5e:00.0"
VF = "0000:3b:00.1-of2"
SETTLE = 10.0


class Story:
    """The decisions, and the facts meanwhile."""

    def __init__(self, **suspects: str) -> None:
        self.now = 1000.0
        self.suspects = suspects or {A: A}
        self.paused: dict[str, float] = {}
        self.proofs: dict[str, Proof] = {}
        self.taken: frozenset[str] = frozenset()
        self.ended = float("-inf")
        self.changing = self.stuck = False
        self.memory = Memory()
        self.last: Decision | None = None

    def next(self) -> Wait | Prove | Run:
        view = View(
            now=self.now,
            proofs=self.proofs,
            taken=self.taken,
            ended=self.ended,
            suspects=self.suspects,
            paused=self.paused,
            changing=self.changing,
            stuck=self.stuck,
        )
        self.last = decide(self.memory, view, SETTLE)
        self.memory = self.last.memory
        return self.last.action

    @property
    def withheld(self) -> dict[str, Health]:
        assert self.last
        return dict(self.last.withheld)

    def looked(self, card: str = A, *, holders: tuple[str, ...] = (), doubt: str = "") -> None:
        """All witnesses answer."""
        proof = Proof(at=self.now, done=self.now, holders=holders, doubt=doubt)
        self.proofs = {**self.proofs, card: proof}

    def planned(self, card: str = A) -> None:
        """Go on until a card is withheld, and its wait is over."""
        assert self.next() == Prove((card,))
        self.looked(card)
        assert self.next() == Wait(SETTLE)
        assert self.withheld == {card: PROBE_PLANNED}
        self.now += SETTLE


def test_without_a_driver_error_nothing_is_asked_and_nothing_withheld() -> None:
    story = Story()
    story.suspects = {}
    assert story.next() == Wait(None)
    assert story.withheld == {}


def test_a_card_is_withheld_and_proven_idle_twice_before_the_probe() -> None:
    story = Story()
    story.planned()
    assert story.next() == Prove((A,)), "the first proof began before the wait"
    assert story.withheld == {A: PROBE_PLANNED}
    story.looked()
    assert story.next() == Run(A, A)
    assert story.withheld == {A: PROBING}


def test_the_whole_card_of_a_vf_is_withheld() -> None:
    story = Story()
    story.suspects = {VF: A}
    story.planned()
    story.looked()
    assert story.next() == Run(VF, A)
    assert story.withheld == {A: PROBING}


@pytest.mark.parametrize(("holders", "doubt"), [(("default/train/main",), ""), ((), "no answer")])
def test_a_card_that_may_have_a_user_is_looked_at_again_and_not_withheld(
    holders: tuple[str, ...], doubt: str
) -> None:
    story = Story()
    assert story.next() == Prove((A,))
    story.looked(holders=holders, doubt=doubt)
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.withheld == {}
    assert story.last
    assert story.last.awaits_an_end
    story.now += LOOK_SECONDS
    assert story.next() == Prove((A,))


def test_a_grant_calls_the_probe_off_until_the_last_moment() -> None:
    story = Story()
    story.planned()
    story.looked()
    story.taken = frozenset({A})
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.withheld == {}


@pytest.mark.parametrize("holders", [(), ("default/train/main",)])
def test_a_user_that_the_second_proof_finds_calls_the_probe_off(holders: tuple[str, ...]) -> None:
    story = Story()
    story.planned()
    story.looked(holders=holders)
    assert (story.next() == Run(A, A)) is not bool(holders)


def test_a_card_that_the_checkpoint_still_names_is_not_probed() -> None:
    story = Story()
    story.planned()
    story.proofs = {A: Proof(at=story.now, done=story.now, fading=("uid-1/main",))}
    assert not isinstance(story.next(), Run)


def test_no_probe_begins_while_vfs_are_changed() -> None:
    story = Story()
    story.changing = True
    assert story.next() == Wait(LOOK_SECONDS)
    story.changing = False
    story.planned()
    story.looked()
    story.changing = True
    assert story.next() == Wait(LOOK_SECONDS)
    assert story.withheld == {}


def test_the_end_of_the_driver_error_calls_the_probe_off() -> None:
    story = Story()
    story.planned()
    story.suspects = {}
    assert story.next() == Wait(None)
    assert story.withheld == {}


def test_a_device_is_probed_again_after_its_pause_and_never_at_once() -> None:
    story = Story()
    story.planned()
    story.looked()
    assert isinstance(story.next(), Run)
    story.paused = {A: story.now + 600.0}
    assert story.next() == Wait(600.0)
    assert story.withheld == {}
    story.now += 600.0
    story.planned()
    story.looked()
    assert story.next() == Run(A, A)


def test_one_card_at_a_time_and_the_one_that_has_waited_longest_first() -> None:
    story = Story()
    story.suspects = {A: A, B: B}
    story.paused = {A: story.now - 1.0}
    assert story.next() == Prove((A, B))
    story.looked(A)
    story.looked(B)
    assert story.next() == Wait(SETTLE)
    assert story.withheld == {B: PROBE_PLANNED}


def test_a_probe_that_does_not_end_keeps_its_card_withheld_and_lets_no_other_begin() -> None:
    story = Story()
    story.planned()
    story.looked()
    assert isinstance(story.next(), Run)
    story.stuck = True
    story.suspects = {B: B}  # cleared meanwhile, and another one is sick
    for _ in range(3):
        assert story.next() == Wait(LOOK_SECONDS)
        assert story.withheld == {A: PROBE_STUCK}
        story.now += LOOK_SECONDS
    story.stuck = False
    story.planned(B)


@pytest.mark.parametrize(
    ("status", "result"),
    [
        (0, ProbeResult.PASSED),
        (1, ProbeResult.SICK),
        (2, ProbeResult.FAILED),
        (255, ProbeResult.FAILED),
        (-9, ProbeResult.KILLED),
        (-1, ProbeResult.KILLED),
    ],
)
def test_only_two_statuses_are_an_answer(status: int, result: ProbeResult) -> None:
    assert result_of(status) is result
