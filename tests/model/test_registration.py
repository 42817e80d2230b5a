# SPDX-License-Identifier: Apache-2.0
"""When a socket is bound and registered, and when nothing is done: tables of looks and steps."""

from dataclasses import replace

import pytest

from xpu_plugin.model import registration
from xpu_plugin.model.registration import (
    ABSENT_SECONDS,
    AGAIN_SECONDS,
    DIAL_BACK_SECONDS,
    RETRY_SECONDS,
    Action,
    Look,
    Outcome,
    SocketIdentity,
    Standing,
    action,
    answered,
    bound,
    pause,
    seen,
)


A = SocketIdentity(1, 10, 100)
TOUCHED = SocketIdentity(1, 10, 200)  # or another kubelet; its socket has the inode of the former
B = SocketIdentity(1, 11, 300)
NEW = Standing()
BOUND = bound(NEW)
ASKED = answered(
    seen(BOUND, Look(now=0.0, kubelet=A, streaming=False, bound=True)), Outcome.ACCEPTED, now=0.0, kubelet=A
)
SERVING = seen(ASKED, Look(now=1.0, kubelet=A, streaming=True, bound=True))
LATER = 1000.0  # seconds: the stream has lasted


def look(
    kubelet: SocketIdentity | None, now: float = LATER, *, streaming: bool = False, bound: bool = True
) -> Look:
    return Look(now=now, kubelet=kubelet, streaming=streaming, bound=bound)


@pytest.mark.parametrize(
    ("standing", "at", "step"),
    [
        pytest.param(NEW, look(None, bound=False), Action.WAIT, id="no kubelet"),
        pytest.param(NEW, look(A, bound=False), Action.BIND, id="a kubelet, no socket yet"),
        pytest.param(BOUND, look(A), Action.REGISTER, id="a kubelet and a fresh socket"),
        pytest.param(BOUND, look(A, bound=False), Action.BIND, id="the fresh socket was deleted"),
        pytest.param(BOUND, look(None), Action.WAIT, id="a fresh socket, no kubelet any more"),
        pytest.param(ASKED, look(A, 1.0), Action.WAIT, id="the kubelet is about to dial"),
        pytest.param(ASKED, look(A, DIAL_BACK_SECONDS + 1), Action.BIND, id="it never dialled"),
        pytest.param(ASKED, look(B, 1.0), Action.BIND, id="another kubelet before it dialled"),
        pytest.param(SERVING, look(A, streaming=True), Action.WAIT, id="serving"),
        pytest.param(SERVING, look(TOUCHED, streaming=True), Action.WAIT, id="touched while serving"),
        pytest.param(
            SERVING, look(None, streaming=True), Action.WAIT, id="kubelet.sock deleted while serving"
        ),
        pytest.param(
            SERVING, look(A, streaming=True, bound=False), Action.WAIT, id="ours deleted while serving"
        ),
        pytest.param(
            SERVING, look(B, streaming=True), Action.BIND, id="another socket file, the stream lingers"
        ),
        pytest.param(SERVING, look(A), Action.BIND, id="the stream was cut by the same kubelet"),
        pytest.param(SERVING, look(TOUCHED, bound=False), Action.BIND, id="restarted, with the same inode"),
        pytest.param(SERVING, look(B, bound=False), Action.BIND, id="restarted"),
        pytest.param(SERVING, look(None), Action.WAIT, id="the kubelet has ended"),
        pytest.param(SERVING, replace(look(A), mute=True), Action.WAIT, id="cut, and a rival has the name"),
        pytest.param(
            SERVING, replace(look(A, streaming=True), mute=True), Action.WAIT, id="a rival has the name"
        ),
        pytest.param(
            SERVING, replace(look(A, streaming=True), take_back=True), Action.BIND, id="time to take it back"
        ),
    ],
)
def test_the_next_step(standing: Standing, at: Look, step: Action) -> None:
    assert action(seen(standing, at), at) is step


def test_no_step_but_a_bind_or_a_wait_while_a_stream_is_open() -> None:
    """A bind ends the stream first. A kubelet 1.37 that has the stream refuses the socket for ever."""
    for standing in (NEW, BOUND, ASKED, SERVING):
        for kubelet in (None, A, TOUCHED, B):
            for mute, take_back in ((False, False), (True, False), (False, True)):
                at = replace(look(kubelet, streaming=True), mute=mute, take_back=take_back)
                assert action(seen(standing, at), at) is not Action.REGISTER


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome.ACCEPTED, True),
        (Outcome.REFUSED, True),
        (Outcome.CUT, True),
        (Outcome.AWAY, False),
        (Outcome.UNABLE, False),
    ],
)
def test_a_name_that_a_kubelet_may_know_is_used_once(outcome: Outcome, told: bool) -> None:
    after = answered(BOUND, outcome, now=0.0, kubelet=A)
    at = look(A)
    assert after.name_used is told
    assert action(seen(after, at), at) is (Action.BIND if told else Action.REGISTER)
    assert not bound(after).name_used


@pytest.mark.parametrize(("outcome", "step"), [(Outcome.CUT, Action.BIND), (Outcome.AWAY, Action.WAIT)])
def test_a_stream_belongs_to_the_kubelet_that_may_know_the_socket(outcome: Outcome, step: Action) -> None:
    """Another kubelet that comes meanwhile does not know it."""
    standing = answered(seen(BOUND, look(A, 0.0)), outcome, now=0.0, kubelet=A)
    at = look(B, 1.0, streaming=True)
    assert action(seen(standing, at), at) is step


