# SPDX-License-Identifier: Apache-2.0
"""Notices for the administrator about devices and driver: the reported state and the present one ->
notices."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.health import Health, quarantined
from xpu_plugin.model.inventory import Entry


_QUARANTINED = quarantined("").reason
MOST_NAMED = 8  # devices in one notice; Events end after 1024 bytes


class DeviceReason(StrEnum):
    """The reasons of notices, in the words of Events."""

    UNHEALTHY = "XPUUnhealthy"
    QUARANTINED = "XPUQuarantined"
    RECOVERED = "XPURecovered"
    DRIVER_LOST = "XPUDriverLost"
    DRIVER_BACK = "XPUDriverBack"


INCIDENT = "XPUDriverIncident"
"""The reason of Events on incidents in the kernel's log."""

BAD = frozenset({DeviceReason.UNHEALTHY, DeviceReason.QUARANTINED, DeviceReason.DRIVER_LOST})


@frozen
class Notice:
    """A fact to report once."""

    reason: DeviceReason
    text: str


@frozen
class Reported:
    """The state that was reported last."""

    sick: Mapping[str, DeviceReason] = field(default_factory=dict)  # device id -> UNHEALTHY or QUARANTINED
    driver: bool = True  # the driver is present


def notices(
    reported: Reported,
    entries: Iterable[Entry],
    driver_gone: str | None,
    holders: Mapping[str, Collection[str]] | None,
) -> tuple[Reported, tuple[Notice, ...]]:
    """Return the new reported state and the notices. One notice names all its devices.

    entries: the offered devices; devices that are only withheld need no notice
    driver_gone: why there is no driver, or no library, to call
    holders: device id -> containers; None if they are unknown
    """
    entries = list(entries)
    sick, groups = turned(reported.sick, entries)
    found = []
    if driver_gone is not None and reported.driver:
        found.append(
            Notice(reason=DeviceReason.DRIVER_LOST, text=f"{_held(entries, holders)}: {driver_gone}")
        )
    if driver_gone is None and not reported.driver:
        found.append(Notice(reason=DeviceReason.DRIVER_BACK, text="driver and library answer again"))
    found += [Notice(reason=reason, text=_list(own, holders)) for reason, own in groups.items()]
    return Reported(sick=sick, driver=driver_gone is None), tuple(found)


def turned(
    reported: Mapping[str, DeviceReason], entries: Iterable[Entry]
) -> tuple[dict[str, DeviceReason], dict[DeviceReason, list[Entry]]]:
    """Return the devices that are not well, and the devices to report by the reason of their change."""
    entries = list(entries)
    sick = {entry.device.id: _sickness(entry.health) for entry in entries if not entry.health.well}
    groups: dict[DeviceReason, list[Entry]] = {}
    for entry in entries:
        if (reason := _turn(reported.get(entry.device.id), sick.get(entry.device.id))) is not None:
            groups.setdefault(reason, []).append(entry)
    return sick, {reason: groups[reason] for reason in DeviceReason if reason in groups}


def _sickness(health: Health) -> DeviceReason:
    return DeviceReason.QUARANTINED if health.reason == _QUARANTINED else DeviceReason.UNHEALTHY


def _turn(before: DeviceReason | None, now: DeviceReason | None) -> DeviceReason | None:
    """Return the reason to report a device's change between well (None), unhealthy and quarantine."""
    if now is None:
        return None if before is None else DeviceReason.RECOVERED
    return now if before is None or (now is DeviceReason.QUARANTINED and before is not now) else None


def _list(entries: list[Entry], holders: Mapping[str, Collection[str]] | None) -> str:
    named = [_named(entry, holders) for entry in entries[:MOST_NAMED]]
    if more := len(entries) - len(named):
        named.append(f"and {more} more, held by: {_who(entries[MOST_NAMED:], holders)}")
    return " | ".join(named)


def _named(entry: Entry, holders: Mapping[str, Collection[str]] | None) -> str:
    return f"{described(entry)}; held by: {_who([entry], holders)}"


def described(entry: Entry) -> str:
    """Return a device and its health, by the reason that metrics, `list` and the log have too."""
    health = entry.health
    what = "well again" if health.well else f"{health.reason}, {health.text}"
    return f"{entry.device.id} at {entry.device.path}: {what}"


def _held(entries: list[Entry], holders: Mapping[str, Collection[str]] | None) -> str:
    return f"{len(entries)} devices, held by: {_who(entries, holders)}"


def _who(entries: list[Entry], holders: Mapping[str, Collection[str]] | None) -> str:
    if holders is None:
        return "not known"
    found = {who for entry in entries for who in holders.get(entry.device.id, ())}
    return ", ".join(sorted(found)) or "no container"
