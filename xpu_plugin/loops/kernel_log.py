# SPDX-License-Identifier: Apache-2.0
"""Follow the kernel's log: lines about a card become incidents of the pod that has it, and verdicts."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from xpu_plugin.edges.kernel_log import Batch, KernelLog, KernelLogError
from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.log import Message, Once, note
from xpu_plugin.loops.picture import NEVER
from xpu_plugin.model.device_events import INCIDENT
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.devices import Device, DeviceKind, Process
from xpu_plugin.model.events import WARNING, Event
from xpu_plugin.model.health import IN_RESET
from xpu_plugin.model.incidents import (
    Case,
    Ending,
    Holder,
    Incident,
    after_idle_incident,
    after_incident,
    after_success,
    begun,
    belongs,
    devices_at,
    joined,
    user_of,
)
from xpu_plugin.model.inventory import may_be_held
from xpu_plugin.model.kernel_log_rules import Line, Rules
from xpu_plugin.model.ownership import Answers, pod_of
from xpu_plugin.model.pod_events import pods
from xpu_plugin.waiting import Cooldown, delays, pause
from xpu_plugin.xpuml import XpumlError


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

logger = logging.getLogger(__name__)

AGAIN_SECONDS = (5.0, 300.0)  # before the log is opened again: first, most
GATHER_SECONDS = 0.005  # for the lines of one failure, which come within a millisecond
LOOK_SECONDS = 30.0  # between looks for holders and processes
FRESH_SECONDS = 0.5  # of the answers on the ends of holders
PAUSE_SECONDS = (10.0, 600.0)  # between two reports on a card: first, most
QUIET_SECONDS = 1200.0  # without an incident of a card, until its pauses begin anew

FOLLOWED = "followed"

Processes = Mapping[str, tuple[Process, ...] | None]
Key = tuple[str, float, int]
"""Of an incident: its card, its time and its first record."""


class KernelLogWatch:
    """Reads the log in one task, and judges in another one: the kubelet may take a while to answer.

    A verdict needs the pod at the time of the lines. Of lines from before the start it is not known.
    """

    def __init__(
        self,
        plugin: "Plugin",
        log: KernelLog,
        rules: Rules,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plugin = plugin
        self._rules = rules
        self._clock = clock
        self._picture, self._grants, self._errors = plugin.picture, plugin.grants, plugin.driver_errors
        self._log = log
        self._complaint = Once()
        self._open: dict[str, Incident] = {}  # card -> its last incident, which may go on
        self._pending: dict[Key, Incident] = {}  # to be judged
        self._told: dict[str, Key] = {}  # card -> its last incident that was counted and reported
        self._confirming: set[Key] = set()
        self._filled = asyncio.Event()
        self._stir = asyncio.Event()  # another picture, or another grant
        self._busy: dict[str, float] = {}  # device id -> time at which it may have been in use
        self._probed: frozenset[str] = frozenset()  # cards of a probe at the last look
        self._began = self._looked_at = clock()
        self._holders: dict[str, set[str]] = {}  # device id with incidents -> containers that have had it
        self._pauses: Cooldown[str] = Cooldown(*PAUSE_SECONDS, clock=clock)
        self._unreported: Counter[str] = Counter()  # card -> incidents since the last report

    async def run(self) -> None:
        """Never returns."""
        await self._picture.beyond(NEVER)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="kernel log")
            group.create_task(self._judge_all(group), name="incidents")
            group.create_task(self._look_on(), name="users of cards")

    # --- reading --------------------------------------------------------------------------------

    async def _follow(self) -> None:
        waits = delays(*AGAIN_SECONDS)
        while True:
            try:
                async with aclosing(self._log.batches()) as batches:
                    async for batch in batches:
                        if self._complaint.changed(FOLLOWED):
                            logger.info(Message("the kernel's log is followed", path=self._log.path))
                        waits = delays(*AGAIN_SECONDS)
                        self._take(batch)
            except KernelLogError as error:
                if self._complaint.changed(str(error)):
                    logger.warning(
                        Message(
                            "the kernel's log cannot be read; health is by the library alone", error=error
                        )
                    )
            await asyncio.sleep(next(waits))

    def _take(self, batch: Batch) -> None:
        if batch.lost and not batch.old:
            logger.warning(
                Message(
                    "records of the kernel's log were overwritten before they were read", times=batch.lost
                )
            )
        for record, at in batch.records:
            if record.facility != self._rules.facility or (
                batch.old and record.number <= self._errors.number
            ):
                continue
            if (line := self._rules.line(record.text, at=at, number=record.number)) is not None:
                self._hear(line, old=batch.old)

    def _hear(self, line: Line, *, old: bool) -> None:
        devices = devices_at(line.card, self._picture.facts)
        if not devices:
            return
        if line.reset:
            for id in {device.card for device in devices}.union(device.id for device in devices):
                self._errors.end(id, Ending.RESET, at=line.at, number=line.number)
            return
        before = self._open.get(line.card)
        if before is not None and before.old is old and belongs(before, line, self._rules):
            incident = joined(before, line)
        else:
            incident = begun(line, old=old)
        self._open[line.card] = incident
        if incident != before:
            self._pending[_key(incident)] = incident
            self._filled.set()

    # --- judging --------------------------------------------------------------------------------

    async def _judge_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._filled.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._filled.clear()
            pending, self._pending = self._pending, {}
            live = [incident for incident in pending.values() if not incident.old]
            processes = await self._processes() if any(map(self._depends, live)) else {}
            answers = await self._plugin.view.answers(oldest=0.0) if live else None
            for incident in pending.values():
                device = self._judge(incident, answers, processes)
                if device is not None and _key(incident) not in self._confirming:
                    self._confirming.add(_key(incident))
                    group.create_task(self._confirm(device, incident), name="idle card")

    def _depends(self, incident: Incident) -> bool:
        """Return whether the verdict depends on the driver's processes."""
        devices = devices_at(incident.card, self._picture.facts)
        return len(devices) > 1 or any(self._idle(device, incident) for device in devices)

    def _judge(self, incident: Incident, answers: Answers | None, processes: Processes) -> Device | None:
        """Report an incident, and count it. Return its device if that seems to have no user.

        answers: of the kubelet; None if they say nothing about the time of the incident
        """
        devices = devices_at(incident.card, self._picture.facts)
        held = self._held(answers)
        if self._told.get(incident.card) != (key := _key(incident)):
            self._told[incident.card] = key
            self._report(incident, devices, answers, held)
        device = user_of(devices, incident.pids, processes)
        if device is None:
            return None
        containers = held.get(device.id, ())
        case = self._after_ends(device.id, answers)
        case = after_incident(case, incident, self._holder(device, incident, containers), self._rules)
        self._errors.become(device.id, case, incident.number)
        self._note_holders(device.id, containers)
        if incident.pids and not incident.old:
            self._busy[device.id] = self._clock()
        free = not containers and answers is not None and answers.listed is not None
        free = free and processes.get(device.address) == () and self._idle(device, incident)
        return device if free and incident.of_idle else None

    def _holder(self, device: Device, incident: Incident, containers: tuple[str, ...]) -> Holder:
        """Return the pod that had a device at the time of an incident."""
        grant = self._grants.ledger.get(device.id)
        since = None if grant is None else grant.allocated
        if incident.old or (since is not None and since > incident.began):
            return Holder()  # of an earlier pod, which is not known
        known = containers or ((grant.holder,) if grant is not None and grant.holder is not None else ())
        names = {pod_of(container) for container in known}
        return Holder(pod=names.pop() if len(names) == 1 else None, since=since)

    def _held(self, answers: Answers | None) -> Mapping[str, tuple[str, ...]]:
        """Return device id -> its containers, as the kubelet lists them."""
        if answers is None or answers.listed is None:
            return {}
        return holders(answers.listed.holdings, self._picture.facts, self._picture.policy)

    def _after_ends(self, id: str, answers: Answers | None) -> Case:
        """Return the case of a device after the ends of holders."""
        case = self._errors.case(id)
        if answers is None or not case.incidents:
            return case
        for container in self._holders.get(id, ()):
            if (at := answers.succeeded.get(container)) is not None:
                case = after_success(case, at)
        return case

    def _note_holders(self, id: str, containers: Iterable[str]) -> None:
        if self._errors.case(id).incidents:
            self._holders.setdefault(id, set()).update(containers)
        else:
            self._holders.pop(id, None)

    # --- cards without a holder -----------------------------------------------------------------

    async def _confirm(self, device: Device, incident: Incident) -> None:
        """Wait for the end of an incident, as a line may still name a process. Then the device is sick."""
        await asyncio.sleep(self._rules.together)
        self._confirming.discard(_key(incident))
        last = self._open.get(incident.card, incident)
        whole = last if _key(last) == _key(incident) else incident
        if self._idle(device, whole):
            case = after_idle_incident(self._errors.case(device.id), whole, self._rules)
            self._errors.become(device.id, case, whole.number)

    def _idle(self, device: Device, incident: Incident) -> bool:
        """Return whether nothing is known to have used a whole card for long before an incident."""
        if device.kind is not DeviceKind.WHOLE or incident.old:
            return False
        facts, ledger = self._picture.facts, self._grants.ledger
        if may_be_held(device, facts.claimed.union(ledger, facts.held)):
            return False
        return incident.began - self._busy.get(device.id, self._began) >= self._rules.idle

    async def _look_on(self) -> None:
        """Note which devices are in use, which holders have ended, and which cards were reset. Never
        returns."""
        with self._picture.waking(self._stir), self._grants.waking(self._stir):
            while True:
                self._see_resets()
                await self._see_users()
                await pause(self._stir, LOOK_SECONDS)

    def _see_resets(self) -> None:
        facts = self._picture.facts
        for id, health in facts.verdicts.items():
            if health.reason == IN_RESET and (device := facts.devices.get(id)) is not None:
                for own in {id, device.card}:
                    if self._errors.case(own).counts:
                        self._errors.end(own, Ending.RESET)

    async def _see_users(self) -> None:
        facts, ledger, now = self._picture.facts, self._grants.ledger, self._clock()
        held = facts.claimed.union(ledger, facts.held)
        probed, self._probed = self._probed | facts.probed.keys(), frozenset(facts.probed)
        self._busy |= {
            id: now
            for id, device in facts.devices.items()
            if may_be_held(device, held) or device.card in probed
        }
        if counting := [id for id in facts.devices if self._errors.case(id).incidents]:
            answers = await self._plugin.view.answers(oldest=FRESH_SECONDS)
            containers = self._held(answers)
            for id in counting:
                self._note_holders(id, containers.get(id, ()))
                self._errors.become(id, self._after_ends(id, answers))
        if now - self._looked_at >= LOOK_SECONDS and any(id not in ledger for id in facts.devices):
            self._looked_at = now
            processes = await self._processes()
            for id, device in self._picture.facts.devices.items():
                if processes.get(device.address) != ():
                    self._busy[id] = self._clock()

    async def _processes(self) -> Processes:
        """Return the processes by the driver, as in `Usage`; none if it cannot be asked now."""
        if self._plugin.worker.stuck:
            return {}
        try:
            return await self._plugin.worker.processes(self._plugin.monitor.unresponsive.skip)
        except (WorkerError, LibraryError, XpumlError):
            return {}  # the sweep and the audit report this

    # --- reports --------------------------------------------------------------------------------

    def _report(
        self,
        incident: Incident,
        devices: Collection[Device],
        answers: Answers | None,
        held: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Count an incident, and report it unless the card had a report just before."""
        card = incident.card
        address = min(device.card for device in devices) if devices else card
        self._errors.incidents[address, incident.reason] += 1
        if card in self._pauses:
            self._unreported[card] += 1
            return
        if self._clock() - self._pauses.until(card) > QUIET_SECONDS:
            self._pauses.forget(card)
        self._pauses.begin(card)
        self._errors.took(incident.number)
        who = sorted({container for device in devices for container in held.get(device.id, ())})
        users = (
            ", ".join(who) if who else "not known" if incident.old or not answers else "no listed container"
        )
        more = self._unreported.pop(card, 0)
        logger.warning(
            Message(
                "the driver reports an incident",
                card=address,
                reason=incident.reason,
                line=incident.text,
                held_by=users,
                unreported=more,
            )
        )
        note("incident", card=address, reason=incident.reason, line=incident.text, held_by=users)
        if self._plugin.tenures.aside:
            return  # the other instance reports it
        text = f"{_named(address, devices)}: {incident.reason}, {incident.text}"
        also = f"; {more} more since the last Event" if more else ""
        events = self._plugin.exchange.events
        events.put(Event(kind=WARNING, reason=INCIDENT, text=f"{text}; held by: {users}{also}"))
        if self._plugin.config.pod_events and answers is not None and answers.listed is not None:
            ids = {device.id for device in devices}
            facts, policy = self._picture.facts, self._picture.policy
            for pod, own in pods(answers.listed.holdings, answers.checkpoint or (), facts, policy).items():
                if own & ids:
                    events.put(Event(kind=WARNING, reason=INCIDENT, text=f"{text}{also}", pod=pod))


def _key(incident: Incident) -> Key:
    return incident.card, incident.began, incident.number


def _named(card: str, devices: Collection[Device]) -> str:
    """Return a card and, if it is one device, the path of its node."""
    return f"{card} at {min(device.path for device in devices)}" if len(devices) == 1 else card