def test_a_name_taken_back_is_registered_at_once() -> None:
    """However short ago the former registration was."""
    taking = replace(look(A, 2.0, streaming=True), take_back=True)
    assert action(seen(SERVING, taking), taking) is Action.BIND
    at = look(A, 2.0)
    assert action(seen(bound(seen(SERVING, taking)), at), at) is Action.REGISTER


def test_streams_that_are_cut_again_and_again_are_replaced_ever_more_slowly() -> None:
    """The first at once; a stream that lasted begins anew."""
    standing, now, waits = SERVING, LATER, []
    for _ in range(8):
        standing = seen(standing, look(A, now))
        waits.append(standing.try_at - now)
        now = standing.try_at
        standing = answered(bound(standing), Outcome.ACCEPTED, now=now, kubelet=A)
        now += 0.1
        standing = seen(standing, look(A, now, streaming=True))
        now += 0.1
    first, most = AGAIN_SECONDS
    assert waits == pytest.approx([0.0, *(min(first * 2**turn, most) for turn in range(7))])
    standing = seen(standing, look(A, now + DIAL_BACK_SECONDS + 1))
    assert standing.try_at == now + DIAL_BACK_SECONDS + 1


def test_attempts_that_fail_are_repeated_ever_more_slowly_until_another_kubelet_comes() -> None:
    standing, now, waits = BOUND, 0.0, []
    for _ in range(9):
        standing = answered(seen(standing, look(A, now)), Outcome.REFUSED, now=now, kubelet=A)
        waits.append(standing.try_at - now)
        now = standing.try_at
    first, most = RETRY_SECONDS
    assert waits == pytest.approx([min(first * 2**turn, most) for turn in range(9)])
    at = look(B, now - 0.5)
    assert action(seen(standing, at), at) is Action.BIND


@pytest.mark.parametrize(
    ("kubelets", "streaming", "instances"),
    [
        ([A, A, A], False, 1),
        ([A, None, B, None, A], False, 3),
        ([A, B], False, 2),
        ([A, TOUCHED, A], True, 0),
        ([A, None, A], True, 0),
        ([A, B], True, 1),
    ],
)
def test_how_many_kubelets_were_seen(
    kubelets: list[SocketIdentity | None], streaming: bool, instances: int
) -> None:
    """While a stream is open it is one kubelet, unless there is another socket file."""
    standing = SERVING if streaming else NEW
    before = standing.instances
    for now, kubelet in enumerate(kubelets, 2):
        standing = seen(standing, look(kubelet, float(now), streaming=streaming))
    assert standing.instances - before == instances


@pytest.mark.parametrize("outcome", [Outcome.AWAY, Outcome.CUT])
def test_a_kubelet_that_does_not_answer_for_a_minute_is_missed(outcome: Outcome) -> None:
    standing = answered(seen(BOUND, look(A, 0.0)), outcome, now=1.0, kubelet=A)
    for now in (20.0, 40.0):
        standing = answered(seen(standing, look(A, now)), outcome, now=now, kubelet=A)
    assert not registration.absent(standing, ABSENT_SECONDS)
    assert registration.absent(standing, ABSENT_SECONDS + 1.0)
    for answer in (Outcome.ACCEPTED, Outcome.REFUSED, Outcome.UNABLE):
        assert not registration.absent(answered(standing, answer, now=70.0, kubelet=A), 1000.0)
    assert not registration.absent(seen(standing, look(A, 70.0, streaming=True)), 1000.0)


def test_a_kubelet_that_never_came_is_missed_after_a_minute() -> None:
    standing = seen(NEW, look(None, 5.0))
    standing = seen(standing, look(None, 50.0))
    assert not registration.absent(standing, 64.0)
    assert registration.absent(standing, 65.0)


@pytest.mark.parametrize(
    ("streaming", "since", "seconds"),
    [
        (True, 0.0, registration.STREAM_POLL_SECONDS),
        (False, 1.0, registration.FAST_POLL_SECONDS),
        (False, 100.0, registration.SLOW_POLL_SECONDS),
    ],
)
def test_how_long_until_the_next_look(streaming: bool, since: float, seconds: float) -> None:
    standing = seen(SERVING, look(None, LATER, streaming=streaming))
    assert registration.wait(standing, look(None, LATER + since, streaming=streaming)) == seconds


def test_a_stream_that_ends_just_after_its_kubelet_is_seen_as_touched_was_of_a_former_kubelet() -> None:
    """The file may be another kubelet's before the stream ends. That kubelet is registered with at once."""
    serving = replace(SERVING, short=5)
    touched = seen(serving, look(TOUCHED, 2.0, streaming=True))
    assert touched.instances == serving.instances
    ended = seen(touched, look(TOUCHED, 2.1))
    assert ended.instances == serving.instances + 1
    assert action(ended, look(TOUCHED, 2.1)) is Action.BIND
    cut = seen(serving, look(A, 2.1))
    assert action(cut, look(A, 2.1)) is Action.WAIT, "the same kubelet has cut the stream"


@pytest.mark.parametrize(("turn", "seconds"), [(0, 2.0), (1, 4.0), (2, 8.0), (3, 10.0), (10_000, 10.0)])
def test_pauses_grow_to_a_bound_and_differ_by_chance(turn: int, seconds: float) -> None:
    assert pause((2.0, 10.0), turn, 0.0) == seconds
    assert pause((2.0, 10.0), turn, 1.0) == pytest.approx(0.75 * seconds)
