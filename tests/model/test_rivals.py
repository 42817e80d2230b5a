# SPDX-License-Identifier: Apache-2.0
"""When another plugin has our resource name, and how we come back: tables of checkpoints and looks."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from xpu_plugin.model import rivals
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.model.rivals import (
    ANEW_SECONDS,
    CONFIRM_SECONDS,
    QUIET_SECONDS,
    TICK_NS,
    UNSEEN_SECONDS,
    YOUNG_SECONDS,
    Announced,
    Company,
    Phase,
    Rivalry,
    Sight,
    looked,
    sight,
)


SENT_NS = 10**18
AFTER_NS = SENT_NS + 1
A, B = "0000:3b:00.0", "0000:3c:00.0"
BOTH = Announced().then([A, B], [A, B], SENT_NS)
B_SICK = BOTH.then([A, B], [A], SENT_NS)
B_GONE = BOTH.then([A], [A], SENT_NS)
WITHHELD = Announced().then([A, B], [], SENT_NS)
NOTHING = Announced().then([], [], SENT_NS)
NO_IDS: frozenset[str] = frozenset()
RIVALS = frozenset({"0", "1"})


@pytest.mark.parametrize(
    ("announced", "registered", "written_ns", "expected"),
    [
        pytest.param(BOTH, [A, B], AFTER_NS, Sight.OURS, id="ours"),
        pytest.param(BOTH, ["0", "1"], AFTER_NS, Sight.FOREIGN, id="a rival's"),
        pytest.param(BOTH, [A, B, "0"], AFTER_NS, Sight.FOREIGN, id="one more than ours"),
        pytest.param(BOTH, [A], AFTER_NS, Sight.FOREIGN, id="one less than ours"),
        pytest.param(BOTH, [], AFTER_NS, Sight.FOREIGN, id="none, as when a rival has ended"),
        pytest.param(B_SICK, [A], AFTER_NS, Sight.OURS, id="without the sick one"),
        pytest.param(B_SICK, [A, B], AFTER_NS, Sight.OURS, id="a former list of ours"),
        pytest.param(B_GONE, [A, B], AFTER_NS, Sight.OURS, id="an id of a former list of ours"),
        pytest.param(B_SICK, [B], AFTER_NS, Sight.FOREIGN, id="without the healthy one"),
        pytest.param(WITHHELD, [], AFTER_NS, Sight.OURS, id="withheld"),
        pytest.param(WITHHELD, ["0"], AFTER_NS, Sight.FOREIGN, id="withheld, and a rival's"),
        pytest.param(NOTHING, [], AFTER_NS, Sight.OURS, id="nothing to offer"),
        pytest.param(NOTHING, ["0"], AFTER_NS, Sight.FOREIGN, id="nothing to offer, and a rival's"),
        pytest.param(BOTH, None, AFTER_NS, Sight.UNKNOWN, id="not to be told"),
        pytest.param(BOTH, ["0"], SENT_NS - TICK_NS - 1, Sight.UNKNOWN, id="older than our list"),
        pytest.param(BOTH, ["0"], 0, Sight.UNKNOWN, id="no file"),
        pytest.param(BOTH, ["0"], SENT_NS - TICK_NS, Sight.FOREIGN, id="within a tick of the files' clock"),
        pytest.param(Announced(), ["0"], AFTER_NS, Sight.UNKNOWN, id="before our first list"),
    ],
)
def test_whose_list_the_kubelet_has(
    announced: Announced, registered: Collection[str] | None, written_ns: int, expected: Sight
) -> None:
    assert sight(announced, registered, written_ns) is expected


FOREIGN, OURS, UNKNOWN = Sight.FOREIGN, Sight.OURS, Sight.UNKNOWN


def after(*looks: tuple[float, Sight], begin: Rivalry | None = None) -> Rivalry:
    rivalry = begin or Rivalry()
    for now, seen in looks:
        rivalry = looked(rivalry, seen, RIVALS if seen is FOREIGN else NO_IDS, now)
    return rivalry


@pytest.mark.parametrize(
    ("looks", "displaced"),
    [
        ([(0, FOREIGN)], False),
        ([(0, FOREIGN), (5, FOREIGN)], False),
        ([(0, FOREIGN), (CONFIRM_SECONDS - 0.1, FOREIGN)], False),
        ([(0, FOREIGN), (CONFIRM_SECONDS, FOREIGN)], True),
        ([(0, FOREIGN), (5, FOREIGN), (CONFIRM_SECONDS, FOREIGN)], True),
        ([(0, FOREIGN), (5, OURS), (CONFIRM_SECONDS, FOREIGN)], False),
        ([(0, FOREIGN), (5, UNKNOWN), (CONFIRM_SECONDS, FOREIGN)], True),
        ([(0, FOREIGN), (5, UNKNOWN), (CONFIRM_SECONDS, UNKNOWN), (11, FOREIGN)], False),
        ([(0, OURS), (10, UNKNOWN), (20, OURS)], False),
    ],
)
def test_displaced_is_a_mismatch_twice_ten_seconds_apart(
    looks: list[tuple[float, Sight]], displaced: bool
) -> None:
    rivalry = after(*looks)
    assert (rivalry.phase is Phase.DISPLACED) is displaced
    assert rivalry.strange == RIVALS or not displaced


def test_a_suspicion_names_the_ids_of_the_last_look() -> None:
    assert looked(after((0, FOREIGN)), FOREIGN, frozenset({"9"}), 5.0).strange == {"9"}


DISPLACED = after((0, FOREIGN), (10, FOREIGN))


@pytest.mark.parametrize(
    ("rivalry", "silent", "withheld", "away"),
    [
        (Rivalry(), False, False, False),
        (after((0, FOREIGN)), True, False, False),
        (after((0, FOREIGN), (1, OURS)), False, False, False),
        (after((0, FOREIGN), (CONFIRM_SECONDS, UNKNOWN)), False, False, False),
        (rivals.listed(after((0, FOREIGN))), False, False, False),
        (DISPLACED, True, False, True),
        (rivals.begun(DISPLACED, 11), False, True, True),
        (after((12, OURS), begin=rivals.begun(DISPLACED, 11)), False, True, True),
        (after((12, FOREIGN), begin=rivals.begun(DISPLACED, 11)), True, True, True),
        (rivals.returned(DISPLACED, 11), False, False, False),
    ],
)
def test_what_is_sent_meanwhile(rivalry: Rivalry, silent: bool, withheld: bool, away: bool) -> None:
    """No list while it is, or may be, the rival's turn; and none with a healthy device on the way back."""
    assert (rivalry.silent, rivalry.withheld, rivalry.away) == (silent, withheld, away)


