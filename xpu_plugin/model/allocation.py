# SPDX-License-Identifier: Apache-2.0
"""Device ids -> a container's devices and environment, or a refusal; and the preferred choice of ids."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model.additions import NOTHING, Additions
from xpu_plugin.model.devices import CONTROL_NODE, CONTROL_PATH, Identity
from xpu_plugin.model.inventory import Entry, Inventory, is_old
from xpu_plugin.model.topology import Place, places


IDS_VARIABLE = "BAIDU_COM_XPU_DEVICE_IDS"
"""Environment variable of a container: its granted ids, comma separated."""

NodeIdentity = Callable[[str], Identity | None]
"""A function: name of a node -> its present identity, None if there is no such character device."""


class Cause(Enum):
    """The cause of a refusal; the service maps it to a gRPC status code."""

    INVALID = "invalid"
    UNKNOWN = "unknown"
    NOT_READY = "not ready"


class Refusal(PluginError):  # noqa: N818 - it is an answer, not an error of ours
    """A refused request. The text names the device, the cause and the next step."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause = cause


@frozen
class ContainerGrant:
    """One container's part of the answer. All paths are the same inside and outside.

    paths: of device nodes
    files: of the host, for reading only
    """

    entries: tuple[Entry, ...]
    paths: tuple[str, ...]
    environment: Mapping[str, str]
    files: tuple[str, ...] = ()


def grant(
    inventory: Inventory,
    resource: str,
    requests: Sequence[Sequence[str]],
    node: NodeIdentity,
    *,
    additions: Additions = NOTHING,
    files: tuple[str, ...] = (),
) -> list[ContainerGrant]:
    """Return one Grant for each container's ids. Raises Refusal for the whole request.

    A device is granted if it is in the inventory, and is healthy or only withheld from new pods. It must also
    still have the node that the inventory shows.
    """
    asked = Counter(id for ids in requests for id in ids)
    if double := sorted(id for id, times in asked.items() if times > 1):
        raise Refusal(Cause.INVALID, f"asked for more than once: {', '.join(double)}")
    if not all(requests):
        raise Refusal(Cause.INVALID, "a container's request names no device")
    for id in asked:
        _check_grantable(lookup(inventory, resource, id))
        check_node(inventory.entries[id], node)
    control = node(CONTROL_NODE)
    if control is None or control[0] != inventory.control:
        raise Refusal(Cause.NOT_READY, f"{CONTROL_PATH} is missing or was replaced; is the driver loaded?")
    return [
        ContainerGrant(
            entries=entries,
            paths=(*(entry.device.path for entry in entries), CONTROL_PATH),
            environment={
                IDS_VARIABLE: ",".join(entry.id for entry in entries),
                **additions.environment(len(entries)),
            },
            files=files,
        )
        for entries in (tuple(inventory.entries[id] for id in ids) for ids in requests)
    ]


def lookup(inventory: Inventory, resource: str, id: str) -> Entry:
    """Return the entry of an id. Raises Refusal."""
    entry = inventory.entries.get(id)
    if entry is None:
        raise Refusal(Cause.UNKNOWN, f"device {id} does not exist on this node (any more)")
    if entry.resource != resource:
        raise Refusal(Cause.UNKNOWN, f"device {id} is offered as {entry.resource}, not as {resource}")
    return entry


def _check_grantable(entry: Entry) -> None:
    if not entry.health.grantable:
        raise Refusal(
            Cause.NOT_READY, f"device {entry.id} is unhealthy: {entry.health.reason}, {entry.health.text}"
        )


def check_node(entry: Entry, node: NodeIdentity) -> None:
    """Refuse a device if its node is gone or belongs to another device now."""
    name = f"xpu{entry.device.node.number}"
    now, then = node(name), entry.device.node.identity
    if now is None:
        raise Refusal(Cause.NOT_READY, f"device {entry.id}: its node {entry.device.path} is gone")
    if now != then:
        raise Refusal(Cause.NOT_READY, f"device {entry.id}: {entry.device.path} is another device's node now")


