# SPDX-License-Identifier: Apache-2.0
"""Whether the node's cards are ready for pods: facts in, a condition for the Node out."""

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.vf_plan import Report, VfAction, VfOutcome


CONDITION = "XPUReady"
"""The type of the condition in the Node's status."""
MOST_NAMED = 4  # cards in a message


class Status(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """The reason of a condition, for programs."""

    LISTED = "DevicesListed"
    NO_XPU = "NoXPU"
    NO_LIBRARY = "NoDriverOrLibrary"
    NO_DEVICE = "NoDevice"
    NOT_SCANNED = "NotScanned"
    NOT_LISTED = "NotListed"
    VFS_UNKNOWN = "VFCountUnknown"
    VFS_PENDING = "VFsPending"


@frozen
class Facts:
    """The facts at one moment."""

    functions: int
    """Of the vendor, by sysfs."""
    trouble: str | None = None
    """Why there is no driver or no library to ask."""
    devices: int | None = None
    """Devices that the last scan found; None before the first scan."""
    offered: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Resource -> ids that we offer as healthy."""
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Resource -> ids that this kubelet has as healthy; without resources of which that is not known."""
    outcome: VfOutcome = VfOutcome()
    patient: bool = True
    """Whether to wait for cards of which it cannot be proven that they are idle."""


@frozen
class Readiness:
    """The condition of the node's cards."""

    status: Status
    reason: Reason
    message: str
    allocatable: Mapping[str, int] = field(default_factory=dict)
    """Resource -> devices that the Node has to show as allocatable before a pod may come."""

    @property
    def open(self) -> bool:
        """Return whether pods may come: the cards are ready, or there are none."""
        return self.status is Status.TRUE or self.reason is Reason.NO_XPU


STARTING = Readiness(
    status=Status.UNKNOWN, reason=Reason.NOT_SCANNED, message="the devices have not been scanned yet"
)


def readiness(facts: Facts) -> Readiness:
    """Return the condition. The first obstacle in the order of the work counts."""
    if not facts.functions and not facts.devices:
        return _not(Reason.NO_XPU, "sysfs shows no PCI function of the vendor")
    if facts.trouble is not None:
        return _not(Reason.NO_LIBRARY, facts.trouble)
    if facts.devices is None:
        return STARTING
    if not facts.devices:
        return _not(
            Reason.NO_DEVICE,
            f"sysfs shows {facts.functions} PCI functions of the vendor, and the scan found no device",
        )
    if facts.outcome.desired.origin is None:
        return Readiness(
            status=Status.UNKNOWN, reason=Reason.VFS_UNKNOWN, message="the desired VF count is not known yet"
        )
    if waiting := _waiting(facts.outcome.report, patient=facts.patient):
        more = f" and {len(waiting) - MOST_NAMED} more" if len(waiting) > MOST_NAMED else ""
        return _not(
            Reason.VFS_PENDING,
            f"{', '.join(waiting[:MOST_NAMED])}{more}: the number of VFs is not yet as desired",
        )
    if late := [name for name, ids in sorted(facts.offered.items()) if facts.listed.get(name) != ids]:
        return _not(Reason.NOT_LISTED, f"the kubelet does not have our present list of {', '.join(late)}")
    number = sum(map(len, facts.offered.values()))
    return Readiness(
        status=Status.TRUE,
        reason=Reason.LISTED,
        message=f"the kubelet lists all devices that the scan found; healthy devices: {number}",
        allocatable={name: len(ids) for name, ids in facts.offered.items()},
    )


def in_doubt(report: Report) -> bool:
    """Return whether a card waits for a proof that may come, and no known holder keeps it."""
    return any(step.action is VfAction.BLOCKED and not step.holders for step in report.steps)


def _waiting(report: Report, *, patient: bool) -> list[str]:
    """Return the cards that may still get their VFs: none that has failed, or that a container holds."""
    return [
        step.card
        for step in report.steps
        if step.action is VfAction.APPLY or (patient and step.action is VfAction.BLOCKED and not step.holders)
    ]


def _not(reason: Reason, message: str) -> Readiness:
    return Readiness(status=Status.FALSE, reason=reason, message=message)


def shows(allocatable: Mapping[str, object], expected: Mapping[str, int]) -> bool:
    """Return whether a Node's allocatable resources are as expected. An absent resource counts as 0."""
    return all(str(allocatable.get(name, "0")) == str(number) for name, number in expected.items())
