# SPDX-License-Identifier: Apache-2.0
"""The reducer under any history of a node: cards that come, go, are split and move, sweeps, containers that
hold devices under old names. Checked after every step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from random import Random
from typing import TypeVar

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.devices import (
    CARD_KINDS,
    CONTROL,
    CardKind,
    Seat,
    Truth,
    device,
    found,
    node,
    reading,
    scan,
    seats_of,
)
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.model.devices import Device, DeviceKind, Found, Function, identify, matches
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    EXCLUDED,
    HEALTHY,
    LIBRARY_GONE,
    NOT_ANSWERING,
    RECORD_UNREAD,
    VF_CHANGE_PLANNED,
    VF_UNDECIDED,
    Health,
)
from xpu_plugin.model.inventory import (
    FORMER_RESOURCE,
    Entry,
    Facts,
    Inventory,
    Policy,
    after_scan,
    after_verdicts,
    entries,
    held_beyond,
    held_otherwise,
    is_old,
    numbered,
    released,
)


BUSES = (0x3B, 0x3C, 0x5E, 0xAF)
CARDS_OF_BUSES = [f"0000:{bus:02x}:00.0" for bus in BUSES]
KEPT_BACK = [VF_UNDECIDED, VF_CHANGE_PLANNED, CHANGING, ASKED_BEFORE, RECORD_UNREAD]
KINDS = st.sampled_from(CARD_KINDS)
VERDICTS = st.sampled_from([HEALTHY, Health("state-error", "state 207"), NOT_ANSWERING, LIBRARY_GONE])
BASES = ("baidu.com/xpu", "example.com/card")
FOREIGN = "nvidia.com/gpu"
T = TypeVar("T")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Thousands of histories tell thousands of events."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def turned(values: Mapping[str, T]) -> dict[str, T]:
    """The same in another order."""
    return dict(reversed(list(values.items())))


# --- the machine --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Card:
    """A card in a slot, and N of its nodes in the order of its seats."""

    kind: CardKind
    vfs: int
    numbers: tuple[int, ...] = ()


class Node(RuleBasedStateMachine):
    """A node's true hardware, and the plugin's picture of it by scans, sweeps and looks at holders."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[int, Card] = {}
        self.seen = Found(devices={})
        self.grants: dict[str, Device] = {}
        self.published: list[Inventory] = []

    @initialize(
        base=st.sampled_from(BASES),
        per_profile=st.booleans(),
        deny=st.sets(st.sampled_from(BUSES), max_size=1),
        cards=st.dictionaries(st.sampled_from(BUSES), KINDS, min_size=1),
    )
    def start(self, base: str, per_profile: bool, deny: set[int], cards: dict[int, CardKind]) -> None:
        self.policy = Policy(
            resource=base, per_profile=per_profile, deny=tuple(f"0000:{bus:02X}:00.0" for bus in deny)
        )
        self.picture = Picture(self.policy)
        for bus, kind in cards.items():
            self.slots[bus] = Card(kind, 0)
            self._number(bus)

    # --- the hardware ---

    def seats(self) -> list[Seat]:
        """The truth; minors follow the slots, so that halves keep theirs."""
        seats: list[Seat] = []
        for place, (bus, card) in enumerate(sorted(self.slots.items())):
            own = seats_of(card.kind, bus, card.vfs, 16 * place)
            seats += [replace(seat, number=number) for seat, number in zip(own, card.numbers, strict=True)]
        return seats

    def _number(self, bus: int) -> None:
        """Give a card's nodes the lowest free N, as the driver does."""
        card = self.slots[bus]
        taken = {number for other, own in self.slots.items() if other != bus for number in own.numbers}
        free = [number for number in range(64) if number not in taken]
        card.numbers = tuple(free[: len(seats_of(card.kind, bus, card.vfs, 0))])

    @rule(bus=st.sampled_from(BUSES), kind=KINDS)
    def plug(self, bus: int, kind: CardKind) -> None:
        if bus not in self.slots:
            self.slots[bus] = Card(kind, 0)
            self._number(bus)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        del self.slots[data.draw(st.sampled_from(sorted(self.slots)), "pulled")]

    @precondition(lambda self: any(card.kind.sriov for card in self.slots.values()))
    @rule(data=st.data(), vfs=st.integers(0, 3))
    def split(self, data: st.DataObject, vfs: int) -> None:
        able = sorted(bus for bus, card in self.slots.items() if card.kind.sriov)
        bus = data.draw(st.sampled_from(able), "split")
        self.slots[bus].vfs = vfs
        self._number(bus)

    @precondition(lambda self: self.slots)
    @rule(random=st.randoms(use_true_random=False), spread=st.integers(0, 3))
    def move(self, random: Random, spread: int) -> None:
        """The driver was loaded anew: every N is another one."""
        count = sum(len(card.numbers) for card in self.slots.values())
        numbers = random.sample(range(count + spread), count)
        for card in self.slots.values():
            card.numbers, numbers = tuple(numbers[: len(card.numbers)]), numbers[len(card.numbers) :]

    # --- what the plugin does ---

    def submit(self, change: Callable[[Facts], Facts]) -> None:
        before, facts = self.picture.current, self.picture.facts
        self.picture.submit(change)
        after = self.picture.current
        assert after is not None
        assert after.entries == entries(self.picture.facts, self.policy)
        if before is None:
            assert after.generation == NEVER + 1
        else:
            same = (before.entries, before.control) == (after.entries, after.control)
            assert after.generation == before.generation + (not same)
            assert (after is before) is same
        if self.picture.facts == facts and before is not None:
            assert after is before, "equal facts are an equal picture"
        if after is not before:
            self.published.append(after)

    @rule(data=st.data(), forget=st.booleans(), blind=st.booleans(), control=st.sampled_from([CONTROL, None]))
    def scan(self, data: st.DataObject, forget: bool, blind: bool, control: int | None) -> None:
        """A scan; with some nodes that cannot be opened, if `blind`."""
        truth = Truth(tuple(self.seats()))
        hidden = (
            data.draw(st.sets(st.sampled_from(sorted(truth.by_number))), "hidden")
            if blind and truth.seats
            else set()
        )
        sight = truth.scan(unreadable=hidden)
        sight = replace(
            sight,
            readings=tuple(replace(own, arch=2) for own in sight.readings),
            host=replace(sight.host, control=control),
        )
        self.seen = identify(sight, self.seen)
        note(f"found {sorted(self.seen.devices)}")
        expected = {seat.id for seat in truth.seats if seat.number not in hidden}
        assert set(self.seen.devices) == expected, self.seen.problems
        facts = self.picture.facts
        known = {**facts.lost, **facts.devices}
        self.submit(lambda facts: after_scan(facts, self.seen, forget=forget, claimed=self.grants))
        now = {own.card: own.split for own in self.seen.devices.values()}
        missed = known.keys() - expected
        vanished = {id for id in missed if now.get(known[id].card, known[id].split) == known[id].split}
        by_number = numbered(self.seen.devices, {id: known[id] for id in missed})
        held = self.grants.keys() | {id for number, id in by_number.items() if str(number) in facts.held}
        stays = set() if forget else vanished - facts.lingering
        assert set(self.picture.facts.lost) == stays | (missed & held)
        assert missed & self.picture.facts.lingering == (missed & held) - stays

    @precondition(lambda self: self.picture.facts.devices)
    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        ids = st.sampled_from(sorted(self.picture.facts.devices))
        verdicts = data.draw(st.dictionaries(ids, VERDICTS), "verdicts")
        self.submit(partial(after_verdicts, verdicts=verdicts))

    @precondition(lambda self: self.picture.current)
    @rule(data=st.data(), keep=st.booleans())
    def look(self, data: st.DataObject, keep: bool) -> None:
        """Containers hold devices: by old id or by own id, under our names, former ones and others'."""
        devices = self.picture.facts.devices
        names = {*BASES, FOREIGN}
        names |= {self.policy.resource.split("/")[0] + "/" + device.model for device in devices.values()}
        ids = {str(number) for number in range(8)} | set(devices) | set(self.picture.facts.held)
        holding = data.draw(
            st.dictionaries(st.sampled_from(sorted(ids)), st.sampled_from(sorted(names)), max_size=6), "held"
        )
        known = {**self.picture.facts.lost, **devices}
        present = held_otherwise(holding.items(), known, self.policy)
        assert FOREIGN not in present.values()
        self.submit(lambda facts: released(replace(facts, held={**(facts.held if keep else {}), **present})))

    @precondition(lambda self: any(entry.health.grantable for entry in self.offered()))
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        ids = sorted(entry.id for entry in self.offered() if entry.health.grantable and not is_old(entry.id))
        if ids:
            id = data.draw(st.sampled_from(ids), "granted")
            self.grants[id] = self.picture.facts.devices[id]

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), vfs=st.integers(0, 3))
    def split_under_a_holder(self, data: st.DataObject, vfs: int) -> None:
        held = {own.card for own in self.grants.values()}
        able = [bus for bus, card in self.slots.items() if card.kind.sriov and f"0000:{bus:02x}:00.0" in held]
        if able:
            bus = data.draw(st.sampled_from(sorted(able)), "split")
            self.slots[bus].vfs = vfs
            self._number(bus)
            self.scan(data, forget=False, blind=False, control=CONTROL)

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        del self.grants[data.draw(st.sampled_from(sorted(self.grants)), "ended")]
        self.submit(lambda facts: released(replace(facts, claimed=frozenset(self.grants))))

    @precondition(lambda self: self.picture.current)
    @rule(
        data=st.data(),
        deny=st.sets(st.sampled_from(BUSES), max_size=1),
        written=st.booleans(),
    )
    def restart(self, data: st.DataObject, deny: set[int], written: bool) -> None:
        """Another process, which may exclude another card. It knows grants from the kubelet, and paths if
        they are on record."""
        held = {(id, self.policy.resource_of(own)) for id, own in self.grants.items()}
        paths = {id: own.path for id, own in self.grants.items()} if written else {}
        self.policy = replace(self.policy, deny=tuple(f"0000:{bus:02X}:00.0" for bus in deny))
        if self.policy.per_profile and not written:
            self.grants = {}
        self.picture, self.seen, self.published = Picture(self.policy), Found(devices={}), []
        self.scan(data, forget=False, blind=False, control=CONTROL)
        self.submit(lambda facts: held_beyond(held, facts, self.policy, paths))

    def offered(self) -> list[Entry]:
        return list(self.picture.current.entries.values()) if self.picture.current else []

    @rule(kept=st.dictionaries(st.sampled_from(CARDS_OF_BUSES), st.sampled_from(KEPT_BACK), max_size=3))
    def keep_back(self, kept: dict[str, Health]) -> None:
        """Cards are withdrawn, changed, given back; also some that are not there."""
        self.submit(lambda facts: replace(facts, kept_back=kept))

    # --- what always holds ---

    @invariant()
    def ids_are_unique_and_a_device_is_offered_once(self) -> None:
        if (current := self.picture.current) is None:
            return
        assert all(id == entry.id for id, entry in current.entries.items())
        devices = [entry.device.id for entry in current.entries.values()]
        assert len(set(devices)) == len(devices)
        here = [entry.device for entry in current.entries.values() if entry.device.id in self.seen.devices]
        assert len({device.path for device in here}) == len(here)
        assert sum(len(current.of(resource)) for resource in current.resources) == len(current.entries)

    @invariant()
    def a_card_is_offered_in_one_way_only(self) -> None:
        """Whole, by its halves, or by the VFs of one split, and never so and beside it as it was before."""
        if (current := self.picture.current) is None:
            return
        splits: dict[str, set[str]] = {}
        for entry in current.entries.values():
            if entry.device.id not in self.picture.facts.lingering:
                splits.setdefault(entry.device.card, set()).add(entry.device.split)
        assert all(len(own) == 1 for own in splits.values()), splits

    @invariant()
    def nothing_is_offered_that_must_not_be(self) -> None:
        if (current := self.picture.current) is None:
            return
        for entry in current.entries.values():
            if entry.device.kind is DeviceKind.PF or matches(entry.device, self.policy.deny):
                assert entry.device.id in self.picture.facts.lingering
                assert not entry.health.grantable
            assert entry.health.healthy <= (entry.device.id in self.seen.devices), "what vanished is healthy"
            assert entry.resource != FOREIGN

    @invariant()
    def what_a_container_holds_is_listed(self) -> None:
        """In the status of a pod, a device that the list lacks is healthy."""
        assert self.grants.keys() <= {entry.device.id for entry in self.offered()}

    @invariant()
    def what_lingers_has_a_holder(self) -> None:
        facts = self.picture.facts
        by_number = {
            own.id
            for own in (*facts.lost.values(), *facts.devices.values())
            if str(own.node.number) in facts.held
        }
        assert facts.lingering <= self.grants.keys() | by_number

    @invariant()
    def present_devices_are_all_offered_and_as_they_are_held(self) -> None:
        if (current := self.picture.current) is None:
            return
        held = self.picture.facts.held
        shown = {entry.device.id: entry for entry in current.entries.values()}
        for own, present in self.seen.devices.items():
            if not self.policy.offers(present):
                assert (own in shown) is (own in self.picture.facts.lingering)
                continue
            old = str(present.node.number)
            if old in held:
                assert (shown[own].id, shown[own].resource) == (old, held[old])
            elif own in held:
                assert (shown[own].id, shown[own].resource) == (own, held[own])
            else:
                assert (shown[own].id, shown[own].resource) == (own, self.policy.resource_of(present))

    @invariant()
    def what_is_kept_back_or_held_otherwise_is_unhealthy_and_the_sick_are_called_sick(self) -> None:
        if (current := self.picture.current) is None:
            return
        facts = self.picture.facts
        split = {own.card: own.split for own in self.seen.devices.values()}
        held = {own.card for own in self.grants.values() if split.get(own.card, own.split) != own.split}
        held |= {
            own.card
            for own in self.seen.devices.values()
            if own.kind is DeviceKind.PF and str(own.node.number) in facts.held
        }
        for entry in current.entries.values():
            verdict = facts.verdicts.get(entry.device.id) if entry.device.id in facts.devices else None
            if entry.device.kind is DeviceKind.PF:
                assert entry.health.lost
            elif verdict is not None and verdict.healthy and entry.device.card in held:
                assert entry.health.reason == "card-held"
                assert not entry.health.grantable
            elif verdict is not None and verdict.healthy and not self.policy.offers(entry.device):
                assert entry.health == EXCLUDED or entry.health.in_change
            elif verdict is not None and verdict.healthy:
                assert entry.health == facts.kept_back.get(entry.device.card, verdict)
            elif entry.device.id not in facts.devices:
                assert entry.health.lost
            else:
                assert not entry.health.well

    @invariant()
    def equal_facts_give_equal_entries(self) -> None:
        facts = self.picture.facts
        other = replace(
            facts,
            devices=turned(facts.devices),
            lost=turned(facts.lost),
            verdicts=turned(facts.verdicts),
            held=turned(facts.held),
            kept_back=turned(facts.kept_back),
            claimed=frozenset(sorted(facts.claimed, reverse=True)),
        )
        assert list(entries(other, self.policy).items()) == list(entries(facts, self.policy).items())

    @invariant()
    def what_was_published_stays_as_it_was(self) -> None:
        """Generations count one by one, and neighbours differ."""
        assert [own.generation for own in self.published] == [*range(1, len(self.published) + 1)]

    @invariant()
    def all_that_is_known_is_listed(self) -> None:
        """A vanished device stays listed until it is forgotten or its card is split anew, and while it is
        held."""
        if (current := self.picture.current) is None:
            return
        facts = self.picture.facts
        known = {**facts.lost, **facts.devices}
        wanted = {id for id, device in known.items() if self.policy.offers(device)} | facts.lingering
        assert {entry.device.id for entry in current.entries.values()} == wanted