@frozen
class Kept:
    """The kubelet's own record of grants: the Allocate answers for exactly the devices of one request.

    nodes: the paths of an answer's XPU nodes, sorted; None for an answer that cannot be parsed
    files: the host's paths that each of the answers mounts
    trouble: reason for which the kubelet's record cannot be read
    """

    nodes: frozenset[tuple[str, ...] | None] = frozenset()
    files: frozenset[str] = frozenset()
    trouble: str | None = None


def unrecorded(inventory: Inventory, ids: Iterable[str], granted: Mapping[str, str]) -> bool:
    """Return whether `check_start` needs the kubelet's record, as ours lacks the path of a device."""
    return any(id in inventory.entries and id not in granted and not is_old(id) for id in ids)


def check_start(
    inventory: Inventory,
    resource: str,
    ids: Sequence[str],
    granted: Mapping[str, str],
    node: NodeIdentity,
    *,
    unread: bool = False,
    kept: Kept | None = None,
) -> dict[str, str]:
    """Return the paths on which a starting container may rely. Raises Refusal.

    A container that restarts gets its first nodes again, even if they belong to other devices now. So each
    granted path (`granted`: id -> path) must still be the device's path. An old id needs no record: "2" was
    granted as /dev/xpu2. Health is ignored, as a restart may heal the device. Two things are not ignored: the
    device is not there, or its card's VFs are being changed.

    A device without a granted path counts as granted by its present path if the kubelet's record proves that:
    the container has the present nodes of all its devices, and no other XPU node.

    unread: the record could not be read yet, so `granted` lacks its content
    kept: the kubelet's record; None: it has no such container
    """
    paths = {}
    for id in ids:
        entry = lookup(inventory, resource, id)
        if entry.health.in_change or entry.health.lost:
            _check_grantable(entry)
        then = f"/dev/xpu{id}" if is_old(id) else granted.get(id)
        if then is None and unread:
            raise Refusal(
                Cause.NOT_READY,
                f"device {id}: the record of the node it was granted as, grants.json in --state-dir, cannot "
                "be read for now; the kubelet starts the container again later",
            )
        if then is None:
            here = {other: lookup(inventory, resource, other).device.path for other in ids}
            _check_kept(id, here.values(), kept or Kept())
            granted = {**here, **granted}
            then = granted[id]
        if then != entry.device.path:
            raise Refusal(
                Cause.NOT_READY,
                f"device {id} was granted as {then} and is {entry.device.path} now; delete the pod so "
                "that it is granted anew",
            )
        check_node(entry, node)
        paths[id] = then
    return paths


def check_files(kept: Kept, absent: Mapping[str, str]) -> None:
    """Refuse the start of a container that mounts a missing file: the runtime would make a directory of it.

    absent: host files that are missing -> the reason
    """
    if lost := sorted(kept.files.intersection(absent)):
        named = ", ".join(f"{path} ({absent[path]})" for path in lost)
        raise Refusal(
            Cause.NOT_READY,
            f"this container mounts {named}, which the host lacks now; put it back, and the kubelet starts "
            "the container by itself, or delete the pod so that it is granted anew",
        )


def _check_kept(id: str, here: Collection[str], kept: Kept) -> None:
    """Refuse a device if the kubelet's record does not prove that its container has these nodes.

    The record says which nodes a container has, and not which device each of them was. It has no order in
    time: an ended container may be in it beside the one that starts. So all its answers must agree.

    here: present paths of all devices of the container
    """
    if kept.trouble is not None:
        raise Refusal(
            Cause.NOT_READY,
            f"device {id}: there is no record of the node it was granted as, and {kept.trouble}; the kubelet "
            "starts the container again later",
        )
    now = tuple(sorted(here))
    if kept.nodes == {now}:
        return
    if not kept.nodes:
        why = "the kubelet's checkpoint has no container with exactly its devices"
    elif None in kept.nodes:
        why = "the answer in the kubelet's checkpoint cannot be parsed"
    elif len(kept.nodes) > 1:
        why = "containers in the kubelet's checkpoint differ in its node"
    else:
        [nodes] = kept.nodes
        why = f"the kubelet's checkpoint has {', '.join(nodes or ()) or 'no XPU'} for {', '.join(now)}"
    raise Refusal(
        Cause.NOT_READY,
        f"device {id}: there is no record of the node it was granted as, and {why}; delete the pod so that "
        "it is granted anew",
    )


