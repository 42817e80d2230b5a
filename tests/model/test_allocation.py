# SPDX-License-Identifier: Apache-2.0
"""What a container gets, why it is refused, and which devices are preferred."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import CONTROL, device
from xpu_plugin.model.allocation import (
    IDS_VARIABLE,
    Cause,
    NodeIdentity,
    Refusal,
    check_start,
    grant,
    lookup,
    prefer,
)
from xpu_plugin.model.devices import Identity
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    HEALTHY,
    LOST,
    RECORD_UNREAD,
    VF_CHANGE_PLANNED,
    VF_UNDECIDED,
    Health,
)
from xpu_plugin.model.inventory import Entry, Inventory


A, B, C = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "5e"))
XPU = "baidu.com/xpu"
SICK = Health("state-error", "state 207 (state-error), running is 201")


def entry(id: str, *, resource: str = XPU, health: Health = HEALTHY, **fields: object) -> Entry:
    own = fields.pop("own", id)
    return Entry(id=id, resource=resource, device=device(str(own), **fields), health=health)


def inventory(*entries: Entry, control: int | None = CONTROL) -> Inventory:
    return Inventory(generation=1, control=control, entries={entry.id: entry for entry in entries})


def nodes_of(inventory: Inventory, **changed: Identity | None) -> NodeIdentity:
    """The nodes as the picture shows them, but for those given."""
    nodes: dict[str, Identity | None] = {
        f"xpu{entry.device.node.number}": entry.device.node.identity for entry in inventory.entries.values()
    }
    return ({"xpuctrl": (CONTROL, 1)} | nodes | changed).get


THREE = inventory(
    entry(A, number=4), entry(B, number=0, health=SICK), entry(C, number=2, resource="baidu.com/R300")
)


def refused(inventory: Inventory, *requests: Sequence[str], **changed: Identity | None) -> tuple[Cause, str]:
    with pytest.raises(Refusal) as refusal:
        grant(inventory, XPU, requests, nodes_of(inventory, **changed))
    assert "\n" not in str(refusal.value)
    return refusal.value.cause, str(refusal.value)


# --- grant --------------------------------------------------------------------------------------------


def test_a_container_gets_its_nodes_as_they_are_on_the_host_the_control_node_and_its_ids() -> None:
    picture = inventory(entry(A, number=4), entry(B, number=0))
    (answer,) = grant(picture, XPU, [[B, A]], nodes_of(picture))
    assert answer.paths == ("/dev/xpu0", "/dev/xpu4", "/dev/xpuctrl")
    assert answer.environment == {IDS_VARIABLE: f"{B},{A}"}
    assert IDS_VARIABLE == "BAIDU_COM_XPU_DEVICE_IDS"
    assert [entry.id for entry in answer.entries] == [B, A]


def test_every_container_has_an_answer_of_its_own() -> None:
    picture = inventory(entry(A, number=4), entry(B, number=0))
    one, two = grant(picture, XPU, [[A], [B]], nodes_of(picture))
    assert (one.paths, two.paths) == (("/dev/xpu4", "/dev/xpuctrl"), ("/dev/xpu0", "/dev/xpuctrl"))
    assert (one.environment[IDS_VARIABLE], two.environment[IDS_VARIABLE]) == (A, B)


def test_a_device_offered_under_an_old_id_is_granted_under_it() -> None:
    picture = inventory(entry("2", own=A, number=2))
    (answer,) = grant(picture, XPU, [["2"]], nodes_of(picture))
    assert answer.paths == ("/dev/xpu2", "/dev/xpuctrl")
    assert answer.environment == {IDS_VARIABLE: "2"}


def test_an_unknown_id_is_refused() -> None:
    cause, text = refused(THREE, ["0000:99:00.0"])
    assert cause is Cause.UNKNOWN
    assert "0000:99:00.0 does not exist" in text


def test_an_id_of_another_resource_is_refused() -> None:
    cause, text = refused(THREE, [C])
    assert cause is Cause.UNKNOWN
    assert C in text
    assert "baidu.com/R300, not as baidu.com/xpu" in text


def test_an_unhealthy_device_is_refused_with_its_reason() -> None:
    cause, text = refused(THREE, [B])
    assert cause is Cause.NOT_READY
    assert B in text
    assert "state-error" in text
    assert "state 207" in text


def test_a_lost_device_is_refused() -> None:
    cause, text = refused(inventory(entry(A, health=LOST)), [A])
    assert cause is Cause.NOT_READY
    assert "lost" in text


@pytest.mark.parametrize("why", [VF_UNDECIDED, VF_CHANGE_PLANNED])
def test_a_device_kept_back_from_new_pods_is_granted_to_one_that_is_on_its_way(why: Health) -> None:
    """The kubelet asks for what it chose before it heard."""
    picture = inventory(entry(A, number=4, health=why))
    (answer,) = grant(picture, XPU, [[A]], nodes_of(picture))
    assert answer.paths == ("/dev/xpu4", "/dev/xpuctrl")


def test_a_device_kept_back_still_needs_its_node() -> None:
    _, text = refused(inventory(entry(A, number=4, health=VF_CHANGE_PLANNED)), [A], xpu4=None)
    assert "/dev/xpu4 is gone" in text


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (CHANGING, "number of VFs is being changed"),
        (ASKED_BEFORE, "a former process of this plugin has asked the driver"),
        (RECORD_UNREAD, "vf-change.json in --state-dir cannot be read"),
    ],
)
def test_a_device_of_a_card_that_the_driver_changes_or_may_change_is_refused(
    health: Health, why: str
) -> None:
    cause, text = refused(inventory(entry(A, health=health), entry(B, number=1)), [B], [A])
    assert cause is Cause.NOT_READY
    assert A in text
    assert why in text


def test_a_device_whose_node_vanished_is_refused() -> None:
    cause, text = refused(THREE, [A], xpu4=None)
    assert cause is Cause.NOT_READY
    assert A in text
    assert "/dev/xpu4 is gone" in text


@pytest.mark.parametrize(
    "change", [(2, 0), (0, 1)], ids=["another major:minor", "the same major:minor, made anew"]
)
def test_a_device_whose_node_was_replaced_is_refused(change: Identity) -> None:
    """The same path with another major:minor is another device. With the same ones it may be, too: when a
    card is split anew, N and minor of the former VFs are given to the new ones."""
    rdev, inode = THREE.entries[A].device.node.identity
    cause, text = refused(THREE, [A], xpu4=(rdev + change[0], inode + change[1]))
    assert cause is Cause.NOT_READY
    assert A in text
    assert "/dev/xpu4 is another device's node now" in text


@pytest.mark.parametrize("requests", [([A, A],), ([A], [A]), ([A, C, A],)])
def test_ids_asked_for_twice_are_refused(requests: tuple[list[str], ...]) -> None:
    cause, text = refused(THREE, *requests)
    assert cause is Cause.INVALID
    assert text == f"asked for more than once: {A}"


@pytest.mark.parametrize("requests", [([],), ([A], [])])
def test_a_request_for_nothing_is_refused(requests: tuple[list[str], ...]) -> None:
    cause, text = refused(THREE, *requests)
    assert cause is Cause.INVALID
    assert "names no device" in text


@pytest.mark.parametrize("now", [None, (CONTROL + 1, 1)])
def test_nothing_is_granted_without_the_control_node(now: Identity | None) -> None:
    cause, text = refused(THREE, [A], xpuctrl=now)
    assert cause is Cause.NOT_READY
    assert "/dev/xpuctrl" in text


def test_nothing_is_granted_when_the_scan_saw_no_control_node() -> None:
    cause, _ = refused(inventory(entry(A), control=None), [A], xpuctrl=None)
    assert cause is Cause.NOT_READY


@pytest.mark.parametrize("bad", [B, C, "0000:99:00.0"])
def test_one_bad_device_refuses_every_container(bad: str) -> None:
    """Nothing is granted in part."""
    _, text = refused(THREE, [A], [bad])
    assert bad in text


# --- start --------------------------------------------------------------------------------------------


def start(
    inventory: Inventory, *ids: str, granted: Mapping[str, str], **changed: Identity | None
) -> dict[str, str]:
    return check_start(inventory, XPU, ids, granted, nodes_of(inventory, **changed))


def start_refused(
    inventory: Inventory, *ids: str, granted: Mapping[str, str], **changed: Identity | None
) -> tuple[Cause, str]:
    with pytest.raises(Refusal) as refusal:
        start(inventory, *ids, granted=granted, **changed)
    return refusal.value.cause, str(refusal.value)


def test_a_container_may_start_on_the_nodes_it_was_granted() -> None:
    assert start(THREE, A, granted={A: "/dev/xpu4"}) == {A: "/dev/xpu4"}


def test_health_is_not_asked_at_a_start() -> None:
    assert start(THREE, B, granted={B: "/dev/xpu0"}) == {B: "/dev/xpu0"}


def test_an_old_id_is_its_own_record() -> None:
    picture = inventory(entry("2", own=A, number=2))
    assert start(picture, "2", granted={}) == {"2": "/dev/xpu2"}


@pytest.mark.parametrize("health", [CHANGING, ASKED_BEFORE, RECORD_UNREAD])
def test_no_container_starts_on_a_card_that_the_driver_may_be_changing(health: Health) -> None:
    cause, text = start_refused(inventory(entry(A, number=4, health=health)), A, granted={A: "/dev/xpu4"})
    assert cause is Cause.NOT_READY
    assert health.text in text


def test_a_start_without_a_record_is_refused_and_says_what_to_do() -> None:
    cause, text = start_refused(THREE, A, granted={})
    assert cause is Cause.NOT_READY
    assert A in text
    assert "delete the pod" in text


def test_a_start_without_a_record_that_can_be_read_is_refused_and_no_pod_is_to_be_deleted_for_it() -> None:
    with pytest.raises(Refusal) as refusal:
        check_start(THREE, XPU, [A, B], {A: "/dev/xpu4"}, nodes_of(THREE), unread=True)
    assert f"device {B}: the record of the node it was granted as" in str(refusal.value)
    assert "delete" not in str(refusal.value)


def test_a_start_on_a_path_that_is_another_devices_now_is_refused() -> None:
    """The cached answer names /dev/xpu9; the device has moved to /dev/xpu4."""
    cause, text = start_refused(THREE, A, granted={A: "/dev/xpu9"})
    assert cause is Cause.NOT_READY
    assert f"{A} was granted as /dev/xpu9 and is /dev/xpu4 now" in text
    assert "delete the pod" in text


def test_a_start_with_an_id_that_is_not_in_the_picture_is_refused() -> None:
    cause, text = start_refused(THREE, "0000:99:00.0", granted={"0000:99:00.0": "/dev/xpu9"})
    assert cause is Cause.UNKNOWN
    assert "0000:99:00.0" in text


def test_a_start_with_another_resources_id_is_refused() -> None:
    assert start_refused(THREE, C, granted={C: "/dev/xpu2"})[0] is Cause.UNKNOWN


@pytest.mark.parametrize("now", [None, (1, 1)])
def test_a_start_on_a_node_that_is_gone_or_replaced_is_refused(now: Identity | None) -> None:
    cause, text = start_refused(THREE, A, granted={A: "/dev/xpu4"}, xpu4=now)
    assert cause is Cause.NOT_READY
    assert "/dev/xpu4" in text


def test_one_bad_device_refuses_the_start() -> None:
    assert start_refused(THREE, B, A, granted={B: "/dev/xpu0", A: "/dev/xpu9"})[0] is Cause.NOT_READY


def test_lookup_finds_what_is_offered() -> None:
    assert lookup(THREE, XPU, A) is THREE.entries[A]


# --- preference ---------------------------------------------------------------------------------------


def spread(**cards: tuple[int | None, int]) -> Inventory:
    """Cards by bus, each with its NUMA node and so many VFs (1: a whole card)."""
    entries: list[Entry] = []
    for bus, (numa, count) in cards.items():
        address = f"0000:{bus[1:]}:0"
        ids = [f"{address}1.{n}-of{count}" for n in range(count)] if count > 1 else [f"{address}0.0"]
        entries += [entry(id, numa=numa, number=len(entries) + n) for n, id in enumerate(ids)]
    return inventory(*entries)


def preferred(picture: Inventory, size: int, *must: str, without: Sequence[str] = ()) -> Counter[str]:
    """How many devices of each card are preferred; the card by its bus."""
    available = [id for id in picture.entries if id not in without]
    chosen = prefer(picture, XPU, available, must, size)
    return Counter(id.split(":")[1] for id in chosen)


def fit(room: int, wanted: int) -> tuple[bool, int]:
    """The tightest of rooms that suffice, else the largest, comes first."""
    return (room < wanted, abs(room - wanted))


def test_a_cards_vfs_are_kept_together() -> None:
    picture = spread(b10=(0, 3), b20=(0, 3), b30=(0, 3))
    for size in (1, 2, 3):
        assert len(preferred(picture, size)) == 1
    assert sorted(preferred(picture, 4).values()) == [1, 3]
    assert sorted(preferred(picture, 6).values()) == [3, 3]


def test_the_rest_of_a_broken_card_is_used_before_an_unbroken_one() -> None:
    picture = spread(b10=(0, 3), b20=(0, 3))
    broken = "0000:20:01.1-of3"
    assert preferred(picture, 1, without=[broken]) == {"20": 1}
    assert preferred(picture, 2, without=[broken]) == {"20": 2}
    assert preferred(picture, 3, without=[broken]) == {"10": 3}


def test_what_fills_up_a_set_is_taken_where_it_fits_most_tightly() -> None:
    picture = spread(b10=(0, 3), b20=(0, 2), b30=(0, 1))
    assert preferred(picture, 4) == {"10": 3, "30": 1}
    assert preferred(picture, 5) == {"10": 3, "20": 2}


def test_a_set_stays_in_one_numa_node() -> None:
    picture = spread(b10=(0, 1), b20=(1, 1), b30=(0, 1), b40=(1, 1), b50=(1, 1))
    assert preferred(picture, 2) == {"10": 1, "30": 1}
    assert preferred(picture, 3) == {"20": 1, "40": 1, "50": 1}
    assert preferred(picture, 2, without=["0000:10:00.0"]).keys() <= {"20", "40", "50"}


def test_a_numa_node_that_just_suffices_is_preferred_to_breaking_a_fuller_one() -> None:
    picture = spread(b10=(0, 1), b20=(0, 1), b30=(0, 1), b40=(1, 1))
    assert preferred(picture, 1) == {"40": 1}


def test_a_set_larger_than_any_numa_node_fills_the_fullest_first() -> None:
    picture = spread(b10=(0, 1), b20=(1, 1), b30=(1, 1), b40=(2, 1))
    assert preferred(picture, 3).keys() > {"20", "30"}


def test_what_must_be_contained_decides_numa_node_and_card() -> None:
    picture = spread(b10=(0, 3), b20=(1, 3))
    assert preferred(picture, 3, "0000:20:01.0-of3") == {"20": 3}
    assert preferred(picture, 4, "0000:20:01.0-of3") == {"20": 3, "10": 1}


def test_halves_of_a_board_are_kept_together() -> None:
    halves = [entry(f"{card}-half{half}", numa=0) for card in (A, B) for half in (0, 1)]
    picture = inventory(*halves)
    without = [f"{A}-half0"]
    assert preferred(picture, 2, without=without) == {"3c": 2}
    assert preferred(picture, 1, without=without) == {"3b": 1}


def test_old_ids_are_taken_only_when_the_others_do_not_suffice() -> None:
    """So that they die out."""
    picture = inventory(
        entry("1", own=B, numa=0), entry(A, numa=0), entry("2", own=C, numa=1), entry("0000:af:00.0", numa=1)
    )
    ids = list(picture.entries)
    assert set(prefer(picture, XPU, ids, [], 2)) == {A, "0000:af:00.0"}
    assert prefer(picture, XPU, ids, ["1"], 2) == ["1", A]


def test_devices_of_an_unknown_numa_node_are_usable() -> None:
    assert sum(preferred(spread(b10=(None, 1), b20=(0, 1)), 2).values()) == 2


def test_the_same_question_has_the_same_answer_whatever_the_order() -> None:
    picture = spread(b10=(0, 3), b20=(1, 3))
    ids = list(picture.entries)
    assert prefer(picture, XPU, ids, [], 2) == prefer(picture, XPU, ids[::-1], [], 2)


@pytest.mark.parametrize(
    ("available", "must", "size"),
    [
        ([A], [], 0),
        ([A], [], -1),
        ([A], [], 2),
        ([], [], 1),
        ([A, B], [A, B], 1),
        ([A], [B], 1),
        ([A, A], [], 1),
        ([A, B], [A, A], 2),
        ([A, "0000:99:00.0"], [], 1),
        ([A, C], [], 1),
    ],
)
def test_in_any_doubt_nothing_is_preferred(available: list[str], must: list[str], size: int) -> None:
    """Impossible sizes, ids twice, unknown ones, another resource's: an error would fail the pod."""
    assert prefer(THREE, XPU, available, must, size) == []


