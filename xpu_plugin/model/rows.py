# SPDX-License-Identifier: Apache-2.0
"""Devices as sub-commands show them: one row of plain values each, and who holds it."""

from collections.abc import Iterable

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device
from xpu_plugin.model.health import LOST
from xpu_plugin.model.holders import Holding
from xpu_plugin.model.inventory import (
    Entry,
    Facts,
    Policy,
    entries,
    is_old,
    numbered,
    our_resources,
    stale_ids,
)


@frozen
class Row:
    """One device, in values that JSON knows. Programs read these names: they stay, and others are only added.

    health, reason, text: the kubelet's word, a stable code and a sentence for what is unhealthy
    resource: what it is offered as, or would be; offered_as: the id under which it is, None if it is not
    max_vfs: VFs that its driver would allow, None where that is not known
    """

    id: str
    card: str
    kind: str
    model: str
    path: str
    index: int
    numa: int | None
    memory_bytes: int
    state: int | None
    health: str
    reason: str | None
    resource: str
    text: str
    offered_as: str | None
    max_vfs: int | None


def rows(facts: Facts, policy: Policy) -> tuple[Row, ...]:
    """A row for each device that is known, lost ones too, in the order of their ids."""
    offered = {entry.device.id: entry for entry in entries(facts, policy).values()}
    known = {**facts.lost, **facts.devices}
    return tuple(_row(device, offered.get(id), facts, policy) for id, device in sorted(known.items()))


def _row(device: Device, entry: Entry | None, facts: Facts, policy: Policy) -> Row:
    health = entry.health if entry else facts.verdicts.get(device.id, LOST)
    return Row(
        id=device.id,
        card=device.card,
        kind=str(device.kind),
        model=device.model,
        path=device.path,
        index=device.index,
        numa=device.numa,
        memory_bytes=device.memory_bytes,
        state=device.state,
        health=str(health),
        reason=health.reason,
        resource=entry.resource if entry else policy.resource_of(device),
        text=health.text,
        offered_as=entry.id if entry else None,
        max_vfs=device.max_vfs,
    )


def holders(holdings: Iterable[Holding], facts: Facts, policy: Policy) -> dict[str, tuple[str, ...]]:
    """Device id -> the containers that hold it, by whatever id they were granted.

    An own id counts under every resource name, as the hardware is the same; a former one ("2", for whatever
    is /dev/xpu2) under names that are ours only; one of a card as it was split before, for all that the card
    is now. What is no device any more otherwise is left out.
    """
    known = {**facts.lost, **facts.devices}
    ours = our_resources(known.values(), policy)
    at = numbered(facts.devices, facts.lost)
    cards = {id: card for card, ids in stale_ids(facts).items() for id in ids}
    held: dict[str, set[str]] = {}
    for holding in holdings:
        for id in holding.ids:
            own = at.get(int(id)) if is_old(id) and holding.resource in ours else id
            others = (
                [other.id for other in facts.devices.values() if other.card == cards[id]]
                if id in cards
                else ()
            )
            for each in {own, *others} & known.keys():
                held.setdefault(each, set()).add(holding.container)
    return {id: tuple(sorted(containers)) for id, containers in sorted(held.items())}
