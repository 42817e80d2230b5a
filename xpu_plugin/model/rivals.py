# SPDX-License-Identifier: Apache-2.0
"""Whether another plugin has taken our resource name, and how we come back.

A kubelet lets any plugin register any name: the last one gets the calls, and the last list counts, whichever
plugin sent it. The stream of the former plugin stays open. Only the kubelet's checkpoint shows whose list it
has: `RegisteredDevices`, the healthy ids of each resource, written at each list.

A list of ours that goes out just after another plugin has registered hides that plugin: the checkpoint shows
our ids, and the kubelet asks the other plugin, or none once that has ended. Only the socket of that plugin
tells of it, which is new in the kubelet's directory (`Company`).
"""

from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.registration import Identity, pause


LOOK_SECONDS = 5.0  # between looks at the checkpoint while we serve
CONFIRM_SECONDS = 10.0  # from a first mismatch to the one that confirms it
RETURN_SECONDS = (30.0, 600.0)  # until we register again, the second time on: first, most
QUIET_SECONDS = 3600.0  # without a rival, until it is the first time again
UNSEEN_SECONDS = 30.0  # for a list of ours to show in the checkpoint
TICK_NS = 10_000_000  # of the clock of files, which may be so far behind ours
YOUNG_SECONDS = (
    2.0  # from the bind of a plugin's socket until its list shows; no list of ours goes out meanwhile
)
ANEW_SECONDS = 60.0  # from a registration to one for a doubt: a kubelet that starts needs its devices at once


class Sight(StrEnum):
    """What one look at the checkpoint shows. UNKNOWN: unreadable, older than our list, or without ids."""

    OURS = "ours"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@frozen
class Announced:
    """What we have sent since our socket was bound. ever: the ids of all lists; healthy: of the last one

    at_ns: when the last list was sent, by the wall clock; None before the first
    """

    ever: frozenset[str] = frozenset()
    healthy: frozenset[str] = frozenset()
    at_ns: int | None = None

    def then(self, ids: Collection[str], healthy: Collection[str], at_ns: int) -> "Announced":
        """With one more list."""
        return Announced(ever=self.ever.union(ids), healthy=frozenset(healthy), at_ns=at_ns)


def sight(announced: Announced, registered: Collection[str] | None, written_ns: int) -> Sight:
    """Whose list the kubelet has. registered: the ids under our resource, None where that cannot be told."""
    if registered is None or announced.at_ns is None or written_ns < announced.at_ns - TICK_NS:
        return Sight.UNKNOWN
    ids = frozenset(registered)
    return Sight.OURS if announced.healthy <= ids <= announced.ever else Sight.FOREIGN


def quiet_in(sockets: Collection[Identity], now_ns: int) -> float:
    """Seconds until none of these sockets is so new that its plugin may be about to register."""
    ages = ((now_ns - socket.changed_ns) / 1e9 for socket in sockets)
    return max((YOUNG_SECONDS - age for age in ages if 0 <= age < YOUNG_SECONDS), default=0.0)


@frozen
class Company:
    """The sockets of other plugins, whatever they register.

    before: at the last look that showed our list, None before the first one
    listed: whether a list of ours has gone out since
    """

    before: frozenset[Identity] | None = None
    listed: bool = False


def accompanied(
    company: Company, sockets: frozenset[Identity] | None, written_ns: int
) -> tuple[Company, bool]:
    """After a look that shows our list; and whether that list may hide another plugin.

    It may if a socket came or went between the two looks around our list. One that came after the checkpoint
    was written has not registered by then. sockets: None where they could not be read
    """
    if company.before is None or sockets is None or not company.listed:
        return Company(before=sockets), False
    changed = company.before ^ sockets
    return Company(before=sockets), any(socket.changed_ns - TICK_NS <= written_ns for socket in changed)


class Phase(StrEnum):
    """How far we are. Lists are full while SERVING, none go out while DISPLACED, and all devices are
    listed as unhealthy until we have come back."""

    SERVING = "serving"
    DISPLACED = "displaced"
    RETURNING = "returning"
    SETTLING = "settling"


