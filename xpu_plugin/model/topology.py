# SPDX-License-Identifier: Apache-2.0
"""The places of cards: NUMA node, PCIe root complex, PCIe switch and link group; and the matrix of them.

A link group is a set of cards that are joined by XPU links, each with each. The administrator or `xpu-smi`
names the groups. Where neither does, the cards of one NUMA node count as a group. Where the kernel knows no
NUMA node, those of one PCIe root complex do.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device, DeviceKind


MOST_GROUPS = 64
MOST_CARDS = 256
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LONGEST_SHOWN = 60


class LinkSource(StrEnum):
    """The source of the link groups."""

    FILE = "file"
    XPU_SMI = "xpu-smi"
    SYSFS = "sysfs"


@frozen
class Links:
    """The link groups by one source: sets of cards by PCI address. A card in no set is in a group of its own.

    Without sets, sysfs is the source.
    """

    source: LinkSource = LinkSource.SYSFS
    groups: tuple[frozenset[str], ...] = ()


NO_LINKS = Links()


@frozen
class Place:
    """The place of a card; None for a part that is not known."""

    group: str | None  # a name that the cards of one group have; None: unknown
    numa: int | None
    root: str | None  # the PCIe root complex, `pci0000:3a`
    switch: str | None  # PCI address of the innermost bridge that is above another card too


class Level(StrEnum):
    """The connection between two cards, from the closest on, in the words of `topo -m`."""

    SELF = "X"
    XL = "XL"
    PIX = "PIX"
    PXB = "PXB"
    PHB = "PHB"
    NODE = "NODE"
    SYS = "SYS"


LEGEND: Mapping[Level, str] = {
    Level.SELF: "the card itself",
    Level.XL: "joined by XPU links",
    Level.PIX: "behind one PCIe switch",
    Level.PXB: "behind several PCIe switches below one root port",
    Level.PHB: "across the PCIe host bridge",
    Level.NODE: "across PCIe host bridges of one NUMA node",
    Level.SYS: "across NUMA nodes, or unknown",
}


def places(devices: Iterable[Device], links: Links = NO_LINKS) -> dict[str, Place]:
    """Return card -> its place, by the devices of the cards, sorted by address."""
    cards: dict[str, Device] = {}
    for device in devices:
        known = cards.get(device.card)
        if known is None or (known.bridges is None and device.bridges is not None):
            cards[device.card] = device
    above = {card: _bridges(device) for card, device in cards.items()}
    shared = {
        bridge for bridge, times in Counter(b for own in above.values() for b in own).items() if times > 1
    }
    roots = Counter(device.bridges.partition("/")[0] for device in cards.values() if device.bridges)
    named = {card: min(group) for group in links.groups for card in group}
    found = {}
    for card, device in sorted(cards.items()):
        root = device.bridges.partition("/")[0] if device.bridges else None
        if links.groups:
            group: str | None = named.get(card, card)
        elif device.numa is not None:
            group = f"numa{device.numa}"
        else:  # a root complex with one card says nothing about the other cards
            group = root if root and roots[root] > 1 else None
        switch = next((bridge for bridge in reversed(above[card]) if bridge in shared), None)
        found[card] = Place(group=group, numa=device.numa, root=root, switch=switch)
    return found


def _bridges(device: Device) -> list[str]:
    """Return the bridges above a card, the outermost first, without the root complex."""
    return device.bridges.split("/")[1:] if device.bridges else []


def matrix(devices: Collection[Device], links: Links = NO_LINKS) -> dict[str, dict[str, Level]]:
    """Return card -> other card -> their connection."""
    found = places(devices, links)
    above = {device.card: set(_bridges(device)) for device in devices if device.bridges}

    def level(one: str, other: str) -> Level:
        a, b = found[one], found[other]
        if one == other:
            return Level.SELF
        if links.groups and a.group == b.group:
            return Level.XL
        if a.switch is not None and a.switch == b.switch:
            return Level.PIX
        if above.get(one, set()) & above.get(other, set()):
            return Level.PXB
        if a.root is not None and a.root == b.root:
            return Level.PHB
        return Level.NODE if a.numa is not None and a.numa == b.numa else Level.SYS

    return {one: {other: level(one, other) for other in found} for one in found}


def document(devices: Collection[Device], links: Links) -> dict[str, object]:
    """Return the answer for `topo`, in JSON values."""
    found = places(devices, links)
    nodes: dict[str, set[str]] = {}
    for device in devices:
        nodes.setdefault(device.card, set()).add(device.path)
    return {
        "source": str(links.source),
        "cards": [
            {
                "card": card,
                "paths": sorted(nodes[card]),
                "group": place.group,
                "numa": place.numa,
                "root": place.root,
                "switch": place.switch,
                "links": {other: str(level) for other, level in row.items()},
            }
            for (card, place), row in zip(found.items(), matrix(devices, links).values(), strict=True)
        ],
    }


def ranked(devices: Iterable[Device]) -> tuple[str, ...] | None:
    """Return the cards by the library's index; None if a card is split, or an index has no device."""
    known = sorted(devices, key=lambda device: device.index)
    if any(device.kind is not DeviceKind.WHOLE or device.index != n for n, device in enumerate(known)):
        return None
    return tuple(device.card for device in known)


