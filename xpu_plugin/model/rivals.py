# SPDX-License-Identifier: Apache-2.0
"""Another plugin that registers our resource name: how to notice it, and how to come back.

A kubelet lets any plugin register any name. It calls the plugin that registered last, and the last list
counts, of any plugin. The stream of the former plugin stays open. Only the kubelet's checkpoint shows
which plugin's list it has: `RegisteredDevices`, the healthy ids of each resource, written at each list.

A list of ours that goes out just after another plugin has registered hides that plugin. The checkpoint shows
our ids, but the kubelet calls the other plugin, or none once that has ended. Only that plugin's socket shows
it, which is new in the kubelet's directory (`Company`).
"""

from collections.abc import Collection
from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.registration import SocketIdentity, pause


LOOK_SECONDS = 5.0  # between looks at the checkpoint while we serve
CONFIRM_SECONDS = 10.0  # from a first mismatch to its confirmation
RETURN_SECONDS = (30.0, 600.0)  # until we register again, from the second time on: first, most
QUIET_SECONDS = 3600.0  # without a rival, until it counts as the first time again
UNSEEN_SECONDS = 30.0  # until the checkpoint shows a list of ours
TICK_NS = 10_000_000  # of the clock of files, which may be so far behind ours
# From the bind of a plugin's socket until its list shows; no list of ours goes out meanwhile.
YOUNG_SECONDS = 2.0
ANEW_SECONDS = 60.0  # from one registration to the next for a doubt: a new kubelet needs its devices at once


@frozen
class RivalPace:
    """Waits, as the constants above."""

    look: float = LOOK_SECONDS
    confirm: float = CONFIRM_SECONDS
    returns: tuple[float, float] = RETURN_SECONDS


class Sight(StrEnum):
    """The result of one look at the checkpoint."""

    OURS = "ours"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"  # unreadable, older than our list, or without ids


@frozen
class Announced:
    """The lists that we have sent since our socket was
    bound."""

    ever: frozenset[str] = frozenset()  # the ids of all lists
    healthy: frozenset[str] = frozenset()  # the healthy ids of the last list
    at_ns: int | None = None  # time of the last list, by the wall clock; None before the first

    def then(self, ids: Collection[str], healthy: Collection[str], at_ns: int) -> "Announced":
        """Return the same with one more list."""
        return Announced(ever=self.ever.union(ids), healthy=frozenset(healthy), at_ns=at_ns)


def sight(announced: Announced, registered: Collection[str] | None, written_ns: int) -> Sight:
    """Return the origin of the kubelet's list. registered: the ids under our resource, None if unknown"""
    if registered is None or announced.at_ns is None or written_ns < announced.at_ns - TICK_NS:
        return Sight.UNKNOWN
    ids = frozenset(registered)
    return Sight.OURS if announced.healthy <= ids <= announced.ever else Sight.FOREIGN


def quiet_in(sockets: Collection[SocketIdentity], now_ns: int) -> float:
    """Return the seconds until no socket is so new that its plugin may be about to register."""
    ages = ((now_ns - socket.changed_ns) / 1e9 for socket in sockets)
    return max((YOUNG_SECONDS - age for age in ages if 0 <= age < YOUNG_SECONDS), default=0.0)


@frozen
class Company:
    """The sockets of other plugins, for any resource."""

    before: frozenset[SocketIdentity] | None = None
    """At the last look that showed our list; None before the first."""
    listed: bool = False  # a list of ours has gone out since


def accompanied(
    company: Company, sockets: frozenset[SocketIdentity] | None, written_ns: int
) -> tuple[Company, bool]:
    """Return the company after a look that shows our list, and whether that list may hide another plugin.

    It may if a socket came or went between the two looks around our list. A socket from after the
    checkpoint's time had not registered by then. sockets: None if they could not be read
    """
    if company.before is None or sockets is None or not company.listed:
        return Company(before=sockets), False
    changed = company.before ^ sockets
    return Company(before=sockets), any(socket.changed_ns - TICK_NS <= written_ns for socket in changed)


