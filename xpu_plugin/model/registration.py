# SPDX-License-Identifier: Apache-2.0
"""The registration policy of a resource: when to bind a socket, to register it, and to wait.

All facts are measured (docs/architecture.md). Kubelet 1.37 refuses a socket path that it knows, for ever. So
each socket name is used for one registration, and a resource with an open stream never registers. Up to
1.36 the end of a former plugin's stream may cut the stream of the plugin that registered after it. So a
stream that ends while the kubelet stays is replaced at once.
"""

from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen


STREAM_POLL_SECONDS = 1.0  # between looks at kubelet.sock while a stream is open
FAST_POLL_SECONDS = 0.01  # between looks for a kubelet that has just gone ...
FAST_FOR_SECONDS = 30.0  # ... for so long; a restart takes two to three
SLOW_POLL_SECONDS = 0.08  # and after that
DIAL_BACK_SECONDS = 10.0  # for the kubelet to open a stream after a registration
AGAIN_SECONDS = (1.0, 30.0)  # after a short stream, from the second one on: first, most
RETRY_SECONDS = (0.01, 1.0)  # after a failed registration; at first the kubelet does not listen yet
ABSENT_SECONDS = 60.0  # without a kubelet, until a warning
JITTER = 0.25  # share of a pause by which it is shortened at most


@frozen(kw_only=False)
class SocketIdentity:
    """The identity of a socket file. One start of a kubelet has one, unless the file is touched."""

    device: int
    inode: int
    changed_ns: int

    def same_file(self, other: "SocketIdentity") -> bool:
        """Return whether both are one file, even if it was touched (`chmod`, `restorecon`) between the
        looks."""
        return (self.device, self.inode) == (other.device, other.inode)


class Action(StrEnum):
    """The next step. BIND ends all our streams and binds a socket with a new name."""

    BIND = "bind"
    REGISTER = "register"
    WAIT = "wait"


class Outcome(StrEnum):
    """The result of a step."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    CUT = "cut"  # the connection ended without an answer: the kubelet may know the name
    AWAY = "away"  # the kubelet is absent or is ending: it does not know the name
    UNABLE = "unable"  # we cannot call, as for lack of descriptors; the kubelet does not know the name


@frozen
class Look:
    """One look at the kubelet's socket and ours."""

    now: float  # seconds of the monotonic clock
    kubelet: SocketIdentity | None  # the kubelet's socket; None if there is none
    streaming: bool  # a stream of ours is open
    bound: bool  # our socket is in place, and served
    mute: bool = False  # do not register for now
    take_back: bool = False  # bind again although a stream is open (`rivals`)
    chance: float = 0.0  # a random number from 0 to 1, for pauses
    again: tuple[float, float] = AGAIN_SECONDS


@frozen
class Standing:
    """The state of one resource's registration. Times are seconds of the monotonic clock."""

    kubelet: SocketIdentity | None = None  # its socket at the last look
    asked: SocketIdentity | None = None  # the socket of our last registration
    known: SocketIdentity | None = None  # the socket of the kubelet with the open stream
    instances: int = 0  # kubelets seen so far
    absent_since: float | None = None  # since when no kubelet answers; None while one does
    name_used: bool = False  # a kubelet may know our socket's name: another registration needs a new one
    opened_at: float | None = None  # since when a stream is open
    idle_since: float = 0.0  # since when there is no stream, or another kubelet
    try_at: float = 0.0  # no registration before
    short: int = 0  # consecutive short streams, for the next pause
    failures: int = 0  # consecutive failed attempts, for the next pause