# --- preference ---------------------------------------------------------------------------------


def prefer(
    inventory: Inventory, resource: str, available: Sequence[str], must: Sequence[str], size: int
) -> list[str]:
    """Choose `size` of the available ids, the `must` ids among them, by the links of their cards.

    For whole cards it is the choice with the least of these tuples:

    1. link groups (`topology.places`) of which it has a card
    2. link groups that it breaks: all their cards are available, and it takes some of them
    3. available cards that it leaves in the groups of which it has a card
    4. NUMA nodes; 5. PCIe switches, where a card without a shared switch counts as one
    6. and 7. the same as 2. and 3. for switches
    8. the ids, sorted

    So a request of a group's size gets a whole group, and a small one gets the rest of a broken group.

    Where cards are split, the choice is in one NUMA node, and of as few cards as possible. Within that it is
    the tightest fit, so that whole NUMA nodes and unsplit cards stay free. So it is also for whole cards that
    have too many choices.

    Old ids come last: a kubelet frees the ids of an ended container only at its next grant. In any doubt the
    result is empty: an error here would fail the pod.
    """
    entries = inventory.entries
    ids = set(available)
    unknown = any(id not in entries or entries[id].resource != resource for id in ids)
    if unknown or len(ids) != len(available) or len(set(must)) != len(must) or not ids.issuperset(must):
        return []
    if not max(len(must), 1) <= size <= len(ids):
        return []

    lasting = {id for id in ids if not is_old(id)} | set(must)
    pool = lasting.union(sorted(ids - lasting)[: max(size - len(lasting), 0)])
    if len(pool) <= MOST_WEIGHED and len({entries[id].device.card for id in pool}) == len(pool):
        cells = _Cells(inventory, pool, must)
        if cells.choices(size) <= MOST_CHOICES:
            return cells.best(size)
    return _tightest(entries, pool, must, size)


MOST_WEIGHED = 16  # cards; nodes have 16 at most
MOST_CHOICES = 2000  # of which each takes some microseconds


class _Cells:
    """The available whole cards, divided into cells of equal ones: one link group, NUMA node and PCIe switch.

    Cards of a cell differ in their ids only. So a choice is a number of cards for each cell.
    """

    def __init__(self, inventory: Inventory, pool: Collection[str], must: Sequence[str]) -> None:
        entries = inventory.entries
        self._must = list(must)
        found = places([entry.device for entry in entries.values()], inventory.links)
        cells: dict[Place, list[str]] = defaultdict(list)
        for id in (*sorted(must), *sorted(set(pool).difference(must))):
            cells[found[entries[id].device.card]].append(id)
        self._ids, self._numa = list(cells.values()), [place.numa for place in cells]
        self._least = [sum(id in self._must for id in ids) for ids in self._ids]
        sizes = [len(ids) for ids in self._ids]
        self._groups = _Blocks(
            [place.group or "" for place in cells], sizes, [place.group or "" for place in found.values()]
        )
        self._switches = _Blocks(
            [place.switch for place in cells], sizes, [place.switch for place in found.values()]
        )

    def choices(self, size: int) -> int:
        """Return the number of choices of so many cards."""
        ways = [1] + [0] * size  # by the number of cards, of the cells so far
        for ids, least in zip(self._ids, self._least, strict=True):
            ways = [sum(ways[max(n - len(ids), 0) : max(n - least + 1, 0)]) for n in range(size + 1)]
        return ways[size]

    def best(self, size: int) -> list[str]:
        """Return the ids of the best choice by the rule of `prefer`, the `must` ids first."""
        keys = {counts: self._key(counts) for counts in self._counts(0, size)}
        least = min(keys.values())
        chosen = min(self._chosen(counts) for counts, key in keys.items() if key == least)
        return self._must + [id for id in chosen if id not in self._must]

    def _chosen(self, counts: Sequence[int]) -> list[str]:
        return sorted(id for ids, count in zip(self._ids, counts, strict=True) for id in ids[:count])

    def _counts(self, cell: int, wanted: int) -> Iterator[tuple[int, ...]]:
        """Yield the choices of so many cards from this cell on."""
        if cell == len(self._ids):
            yield ()
            return
        least, most = self._least[cell], len(self._ids[cell])
        others = range(cell + 1, len(self._ids))
        least = max(least, wanted - sum(len(self._ids[n]) for n in others))
        most = min(most, wanted - sum(self._least[n] for n in others))
        for count in range(least, most + 1):
            for rest in self._counts(cell + 1, wanted - count):
                yield (count, *rest)

    def _key(self, counts: Sequence[int]) -> tuple[int, ...]:
        """Return the tuple of `prefer` without the ids."""
        numa_nodes = {numa for numa, count in zip(self._numa, counts, strict=True) if count}
        return (*self._groups.cost(counts), len(numa_nodes), *self._switches.cost(counts))