class Phase(StrEnum):
    """The phases of a displacement and the return."""

    SERVING = "serving"  # full lists go out
    DISPLACED = "displaced"  # no list goes out
    RETURNING = "returning"  # all devices are listed as unhealthy, until the checkpoint shows our list
    SETTLING = "settling"  # the same, until the holders are known


@frozen
class Rivalry:
    """The state between us and rivals. Times are seconds of the monotonic clock."""

    phase: Phase = Phase.SERVING
    suspected_at: float | None = None  # time of the first mismatch in a row
    strange: frozenset[str] = frozenset()  # ids of the last mismatch that we never announced
    since: float = 0.0  # begin of the phase
    times: int = 0  # recent displacements
    last: float | None = None  # time of the last displacement
    bound_at: float = 0.0  # time of the last bind of our socket
    doubted: bool = False  # a list from that socket may hide a rival

    @property
    def silent(self) -> bool:
        """Return whether to send no list: the node would show our devices, and every pod would fail."""
        return self.phase is Phase.DISPLACED or self.suspected_at is not None

    @property
    def withheld(self) -> bool:
        """Return whether to list all devices as unhealthy: the rival may have granted them."""
        return self.phase in (Phase.RETURNING, Phase.SETTLING)

    @property
    def away(self) -> bool:
        """Return whether pods get our devices no more, or not yet again."""
        return self.phase is not Phase.SERVING


def looked(
    rivalry: Rivalry, seen: Sight, strange: frozenset[str], now: float, confirm: float = CONFIRM_SECONDS
) -> Rivalry:
    """Return the state after a look at the checkpoint."""
    if rivalry.phase is Phase.DISPLACED:
        return rivalry
    if seen is Sight.FOREIGN:
        if rivalry.suspected_at is None:
            return replace(rivalry, suspected_at=now, strange=strange)
        if now - rivalry.suspected_at < confirm:
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
    doubted = rivalry.suspected_at is not None and now - rivalry.suspected_at >= confirm
    if seen is Sight.OURS or doubted:  # a mismatch without a confirmation in time is no suspicion
        rivalry = replace(rivalry, suspected_at=None)
    if rivalry.phase is Phase.RETURNING and (
        seen is Sight.OURS or (now - rivalry.since >= UNSEEN_SECONDS and rivalry.suspected_at is None)
    ):
        return replace(rivalry, phase=Phase.SETTLING, since=now)
    return rivalry


def listed(rivalry: Rivalry) -> Rivalry:
    """Return the state after a list of ours: earlier mismatches do not count any more."""
    return replace(rivalry, suspected_at=None)


def returns_at(rivalry: Rivalry, chance: float, returns: tuple[float, float] = RETURN_SECONDS) -> float:
    """Return the time to register again: at once the first time, later with each displacement."""
    return rivalry.since + (pause(returns, rivalry.times - 2, chance) if rivalry.times > 1 else 0.0)


def doubted(rivalry: Rivalry) -> Rivalry:
    """Return the state for a list of ours that may hide a rival."""
    return replace(rivalry, doubted=True)


def anew(rivalry: Rivalry, now: float) -> bool:
    """Return whether to register again for a doubt: the kubelet calls the plugin that registers last."""
    quiet = not rivalry.away and rivalry.suspected_at is None  # a suspected rival has to be confirmed first
    return rivalry.doubted and quiet and now - rivalry.bound_at >= ANEW_SECONDS


def begun(rivalry: Rivalry, now: float) -> Rivalry:
    """Return the state after the bind of a new socket, by which a displaced resource comes back."""
    rivalry = replace(rivalry, suspected_at=None, bound_at=now, doubted=False)
    return replace(rivalry, phase=Phase.RETURNING, since=now) if rivalry.phase is Phase.DISPLACED else rivalry


def settled(rivalry: Rivalry, now: float, settle: float) -> bool:
    """Return whether the rival's last grants must show by now, so that a look at the holders is due."""
    return rivalry.phase is Phase.SETTLING and rivalry.suspected_at is None and now - rivalry.since >= settle


def returned(rivalry: Rivalry, now: float) -> Rivalry:
    """Return the state for full lists again: holders are known, or another kubelet runs without a rival."""
    return replace(rivalry, phase=Phase.SERVING, suspected_at=None, strange=frozenset(), since=now)
