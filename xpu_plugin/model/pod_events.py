# SPDX-License-Identifier: Apache-2.0
"""Events for the pods that hold a device which becomes unhealthy or recovers."""

from collections.abc import Iterable, Mapping

from xpu_plugin.model.device_events import BAD, MOST_NAMED, DeviceReason, described, turned
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.events import NORMAL, WARNING, Event, PodReference
from xpu_plugin.model.inventory import Entry, Facts, Policy
from xpu_plugin.model.ownership import Holding


def pods(
    listed: Iterable[Holding], checkpoint: Iterable[Holding], facts: Facts, policy: Policy
) -> dict[PodReference, frozenset[str]]:
    """Return the pods with the ids of their devices.

    The kubelet's list names pods, and its checkpoint has their UIDs. A pod of which the checkpoint has no
    clear UID is returned without one.
    """
    recorded = holders(checkpoint, facts, policy)
    held: dict[tuple[str, str], dict[str, str]] = {}
    for id, containers in holders(listed, facts, policy).items():
        for container in containers:
            pod, _, name = container.rpartition("/")
            namespace, _, pod = pod.partition("/")
            held.setdefault((namespace, pod), {})[id] = _uid(name, recorded.get(id, ()))
    found = {}
    for (namespace, pod), devices in held.items():
        uids = set(devices.values()) - {""}
        uid = uids.pop() if len(uids) == 1 else ""
        found[PodReference(namespace=namespace, name=pod, uid=uid)] = frozenset(devices)
    return found


def _uid(container: str, recorded: Iterable[str]) -> str:
    """Return the UID of the pod that has a device, by the containers of the checkpoint; empty if unclear."""
    uids = {uid for uid, _, name in (own.partition("/") for own in recorded) if name == container}
    return uids.pop() if len(uids) == 1 else ""


def pod_events(
    pod: PodReference, reported: Mapping[str, DeviceReason], entries: Iterable[Entry]
) -> tuple[dict[str, DeviceReason], tuple[Event, ...]]:
    """Return the devices of a pod that are not well, and an Event for each reason to report.

    reported: the same at the last report
    """
    sick, groups = turned(reported, entries)
    return sick, tuple(
        Event(kind=WARNING if reason in BAD else NORMAL, reason=str(reason), text=_text(own), pod=pod)
        for reason, own in groups.items()
    )


def _text(entries: list[Entry]) -> str:
    named = [described(entry) for entry in entries[:MOST_NAMED]]
    if more := len(entries) - len(named):
        named.append(f"and {more} more")
    return " | ".join(named)
