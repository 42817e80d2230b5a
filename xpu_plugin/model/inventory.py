# SPDX-License-Identifier: Apache-2.0
"""The one picture: facts -> Inventory. Readers see whole pictures only, each with its generation."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import (
    Device,
    Found,
    Kind,
    matches,
    may_be_serial,
    parent_by_rule,
    resource_name,
)
from xpu_plugin.model.health import LOST, Health, card_held, judge
from xpu_plugin.xpuml import ReturnCode


@frozen
class Policy:
    """What the administrator wants offered, and under which names."""

    resource: str
    per_profile: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def offers(self, device: Device) -> bool:
        """A PF with VFs is never offered; `deny` beats `allow`; an empty `allow` allows all."""
        if device.kind is Kind.PF or (self.deny and matches(device, self.deny)):
            return False
        return not self.allow or matches(device, self.allow)

    def resource_of(self, device: Device) -> str:
        return resource_name(device, base=self.resource, per_profile=self.per_profile)

    def unmatched(self, devices: Iterable[Device]) -> list[str]:
        """What `allow` and `deny` name and no device is: likely a slip of the pen."""
        devices = list(devices)
        return [
            name
            for name in (*self.allow, *self.deny)
            if not any(matches(device, (name,)) for device in devices)
        ]


def untold(policy: Policy, devices: Collection[Device]) -> str | None:
    """Why a policy cannot be followed, a sentence: it names serial numbers, and the library tells none. None
    when it can be."""
    if not devices or any(device.serial for device in devices):
        return None
    names = [name for name in policy.unmatched(devices) if may_be_serial(name)]
    if not names:
        return None
    return (
        f"--allow or --deny names {', '.join(names)}, and this libxpuml tells no serial numbers: "
        "name devices by PCI address or model"
    )


FORMER_RESOURCE = "baidu.com/xpu"
"""The name that the former plugin offered everything under, whatever ours is."""


LONGEST_NUMBER = 4  # digits of the number of a node /dev/xpuN
_OLD_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def is_old(id: str) -> bool:
    """Whether an id is one that the former plugin gave: N of /dev/xpuN, in decimal."""
    return _OLD_ID.fullmatch(id) is not None


def may_be_ours(id: str) -> bool:
    """Whether an id has the form of ours, or of the former plugin's with the number of a node that there may
    be."""
    if len(id) <= LONGEST_NUMBER and is_old(id):
        return True
    return _ADDRESS.fullmatch(id.partition("-")[0]) is not None


def our_resources(devices: Iterable[Device], policy: Policy) -> frozenset[str]:
    """The names that these devices are, were or may have been offered under."""
    bases = (policy.resource, FORMER_RESOURCE)
    profiles = {resource_name(device, base=base, per_profile=True) for device in devices for base in bases}
    return frozenset(profiles.union(bases))


def held_otherwise(
    held: Iterable[tuple[str, str]], devices: Mapping[str, Device], policy: Policy
) -> dict[str, str]:
    """Of (id, resource) pairs that containers hold, those that `entries` would offer otherwise.

    Only under names that are ours: others' plugins may well use numbers or PCI addresses as ids.
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
    """All that is known. Loops submit changes; nothing in here is derived from anything else in here.

    devices: of the last scan, by id, PFs and denied ones too; control: its control node's st_rdev
    lost: found before and missing now, by id
    verdicts: the last word on each device's health; a lost one without any is LOST
    held: id -> resource, where a container holds a device otherwise than it would be offered: under an
        old id ("2" stands for whatever is /dev/xpu2), or under a name from before a change of options
    claimed: ids of which containers may hold the device by our own word, when the last scan was taken in
    kept_back: card -> why new pods are to be kept off it although it is not sick
    withheld: the same by device id, as a container holds that device and the kubelet does not count it
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    lost: Mapping[str, Device] = field(default_factory=dict)
    verdicts: Mapping[str, Health] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()
    kept_back: Mapping[str, Health] = field(default_factory=dict)
    withheld: Mapping[str, Health] = field(default_factory=dict)
    control: int | None = None


def after_scan(
    facts: Facts, found: Found, *, forget: bool = False, claimed: Collection[str] | None = None
) -> Facts:
    """Take in a scan. What it misses stays known as lost, unless its card was split anew or `forget`.

    Each device found has a verdict by what the scan itself heard. claimed: as in Facts; None: as before
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
    """Whether a device is one of these ids, be it a former one."""
    return device.id in ids or str(device.node.number) in ids


