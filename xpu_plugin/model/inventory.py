# SPDX-License-Identifier: Apache-2.0
"""The one picture: facts -> Inventory. Readers see only whole pictures, each with its generation."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import (
    Device,
    DeviceKind,
    Found,
    matches,
    may_be_serial,
    parent_by_rule,
    resource_name,
)
from xpu_plugin.model.health import LOST, Health, card_held, judge
from xpu_plugin.xpuml import ReturnCode


@frozen
class Policy:
    """The administrator's choice of offered devices and resource names."""

    resource: str
    per_profile: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def offers(self, device: Device) -> bool:
        """Return whether to offer a device: never a PF with VFs; `deny` beats `allow`; empty `allow` allows
        all."""
        if device.kind is DeviceKind.PF or (self.deny and matches(device, self.deny)):
            return False
        return not self.allow or matches(device, self.allow)

    def resource_of(self, device: Device) -> str:
        return resource_name(device, base=self.resource, per_profile=self.per_profile)

    def unmatched(self, devices: Iterable[Device]) -> list[str]:
        """Return the names in `allow` and `deny` that match no device: likely typing errors."""
        devices = list(devices)
        return [
            name
            for name in (*self.allow, *self.deny)
            if not any(matches(device, (name,)) for device in devices)
        ]


def unusable_serials(policy: Policy, devices: Collection[Device]) -> str | None:
    """Return why a policy cannot be applied: it names serial numbers and the library reports none. Else
    None."""
    if not devices or any(device.serial for device in devices):
        return None
    names = [name for name in policy.unmatched(devices) if may_be_serial(name)]
    if not names:
        return None
    return (
        f"--allow or --deny names {', '.join(names)}, and this libxpuml reports no serial numbers: "
        "name devices by PCI address or model"
    )


FORMER_RESOURCE = "baidu.com/xpu"
"""The resource name of the former plugin; ours may differ."""


LONGEST_NUMBER = 4  # digits of the number of a node /dev/xpuN
_OLD_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def is_old(id: str) -> bool:
    """Return whether an id is one of the former plugin: N of /dev/xpuN, in decimal."""
    return _OLD_ID.fullmatch(id) is not None


def may_be_ours(id: str) -> bool:
    """Return whether an id has our form, or the former plugin's form with a possible node number."""
    if len(id) <= LONGEST_NUMBER and is_old(id):
        return True
    return _ADDRESS.fullmatch(id.partition("-")[0]) is not None


def our_resources(devices: Iterable[Device], policy: Policy) -> frozenset[str]:
    """Return the resource names under which these devices are, were or may have been offered."""
    bases = (policy.resource, FORMER_RESOURCE)
    profiles = {resource_name(device, base=base, per_profile=True) for device in devices for base in bases}
    return frozenset(profiles.union(bases))


def held_otherwise(
    held: Iterable[tuple[str, str]], devices: Mapping[str, Device], policy: Policy
) -> dict[str, str]:
    """Return the (id, resource) pairs that containers hold and that `entries` would offer otherwise.

    Only our resource names count: other plugins may use numbers or PCI addresses as ids.
    """
    ours = our_resources(devices.values(), policy)
    return {
        id: resource
        for id, resource in sorted(held)
        if resource in ours
        and (is_old(id) or (id in devices and policy.resource_of(devices[id]) != resource))
    }


@frozen
class Facts:
    """All known facts, submitted by loops. No fact is derived from another one."""

    devices: Mapping[str, Device] = field(
        default_factory=dict
    )  # of the last scan, by id; PFs and denied ones too
    lost: Mapping[str, Device] = field(default_factory=dict)  # found before and missing now, by id
    verdicts: Mapping[str, Health] = field(
        default_factory=dict
    )  # by device id; a lost one without any is LOST
    # Id -> resource of a device that a container holds by another id or resource than it would be offered:
    # by an old id ("2" is the device at /dev/xpu2), or by a name from before a change of options.
    held: Mapping[str, str] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()  # ids that containers may hold by our own grants, at the last scan
    kept_back: Mapping[str, Health] = field(
        default_factory=dict
    )  # card -> why it is withheld, although healthy
    # Device id -> why it is withheld: a container holds it and the kubelet does not count that.
    withheld: Mapping[str, Health] = field(default_factory=dict)
    control: int | None = None  # st_rdev of the control node at the last scan


def after_scan(
    facts: Facts, found: Found, *, forget: bool = False, claimed: Collection[str] | None = None
) -> Facts:
    """Return the facts with a scan taken in.

    A device that the scan misses is kept as lost, unless its card was split anew, or `forget` is set.
    claimed: as in Facts; None keeps that of before
    """
    splits: dict[str, set[str]] = {}
    for device in found.devices.values():
        splits.setdefault(device.card, set()).add(device.split)
    known = {} if forget else {**facts.lost, **facts.devices}
    claims = facts.claimed if claimed is None else frozenset(claimed)
    return replace(
        facts,
        devices=found.devices,
        lost={
            id: device
            for id, device in known.items()
            if id not in found.devices and device.split in splits.get(device.card, {device.split})
        },
        verdicts={
            id: first_verdict(device, held=may_be_held(device, claims | facts.held.keys()))
            for id, device in found.devices.items()
        },
        claimed=claims,
        control=found.control,
    )