ANY_CARDS = st.lists(st.tuples(st.sampled_from([None, 0, 1]), st.integers(1, 3)), min_size=1, max_size=5).map(
    lambda cards: spread(**{f"b{n + 16:x}": card for n, card in enumerate(cards)})
)


@given(picture=ANY_CARDS, data=st.data())
def test_a_preferred_set_is_of_the_size_asked_within_the_available_and_contains_the_must(
    picture: Inventory, data: st.DataObject
) -> None:
    available = data.draw(st.lists(st.sampled_from(sorted(picture.entries)), unique=True, min_size=1))
    must = data.draw(st.lists(st.sampled_from(available), unique=True))
    size = data.draw(st.integers(max(1, len(must)), len(available)))
    chosen = prefer(picture, XPU, available, must, size)
    assert len(chosen) == len(set(chosen)) == size
    assert set(must) <= set(chosen) <= set(available)


@given(picture=ANY_CARDS, data=st.data())
def test_a_preferred_set_breaks_no_more_than_it_has_to(picture: Inventory, data: st.DataObject) -> None:
    """One NUMA node if one suffices; then one card if one of that node suffices."""
    available = data.draw(st.lists(st.sampled_from(sorted(picture.entries)), unique=True, min_size=1))
    size = data.draw(st.integers(1, len(available)))
    chosen = [picture.entries[id].device for id in prefer(picture, XPU, available, [], size)]
    room = Counter(picture.entries[id].device.numa for id in available)
    if max(room.values()) >= size:
        (numa,) = {device.numa for device in chosen}
        cards = Counter(own.card for id in available if (own := picture.entries[id].device).numa == numa)
        if max(cards.values()) >= size:
            assert len({device.card for device in chosen}) == 1


