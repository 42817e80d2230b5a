# SPDX-License-Identifier: Apache-2.0
"""What a container gets, why it is refused, and which devices are preferred."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.devices import CONTROL, device
from xpu_plugin.model.allocation import (
    IDS_VARIABLE,
    Cause,
    Kept,
    NodeIdentity,
    Refusal,
    check_start,
    grant,
    prefer,
    unrecorded,
)
from xpu_plugin.model.devices import Identity
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    HEALTHY,
    LOST,
    PROBE_PLANNED,
    PROBE_STUCK,
    PROBING,
    RECORD_UNREAD,
    VF_CHANGE_PLANNED,
    VF_UNDECIDED,
    Health,
    with_probe,
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


RDEV, INODE = THREE.entries[A].device.node.identity
BARE = inventory(entry(A), control=None)
"""The scan saw no control node."""


def changing(health: Health) -> Inventory:
    """Another device is fine."""
    return inventory(entry(A, number=4, health=health), entry(B, number=1))


@pytest.mark.parametrize(
    ("picture", "requests", "changed", "cause", "said"),
    [
        (THREE, [["0000:99:00.0"]], {}, Cause.UNKNOWN, "0000:99:00.0 does not exist"),
        (THREE, [[C]], {}, Cause.UNKNOWN, f"{C} is offered as baidu.com/R300, not as baidu.com/xpu"),
        (THREE, [[B]], {}, Cause.NOT_READY, SICK.text),
        (inventory(entry(A, health=LOST)), [[A]], {}, Cause.NOT_READY, "lost"),
        # The driver changes its card, or may.
        (changing(CHANGING), [[B], [A]], {}, Cause.NOT_READY, "number of VFs is being changed"),
        (changing(ASKED_BEFORE), [[B], [A]], {}, Cause.NOT_READY, "a former process of this plugin"),
        (changing(RECORD_UNREAD), [[B], [A]], {}, Cause.NOT_READY, "vf-change.json in --state-dir"),
        # A probe has its card.
        (changing(PROBING), [[B], [A]], {}, Cause.NOT_READY, PROBING.text),
        (changing(PROBE_STUCK), [[A]], {}, Cause.NOT_READY, PROBE_STUCK.text),
        # Its node has vanished, or was replaced. The same path with another major:minor is another device.
        # With the same ones it may be, too: when a card is split anew, the new VFs are given both.
        (THREE, [[A]], {"xpu4": None}, Cause.NOT_READY, "/dev/xpu4 is gone"),
        (changing(VF_CHANGE_PLANNED), [[A]], {"xpu4": None}, Cause.NOT_READY, "/dev/xpu4 is gone"),
        (THREE, [[A]], {"xpu4": (RDEV + 2, INODE)}, Cause.NOT_READY, "is another device's node now"),
        (THREE, [[A]], {"xpu4": (RDEV, INODE + 1)}, Cause.NOT_READY, "is another device's node now"),
        # Nothing is granted twice, or for nothing.
        (THREE, [[A, A]], {}, Cause.INVALID, f"asked for more than once: {A}"),
        (THREE, [[A], [A]], {}, Cause.INVALID, f"asked for more than once: {A}"),
        (THREE, [[A, C, A]], {}, Cause.INVALID, f"asked for more than once: {A}"),
        (THREE, [[]], {}, Cause.INVALID, "names no device"),
        (THREE, [[A], []], {}, Cause.INVALID, "names no device"),
        # Nothing is granted without the control node.
        (THREE, [[A]], {"xpuctrl": None}, Cause.NOT_READY, "/dev/xpuctrl"),
        (THREE, [[A]], {"xpuctrl": (CONTROL + 1, 1)}, Cause.NOT_READY, "/dev/xpuctrl"),
        (BARE, [[A]], {"xpuctrl": None}, Cause.NOT_READY, "/dev/xpuctrl"),
        # Nothing is granted in part.
        (THREE, [[A], [B]], {}, Cause.NOT_READY, B),
        (THREE, [[A], [C]], {}, Cause.UNKNOWN, C),
    ],
)
def test_what_is_not_granted_is_refused_with_the_reason(
    picture: Inventory,
    requests: list[list[str]],
    changed: dict[str, Identity | None],
    cause: Cause,
    said: str,
) -> None:
    assert refused(picture, *requests, **changed)[0] is cause
    assert said in refused(picture, *requests, **changed)[1]


@pytest.mark.parametrize("why", [VF_UNDECIDED, VF_CHANGE_PLANNED, PROBE_PLANNED])
@pytest.mark.parametrize("id", [A, "4"], ids=["own id", "old id"])
def test_a_device_kept_back_from_new_pods_is_granted_to_one_that_is_on_its_way(id: str, why: Health) -> None:
    """The kubelet asks for what it chose before it heard."""
    picture = inventory(entry(id, own=A, number=4, health=why))
    (answer,) = grant(picture, XPU, [[id]], nodes_of(picture))
    assert answer.paths == ("/dev/xpu4", "/dev/xpuctrl")
    assert answer.environment == {IDS_VARIABLE: id}


# --- start --------------------------------------------------------------------------------------------


def start(
    inventory: Inventory, *ids: str, granted: Mapping[str, str], **changed: Identity | None
) -> dict[str, str]:
    return check_start(inventory, XPU, ids, granted, nodes_of(inventory, **changed))


@pytest.mark.parametrize(
    ("picture", "id", "granted", "path"),
    [
        (THREE, A, {A: "/dev/xpu4"}, "/dev/xpu4"),
        (THREE, B, {B: "/dev/xpu0"}, "/dev/xpu0"),  # health is not asked
        (inventory(entry("2", own=A, number=2)), "2", {}, "/dev/xpu2"),  # an old id is its own record
    ],
)
def test_a_container_may_start_on_the_nodes_it_was_granted(
    picture: Inventory, id: str, granted: dict[str, str], path: str
) -> None:
    assert start(picture, id, granted=granted) == {id: path}


@pytest.mark.parametrize(
    ("picture", "ids", "granted", "changed", "cause", "said"),
    [
        # The driver may be changing the card.
        (changing(CHANGING), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, CHANGING.text),
        (changing(ASKED_BEFORE), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, ASKED_BEFORE.text),
        (changing(RECORD_UNREAD), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, RECORD_UNREAD.text),
        # A probe has it.
        (changing(PROBING), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, PROBING.text),
        (changing(with_probe(SICK, PROBING)), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, PROBING.text),
        (changing(with_probe(SICK, PROBE_STUCK)), [A], {A: "/dev/xpu4"}, {}, Cause.NOT_READY, "does not end"),
        (THREE, [A], {}, {}, Cause.NOT_READY, "delete the pod"),
        # The cached answer names another path than the device has now.
        (THREE, [A], {A: "/dev/xpu9"}, {}, Cause.NOT_READY, "was granted as /dev/xpu9 and is /dev/xpu4 now"),
        (THREE, [B, A], {B: "/dev/xpu0", A: "/dev/xpu9"}, {}, Cause.NOT_READY, "delete the pod"),
        (THREE, ["0000:99:00.0"], {"0000:99:00.0": "/dev/xpu9"}, {}, Cause.UNKNOWN, "0000:99:00.0"),
        (THREE, [C], {C: "/dev/xpu2"}, {}, Cause.UNKNOWN, C),
        # The node is gone, or was replaced.
        (THREE, [A], {A: "/dev/xpu4"}, {"xpu4": None}, Cause.NOT_READY, "/dev/xpu4"),
        (THREE, [A], {A: "/dev/xpu4"}, {"xpu4": (1, 1)}, Cause.NOT_READY, "/dev/xpu4"),
    ],
)
def test_a_start_is_refused_with_the_reason(
    picture: Inventory,
    ids: list[str],
    *,
    granted: dict[str, str],
    changed: dict[str, Identity | None],
    cause: Cause,
    said: str,
) -> None:
    with pytest.raises(Refusal) as refusal:
        start(picture, *ids, granted=granted, **changed)
    assert refusal.value.cause is cause
    assert said in str(refusal.value)
    assert ids[-1] in str(refusal.value)


def test_a_start_without_a_record_that_can_be_read_is_refused_and_no_pod_is_to_be_deleted_for_it() -> None:
    with pytest.raises(Refusal) as refusal:
        check_start(THREE, XPU, [A, B], {A: "/dev/xpu4"}, nodes_of(THREE), unread=True)
    assert f"device {B}: the record of the node it was granted as" in str(refusal.value)
    assert "delete" not in str(refusal.value)


BOTH = Kept(nodes=frozenset({("/dev/xpu0", "/dev/xpu4")}))


@pytest.mark.parametrize("granted", [{}, {A: "/dev/xpu4"}])
def test_a_device_without_a_record_starts_as_the_node_that_the_kubelet_has_for_its_container(
    granted: dict[str, str],
) -> None:
    assert unrecorded(THREE, [A, B], granted)
    paths = check_start(THREE, XPU, [A, B], granted, nodes_of(THREE), kept=BOTH)
    assert paths == {A: "/dev/xpu4", B: "/dev/xpu0"}


def test_the_kubelet_is_asked_only_for_devices_that_could_start_by_its_answer() -> None:
    old = inventory(entry("2", own=A, number=2), entry(B, number=0))
    assert not unrecorded(old, ["2", B, C], {B: "/dev/xpu9"})
    assert unrecorded(old, ["2", B, C], {})


def test_an_old_id_beside_a_device_without_a_record_is_a_node_of_the_container_too() -> None:
    picture = inventory(entry("2", own=A, number=2), entry(B, number=0))
    kept = Kept(nodes=frozenset({("/dev/xpu0", "/dev/xpu2")}))
    paths = check_start(picture, XPU, ["2", B], {}, nodes_of(picture), kept=kept)
    assert paths == {"2": "/dev/xpu2", B: "/dev/xpu0"}
    with pytest.raises(Refusal, match="has /dev/xpu0 for /dev/xpu0, /dev/xpu2"):
        check_start(
            picture,
            XPU,
            ["2", B],
            {},
            nodes_of(picture),
            kept=Kept(nodes=frozenset({("/dev/xpu0",)})),
        )


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "has no container with exactly its devices"),
        ([None], "cannot be parsed"),
        ([None, ("/dev/xpu4",)], "cannot be parsed"),
        ([()], "has no XPU for /dev/xpu4"),
        ([("/dev/xpu7",)], "has /dev/xpu7 for /dev/xpu4"),  # renumbered meanwhile
        ([("/dev/xpu0", "/dev/xpu4")], "has /dev/xpu0, /dev/xpu4 for /dev/xpu4"),
        ([("/dev/xpu4", "/dev/xpu4")], "has /dev/xpu4, /dev/xpu4 for /dev/xpu4"),
        ([("/dev/xpu4",), ("/dev/xpu7",)], "differ"),
    ],
)
def test_in_doubt_the_kubelets_record_starts_no_container(
    answers: list[tuple[str, ...] | None], said: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        check_start(THREE, XPU, [A], {}, nodes_of(THREE), kept=Kept(nodes=frozenset(answers)))
    assert refusal.value.cause is Cause.NOT_READY
    assert f"device {A}: there is no record of the node it was granted as, and" in str(refusal.value)
    assert said in str(refusal.value)
    assert "delete the pod" in str(refusal.value)


def test_a_kubelets_record_that_cannot_be_read_is_no_reason_to_delete_a_pod() -> None:
    with pytest.raises(Refusal, match="checkpoint: no answer; the kubelet starts the container") as refusal:
        check_start(THREE, XPU, [A], {}, nodes_of(THREE), kept=Kept(trouble="checkpoint: no answer"))
    assert "delete" not in str(refusal.value)


@pytest.mark.parametrize(
    ("granted", "changed", "said"),
    [
        ({A: "/dev/xpu9"}, {}, "was granted as /dev/xpu9 and is /dev/xpu4 now"),
        ({}, {"xpu4": (1, 1)}, "/dev/xpu4 is another device's node now"),
        ({}, {"xpu4": None}, "its node /dev/xpu4 is gone"),
    ],
)
def test_the_kubelets_record_overrules_neither_ours_nor_the_nodes(
    granted: dict[str, str], changed: dict[str, Identity | None], said: str
) -> None:
    with pytest.raises(Refusal, match=said):
        check_start(THREE, XPU, [A, B], granted, nodes_of(THREE, **changed), kept=BOTH)


def test_while_our_record_is_unread_the_kubelets_does_not_count() -> None:
    """Ours may name another node."""
    with pytest.raises(Refusal, match="cannot be read for now"):
        check_start(THREE, XPU, [A, B], {}, nodes_of(THREE), unread=True, kept=BOTH)


@given(
    numbers=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    answers=st.sets(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=2),
)
def test_a_container_starts_by_the_kubelets_record_only_with_the_nodes_of_its_own_devices(
    numbers: list[int], answers: set[tuple[int, ...]]
) -> None:
    picture = inventory(*(entry(f"0000:{number + 16}:00.0", number=number) for number in numbers))
    kept = Kept(
        nodes=frozenset(tuple(f"/dev/xpu{number}" for number in sorted(answer)) for answer in answers)
    )
    try:
        check_start(picture, XPU, list(picture.entries), {}, nodes_of(picture), kept=kept)
    except Refusal:
        started = False
    else:
        started = True
    assert started == (bool(answers) and all(sorted(answer) == sorted(numbers) for answer in answers))


# --- preference ---------------------------------------------------------------------------------------


def spread(**cards: tuple[int | None, int]) -> Inventory:
    """Cards by bus, each with its NUMA node and so many VFs (1: a whole card)."""
    entries: list[Entry] = []
    for bus, (numa, count) in cards.items():
        address = f"0000:{bus[1:]}:0"
        ids = [f"{address}1.{n}-of{count}" for n in range(count)] if count > 1 else [f"{address}0.0"]
        entries += [entry(id, numa=numa, number=len(entries) + n) for n, id in enumerate(ids)]
    return inventory(*entries)


def fit(room: int, wanted: int) -> tuple[bool, int]:
    """The tightest of rooms that suffice, else the largest, comes first."""
    return (room < wanted, abs(room - wanted))


def test_a_cards_vfs_are_kept_together() -> None:
    picture = spread(b10=(0, 3), b20=(0, 3), b30=(0, 3))
    for size, cards in {1: [1], 2: [2], 3: [3], 4: [1, 3], 6: [3, 3]}.items():
        chosen = prefer(picture, XPU, list(picture.entries), [], size)
        assert sorted(Counter(id.split(":")[1] for id in chosen).values()) == cards


def test_old_ids_are_taken_only_when_the_others_do_not_suffice() -> None:
    """So that they die out."""
    picture = inventory(
        entry("1", own=B, numa=0), entry(A, numa=0), entry("2", own=C, numa=1), entry("0000:af:00.0", numa=1)
    )
    ids = list(picture.entries)
    assert set(prefer(picture, XPU, ids, [], 2)) == {A, "0000:af:00.0"}
    assert prefer(picture, XPU, ids, ["1"], 2) == ["1", A]


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
    """As `prefer` is defined where cards are split, without a thought of what it costs."""
    available = data.draw(st.lists(st.sampled_from(sorted(picture.entries)), unique=True, min_size=1))
    assume(len({picture.entries[id].device.card for id in available}) < len(available))
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