@frozen
class Rivalry:
    """Where we stand with others. Times are seconds of the monotonic clock.

    suspected_at: of the first mismatch in a row; strange: ids of the last one that we never announced
    since: when the phase began; times: that we were displaced, not long ago; last: when that was
    bound_at: when our socket was bound; doubted: whether a list from it may hide a rival
    """

    phase: Phase = Phase.SERVING
    suspected_at: float | None = None
    strange: frozenset[str] = frozenset()
    since: float = 0.0
    times: int = 0
    last: float | None = None
    bound_at: float = 0.0
    doubted: bool = False

    @property
    def silent(self) -> bool:
        """Whether no list is to be sent: the node would show our devices, and every pod would fail."""
        return self.phase is Phase.DISPLACED or self.suspected_at is not None

    @property
    def withheld(self) -> bool:
        """Whether all devices are to be listed as unhealthy: the rival may have granted them."""
        return self.phase in (Phase.RETURNING, Phase.SETTLING)

    @property
    def away(self) -> bool:
        """Whether pods get our devices no more, or not yet again."""
        return self.phase is not Phase.SERVING


def looked(rivalry: Rivalry, seen: Sight, strange: frozenset[str], now: float) -> Rivalry:
    """After a look at the checkpoint."""
    if rivalry.phase is Phase.DISPLACED:
        return rivalry
    if seen is Sight.FOREIGN:
        if rivalry.suspected_at is None:
            return replace(rivalry, suspected_at=now, strange=strange)
        if now - rivalry.suspected_at < CONFIRM_SECONDS:
            return replace(rivalry, strange=strange)
        again = rivalry.last is not None and now - rivalry.last < QUIET_SECONDS
        return Rivalry(
            phase=Phase.DISPLACED,
            strange=strange,
            since=now,
            times=rivalry.times + 1 if again else 1,
            last=now,
            bound_at=rivalry.bound_at,
        )
    doubted = rivalry.suspected_at is not None and now - rivalry.suspected_at >= CONFIRM_SECONDS
    if seen is Sight.OURS or doubted:  # what nothing confirms in time is no suspicion
        rivalry = replace(rivalry, suspected_at=None)
    if rivalry.phase is Phase.RETURNING and (
        seen is Sight.OURS or (now - rivalry.since >= UNSEEN_SECONDS and rivalry.suspected_at is None)
    ):
        return replace(rivalry, phase=Phase.SETTLING, since=now)
    return rivalry


def listed(rivalry: Rivalry) -> Rivalry:
    """A list of ours has gone out: what the checkpoint showed before is no suspicion any more."""
    return replace(rivalry, suspected_at=None)


def returns_at(rivalry: Rivalry, chance: float) -> float:
    """When a displaced resource registers again: at once the first time, ever later if it happens again."""
    return rivalry.since + (pause(RETURN_SECONDS, rivalry.times - 2, chance) if rivalry.times > 1 else 0.0)


def doubted(rivalry: Rivalry) -> Rivalry:
    """A list of ours may hide a rival."""
    return replace(rivalry, doubted=True)


def anew(rivalry: Rivalry, now: float) -> bool:
    """Whether to register again for a doubt: the last plugin to register is asked."""
    quiet = not rivalry.away and rivalry.suspected_at is None  # a rival in sight is waited for
    return rivalry.doubted and quiet and now - rivalry.bound_at >= ANEW_SECONDS


def begun(rivalry: Rivalry, now: float) -> Rivalry:
    """We bind a new socket; a displaced resource comes back by it."""
    rivalry = replace(rivalry, suspected_at=None, bound_at=now, doubted=False)
    return replace(rivalry, phase=Phase.RETURNING, since=now) if rivalry.phase is Phase.DISPLACED else rivalry


def settled(rivalry: Rivalry, now: float, settle: float) -> bool:
    """Whether what the rival granted last must show by now, so that it is time to look at holders."""
    return rivalry.phase is Phase.SETTLING and rivalry.suspected_at is None and now - rivalry.since >= settle


def returned(rivalry: Rivalry, now: float) -> Rivalry:
    """Full lists again: those who hold devices are known, or another kubelet has come, without a rival."""
    return replace(rivalry, phase=Phase.SERVING, suspected_at=None, strange=frozenset(), since=now)
