# SPDX-License-Identifier: Apache-2.0
"""Lines about a card -> incidents of the pods that had it -> the verdict that it is sick, or none.

A faulty program causes lines on a good card, again and again. So one pod never makes a card sick.

Times are seconds of the monotonic clock of one boot.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device, DeviceKind, Process
from xpu_plugin.model.health import Health, driver_error
from xpu_plugin.model.inventory import Facts
from xpu_plugin.model.kernel_log_rules import Line, Rules


MOST_INCIDENTS = 16  # that are kept of a device
REFRESH_SECONDS = 60.0  # between two incidents of one pod of which the later one is kept too


class Ending(StrEnum):
    """The ends of a verdict, besides a reboot."""

    CLEARED = "cleared"
    RESET = "reset"
    PROBE = "probe passed"


# --- lines ----------------------------------------------------------------------------------------


@frozen
class Incident:
    """Lines of one card, of about the same time."""

    card: str  # the PCI address without the function
    began: float
    number: int  # of its first record
    reason: str  # of its weightiest line
    text: str  # of that line
    pids: frozenset[int] = frozenset()
    of_pods: bool = False  # as in `Line`, of any of its lines
    of_idle: bool = False
    old: bool = False  # from before the log was followed, so its holder is not known


def begun(line: Line, *, old: bool = False) -> Incident:
    """Return an incident of one line."""
    return Incident(
        card=line.card,
        began=line.at,
        number=line.number,
        reason=line.reason,
        text=line.text,
        pids=frozenset() if line.pid is None else frozenset({line.pid}),
        of_pods=line.of_pods,
        of_idle=line.of_idle,
        old=old,
    )


def belongs(incident: Incident, line: Line, rules: Rules) -> bool:
    """Return whether a line is one more of an incident."""
    return line.card == incident.card and 0 <= line.at - incident.began <= rules.together


def joined(incident: Incident, line: Line) -> Incident:
    """Return the incident with one more line. The first line that counts for pods gives it its reason."""
    weightier = line.of_pods and not incident.of_pods
    return replace(
        incident,
        reason=line.reason if weightier else incident.reason,
        text=line.text if weightier else incident.text,
        pids=incident.pids if line.pid is None else incident.pids | {line.pid},
        of_pods=incident.of_pods or line.of_pods,
        of_idle=incident.of_idle or line.of_idle,
    )


# --- attribution ----------------------------------------------------------------------------------


def function_of(address: str) -> str:
    """Return a PCI address without its function, as the driver's messages have it."""
    return address.rpartition(".")[0]


def devices_at(card: str, facts: Facts) -> list[Device]:
    """Return the devices of the card that lines name, lost ones too. A PF with VFs is none.

    The first VFs of a card have its address with other functions, and further ones have other addresses.
    """
    known = {**facts.lost, **facts.devices}.values()
    cards = {
        device.card for device in known if card in (function_of(device.card), function_of(device.address))
    }
    return [device for device in known if device.card in cards and device.kind is not DeviceKind.PF]


def user_of(
    devices: Collection[Device],
    pids: Collection[int],
    processes: Mapping[str, tuple[Process, ...] | None],
) -> Device | None:
    """Return the device that an incident is about: that of a whole card, else the only one of a process.

    processes: PCI address -> the processes there, by the driver
    """
    devices = list(devices)
    if len(devices) == 1 and devices[0].kind is DeviceKind.WHOLE:
        return devices[0]
    found = [
        device
        for device in devices
        if any(process.host_pid in pids for process in processes.get(device.address) or ())
    ]
    alone = len(found) == 1 and found[0].kind is DeviceKind.VF
    return found[0] if alone else None


@frozen
class Holder:
    """The pod that had a device at a time.

    An unknown pod is another one than that of an earlier incident if it was given the device after that.
    """

    pod: str | None = None  # `namespace/name`; None if unknown
    since: float | None = None  # time of the grant; None if unknown


@frozen
class Attributed:
    """An incident that counts for the rule of different pods, and its holder."""

    at: float
    number: int
    text: str
    holder: Holder = Holder()


def apart(earlier: Attributed, later: Attributed) -> bool:
    """Return whether two incidents surely are of two pods."""
    one, other = earlier.holder, later.holder
    if one.pod is not None and other.pod is not None:
        return one.pod != other.pod
    # A kubelet admits a pod whole, so a grant after an incident is of a pod that had no part in it.
    return other.since is not None and other.since > earlier.at


# --- verdicts -------------------------------------------------------------------------------------