class _Blocks:
    """The link groups, or the PCIe switches, of cells. A card without one is a block of its own.

    names: of each cell's block
    sizes: available cards of each cell
    all: the name of each card's block on the node, also of cards that are not available
    """

    def __init__(self, names: Sequence[str | None], sizes: Sequence[int], all: Iterable[str | None]) -> None:
        self._names = names
        self._free: Counter[str | None] = Counter()
        for name, size in zip(names, sizes, strict=True):
            self._free[name] += size
        self._whole = {name for name, times in Counter(all).items() if times == self._free[name]}

    def cost(self, counts: Sequence[int]) -> tuple[int, int, int]:
        """Return the number of a choice's blocks and of those it breaks, and the cards that it leaves."""
        taken: dict[str | None, int] = {}
        for name, count in zip(self._names, counts, strict=True):
            if count:
                taken[name] = taken.get(name, 0) + count
        blocks = taken.pop(None, 0) + len(taken)
        breaks = left = 0
        for name, count in taken.items():
            if rest := self._free[name] - count:
                left += rest
                breaks += name in self._whole
        return blocks, breaks, left


def _tightest(
    entries: Mapping[str, Entry], pool: Collection[str], must: Sequence[str], size: int
) -> list[str]:
    """Choose by NUMA node and card, at a cost linear in the number of devices."""
    chosen = list(must)
    free: dict[int | None, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for id in sorted(set(pool) - set(must)):
        free[entries[id].device.numa][entries[id].device.card].append(id)
    begun = {entries[id].device.card for id in must}
    rooms = {numa: _Room(cards, begun) for numa, cards in free.items()}
    numa_nodes = {entries[id].device.numa for id in must}
    while (wanted := size - len(chosen)) > 0:
        numa = min(  # of a few
            rooms, key=lambda numa: (numa not in numa_nodes, *_fit(rooms[numa].count, wanted), str(numa))
        )
        numa_nodes.add(numa)
        chosen += rooms[numa].take(wanted)
        if not rooms[numa].count:
            del rooms[numa]
    return chosen


class _Room:
    """The available ids of one NUMA node, by card.

    Taking them all costs time linear in their number, apart from sorting the cards once.
    """

    def __init__(self, cards: Mapping[str, list[str]], begun: Collection[str]) -> None:
        self._cards = cards
        self.count = sum(map(len, cards.values()))
        # Sorted so that the largest card is last; of equal ones, the first by name.
        order = sorted(cards, key=lambda card: (-len(cards[card]), card), reverse=True)
        self._begun = [card for card in order if card in begun]
        self._others = [card for card in order if card not in begun]

    def take(self, wanted: int) -> list[str]:
        """Take so many ids of one card, or all that it has.

        A card that is begun already comes first; among these, the card that fits best.
        """
        order = self._begun or self._others
        if len(self._cards[order[-1]]) < wanted:
            card = order.pop()
        else:  # this happens once: it is the last card
            card = min(order, key=lambda card: (*_fit(len(self._cards[card]), wanted), card))
            order.remove(card)
        ids = self._cards[card]
        self.count -= len(ids)
        return ids[:wanted]


def _fit(room: int, wanted: int) -> tuple[bool, int]:
    """Order rooms: sufficient ones first, the tightest of them; then the largest of the insufficient ones."""
    return (room < wanted, room - wanted if room >= wanted else -room)