# --- the sources ----------------------------------------------------------------------------------


def parse_file(text: str) -> Links:
    """Return the groups of a topology file: one group a line, PCI addresses separated by blanks.

    `#` begins a comment. Raises ValueError with the line, the fault and the accepted form.
    """
    groups: list[frozenset[str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        cards = line.partition("#")[0].lower().split()
        for card in cards:
            if not _ADDRESS.fullmatch(card):
                raise ValueError(
                    f"line {number}: {card[:_LONGEST_SHOWN]!r} is not accepted; accepted: PCI addresses of "
                    "cards, such as 0000:3b:00.0, those of one link group in a line"
                )
            if card in seen:
                raise ValueError(
                    f"line {number}: {card} is in line {seen[card]} already; accepted: each card once"
                )
            seen[card] = number
        if cards:
            groups.append(frozenset(cards))
    if not groups:
        raise ValueError("no link group; accepted: PCI addresses of cards, those of one link group in a line")
    if len(groups) > MOST_GROUPS or len(seen) > MOST_CARDS:
        raise ValueError(
            f"{len(groups)} groups of {len(seen)} cards; accepted: up to {MOST_GROUPS} groups and "
            f"{MOST_CARDS} cards"
        )
    return Links(source=LinkSource.FILE, groups=tuple(sorted(groups, key=min)))


_ROW = re.compile(r"XPU([0-9]{1,4})")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def parse_matrix(text: str, cards: Sequence[str]) -> Links:
    """Return the groups of a matrix by `xpu-smi topo -m`.

    cards: PCI addresses by the library's index, which is the number in `XPU0`
    Raises ValueError if the matrix is not of these cards, or its links make no groups.
    """
    rows: dict[int, list[str]] = {}
    columns: list[str] | None = None
    for line in _COLOURS.sub("", text).splitlines():
        words = line.split()
        if not words or not _ROW.fullmatch(words[0]):
            continue
        if columns is None:
            columns = words
            continue
        number = int(words[0].removeprefix("XPU"))
        if number in rows:
            raise ValueError(f"two rows of XPU{number}")
        rows[number] = words[1:]
    own = [f"XPU{number}" for number in range(len(cards))]
    if columns is None or columns[: len(own)] != own or sorted(rows) != list(range(len(cards))):
        raise ValueError(f"no matrix of {len(cards)} devices XPU0 to XPU{len(cards) - 1}")
    if any(len(row) < len(cards) for row in rows.values()):
        raise ValueError("a row that is shorter than the head")
    joined: dict[str, set[str]] = {card: {card} for card in cards}
    for number, row in rows.items():
        for other, word in enumerate(row[: len(cards)]):
            if (word == Level.SELF) != (number == other):
                raise ValueError(f"XPU{number} and XPU{other}: {word[:_LONGEST_SHOWN]!r}")
            if word.startswith(Level.XL):
                joined[cards[number]].add(cards[other])
    for card, group in joined.items():
        if apart := [other for other in group if joined[other] != group]:
            raise ValueError(
                f"the links of {card} and {min(apart)} make no group, as they lead to different cards"
            )
    groups = {min(group): frozenset(group) for group in joined.values() if len(group) > 1}
    if not groups:
        return Links()
    return Links(source=LinkSource.XPU_SMI, groups=tuple(groups[first] for first in sorted(groups)))