def test_the_way_back() -> None:
    back = rivals.begun(DISPLACED, 11)
    assert back.phase is Phase.RETURNING
    assert not rivals.settled(back, 1000, 5)
    assert after((12, UNKNOWN), (40, UNKNOWN), begin=back).phase is Phase.RETURNING
    seen = after((12, OURS), begin=back)
    assert seen.phase is Phase.SETTLING
    assert not rivals.settled(seen, 16.9, 5)
    assert rivals.settled(seen, 17, 5)
    assert not rivals.settled(after((13, FOREIGN), begin=seen), 17, 5)
    assert rivals.returned(seen, 17).phase is Phase.SERVING


def test_a_list_that_never_shows_does_not_keep_the_devices_back_for_ever() -> None:
    """As when the checkpoint cannot be read any more. The look at holders comes all the same."""
    back = rivals.begun(DISPLACED, 11)
    assert after((11 + UNSEEN_SECONDS, UNKNOWN), begin=back).phase is Phase.SETTLING


BACK = rivals.begun(DISPLACED, 11)


@pytest.mark.parametrize("begin", [BACK, after((12, OURS), begin=BACK)])
def test_displaced_again_on_the_way_back(begin: Rivalry) -> None:
    again = after((13, FOREIGN), (13 + CONFIRM_SECONDS, FOREIGN), begin=begin)
    assert (again.phase, again.times) == (Phase.DISPLACED, 2)


def test_pauses_grow_when_it_happens_again() -> None:
    """At once the first time, as a rival that has come and gone must not leave the node without devices."""
    rivalry, now, waits = Rivalry(), 0.0, []
    for _ in range(7):
        rivalry = after((now, FOREIGN), (now + CONFIRM_SECONDS, FOREIGN), begin=rivalry)
        now += CONFIRM_SECONDS
        waits.append(rivals.returns_at(rivalry, 0.0) - now)
        rivalry = rivals.returned(rivals.begun(rivalry, now), now)
    assert waits == [0.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0]
    now += QUIET_SECONDS
    rivalry = after((now, FOREIGN), (now + CONFIRM_SECONDS, FOREIGN), begin=rivalry)
    assert rivals.returns_at(rivalry, 0.0) == rivalry.since


