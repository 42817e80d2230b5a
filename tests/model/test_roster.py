# SPDX-License-Identifier: Apache-2.0
"""Pods with devices: what the pods API and the checkpoint together say about ends."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from xpu_plugin.model.ownership import (
    Answers,
    Grant,
    Holding,
    Listing,
    Terms,
    Word,
    after_word,
    forgotten,
    word_of,
)
from xpu_plugin.model.pods import Container, Exit, Pod
from xpu_plugin.model.roster import LINGER_SECONDS, Roster, after_event, after_list, applied, open_holders


CARD = "0000:3b:00.0"
HELD = Holding(container="u/main", resource="baidu.com/xpu", ids=(CARD,))
LISTED = Holding(container="default/train/main", resource="baidu.com/xpu", ids=(CARD,))
AHEAD = 1_000_000.0
"""Seconds by which the wall clock is ahead here."""


def pod(*, finished: float | None = None, uid: str = "u", grace: float = 5.0) -> Pod:
    end = None if finished is None else Exit(code=0, finished=AHEAD + finished)
    return Pod(
        uid=uid, name="default/train", containers={"main": Container(policy="Never", exit=end)}, grace=grace
    )


def roster_of(*pods: Pod, now: float = 100.0) -> Roster:
    return after_list({}, {own.uid: own for own in pods}, (HELD,), now, began=now)


def answers(
    done: float = 100.0, *, checkpoint: tuple[Holding, ...] = (HELD,), listed: bool = True
) -> Answers:
    return Answers(
        began=done,
        done=done,
        listing=Listing(pods=frozenset({"default/train"}), holdings=(LISTED,) if listed else ()),
        checkpoint=checkpoint,
        life="life",
        age=1000.0,
        own=True,
    )


def said(roster: Roster, pods: Mapping[str, Pod] | str | None, of: Answers | None = None) -> Answers:
    return applied(of or answers(), roster, pods, ahead=AHEAD)


def test_a_holder_that_runs_stays() -> None:
    own = pod()
    told = said(roster_of(own), {"u": own})
    assert told.witness
    assert (told.listed, told.checkpoint, told.ended) == (answers().listed, (HELD,), {})
    assert (told.lingering, told.fading) == ((), ())


def test_an_ended_holder_is_in_neither_list_nor_checkpoint_although_its_pod_is_listed() -> None:
    own = pod(finished=90.0)
    told = said(roster_of(own), {"u": own})
    assert told.listed == Listing(pods=frozenset({"default/train"}), holdings=())
    assert told.checkpoint == ()
    assert told.ended == {CARD: 90.0}


@pytest.mark.parametrize(("followed", "seen"), [(False, 100.0), (True, 500.0)])
def test_an_end_is_as_old_as_the_answer_that_showed_it_unless_the_pods_are_followed(
    followed: bool, seen: float
) -> None:
    roster = roster_of(pod(finished=90.0), now=100.0)
    told = applied(answers(500.0), roster, None, ahead=AHEAD, followed=followed)
    assert (told.ended, told.seen) == ({CARD: 90.0}, {CARD: seen})
    assert after_event(roster, "u", pod(finished=90.0), 300.0)["u"].at == 300.0


def test_the_end_of_a_pod_that_is_gone_counts_like_a_new_one_once_nothing_of_it_can_run() -> None:
    gone = after_event(roster_of(pod(finished=90.0, grace=5.0), now=100.0), "u", None, 110.0)
    for now, seen in ((112.0, 100.0), (110.0 + 5.0 + LINGER_SECONDS, 110.0 + 5.0 + LINGER_SECONDS)):
        assert applied(answers(now), gone, None, ahead=AHEAD, followed=True).seen == {CARD: seen}


def test_an_id_with_another_holder_has_not_ended() -> None:
    own, other = pod(finished=90.0), replace(HELD, container="v/main")
    told = said(roster_of(own), {"u": own}, answers(checkpoint=(HELD, other)))
    assert told.ended == {}
    assert told.checkpoint == (other,)


def test_of_two_pods_of_one_name_the_one_that_runs_counts_in_the_list() -> None:
    old, new = pod(finished=90.0), pod(uid="v")
    told = said(roster_of(old), {"u": old, "v": new})
    assert told.listed == answers().listed


def test_a_pod_that_leaves_without_an_end_holds_its_devices_for_as_long_as_it_may_take_to_end() -> None:
    gone = after_event(roster_of(pod(grace=5.0)), "u", None, 110.0)
    last = 110.0 + 5.0 + LINGER_SECONDS
    for checkpoint in ((HELD,), ()):
        before = said(gone, {}, answers(last - 0.1, checkpoint=checkpoint, listed=False))
        assert before.lingering == (replace(HELD, container="default/train/main"),)
        assert before.fading == ()
        after = said(gone, {}, answers(last, checkpoint=checkpoint, listed=False))
        assert after.lingering == ()
        assert after.fading == checkpoint


def test_a_pod_that_leaves_after_its_end_holds_nothing() -> None:
    gone = after_event(roster_of(pod(finished=90.0)), "u", None, 110.0)
    told = said(gone, {}, answers(110.0, listed=False))
    assert (told.lingering, told.fading, told.checkpoint) == ((), (), ())
    assert told.ended == {CARD: 90.0}


def test_a_pod_that_was_never_seen_is_no_proof_while_the_checkpoint_names_it() -> None:
    told = said({}, {}, answers(listed=False))
    assert told.fading == told.checkpoint == (HELD,)


def test_without_an_answer_nothing_fades_and_what_has_ended_has_ended() -> None:
    own = pod(finished=90.0)
    for nothing in (None, "the kubelet initializes"):
        told = said(roster_of(own), nothing)
        assert not told.witness
        assert told.fading == ()
        assert told.ended == {CARD: 90.0}
        assert told.refusal == (nothing or "")


def test_a_pod_that_leaves_while_ends_are_not_followed_is_named_by_the_checkpoint_alone() -> None:
    assert after_list(roster_of(pod()), {}, (HELD,), 110.0, began=110.0, followed=False) == {}
    over = after_list(roster_of(pod(finished=90.0)), {}, (HELD,), 110.0, began=110.0, followed=False)
    assert over.keys() == {"u"}


def test_what_is_gone_is_forgotten_once_it_cannot_run_and_the_checkpoint_does_not_name_it() -> None:
    roster = after_list(roster_of(pod(grace=5.0)), {}, (), 110.0, began=110.0)
    assert roster["u"].gone == 110.0
    roster = after_list(roster, {}, (), 120.0, began=120.0)
    assert roster["u"].gone == 110.0
    assert after_list(roster, {}, (), 110.0 + 5.0 + LINGER_SECONDS, began=110.0 + 5.0 + LINGER_SECONDS) == {}
    assert after_list(roster, {}, (HELD,), 200.0, began=200.0).keys() == {"u"}


def test_an_end_is_news_once() -> None:
    before = roster_of(pod())
    after = after_event(before, "u", pod(finished=90.0), 100.0)
    assert open_holders(before) - open_holders(after) == {"u/main"}
    gone = after_event(after, "u", None, 101.0)
    assert open_holders(after) - open_holders(gone) == frozenset()
    assert after_event(gone, "u", None, 102.0) == gone
    assert after_event(gone, "stranger", pod(uid="stranger"), 102.0) == gone


def test_a_pod_that_is_there_again_is_not_gone() -> None:
    gone = after_event(roster_of(pod()), "u", None, 101.0)
    assert after_event(gone, "u", pod(), 102.0)["u"].gone is None


# --- grants ---------------------------------------------------------------------------------------


SETTLE = 10.0


def word(began: float, *, ended: float) -> Word:
    return Word(
        began=began,
        life="life",
        listing=Listing(pods=frozenset(), holdings=()),
        checkpoint=(),
        own=True,
        whole=True,
        ended={CARD: ended},
    )


def test_a_grant_ends_with_its_container_at_once() -> None:
    assert after_word({CARD: Grant(at=50.0)}, word(91.0, ended=90.0), SETTLE) == {}


def test_an_end_from_before_a_grant_does_not_end_it_before_the_kubelet_must_have_heard_of_it() -> None:
    ledger = {CARD: Grant(at=90.5, known_to="life", shown="life")}
    for began in (90.2, 91.0, 100.4):
        assert after_word(ledger, word(began, ended=90.0), SETTLE).keys() == {CARD}
        assert forgotten(ledger, word(began, ended=90.0)) == frozenset()
    assert after_word(ledger, word(100.5, ended=90.0), SETTLE) == {}


def test_a_grant_goes_on_while_its_pod_lingers() -> None:
    gone = after_event(roster_of(pod()), "u", None, 110.0)
    terms = Terms(own_pod="default/train")
    ledger = {CARD: Grant(at=50.0, shown="life", known_to="life", noted=True)}
    lingers = word_of(said(gone, {}, answers(111.0, checkpoint=(), listed=False)), terms)
    assert after_word(ledger, lingers, SETTLE).keys() == {CARD}
    over = word_of(said(gone, {}, answers(200.0, checkpoint=(), listed=False)), terms)
    assert after_word(ledger, over, SETTLE) == {}


def test_the_word_of_the_kubelet_has_the_ends() -> None:
    own = pod(finished=90.0)
    told = word_of(said(roster_of(own), {"u": own}), Terms(own_pod="default/train"))
    assert told.ended == {CARD: 90.0}
    assert told.checkpoint == frozenset()
