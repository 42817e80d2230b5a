# SPDX-License-Identifier: Apache-2.0
"""Whole cards that are linked are chosen together: each choice equals the best one by the stated rule."""

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pytest

from tests.benchmarks.links import by_kubelet, by_plugin, churn
from tests.support.devices import CONTROL, device
from xpu_plugin.model.allocation import prefer
from xpu_plugin.model.health import HEALTHY
from xpu_plugin.model.inventory import Entry, Inventory
from xpu_plugin.model.topology import NO_LINKS, Links, LinkSource


XPU = "baidu.com/xpu"
IDS = [f"0000:{16 * n + 3:02x}:00.0" for n in range(8)]


@dataclass(frozen=True)
class Table:
    """A group for each card, if xpu-smi reports them, and a PCIe switch, which counts if cards share it."""

    group: Sequence[int] | None
    switch: Sequence[int] = range(8)
    numa: Sequence[int | None] = (0, 0, 0, 0, 1, 1, 1, 1)

    @property
    def picture(self) -> Inventory:
        entries = {}
        for n, id in enumerate(IDS):
            above = f"pci0000:{self.switch[n]:02x}/0000:{self.switch[n]:02x}:01.0"
            own = device(id, number=n, numa=self.numa[n], bridges=above)
            entries[id] = Entry(id=id, resource=XPU, device=own, health=HEALTHY)
        told = () if self.group is None else tuple(map(frozenset, self._groups(self.group)))
        links = Links(source=LinkSource.XPU_SMI, groups=told) if told else NO_LINKS
        return Inventory(generation=1, control=CONTROL, entries=entries, links=links)

    @staticmethod
    def _groups(group: Sequence[int]) -> Iterable[list[str]]:
        return [[id for id, own in zip(IDS, group, strict=True) if own == name] for name in sorted({*group})]

    def cost(self, chosen: Collection[int], free: Collection[int]) -> tuple[object, ...]:
        """The tuple of the rule, by the definition: cards are numbers here."""

        def rest(block: Sequence[object]) -> tuple[int, int, int]:
            """Blocks with a chosen card, whole ones of these that are chosen in part, free cards left."""
            touched = {block[card] for card in chosen}
            members = {name: {card for card in range(8) if block[card] == name} for name in touched}
            whole = [own for own in members.values() if own <= set(free)]
            left = sum(len((own & set(free)) - set(chosen)) for own in members.values())
            return len(touched), sum(not own <= set(chosen) for own in whole), left

        group = self.numa if self.group is None else self.group
        numa = len({self.numa[card] for card in chosen})
        return (*rest(group), numa, *rest(self.switch), sorted(IDS[card] for card in chosen))