def first_verdict(device: Device, *, held: bool) -> Health:
    """A device's health by the scan that found it. held: whether a container may have it"""
    if device.state is not None:
        return judge(ReturnCode.SUCCESS, device.state, device.arch, held=held)
    return judge(device.failure.code if device.failure else ReturnCode.UNKNOWN, None)


def after_verdicts(facts: Facts, verdicts: Mapping[str, Health]) -> Facts:
    """Take in what a sweep heard; devices it does not speak of keep their verdict. The same facts if
    nothing is new."""
    if verdicts.items() <= facts.verdicts.items():
        return facts
    return replace(facts, verdicts={**facts.verdicts, **verdicts})


def numbered(devices: Mapping[str, Device], lost: Mapping[str, Device]) -> dict[int, str]:
    """N -> the id of the device at /dev/xpuN: the one that is there, else the first of the lost ones that had
    it one after the other."""
    return {
        device.node.number: id
        for known in (lost, devices)
        for id, device in sorted(known.items(), reverse=True)
    }


def device_of(id: str, facts: Facts) -> str | None:
    """The id of the device that an id stands for: its own, or N for /dev/xpuN. None if it is none of ours."""
    if is_old(id):
        return numbered(facts.devices, facts.lost).get(int(id))
    return id if id in facts.devices or id in facts.lost else None


_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def card_of(id: str, facts: Facts) -> str | None:
    """The card that a device id is of, also one whose device is not there any more; None if nobody knows.

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
    # A VF of a card that is split otherwise now sits where the rule says.
    card = by_address.get(address, parent_by_rule(address) if "-of" in id else address)
    return card if card in by_address.values() else None


def stale_ids(facts: Facts) -> dict[str, list[str]]:
    """Card -> ids under which containers may hold it as it was split before. The kubelet counts nothing of
    what the card is now as theirs, and would give it to others."""
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
    return device.kind is Kind.PF


def _split_of(id: str) -> str:
    """How its card is split for a device to have this id: as in `Device.split`."""
    suffix = id.partition("-")[2]
    return "half" if suffix.startswith("half") else suffix or "whole"


@frozen
class Entry:
    """A device as it is offered: under its own id and resource, or as a container still holds it."""

    id: str
    resource: str
    device: Device
    health: Health


@frozen
class Inventory:
    """One picture. entries: what is offered, by the id it is offered under, in the order of ids."""

    generation: int
    control: int | None
    entries: Mapping[str, Entry]

    def of(self, resource: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.resource == resource]

    @property
    def resources(self) -> frozenset[str]:
        return frozenset(entry.resource for entry in self.entries.values())


def entries(facts: Facts, policy: Policy) -> dict[str, Entry]:
    """What is offered. Equal facts and policy give equal entries; ids are unique."""
    known = {**facts.lost, **facts.devices}
    others = stale_ids(facts)
    at = numbered(facts.devices, facts.lost)
    offered = {}
    for own, device in sorted(known.items()):
        if not policy.offers(device):
            continue
        lost = own not in facts.devices
        old = str(device.node.number)
        # Withheld, it is listed as its other holder knows it.
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
    """A lost device is never healthy, whatever was heard of it."""
    verdict = facts.verdicts.get(id, LOST)
    return LOST if verdict.healthy else verdict


def _health(facts: Facts, device: Device, held: Mapping[str, Collection[str]]) -> Health:
    """What is sick is called so, kept back or not. held: `estranged`"""
    verdict = facts.verdicts[device.id]
    if not verdict.healthy:
        return verdict
    if device.card in held:
        return card_held(held[device.card])
    if device.id in facts.withheld:
        return facts.withheld[device.id]
    return facts.kept_back.get(device.card, verdict)