# --- a rival that a list of ours hides --------------------------------------------------------------

SECOND_NS = 10**9
OTHER, NEW = SocketIdentity(1, 7, SENT_NS - 3600 * SECOND_NS), SocketIdentity(1, 8, SENT_NS - TICK_NS)
LATER = SocketIdentity(1, 9, AFTER_NS + SECOND_NS)
TOUCHED = SocketIdentity(1, 7, SENT_NS)
NONE: frozenset[SocketIdentity] = frozenset()


@pytest.mark.parametrize(
    ("sockets", "seconds"),
    [
        pytest.param([], 0, id="no other plugin"),
        pytest.param([OTHER], 0, id="one that is there for long"),
        pytest.param([SocketIdentity(1, 8, SENT_NS)], YOUNG_SECONDS, id="one that is just there"),
        pytest.param(
            [SocketIdentity(1, 8, SENT_NS - SECOND_NS), OTHER], YOUNG_SECONDS - 1, id="one that came 1 s ago"
        ),
        pytest.param([SocketIdentity(1, 8, SENT_NS - int(YOUNG_SECONDS * SECOND_NS))], 0, id="no longer new"),
        pytest.param(
            [SocketIdentity(1, 8, SENT_NS + SECOND_NS)], 0, id="of the future, as the clock was set back"
        ),
    ],
)
def test_a_list_waits_for_a_plugin_that_may_be_about_to_register(
    sockets: list[SocketIdentity], seconds: float
) -> None:
    assert rivals.quiet_in(sockets, SENT_NS) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("before", "sockets", "hidden"),
    [
        pytest.param(NONE, NONE, False, id="no other plugin"),
        pytest.param({OTHER}, {OTHER}, False, id="the same ones"),
        pytest.param({OTHER}, {OTHER, NEW}, True, id="one came"),
        pytest.param({OTHER, NEW}, {OTHER}, True, id="one went"),
        pytest.param({OTHER}, {TOUCHED}, True, id="one was bound again"),
        pytest.param({OTHER}, {OTHER, LATER}, False, id="one came after the checkpoint was written"),
        pytest.param(
            {OTHER},
            {OTHER, replace(LATER, changed_ns=AFTER_NS + TICK_NS)},
            True,
            id="one came within a tick of the files' clock",
        ),
        pytest.param(None, {NEW}, False, id="before our first list, as after a kubelet restart"),
        pytest.param({OTHER}, None, False, id="a directory that cannot be read"),
    ],
)
def test_what_a_list_of_ours_may_hide(
    before: set[SocketIdentity] | None, sockets: set[SocketIdentity] | None, hidden: bool
) -> None:
    seen = None if sockets is None else frozenset(sockets)
    company = Company(before=None if before is None else frozenset(before), listed=True)
    after_look, found = rivals.accompanied(company, seen, AFTER_NS)
    assert found is hidden
    assert after_look == Company(before=seen)


def test_without_a_list_of_ours_nothing_is_hidden() -> None:
    """The checkpoint shows a rival's list until ours replaces it."""
    assert rivals.accompanied(Company(before=NONE), frozenset({NEW}), AFTER_NS)[1] is False


@pytest.mark.parametrize(
    ("rivalry", "now", "expected"),
    [
        (Rivalry(), 1000, False),
        (rivals.doubted(Rivalry(bound_at=10)), 10 + ANEW_SECONDS - 0.1, False),
        (rivals.doubted(Rivalry(bound_at=10)), 10 + ANEW_SECONDS, True),
        (rivals.listed(rivals.doubted(Rivalry())), 1000, True),
        (rivals.doubted(DISPLACED), 1000, False),
        (after((900, FOREIGN), begin=rivals.doubted(Rivalry())), 1000, False),
        (rivals.begun(rivals.doubted(Rivalry()), 500), 1000, False),
        (rivals.returned(rivals.begun(rivals.doubted(DISPLACED), 500), 600), 1000, False),
    ],
)
def test_a_doubt_registers_again_once_and_no_more_than_once_a_minute(
    rivalry: Rivalry, now: float, expected: bool
) -> None:
    assert rivals.anew(rivalry, now) is expected