P800 = Table([0, 0, 0, 0, 1, 1, 1, 1])
TABLES = {
    "two groups of four, as of a P800": P800,
    "four pairs across NUMA nodes": Table([0, 1, 2, 3, 0, 1, 2, 3]),
    "sysfs: NUMA nodes and switches": Table(None, switch=[0, 0, 1, 1, 2, 2, 3, 3]),
    "uneven groups over switches": Table([0, 0, 0, 1, 1, 0, 2, 2], switch=[0, 0, 1, 1, 2, 2, 3, 3]),
    "some cards behind a switch": Table([0, 0, 0, 0, 1, 1, 1, 1], switch=[0, 1, 2, 2, 3, 3, 3, 4]),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_choice_is_the_best_one_by_the_rule(table: Table) -> None:
    """Of every set of free cards, for each size."""
    picture = table.picture
    for count in range(1, 9):
        for free in combinations(range(8), count):
            for size in range(1, count + 1):
                best = min(combinations(free, size), key=lambda own: table.cost(own, free))
                chosen = prefer(picture, XPU, [IDS[card] for card in free], [], size)
                assert chosen == [IDS[card] for card in best], (free, size)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_ids_that_must_be_taken_are_and_the_rest_is_the_best_beside_them(table: Table) -> None:
    picture = table.picture
    free = (0, 1, 3, 4, 5, 6)
    for count in (1, 2):
        for must in combinations(free, count):
            for size in range(count, len(free) + 1):
                best = min(
                    (own for own in combinations(free, size) if set(must) <= set(own)),
                    key=lambda own: table.cost(own, free),
                )
                chosen = prefer(
                    picture, XPU, [IDS[card] for card in free], [IDS[card] for card in must], size
                )
                assert sorted(chosen) == sorted(IDS[card] for card in best)
                assert chosen[:count] == [IDS[card] for card in must]


def numbers(chosen: Iterable[str]) -> list[int]:
    return sorted(map(IDS.index, chosen))


@pytest.mark.parametrize(
    ("free", "size", "expected"),
    [
        (range(8), 4, [0, 1, 2, 3]),  # a whole group
        ((0, 1, 2, 4, 5, 6, 7), 4, [4, 5, 6, 7]),  # the one that is whole
        ((0, 1, 2, 4, 5, 6, 7), 1, [0]),  # a small request leaves it whole
        ((0, 4, 5, 6, 7), 2, [4, 5]),  # one group before a broken one
        ((0, 1, 2, 4, 5), 2, [4, 5]),  # of two broken groups the one that it fills
        ((0, 1, 2, 4, 5, 6, 7), 5, [0, 4, 5, 6, 7]),
        ((0, 1, 2, 3, 4, 5, 6), 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_groups_of_a_p800_server(free: Iterable[int], size: int, expected: list[int]) -> None:
    chosen = prefer(P800.picture, XPU, [IDS[n] for n in free], [], size)
    assert numbers(chosen) == expected


def test_without_any_knowledge_the_first_ids_are_taken() -> None:
    assert numbers(prefer(Table(None, numa=[None] * 8).picture, XPU, IDS[::-1], [], 3)) == [0, 1, 2]


def calls(picture: Inventory, size: int) -> int:
    """Calls of functions of one choice, which the machine's pace does not change."""
    counted: Counter[str] = Counter()

    def count(frame: object, event: str, argument: object) -> None:
        counted[event] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        prefer(picture, XPU, list(picture.entries), [], size)
    finally:
        sys.setprofile(before)
    return counted.total()


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_choice_of_eight_cards_costs_little(table: Table, size: int) -> None:
    assert calls(table.picture, size) < 6000


def test_sixteen_cards_in_pairs_behind_switches_are_weighed_too() -> None:
    """Groups of four, which are not NUMA nodes; a card of the first one is not available."""
    ids = [f"0000:{n:02x}:00.0" for n in range(16)]
    entries = {
        id: Entry(
            id=id,
            resource=XPU,
            device=device(id, numa=n // 8, bridges=f"pci0000:0{n // 2}/0000:0{n // 2}:01.0"),
            health=HEALTHY,
        )
        for n, id in enumerate(ids)
    }
    groups = tuple(frozenset(ids[n : n + 4]) for n in range(0, 16, 4))
    links = Links(source=LinkSource.FILE, groups=groups)
    picture = Inventory(generation=1, control=CONTROL, entries=entries, links=links)
    assert prefer(picture, XPU, ids[1:], [], 4) == ids[4:8]
    assert prefer(picture, XPU, ids[1:], [], 8) == ids[8:]  # of one NUMA node
    assert prefer(picture, XPU, ids[1:], [], 2) == ids[2:4]
    assert prefer(picture, XPU, ids[1:], [ids[15]], 5) == [ids[15], ids[1], *ids[12:15]]


def test_choices_that_are_too_many_are_made_by_numa_node_and_card() -> None:
    """Sixteen cards, each in a group of its own and behind a switch of its own."""
    entries: Mapping[str, Entry] = {
        id: Entry(id=id, resource=XPU, device=device(id, numa=n // 8), health=HEALTHY)
        for n, id in enumerate(f"0000:{n:02x}:00.0" for n in range(16))
    }
    links = Links(source=LinkSource.FILE, groups=tuple(frozenset({id}) for id in entries))
    picture = Inventory(generation=1, control=CONTROL, entries=entries, links=links)
    assert prefer(picture, XPU, list(entries)[4:], [], 8) == list(entries)[8:]
    assert calls(picture, 8) < 6000


def test_more_pods_get_linked_cards_than_by_the_first_ids() -> None:
    """A part of what tests/benchmarks/links.py tells."""
    for seed in (1, 2):
        (started, linked), (_, first) = churn(by_plugin, seed, 3000), churn(by_kubelet, seed, 3000)
        for size in (2, 4):
            assert linked[size] > 1.2 * first[size]
            assert started[size] > 50