def may_be_held(device: Device, ids: Collection[str]) -> bool:
    """Return whether a device has one of these ids, or had it with the former plugin."""
    return device.id in ids or str(device.node.number) in ids


def first_verdict(device: Device, *, held: bool) -> Health:
    """Return a device's health by the scan that found it. held: a container may have it"""
    if device.state is not None:
        return judge(ReturnCode.SUCCESS, device.state, device.arch, held=held)
    return judge(device.failure.code if device.failure else ReturnCode.UNKNOWN, None)


def after_verdicts(facts: Facts, verdicts: Mapping[str, Health]) -> Facts:
    """Return the facts with a sweep's verdicts; other devices keep theirs. Without news, the same facts."""
    if verdicts.items() <= facts.verdicts.items():
        return facts
    return replace(facts, verdicts={**facts.verdicts, **verdicts})


def numbered(devices: Mapping[str, Device], lost: Mapping[str, Device]) -> dict[int, str]:
    """Return N -> the id of the device at /dev/xpuN: the present one, else the first of those lost."""
    return {
        device.node.number: id
        for known in (lost, devices)
        for id, device in sorted(known.items(), reverse=True)
    }


def device_of(id: str, facts: Facts) -> str | None:
    """Return the id of the device that an id stands for: its own, or N for /dev/xpuN. None if it is not
    ours."""
    if is_old(id):
        return numbered(facts.devices, facts.lost).get(int(id))
    return id if id in facts.devices or id in facts.lost else None


_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def card_of(id: str, facts: Facts) -> str | None:
    """Return the card of a device id, also of a device that is gone; None if it is unknown.

    An old id ("2") is the device at /dev/xpu2.
    """
    known = {**facts.lost, **facts.devices}
    if id in known:
        return known[id].card
    if is_old(id):
        return next((d.card for d in reversed(known.values()) if d.node.number == int(id)), None)
    address = id.partition("-")[0]
    if not _ADDRESS.fullmatch(address):
        return None
    by_address = {device.address: device.card for device in known.values()}
    # The VF of a card that is split otherwise now has the address that the rule gives.
    card = by_address.get(address, parent_by_rule(address) if "-of" in id else address)
    return card if card in by_address.values() else None


def stale_ids(facts: Facts) -> dict[str, list[str]]:
    """Return stale ids per card: ids of an earlier VF count that containers may still hold.

    The kubelet does not count the card's present devices as theirs, and would allocate the hardware twice.
    """
    found: dict[str, list[str]] = {}
    old = {int(id) for id in facts.held if is_old(id)}
    # For a PF that has VFs now, "2" is an id from when it had none.
    for device in facts.devices.values() if old else ():
        if _is_pf(device) and device.node.number in old:
            found.setdefault(device.card, []).append(str(device.node.number))
    gone = [
        id
        for id in sorted(facts.claimed)
        if not is_old(id) and (id not in facts.devices or _is_pf(facts.devices[id]))
    ]
    splits = {device.card: device.split for device in facts.devices.values()} if gone else {}
    for id in gone:
        card = card_of(id, facts)
        if card in splits and splits[card] != _split_of(id):
            found.setdefault(card, []).append(id)
    return found


def _is_pf(device: Device) -> bool:
    return device.kind is DeviceKind.PF


def _split_of(id: str) -> str:
    """Return the split of a card, as in `Device.split`, of which a device has this id."""
    suffix = id.partition("-")[2]
    return "half" if suffix.startswith("half") else suffix or "whole"


@frozen
class Entry:
    """An offered device: by its own id and resource, or by those under which a container holds it."""

    id: str
    resource: str
    device: Device
    health: Health


@frozen
class Inventory:
    """One picture of the node."""

    generation: int
    control: int | None
    entries: Mapping[str, Entry]  # by the offered id, sorted

    def of(self, resource: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.resource == resource]

    @property
    def resources(self) -> frozenset[str]:
        return frozenset(entry.resource for entry in self.entries.values())


def entries(facts: Facts, policy: Policy) -> dict[str, Entry]:
    """Return the offered devices by unique ids. Equal facts and policy give equal entries."""
    known = {**facts.lost, **facts.devices}
    others = stale_ids(facts)
    at = numbered(facts.devices, facts.lost)
    offered = {}
    for own, device in sorted(known.items()):
        if not policy.offers(device):
            continue
        lost = own not in facts.devices
        old = str(device.node.number)
        # A withheld device is listed under the id that its other holder knows.
        is_held = old in facts.held and at[device.node.number] == own and own not in facts.withheld
        id = old if is_held else own
        offered[id] = Entry(
            id=id,
            resource=facts.held.get(id, policy.resource_of(device)),
            device=device,
            health=_absence(facts, own) if lost else _health(facts, device, others),
        )
    return offered


def _absence(facts: Facts, id: str) -> Health:
    """Return the health of a lost device. It is never healthy."""
    verdict = facts.verdicts.get(id, LOST)
    return LOST if verdict.healthy else verdict


def _health(facts: Facts, device: Device, held: Mapping[str, Collection[str]]) -> Health:
    """Return a device's health. An unhealthy verdict wins over `kept_back`. held: the result of
    `stale_ids`"""
    verdict = facts.verdicts[device.id]
    if not verdict.healthy:
        return verdict
    if device.card in held:
        return card_held(held[device.card])
    if device.id in facts.withheld:
        return facts.withheld[device.id]
    return facts.kept_back.get(device.card, verdict)
