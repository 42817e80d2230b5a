# SPDX-License-Identifier: Apache-2.0
"""Whole cards that are linked are chosen together: each choice equals the best one by the stated rule."""

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
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
NUMA = [0, 0, 0, 0, 1, 1, 1, 1]


def node(
    *, numa: Sequence[int | None] = NUMA, pairs: bool = False, groups: Iterable[Iterable[int]] = ()
) -> Inventory:
    """Eight cards; with `pairs`, two behind each PCIe switch."""
    entries = {}
    for n, id in enumerate(IDS):
        above = f"pci0000:{16 * (n // 2):02x}/0000:{16 * (n // 2):02x}:01.0/0000:{16 * (n // 2) + 1:02x}:00.0"
        own = device(id, number=n, numa=numa[n], bridges=above if pairs else None)
        entries[id] = Entry(id=id, resource=XPU, device=own, health=HEALTHY)
    told = tuple(frozenset(IDS[n] for n in group) for group in groups)
    links = Links(source=LinkSource.XPU_SMI, groups=told) if told else NO_LINKS
    return Inventory(generation=1, control=CONTROL, entries=entries, links=links)


NODES = {
    "two groups of four, as of a P800": node(groups=[range(4), range(4, 8)]),
    "four pairs across NUMA nodes": node(groups=[(0, 4), (1, 5), (2, 6), (3, 7)]),
    "sysfs: NUMA nodes and switches": node(pairs=True),
    "uneven groups over switches": node(pairs=True, groups=[(0, 1, 2), (3, 4), (5, 6, 7)]),
}
GROUPS = {
    "two groups of four, as of a P800": [0, 0, 0, 0, 1, 1, 1, 1],
    "four pairs across NUMA nodes": [0, 1, 2, 3, 0, 1, 2, 3],
    "sysfs: NUMA nodes and switches": NUMA,
    "uneven groups over switches": [0, 0, 0, 1, 1, 2, 2, 2],
}


def cost(
    chosen: Collection[int], free: Collection[int], group: Sequence[int], *, pairs: bool
) -> tuple[object, ...]:
    """The tuple of the rule, by the definition: cards are numbers here."""

    def rest(block: Sequence[object]) -> tuple[int, int, int]:
        """Blocks with a chosen card, whole ones of these that are chosen in part, free cards left."""
        touched = {block[card] for card in chosen}
        members = {name: {card for card in range(8) if block[card] == name} for name in touched}
        whole = [own for own in members.values() if own <= set(free)]
        left = sum(len((own & set(free)) - set(chosen)) for own in members.values())
        return len(touched), sum(not own <= set(chosen) for own in whole), left

    numa = len({NUMA[card] for card in chosen})
    switch = [card // 2 if pairs else card for card in range(8)]
    return (*rest(group), numa, *rest(switch), sorted(IDS[card] for card in chosen))


@pytest.mark.parametrize("name", NODES)
def test_every_choice_is_the_best_one_by_the_rule(name: str) -> None:
    """Of every set of free cards, for each size."""
    picture, pairs = NODES[name], any(entry.device.bridges for entry in NODES[name].entries.values())
    for count in range(1, 9):
        for free in combinations(range(8), count):
            for size in range(1, count + 1):
                best = min(
                    combinations(free, size), key=lambda own: cost(own, free, GROUPS[name], pairs=pairs)
                )
                chosen = prefer(picture, XPU, [IDS[card] for card in free], [], size)
                assert chosen == [IDS[card] for card in best], (free, size)


@pytest.mark.parametrize("name", NODES)
def test_ids_that_must_be_taken_are_and_the_rest_is_the_best_beside_them(name: str) -> None:
    picture, pairs = NODES[name], any(entry.device.bridges for entry in NODES[name].entries.values())
    free = (0, 1, 3, 4, 5, 6)
    for count in (1, 2):
        for must in combinations(free, count):
            for size in range(count, len(free) + 1):
                best = min(
                    (own for own in combinations(free, size) if set(must) <= set(own)),
                    key=lambda own: cost(own, free, GROUPS[name], pairs=pairs),
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
    chosen = prefer(NODES["two groups of four, as of a P800"], XPU, [IDS[n] for n in free], [], size)
    assert numbers(chosen) == expected


def test_without_any_knowledge_the_first_ids_are_taken() -> None:
    assert numbers(prefer(node(numa=[None] * 8), XPU, IDS[::-1], [], 3)) == [0, 1, 2]


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
@pytest.mark.parametrize("picture", NODES.values(), ids=NODES)
def test_a_choice_of_eight_cards_costs_little(picture: Inventory, size: int) -> None:
    assert calls(picture, size) < 6000


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
