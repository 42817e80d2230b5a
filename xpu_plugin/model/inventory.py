# SPDX-License-Identifier: Apache-2.0
"""The one picture: facts -> Inventory. Readers see only whole pictures, each with its generation."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import (
    NO_NODE,
    Device,
    DeviceKind,
    Found,
    matches,
    may_be_serial,
    parent_by_rule,
    parents_by_rules,
    resource_name,
)
from xpu_plugin.model.health import (
    EXCLUDED,
    LOST,
    NOT_SEEN,
    SPLIT_OTHERWISE,
    Health,
    card_held,
    judge,
    with_probe,
)
from xpu_plugin.model.topology import NO_LINKS, Links
from xpu_plugin.xpuml import ReturnCode


@frozen
class Policy:
    """The administrator's choice of offered devices and resource names."""

    resource: str
    per_profile: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    handles: int | None = None  # maximum of nodes /dev/xpuN; None for that of the boards, 0 for none

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
_XPU_NODE = "/dev/xpu"
_OLD_ID = re.compile(r"0|[1-9][0-9]{0,8}")


def is_old(id: str) -> bool:
    """Return whether an id is one of the former plugin: N of /dev/xpuN, in decimal."""
    return _OLD_ID.fullmatch(id) is not None


def is_xpu_node(path: str) -> bool:
    """Return whether a path is that of a device's node, /dev/xpuN."""
    return path.startswith(_XPU_NODE) and is_old(path.removeprefix(_XPU_NODE))


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

    devices: those that are known, lost ones too
    Only our resource names count: other plugins may use numbers or PCI addresses as ids.
    """
    names = our_resources(devices.values(), policy)
    return {
        id: resource
        for id, resource in sorted(held)
        if resource in names
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
    claimed: frozenset[str] = frozenset()  # ids that containers may hold by our own grants
    # Ids of devices that are listed only for their holders: lost ones that are to be forgotten or are of an
    # earlier split, and present ones that are not offered.
    lingering: frozenset[str] = frozenset()
    kept_back: Mapping[str, Health] = field(
        default_factory=dict
    )  # card -> why it is withheld, although healthy
    # Device id -> why it is withheld: a container holds it and the kubelet does not count that.
    withheld: Mapping[str, Health] = field(default_factory=dict)
    probed: Mapping[str, Health] = field(default_factory=dict)  # card -> its part in a probe
    driver_errors: Mapping[str, Health] = field(
        default_factory=dict
    )  # device id -> why it is sick by the kernel's log, although its state is good
    control: int | None = None  # st_rdev of the control node at the last scan
    unnamed: int = 0  # number of nodes without a device at the last scan
    links: Links = NO_LINKS


def after_scan(
    facts: Facts, found: Found, *, forget: bool = False, claimed: Collection[str] | None = None
) -> Facts:
    """Return the facts with a scan taken in.

    A device that the scan misses is kept as lost, unless its card was split anew, or `forget` is set. Then it
    lingers while a container may hold it.
    claimed: as in Facts; None keeps that of before
    """
    splits: dict[str, set[str]] = {}
    for device in found.devices.values():
        splits.setdefault(device.card, set()).add(device.split)
    known = {**facts.lost, **facts.devices}
    claims = facts.claimed if claimed is None else frozenset(claimed)
    gone = {id: device for id, device in known.items() if id not in found.devices}
    expected = {
        id
        for id, device in gone.items()
        if not forget
        and id not in facts.lingering
        and device.split in splits.get(device.card, {device.split})
    }
    # The PF of a card that another program has split has the id of the whole card.
    present = frozenset(
        id
        for id, device in found.devices.items()
        if id in facts.lingering or (id in known and _is_pf(device) and not _is_pf(known[id]))
    )
    scanned = replace(
        facts,
        devices=found.devices,
        lost=gone,
        verdicts={
            id: first_verdict(device, held=may_be_held(device, claims | facts.held.keys()))
            for id, device in found.devices.items()
        },
        claimed=claims,
        lingering=present.union(gone.keys() - expected),
        control=found.control,
        unnamed=found.unnamed,
    )
    return released(scanned)


def _holds(facts: Facts) -> frozenset[str]:
    """Return the ids of known devices that containers may hold, by their own ids or by old ones."""
    at = numbered(facts.devices, facts.lost)
    return facts.claimed.union(at[int(id)] for id in facts.held if is_old(id) and int(id) in at)


def released(facts: Facts, ids: Collection[str] = ()) -> Facts:
    """Return the facts without lingering devices that no container holds. ids: those known to be free"""
    free = (facts.lingering - _holds(facts)).union(facts.lingering.intersection(ids))
    if not free:
        return facts
    return replace(
        facts,
        lingering=facts.lingering - free,
        lost={id: device for id, device in facts.lost.items() if id not in free},
    )


def held_beyond(
    held: Iterable[tuple[str, str]], facts: Facts, policy: Policy, paths: Mapping[str, str]
) -> Facts:
    """Return the facts with held devices that would not be listed. Only those linger, and lost ones.

    A device without a scan of this process is known by its id only. A device of a foreign resource is left
    out.
    held: (id, resource) pairs that containers hold
    paths: id -> path of its node at its last grant
    """
    known = {**facts.lost, **facts.devices}
    names = our_resources(known.values(), policy)
    lost: dict[str, Device] = {}
    lingering = {
        id for id in facts.lingering if id not in facts.devices or not policy.offers(facts.devices[id])
    }
    at = numbered(facts.devices, facts.lost)
    for id, resource in held:
        if is_old(id) and resource in names and (own := at.get(int(id))) in facts.devices:
            if own is not None and not policy.offers(known[own]):
                lingering.add(own)
            continue
        if id not in facts.claimed or not may_be_ours(id) or is_old(id):
            continue
        of_profile = policy.per_profile and id in paths and _domain(resource) == _domain(policy.resource)
        if resource not in names and not of_profile:
            continue
        if id not in known:
            lost[id] = remembered(id, resource, paths.get(id), card=card_of(id, facts))
            lingering.add(id)
        elif id in facts.devices and not policy.offers(known[id]):
            lingering.add(id)
    if lingering == facts.lingering:
        return facts
    return replace(
        facts,
        lost={**facts.lost, **lost},
        verdicts={**facts.verdicts, **dict.fromkeys(lost, NOT_SEEN)},
        lingering=frozenset(lingering),
    )


def _domain(resource: str) -> str:
    return resource.partition("/")[0]


def remembered(id: str, resource: str, path: str | None, *, card: str | None = None) -> Device:
    """Return a device of which only id, resource and node path are known. card: None for that by the rule"""
    address, _, part = id.partition("-")
    number = path.removeprefix(_XPU_NODE) if path else ""
    kind = DeviceKind.HALF if part.startswith("half") else DeviceKind.VF if part else DeviceKind.WHOLE
    return Device(
        id=id,
        card=card or (parent_by_rule(address) if kind is DeviceKind.VF else address),
        kind=kind,
        split=_split_of(id),
        model=resource.partition("/")[2],
        node=replace(NO_NODE, number=int(number)) if is_old(number) else NO_NODE,
        index=-1,
        numa=None,
        max_vfs=None,
        memory_bytes=0,
        serial="",
        arch=None,
        state=None,
        failure=None,
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
    if address in by_address:
        return by_address[address]
    # The VF of a card that is split otherwise now has an address of a rule.
    rules = parents_by_rules(address) if "-of" in id else (address,)
    return next((card for card in rules if card in by_address.values()), None)


def ours(held: Iterable[tuple[str, str]], facts: Facts, policy: Policy) -> Iterable[tuple[str, str]]:
    """Yield those of the (id, resource) pairs that are devices of this node's cards, or were under our
    names.

    A PCI address of a present card counts under every resource name, as the hardware is the same.
    """
    names = our_resources((*facts.lost.values(), *facts.devices.values()), policy)
    for id, resource in held:
        known = card_of(id, facts) is not None
        sure = known and not is_old(id)
        if sure or (resource in names and (known or (may_be_ours(id) and not is_old(id)))):
            yield id, resource


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


def unlinked(facts: Facts) -> list[str]:
    """Return the cards of the link groups that this node does not have: likely typing errors."""
    cards = {device.card for device in (*facts.devices.values(), *facts.lost.values())}
    return sorted({card for group in facts.links.groups for card in group} - cards)


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
    links: Links = NO_LINKS

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
        offers = policy.offers(device)
        if not offers and own not in facts.lingering:
            continue
        old = str(device.node.number)
        # A withheld device is listed under the id that its other holder knows.
        is_held = old in facts.held and at[device.node.number] == own and own not in facts.withheld
        id = old if is_held else own
        if own in facts.lost:
            health = _absence(facts, device)
        else:
            health = (_health if offers else _unoffered)(facts, device, others)
            if (probe := facts.probed.get(device.card)) is not None:
                health = with_probe(health, probe)
        offered[id] = Entry(
            id=id,
            resource=facts.held.get(id, policy.resource_of(device)),
            device=device,
            health=health,
        )
    return offered


def _unoffered(facts: Facts, device: Device, held: Mapping[str, Collection[str]]) -> Health:
    """Return the health of a device that is listed for its holder only, which is never healthy."""
    if _is_pf(device):  # the whole card is not there any more
        return SPLIT_OTHERWISE
    health = _health(facts, device, held)
    return EXCLUDED if health.grantable else health


def _absence(facts: Facts, device: Device) -> Health:
    """Return the health of a device that is not there, which is never healthy."""
    if device.id in facts.lingering and any(
        other.card == device.card and other.split != device.split for other in facts.devices.values()
    ):
        return SPLIT_OTHERWISE
    verdict = facts.verdicts.get(device.id, LOST)
    return LOST if verdict.healthy else verdict


def _health(facts: Facts, device: Device, held: Mapping[str, Collection[str]]) -> Health:
    """Return a device's health. An unhealthy verdict wins over `kept_back`. held: the result of
    `stale_ids`

    A whole card that is sick by the kernel's log stays so when it is split.
    """
    verdict = facts.verdicts[device.id]
    if not verdict.healthy:
        return verdict
    if (sick := facts.driver_errors.get(device.id) or facts.driver_errors.get(device.card)) is not None:
        return sick
    if device.card in held:
        return card_held(held[device.card])
    if device.id in facts.withheld:
        return facts.withheld[device.id]
    return facts.kept_back.get(device.card, verdict)
