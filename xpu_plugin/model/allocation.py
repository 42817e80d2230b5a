# SPDX-License-Identifier: Apache-2.0
"""Device ids -> a container's devices and environment, or a refusal; and the preferred choice of ids."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import CONTROL_NODE, CONTROL_PATH, Identity
from xpu_plugin.model.inventory import Entry, Inventory, is_old


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
    """One container's part of the answer: node paths (the same inside and outside) and environment."""

    entries: tuple[Entry, ...]
    paths: tuple[str, ...]
    environment: Mapping[str, str]


def grant(
    inventory: Inventory, resource: str, requests: Sequence[Sequence[str]], node: NodeIdentity
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
    return [_grant(tuple(inventory.entries[id] for id in ids)) for ids in requests]


def _grant(entries: tuple[Entry, ...]) -> ContainerGrant:
    return ContainerGrant(
        entries=entries,
        paths=(*(entry.device.path for entry in entries), CONTROL_PATH),
        environment={IDS_VARIABLE: ",".join(entry.id for entry in entries)},
    )


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
    trouble: reason for which the kubelet's record cannot be read
    """

    nodes: frozenset[tuple[str, ...] | None] = frozenset()
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
    """Choose `size` of the available ids: in one NUMA node, and VFs or halves of as few cards as possible.

    Within that, prefer the tightest fit, so that whole NUMA nodes and unsplit cards stay free. Old ids come
    last: a kubelet frees the ids of an ended container only at its next grant. In any doubt the result is
    empty: an error here would fail the pod.
    """
    entries = inventory.entries
    ids = set(available)
    unknown = any(id not in entries or entries[id].resource != resource for id in ids)
    if unknown or len(ids) != len(available) or len(set(must)) != len(must) or not ids.issuperset(must):
        return []
    if not max(len(must), 1) <= size <= len(ids):
        return []

    chosen = list(must)
    free: dict[int | None, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    lasting = {id for id in ids if not is_old(id)} | set(must)
    spare = sorted(ids - lasting)[: max(size - len(lasting), 0)]
    for id in sorted(lasting.union(spare) - set(must)):
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