def test_any_history_leaves_a_true_picture() -> None:
    """Ids are unique, a device is offered once at most and only as it may be, generations count changes, and
    no vanished device leaves the list unless it is forgotten or its card split anew: it may be taken.

    What fails is told as it was found: making it small takes minutes here, and the steps are few.
    """
    run_state_machine_as_test(
        Node,
        settings=settings(
            max_examples=200,
            stateful_step_count=30,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            report_multiple_bugs=False,
        ),
    )


# --- single laws --------------------------------------------------------------------------------------

A, B, C = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "5e"))
POLICY = Policy(resource="baidu.com/xpu")


def test_two_vanished_devices_that_had_one_node_after_each_other_both_stay_listed() -> None:
    """A container holds "2". A was /dev/xpu2 and vanished, B was given that number and vanished, too."""
    facts = replace(Facts(), held={"2": FORMER_RESOURCE})
    for devices in ([device(A, number=2)], [device(B, number=2)], []):
        facts = after_scan(facts, found(*devices))
    offered = entries(facts, POLICY)
    assert {entry.device.id for entry in offered.values()} == {A, B}


def test_a_card_that_is_mute_just_after_it_was_split_is_not_offered_beside_its_vfs() -> None:
    """The library fails for the PF in the scan that finds its VFs; sysfs says that it has some. What an
    earlier scan knew of it, a whole card, is no longer true."""
    vf = "0000:3b:01.0"
    whole = identify(scan([reading(0, A)], nodes=[node(0)], addresses={0: A}))
    assert set(whole.devices) == {A}
    mute = reading(0, None, model=None, arch=None, memory_bytes=None, mode=None, state=None)
    sight = scan(
        [mute, reading(1, vf, model=201, mode=0)],
        nodes=[node(0), node(1)],
        addresses={0: A, 1: vf},
        functions={A: Function(device=0x3684, num_vfs=1), vf: Function(device=0x3685, physfn=A)},
    )
    facts = after_scan(after_scan(Facts(), whole), identify(sight, whole))
    assert set(entries(facts, POLICY)) == {f"{vf}-of1"}


