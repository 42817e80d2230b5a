# SPDX-License-Identifier: Apache-2.0
"""The audit of holders: the answers of all sources -> contradictions, with both sides named.

The kubelet's list omits ordinary init containers, so a device that it does not show may have such a holder.
So a missing entry alone is never a finding. Nor is a grant without a record if the container is older than
the record.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import DeviceKind, Process
from xpu_plugin.model.inventory import Entry, is_old
from xpu_plugin.model.ownership import Listing, pod_of


class AuditKind(StrEnum):
    """The kinds of findings."""

    DOUBLE_HOLDER = "double-holder"
    WITHOUT_GRANT = "holder-without-grant"
    UNKNOWN_GRANT = "unknown-grant"


EVENTS = {
    AuditKind.DOUBLE_HOLDER: "XPUDoubleHolder",
    AuditKind.WITHOUT_GRANT: "XPUHolderWithoutGrant",
    AuditKind.UNKNOWN_GRANT: "XPUGrantUnknown",
}


@frozen
class AuditFinding:
    """One contradiction."""

    kind: AuditKind
    device: str  # its id
    text: str  # both sides, in a sentence
    certain: bool = False  # one list shows both sides, so a second look is not needed


@frozen
class AuditView:
    """The facts at one moment."""

    listing: Listing  # of the kubelet; complete except for ordinary init containers
    checkpoint: Collection[str] | None  # the kubelet's recorded ids; None if it cannot be read
    entries: Mapping[str, Entry]  # the offered devices, by offered id
    recorded: Collection[str] = ()  # ids that this process granted, or that are on record
    settled: Collection[str] = ()  # those granted so long ago that the kubelet must know them
    before: Collection[str] = ()  # ids that containers held before our record begins
    former: Mapping[str, str] = field(
        default_factory=dict
    )  # id -> container, by an earlier kubelet instance only
    ours: Collection[str] = ()  # our present and earlier resource names
    processes: Mapping[str, tuple[Process, ...] | None] = field(default_factory=dict)  # as in `Usage`


def findings(evidence: AuditView) -> frozenset[AuditFinding]:
    """Return all contradictions. One that is not certain counts if it shows twice: the kubelet's list may
    lag."""
    return frozenset(
        [*_double_holders(evidence), *_without_grant(evidence), *_unknown_grants(evidence)],
    )


def _device(id: str, resource: str, evidence: AuditView) -> str | None:
    """Return the offered device of a listed id, by any of its names; None if it is not ours."""
    entries = evidence.entries
    if is_old(id) and not (id in entries and entries[id].resource == resource):
        ours = {*evidence.ours, *(entry.resource for entry in entries.values())}
        here = (own.device.id for own in entries.values() if own.device.node.number == int(id))
        return next(here, None) if resource in ours else None
    return entries[id].device.id if id in entries else None


def _seat(id: str, resource: str, evidence: AuditView) -> str | None:
    """Return the hardware of a listed id; None if it is not ours.

    A VF counts by its address: with another VF count of its card it has another id.
    """
    own = _device(id, resource, evidence)
    if own is None and not re.match(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]($|-)", id):
        return None
    return re.sub(r"-of[0-9]+$", "", own or id)


def _double_holders(evidence: AuditView) -> Iterable[AuditFinding]:
    holders: dict[str, dict[str, str]] = {}
    for holding in evidence.listing.holdings:
        for id in holding.ids:
            if (seat := _seat(id, holding.resource, evidence)) is not None:
                holders.setdefault(seat, {})[holding.container] = f"{id} of {holding.resource}"
    for seat, own in holders.items():
        if len(own) > 1:
            sides = " and by ".join(f"{container} as {what}" for container, what in sorted(own.items()))
            text = f"{seat} is held by {sides}"
            yield AuditFinding(kind=AuditKind.DOUBLE_HOLDER, device=seat, text=text, certain=True)


def _without_grant(evidence: AuditView) -> Iterable[AuditFinding]:
    known = {*evidence.recorded, *evidence.before}
    held = set()
    for holding in evidence.listing.holdings:
        for id in holding.ids:
            own = _device(id, holding.resource, evidence)
            if own is None:
                if holding.resource in evidence.ours and id not in known:
                    text = (
                        f"{holding.container} holds {id} of {holding.resource}, which this plugin neither "
                        "has granted nor offers; another plugin uses that resource name"
                    )
                    yield AuditFinding(kind=AuditKind.WITHOUT_GRANT, device=id, text=text)
                continue
            if not is_old(id) and evidence.entries[id].resource != holding.resource:
                continue
            held.add(own)
            if id not in known:
                text = f"{id} is held by {holding.container}, and this plugin has not granted it"
                yield AuditFinding(kind=AuditKind.WITHOUT_GRANT, device=own, text=text)
    for id, entry in evidence.entries.items():
        pids = [str(own.host_pid) for own in _users(entry, evidence) if own.host_pid is not None]
        unknown = entry.device.id not in held and id not in known
        if pids and unknown and not _written(id, evidence):
            who = ", ".join(pids)
            text = f"{id} at {entry.device.path} is used by process {who}, and no container was granted it"
            yield AuditFinding(kind=AuditKind.WITHOUT_GRANT, device=entry.device.id, text=text)


def _unknown_grants(evidence: AuditView) -> Iterable[AuditFinding]:
    listed: set[str | None] = set()
    for holding in evidence.listing.holdings:
        listed.update(holding.ids)
        listed.update(_device(id, holding.resource, evidence) for id in holding.ids)
    for id, entry in evidence.entries.items():
        if id in listed or entry.device.id in listed or _written(id, evidence):
            continue
        former = evidence.former.get(id)
        if former is not None and pod_of(former) in evidence.listing.pods:
            text = (
                f"{id} was held by {former} before the kubelet was restarted, and the kubelet lists that pod "
                "without it"
            )
            yield AuditFinding(kind=AuditKind.UNKNOWN_GRANT, device=entry.device.id, text=text, certain=True)
        elif id in evidence.settled and (users := _users(entry, evidence)):
            text = (
                f"{id} was granted by this plugin, the kubelet does not know its holder, and "
                f"{len(users)} processes compute at {entry.device.path}"
            )
            yield AuditFinding(kind=AuditKind.UNKNOWN_GRANT, device=entry.device.id, text=text)


def _written(id: str, evidence: AuditView) -> bool:
    """Return whether the checkpoint names a device, or cannot be read."""
    return evidence.checkpoint is None or id in evidence.checkpoint


def _users(entry: Entry, evidence: AuditView) -> tuple[Process, ...]:
    """Return the processes at a device; none for a K200, as the library does not report the half."""
    if entry.device.kind is DeviceKind.HALF:
        return ()
    return evidence.processes.get(entry.device.address) or ()