@frozen
class Sickness:
    """The verdict that a device is sick."""

    at: float
    line: str
    why: str  # a phrase about the rule that it met

    @property
    def health(self) -> Health:
        return driver_error(self.line, self.why)


@frozen
class Case:
    """All that counts of one device."""

    incidents: tuple[Attributed, ...] = ()  # in the order of their times
    sickness: Sickness | None = None
    ended: float = float("-inf")  # when the last verdict ended; lines from before do not count

    @property
    def counts(self) -> bool:
        """Return whether an end would change more than the time."""
        return bool(self.incidents) or self.sickness is not None


Cases = Mapping[str, Case]
"""By device id."""


@frozen
class Memory:
    """The cases, and the last record that is in them."""

    cases: Cases = field(default_factory=dict)
    number: int = 0

    @property
    def sick(self) -> dict[str, Sickness]:
        return {id: case.sickness for id, case in self.cases.items() if case.sickness is not None}


def after_incident(case: Case, incident: Incident, holder: Holder, rules: Rules) -> Case:
    """Return the case with an incident. Enough of them, each surely of another pod, make the device sick."""
    if not incident.of_pods or incident.began <= case.ended:
        return case
    new = Attributed(at=incident.began, number=incident.number, text=incident.text, holder=holder)
    kept = tuple(own for own in case.incidents if new.at - own.at <= rules.window)
    same = next((own for own in kept if own.number == new.number and own.at == new.at), None)
    if same is None and not _repeats(kept, new):
        kept = tuple(sorted((*kept, new), key=lambda own: own.at))[-MOST_INCIDENTS:]
    elif same is not None and same.holder == Holder():
        kept = tuple(new if own is same else own for own in kept)
    sickness = case.sickness or _of_pods(kept, rules, new.text)
    return replace(case, incidents=kept, sickness=sickness)


def _repeats(kept: Iterable[Attributed], new: Attributed) -> bool:
    """Return whether the same pod has had an incident just before."""
    return any(
        own.holder == new.holder and own.holder.pod is not None and 0 <= new.at - own.at < REFRESH_SECONDS
        for own in kept
    )


def _of_pods(incidents: Iterable[Attributed], rules: Rules, text: str) -> Sickness | None:
    chosen: list[Attributed] = []
    for own in incidents:
        if all(apart(earlier, own) for earlier in chosen):
            chosen.append(own)
    if len(chosen) < rules.pods:
        return None
    names = ", ".join(own.holder.pod or "a pod of before" for own in chosen)
    return Sickness(at=chosen[-1].at, line=text, why=f"incidents of {len(chosen)} pods: {names}")


def after_idle_incident(case: Case, incident: Incident, rules: Rules) -> Case:
    """Return the case with an incident for which the device had neither holder nor process."""
    if not incident.of_idle or incident.pids or incident.began <= case.ended or case.sickness is not None:
        return case
    why = f"an incident while no pod and no process had it for {rules.idle:g} s"
    return replace(case, sickness=Sickness(at=incident.began, line=incident.text, why=why))


def after_success(case: Case, at: float) -> Case:
    """Return the case after a holder has ended with exit code 0: the count starts anew."""
    kept = tuple(own for own in case.incidents if own.at >= at)
    return case if len(kept) == len(case.incidents) else replace(case, incidents=kept)


def ended(case: Case, at: float) -> Case:
    """Return the case after the end of its verdict. Nothing from before counts any more."""
    later = case.sickness is not None and case.sickness.at > at
    return Case(
        incidents=tuple(own for own in case.incidents if own.at > at),
        sickness=case.sickness if later else None,
        ended=max(case.ended, at),
    )


def merged(own: Memory, other: Memory) -> Memory:
    """Return the memory of two instances, of which both have followed the log."""
    cases = {
        id: _merged(own.cases.get(id, Case()), other.cases.get(id, Case()))
        for id in (*other.cases, *(own.cases.keys() - other.cases.keys()))
    }
    return Memory(cases=cases, number=max(own.number, other.number))


def _merged(one: Case, other: Case) -> Case:
    end = max(one.ended, other.ended)
    by_record = {(own.number, own.at): own for own in (*one.incidents, *other.incidents) if own.at > end}
    incidents = tuple(sorted(by_record.values(), key=lambda own: own.at))[-MOST_INCIDENTS:]
    sick = [own.sickness for own in (other, one) if own.sickness is not None and own.sickness.at > end]
    return Case(incidents=incidents, sickness=sick[0] if sick else None, ended=end)