@given(
    holding=st.sets(
        st.tuples(st.sampled_from(["0", "1", A, B]), st.sampled_from([*BASES, "baidu.com/R200", FOREIGN])),
        max_size=4,
    ),
    per_profile=st.booleans(),
)
def test_what_is_held_otherwise_does_not_depend_on_the_order_of_being_told(
    holding: set[tuple[str, str]], per_profile: bool
) -> None:
    """Nor on what was held before being told in another order: sources answer in any order."""
    policy = replace(POLICY, per_profile=per_profile)
    devices = {A: device(A), B: device(B, number=1)}
    answers = [held_otherwise(order, devices, policy) for order in permutations(sorted(holding))]
    assert all(answer == answers[0] for answer in answers)


@given(
    numbers=st.permutations(range(3)),
    held=st.dictionaries(st.sampled_from(["0", "1", "2"]), st.just(FORMER_RESOURCE)),
)
def test_an_old_id_is_whoever_has_that_node_now(numbers: list[int], held: Mapping[str, str]) -> None:
    """Old ids are N of the node: after a renumbering they name other devices."""
    cards: list[Device] = [device(id, number=number) for id, number in zip((A, B, C), numbers, strict=True)]
    facts = replace(after_scan(Facts(), found(*cards)), held=held)
    offered = entries(facts, POLICY)
    assert {id for id in offered if is_old(id)} == set(held)
    assert all(offered[id].device.path == f"/dev/xpu{id}" for id in held)
