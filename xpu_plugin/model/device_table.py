# SPDX-License-Identifier: Apache-2.0
"""Devices and their holders as sub-commands show them: one row of plain values each."""

from collections.abc import Iterable

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device
from xpu_plugin.model.health import LOST
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
from xpu_plugin.model.ownership import Holding


@frozen
class Row:
    """One device, in JSON values. Its names are an interface for programs: none is renamed or removed."""

    id: str
    card: str
    kind: str
    model: str
    path: str
    index: int
    numa: int | None
    memory_bytes: int
    state: int | None
    health: str  # the kubelet's word
    reason: str | None  # a stable code for an unhealthy device
    resource: str  # under which it is offered, or would be
    text: str  # a sentence about the reason
    offered_as: str | None  # the offered id; None if it is not offered
    max_vfs: int | None  # the maximum of VFs; None if unknown
    vf_counts: tuple[int, ...]  # the accepted numbers of VFs besides 0; empty if none or unknown
    serial: str  # empty if the library reports none


def rows(facts: Facts, policy: Policy) -> tuple[Row, ...]:
    """Return a row for each known device, lost ones too, sorted by id."""
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
        vf_counts=device.vf_counts or (),
        serial=device.serial,
    )


def holders(holdings: Iterable[Holding], facts: Facts, policy: Policy) -> dict[str, tuple[str, ...]]:
    """Return device id -> the containers that hold it, by any granted id.

    An own id counts under every resource name, as the hardware is the same. A former id ("2" for /dev/xpu2)
    counts under our names only. A stale id of an earlier split counts for all present devices of its card.
    Other ids without a device are left out.
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
