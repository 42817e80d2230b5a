# SPDX-License-Identifier: Apache-2.0
"""The one picture: facts -> Inventory. Readers see whole pictures only, each with its generation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from xpu_plugin.model.devices import Device, Found, Kind, matches, resource_name
from xpu_plugin.model.health import LOST, Health, judge
from xpu_plugin.xpuml import ReturnCode


@dataclass(frozen=True, slots=True, kw_only=True)
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


FORMER_RESOURCE = "baidu.com/xpu"
"""The name that the former plugin offered everything under, whatever ours is."""


def is_old(id: str) -> bool:
    """Whether an id is one that the former plugin gave: N of /dev/xpuN, in decimal."""
    return id.isdecimal() and str(int(id)) == id


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known. Loops submit changes; nothing in here is derived from anything else in here.

    devices: of the last scan, by id, PFs and denied ones too; control: its control node's st_rdev
    lost: found before and missing now, by id
    verdicts: the last word on each device's health; a lost one without any is LOST
    held: id -> resource, where a container holds a device otherwise than it would be offered: under an
        old id ("2" stands for whatever is /dev/xpu2), or under a name from before a change of options
    kept_back: card -> why new pods are to be kept off it although it is not sick
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    lost: Mapping[str, Device] = field(default_factory=dict)
    verdicts: Mapping[str, Health] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    kept_back: Mapping[str, Health] = field(default_factory=dict)
    control: int | None = None


def after_scan(facts: Facts, found: Found, *, forget: bool = False) -> Facts:
    """Take in a scan. What it misses stays known as lost, unless its card was split anew or `forget`.

    Each device found has a verdict by what the scan itself heard.
    """
    splits: dict[str, set[str]] = {}
    for device in found.devices.values():
        splits.setdefault(device.card, set()).add(device.split)
    known = {} if forget else {**facts.lost, **facts.devices}
    return replace(
        facts,
        devices=found.devices,
        lost={
            id: device
            for id, device in known.items()
            if id not in found.devices and device.split in splits.get(device.card, {device.split})
        },
        verdicts={id: first_verdict(device) for id, device in found.devices.items()},
        control=found.control,
    )


def first_verdict(device: Device) -> Health:
    """A device's health by the scan that found it."""
    if device.state is not None:
        return judge(ReturnCode.SUCCESS, device.state, device.arch)
    return judge(device.failure.code if device.failure else ReturnCode.UNKNOWN, None)


def after_verdicts(facts: Facts, verdicts: Mapping[str, Health]) -> Facts:
    """Take in what a sweep heard; devices it does not speak of keep their verdict. The same facts if
    nothing is new."""
    if verdicts.items() <= facts.verdicts.items():
        return facts
    return replace(facts, verdicts={**facts.verdicts, **verdicts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A device as it is offered: under its own id and resource, or as a container still holds it."""

    id: str
    resource: str
    device: Device
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
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
    # Who has N now, else the first of the lost devices that had it one after the other.
    at = {
        device.node.number: own
        for devices in (facts.lost, facts.devices)
        for own, device in sorted(devices.items(), reverse=True)
    }
    offered = {}
    for own, device in sorted(known.items()):
        if not policy.offers(device):
            continue
        lost = own not in facts.devices
        old = str(device.node.number)
        id = old if old in facts.held and at[device.node.number] == own else own
        offered[id] = Entry(
            id=id,
            resource=facts.held.get(id, policy.resource_of(device)),
            device=device,
            health=_absence(facts, own) if lost else _health(facts, device),
        )
    return offered


def _absence(facts: Facts, id: str) -> Health:
    """A lost device is never healthy, whatever was heard of it."""
    verdict = facts.verdicts.get(id, LOST)
    return LOST if verdict.healthy else verdict


def _health(facts: Facts, device: Device) -> Health:
    """What is sick is called so, kept back or not."""
    verdict = facts.verdicts[device.id]
    return facts.kept_back.get(device.card, verdict) if verdict.healthy else verdict
