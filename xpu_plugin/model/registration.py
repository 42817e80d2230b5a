# SPDX-License-Identifier: Apache-2.0
"""When a resource binds a socket and registers it with the kubelet, and when it waits.

Facts, all measured (docs/architecture.md): a kubelet 1.37 refuses, for ever, a socket path that it knows. So
a name is told to a kubelet once, and a resource never registers while it has a stream. Up to 1.36 the end of
a former plugin's stream may cut the stream of the plugin that registered after it. So a stream that ends
while the kubelet stays is replaced at once.
"""

from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen


STREAM_POLL_SECONDS = 1.0  # between looks at kubelet.sock while a stream is open
FAST_POLL_SECONDS = 0.01  # between looks for a kubelet that has just gone ...
FAST_FOR_SECONDS = 30.0  # ... for so long; a restart takes two to three
SLOW_POLL_SECONDS = 0.08  # and after that
DIAL_BACK_SECONDS = 10.0  # for the kubelet to open a stream after a registration
AGAIN_SECONDS = (1.0, 30.0)  # after a stream that was short, the second one on: first, most
RETRY_SECONDS = (0.01, 1.0)  # after a registration that failed; at first the kubelet does not listen yet
ABSENT_SECONDS = 60.0  # without a kubelet, until that is a warning
JITTER = 0.25  # of a pause, at most, by which it is shorter


@frozen(kw_only=False)
class Identity:
    """A socket file. One start of a kubelet has one, unless the file is touched meanwhile."""

    device: int
    inode: int
    changed_ns: int

    def same_file(self, other: "Identity") -> bool:
        """Whether both are one file, be it touched (`chmod`, `restorecon`) between the two looks."""
        return (self.device, self.inode) == (other.device, other.inode)


class Action(StrEnum):
    """The next step. BIND ends all streams of ours and binds a socket with a new name."""

    BIND = "bind"
    REGISTER = "register"
    WAIT = "wait"


class Outcome(StrEnum):
    """How a step ended. AWAY: the kubelet is not there, or is just leaving; it was told nothing.

    CUT: the connection ended before an answer came, so that the kubelet may have been told
    UNABLE: we cannot ask, as for lack of descriptors; the kubelet, which is there, was told nothing
    """

    ACCEPTED = "accepted"
    REFUSED = "refused"
    CUT = "cut"
    AWAY = "away"
    UNABLE = "unable"


@frozen
class Look:
    """One look. now: seconds of the monotonic clock; chance: a random number from 0 to 1, for pauses

    kubelet: the kubelet's socket, None when there is none; streaming: whether a stream of ours is open
    bound: whether our socket is where it was bound, and served
    mute: whether to stay away for now; take_back: whether to bind anew though a stream is open (`rivals`)
    """

    now: float
    kubelet: Identity | None
    streaming: bool
    bound: bool
    mute: bool = False
    take_back: bool = False
    chance: float = 0.0


@frozen
class Standing:
    """Where the registration of one resource stands. Times are seconds of the monotonic clock.

    kubelet: its socket at the last look; asked: where we registered last; known: that of the open stream
    instances: kubelets seen so far; absent_since: since when none answers, None while one does
    told: whether a kubelet may know our socket's name, which then serves for no other registration
    opened_at: since when a stream is open; idle_since: since when there is none, or another kubelet
    try_at: not to register before; short, failures: streams and attempts in a row that count for pauses
    """

    kubelet: Identity | None = None
    asked: Identity | None = None
    known: Identity | None = None
    instances: int = 0
    absent_since: float | None = None
    told: bool = False
    opened_at: float | None = None
    idle_since: float = 0.0
    try_at: float = 0.0
    short: int = 0
    failures: int = 0


def seen(standing: Standing, look: Look) -> Standing:
    """The standing after a look, before anything is done."""
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
            try_at=look.now + (pause(AGAIN_SECONDS, short - 1, look.chance) if short else 0.0),
            short=short + 1,
            # So a socket that seemed to be touched while the stream was open is now that of another kubelet.
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
    """Whether the socket there is another than that of the open stream.

    The end of a kubelet ends its streams, so a touched file is the same kubelet. Another file is another one,
    though the former may not have quite ended.
    """
    return (
        standing.known is not None and look.kubelet is not None and not look.kubelet.same_file(standing.known)
    )


def absent(standing: Standing, now: float) -> bool:
    """Whether no kubelet has answered for so long that an administrator should know."""
    return standing.absent_since is not None and now - standing.absent_since >= ABSENT_SECONDS


def action(standing: Standing, look: Look) -> Action:
    """The next step by a standing that has `seen` this look."""
    if look.kubelet is None or look.mute:
        return Action.WAIT
    if look.streaming:
        return Action.BIND if look.take_back or _another(standing, look) else Action.WAIT
    if look.now < standing.try_at:
        return Action.WAIT
    return Action.REGISTER if look.bound and not standing.told else Action.BIND


def bound(standing: Standing) -> Standing:
    """A socket with a new name is there. It has no stream, and no kubelet was told of it."""
    return replace(standing, told=False, opened_at=None, known=None, try_at=0.0)


def answered(
    standing: Standing, outcome: Outcome, *, now: float, kubelet: Identity | None, chance: float = 0.0
) -> Standing:
    """The standing after an attempt to bind or to register, at that kubelet.

    `told` is kept when the kubelet was told nothing: the same name may be told next time.
    """
    told = standing.told or outcome not in (Outcome.AWAY, Outcome.UNABLE)
    if outcome is Outcome.ACCEPTED:
        return replace(
            standing,
            kubelet=kubelet,
            asked=kubelet,
            told=told,
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
        asked=kubelet if told else standing.asked,
        absent_since=None if present else since,
        told=told,
        failures=standing.failures + 1,
        try_at=now + pause(RETRY_SECONDS, standing.failures, chance),
    )


def wait(standing: Standing, look: Look) -> float:
    """Seconds until the next look, when there is nothing to do and nothing happens."""
    if look.streaming:
        return STREAM_POLL_SECONDS
    return FAST_POLL_SECONDS if look.now - standing.idle_since < FAST_FOR_SECONDS else SLOW_POLL_SECONDS


def pause(bounds: tuple[float, float], turn: int, chance: float) -> float:
    """Seconds to wait after turn 0, 1, 2 ...: the first bound, twice as long each time up to the second, less
    a part by chance, so that the nodes of a cluster do not try in step."""
    first, most = bounds
    return min(first * 2.0 ** min(turn, 64), most) * (1.0 - JITTER * chance)