def seen(standing: Standing, look: Look) -> Standing:
    """Return the standing after a look."""
    if look.streaming and standing.opened_at is None:
        standing = replace(
            standing,
            opened_at=look.now,
            known=standing.asked or look.kubelet,
            absent_since=None,
            failures=0,
        )
    elif not look.streaming and standing.opened_at is not None:
        short = 0 if look.now - standing.opened_at > DIAL_BACK_SECONDS else standing.short
        standing = replace(
            standing,
            opened_at=None,
            known=None,
            idle_since=look.now,
            try_at=look.now + (pause(look.again, short - 1, look.chance) if short else 0.0),
            short=short + 1,
            # If a touched socket replaced it while the stream was open, it counts as another kubelet's now.
            kubelet=standing.known or standing.kubelet,
        )
    if look.kubelet != standing.kubelet:
        standing = replace(standing, kubelet=look.kubelet)
        if not look.streaming or _another(standing, look):
            standing = replace(
                standing,
                instances=standing.instances + (look.kubelet is not None),
                idle_since=look.now,
                try_at=look.now,
                failures=0,
            )
    if look.kubelet is None and standing.absent_since is None and not look.streaming:
        standing = replace(standing, absent_since=look.now)
    return standing


def _another(standing: Standing, look: Look) -> bool:
    """Return whether the present socket belongs to another kubelet than the open stream.

    The end of a kubelet ends its streams, so a touched file is the same kubelet. Another file is another
    kubelet, even if the former one has not ended yet.
    """
    return (
        standing.known is not None and look.kubelet is not None and not look.kubelet.same_file(standing.known)
    )


def absent(standing: Standing, now: float) -> bool:
    """Return whether no kubelet has answered for so long that a warning is due."""
    return standing.absent_since is not None and now - standing.absent_since >= ABSENT_SECONDS


def action(standing: Standing, look: Look) -> Action:
    """Return the next step, for a standing that has `seen` this look."""
    if look.kubelet is None or look.mute:
        return Action.WAIT
    if look.streaming:
        return Action.BIND if look.take_back or _another(standing, look) else Action.WAIT
    if look.now < standing.try_at:
        return Action.WAIT
    return Action.REGISTER if look.bound and not standing.name_used else Action.BIND


def bound(standing: Standing) -> Standing:
    """Return the standing with a new socket: it has no stream, and no kubelet knows its name."""
    return replace(standing, name_used=False, opened_at=None, known=None, try_at=0.0)


def answered(
    standing: Standing, outcome: Outcome, *, now: float, kubelet: SocketIdentity | None, chance: float = 0.0
) -> Standing:
    """Return the standing after an attempt to bind, or to register with that kubelet.

    If the kubelet did not learn the name, the next attempt may use it again.
    """
    name_used = standing.name_used or outcome not in (Outcome.AWAY, Outcome.UNABLE)
    if outcome is Outcome.ACCEPTED:
        return replace(
            standing,
            kubelet=kubelet,
            asked=kubelet,
            name_used=name_used,
            absent_since=None,
            failures=0,
            idle_since=now,
            try_at=now + DIAL_BACK_SECONDS,
        )
    present = outcome in (Outcome.REFUSED, Outcome.UNABLE)
    since = now if standing.absent_since is None else standing.absent_since
    return replace(
        standing,
        kubelet=kubelet,
        asked=kubelet if name_used else standing.asked,
        absent_since=None if present else since,
        name_used=name_used,
        failures=standing.failures + 1,
        try_at=now + pause(RETRY_SECONDS, standing.failures, chance),
    )


def wait(standing: Standing, look: Look) -> float:
    """Return the seconds until the next look if nothing happens meanwhile."""
    if look.streaming:
        return STREAM_POLL_SECONDS
    return FAST_POLL_SECONDS if look.now - standing.idle_since < FAST_FOR_SECONDS else SLOW_POLL_SECONDS


def pause(bounds: tuple[float, float], turn: int, chance: float) -> float:
    """Return the seconds to wait after turn 0, 1, 2 ...: the first bound, doubled each turn up to the second.

    A random part is subtracted, so that the nodes of a cluster do not retry in step.
    """
    first, most = bounds
    return min(first * 2.0 ** min(turn, 64), most) * (1.0 - JITTER * chance)