@given(picture=ANY_CARDS, data=st.data())
def test_each_step_takes_the_best_card_of_the_best_numa_node(picture: Inventory, data: st.DataObject) -> None:
    """As `prefer` is defined, without a thought of what it costs."""
    available = data.draw(st.lists(st.sampled_from(sorted(picture.entries)), unique=True, min_size=1))
    must = data.draw(st.lists(st.sampled_from(available), unique=True))
    size = data.draw(st.integers(max(1, len(must)), len(available)))
    devices = {id: picture.entries[id].device for id in available}
    chosen = list(must)
    while len(chosen) < size:
        wanted, rest = size - len(chosen), set(available) - set(chosen)
        numa_nodes, cards = ({getattr(devices[id], name) for id in chosen} for name in ("numa", "card"))

        def count(name: str, value: object, rest: set[str] = rest) -> int:
            return sum(getattr(devices[id], name) == value for id in rest)

        numa = min(
            {devices[id].numa for id in rest},
            key=lambda numa: (numa not in numa_nodes, fit(count("numa", numa), wanted), str(numa)),
        )
        card = min(
            {devices[id].card for id in rest if devices[id].numa == numa},
            key=lambda card: (card not in cards, fit(count("card", card), wanted), card),
        )
        chosen += sorted(id for id in rest if devices[id].card == card)[:wanted]
    assert prefer(picture, XPU, available, must, size) == chosen


@pytest.mark.parametrize("vfs", [1, 8])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("numa_nodes", [1, 8])
def test_a_preference_costs_what_it_has_devices(vfs: int, share: float, numa_nodes: int) -> None:
    """Counted in calls of functions, which the machine's pace does not change."""

    def calls(devices: int) -> int:
        cards = {f"b{n:04x}": (n % numa_nodes, vfs) for n in range(devices // vfs)}
        picture = spread(**cards)
        ids, counted = list(picture.entries), 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            chosen = prefer(picture, XPU, ids, [], int(devices * share))
        finally:
            sys.setprofile(before)
        assert len(chosen) == int(devices * share)
        return counted

    assert calls(2000) < 2.5 * calls(1000)


@given(
    available=st.lists(st.sampled_from([A, B, C, "x"])),
    must=st.lists(st.sampled_from([A, B, C, "x"])),
    size=st.integers(-3, 10),
)
def test_preference_never_raises_and_is_exact_or_empty(
    available: list[str], must: list[str], size: int
) -> None:
    chosen = prefer(THREE, XPU, available, must, size)
    assert chosen == [] or (len(chosen) == size and set(must) <= set(chosen) <= set(available))
