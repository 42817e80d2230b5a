# SPDX-License-Identifier: Apache-2.0
"""Health rounds and rescans: keeps the picture's devices and verdicts true to what the library says."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from functools import partial
from os import strerror

from xpu_plugin.edges.driver import Driver, LibraryError, WorkerError
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.loops.due import Due
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.probation import Probation
from xpu_plugin.loops.silence import Silence
from xpu_plugin.loops.unlisted import Openings
from xpu_plugin.loops.verdicts import Verdicts
from xpu_plugin.model.absence import absent
from xpu_plugin.model.devices import Found, Host, Kind, Scan, identify
from xpu_plugin.model.health import (
    LIBRARY_GONE,
    NOT_ANSWERING,
    UNHEARD,
    UNWATCHED,
    Health,
    judge,
    shared,
)
from xpu_plugin.model.inventory import Facts, after_scan, after_verdicts, may_be_held, unusable_serials
from xpu_plugin.model.timing import none_yet
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.model.unlisted import Unlisted, sentences, unlisted
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays, pause
from xpu_plugin.xpuml import DriverNotLoadedError, StateAnswer, XpumlError, is_too_old


logger = logging.getLogger(__name__)

HASTY_SECONDS = (
    1.0  # at least, for the scan that follows a hang: at the next device, too, the library may hang
)
HASTY_TIMES = 4.0  # as long as the last good scan took, where that is more
TRIAL_SECONDS = (5.0, 300.0)  # back-off of trials of one library file that cannot be used: first, most
UNSTABLE_SECONDS = 0.1  # before scanning again when nodes came or went during a scan
LOOK_SECONDS = 1.0  # within a round that lasts, between looks at how long devices have been silent
ROUNDS = 2.0  # that may be missed before a device counts as silent, where that is longer than the grace
_LENGTHS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class InitError(PluginError):
    """The plugin must not go on: the first scan failed and the administrator wants to be told by the exit
    status, or the configuration cannot be followed on this node."""


class UnwatchedError(WorkerError):
    """No states are asked, as there is no worker for it while the driver changes the VFs of a card."""


@frozen
class Cadence:
    """How often devices are asked, and how long an answer holds; in seconds."""

    interval: float
    """Between two rounds."""
    rescan_interval: float
    """Between comparisons of the host with the host of the last scan."""
    grace: float
    """A verdict stands for so long while the library cannot be asked, or does not come round to a device."""
    fail_on_init_error: bool = False
    """Raise InitError when the first scan fails, instead of trying on."""
    timings: Timings = USUAL


class Sweep:
    """One loop: scan when there is a reason to, else ask all states, each `interval` seconds. `probation` and
    `verdicts` are two more, to be run beside it.

    probes: the worker that devices which hang or kill the library are asked by, apart from all others
    """

    def __init__(
        self,
        driver: Driver,
        probes: Driver,
        picture: Picture,
        verdicts: Verdicts,
        grants: Grants,
        *,
        cadence: Cadence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._probes = probes
        self._picture = picture
        self.verdicts = verdicts
        self._grants = grants
        self._cadence = cadence
        self._clock = clock
        self._due = Due()
        self.probation = Probation(probes, self._due, pauses=cadence.timings.probation, clock=clock)
        self.openings = Openings(probes, picture, self._due, clock=clock)
        self._card_in_change: str | None = None  # the card that the driver is asked to change
        self._rounding = asyncio.Lock()  # held by each round
        self._begun = 0  # scans
        self._taken_in = 0  # the number of the last scan that was
        self._new = asyncio.Event()
        self.scans = 0  # that were taken in
        self._host: Host | None = None  # as the last scan saw it
        self._host_at = 0.0  # when it was compared last
        self._scanned_at = 0.0
        self._found = Found(devices={})
        self._answers: list[StateAnswer | None] = []  # of the last sweep
        self._held: frozenset[str] = frozenset()  # ids that a container may have, at the last sweep
        self._doubt = False  # a device that did not answer the scan did answer those
        self._empty_believed = False
        self._bad_since: float | None = None  # when the library was asked and failed; None after an answer
        self._hasty = False
        self._scan_seconds: float | None = None  # that the last good scan took
        self._present: str | None = None  # a mark of the library's file, if it is not the one that is open
        self.library_unfit: str | None = None  # why that file could not be used when it was tried
        self._trials = delays(*TRIAL_SECONDS)
        self._trial_at: float | None = None  # when it is tried next; None for a file that could be used
        self._sweep_seconds = 0.0  # that the last good sweep took
        self._silence = Silence(clock)  # of the devices that are not left out
        self._verdict = UNHEARD  # on silent devices; another one when the whole library has failed
        self._retries = delays(*self._cadence.timings.scan)
        self.trouble: str | None = None  # with the library, in a sentence
        self._versions: tuple[str | None, ...] = (None,) * 4
        self.problems: tuple[str, ...] = ()  # why something is not offered
        self.unlisted: tuple[Unlisted, ...] = ()  # nodes, by the last scan
        self._answered_at = clock()
        self.last: Scan | None = None  # that was taken in
        self.durations = none_yet(*_LENGTHS)  # of sweeps that all went well
        self.driver_gone: Value[str | None] = Value(None)  # why there is no driver, or no library, to ask

    def rescan(self) -> None:
        """Scan at once and forget lost devices."""
        self._due.want(forget=True)

    async def rescanned(self) -> None:
        """Scan at once; returns when a scan that began after this call has been taken in."""
        begun = self._begun
        self._due.want()
        while self._taken_in <= begun:
            await self._new.wait()

    @contextlib.asynccontextmanager
    async def changing(self, card: str) -> AsyncIterator[None]:
        """While the driver changes the VFs of a card, watch all others, and do nothing that makes it refuse.

        Only states are asked, by the indexes of before, and none of this card: its devices keep their
        verdicts. A scan that is due waits until the end, when one is due in any case. Begins when nothing
        else is being asked.
        """
        self._card_in_change = card
        self._due.wake.set()
        try:
            async with self._rounding:
                pass
            async with self._driver.states_only(), self._probes.states_only():
                yield
        finally:
            self._card_in_change = None
            self._due.want()

    def library(self) -> dict[str, object]:
        """What is known of the library that the running worker has open, or the last one had."""
        path, version, driver, release = self._versions
        return {
            "path": path,
            "version": version,
            "driver_version": driver,
            "driver_release": release,
            "older_than_its_file": self.library_older,
            "its_file_unfit": self.library_unfit,
            "trouble": self.trouble,
        }

    def clear(self, id: str) -> bool:
        """Lift the quarantine of a device; whether it was in one."""
        verdicts = self.verdicts.clear(id)
        if verdicts:
            self._picture.submit(partial(after_verdicts, verdicts=verdicts))
        return verdicts is not None

    @property
    def unwatched(self) -> bool:
        """Whether no states are asked, as the worker ended while the driver changes the VFs of a card."""
        return self._verdict == UNWATCHED

    def driver_version(self) -> str:
        """As the last scan heard it; empty before the first."""
        return self.last.driver_release or self.last.driver_version if self.last else ""

    @property
    def age(self) -> float:
        """Seconds since the library last answered, or since the start if it never has."""
        return self._clock() - self._answered_at

    async def run(self) -> None:
        """Never returns; raises InitError only."""
        with self._driver.ended.waking(self._due.wake):
            self._due.wake.clear()  # the first round takes in all there is
            while True:
                async with self._rounding:
                    self._look_later()
                    try:
                        delay = await self._round()
                    finally:
                        self._next_look.cancel()
                self._condemn()
                delay = min(delay, self._grace_left())
                await pause(self._due.wake, delay)
                self._silence.look(delay)

    def _look_later(self) -> None:
        """A round may last, and no device is forgotten meanwhile."""
        self._next_look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_in_between)

    def _look_in_between(self) -> None:
        self._condemn()
        self._look_later()

    async def _round(self) -> float:
        """One comparison of what is known with what is; returns the seconds until the next."""
        begun = self._clock()
        try:
            if self._card_in_change is not None:
                delay = await self._watch(self._card_in_change)
            else:
                scan = self._due.wanted and not await self._waits()
                delay = await (self._scan() if scan else self._sweep())
        except WorkerError as error:
            self._due.wanted = True
            index = error.call.index if error.call else None
            delay = self._failed(error, f"{error}{self._named(index)}", begun, whole=index is None)
            if index is not None and self._bad_since is not None:
                new = self.probation.convict(index, self._bad_since)
                self._hasty = self._hasty or new
                delay = 0.0 if new else delay  # on without it
        except (LibraryError, XpumlError) as error:
            self._due.wanted = True
            delay = self._failed(error, _advice(error, denied=self._driver.control_denied), begun, whole=True)
        else:
            self._recovered()
        return delay

    # --- scan -----------------------------------------------------------------------------------

    async def _scan(self) -> float:
        self._begun += 1
        begun, forget = self._begun, self._due.forget
        again: float | None = 0.0
        self._due.wanted = self._due.forget = False  # whoever asks from now on wants another one
        try:
            again = await self._take_in(forget=forget)
        finally:
            if again is not None:
                self._due.wanted, self._due.forget = True, forget or self._due.forget
        if again is not None:
            return again
        self.scans += 1
        self._taken_in = begun
        self._new.set()
        self._new = asyncio.Event()
        return self._cadence.interval

    async def _take_in(self, *, forget: bool) -> float | None:
        """Scan; for a scan that proves nothing, the seconds until the next one."""
        skip, begun = self.probation.skip, self._clock()
        scan = await self._driver.scan(skip, seconds=self._patience())
        if scan is None:
            return UNSTABLE_SECONDS
        if self._host is not None and scan.host != self._host and skip:
            self.probation.clear()  # its indexes were those of another list of nodes
            self._host, self._hasty = None, True
            return 0.0
        if not scan.readings and (self._found.devices or scan.host.nodes) and not self._empty_believed:
            self._empty_believed = True  # if a fresh worker says so again
            return 0.0
        self._empty_believed = not scan.readings
        found = identify(scan, self._found)
        if (refusal := unusable_serials(self._picture.policy, found.devices.values())) is not None:
            raise InitError(refusal)  # before anything is offered that was to be denied
        self._report(scan, found)
        self._host, self._found = scan.host, found
        self._host_at = self._scanned_at = self._clock()
        self._scan_seconds, self._hasty = self._clock() - begun, False
        self._present = self.library_unfit = None
        facts = after_scan(self._picture.facts, found, forget=forget, claimed=self._grants.ledger)
        verdicts = self._judge(facts, scan, skip)
        self._picture.submit(lambda _: after_verdicts(facts, verdicts))
        self._silence.end()
        return None

    def _judge(self, facts: Facts, scan: Scan, skip: Collection[int]) -> Mapping[str, Health]:
        """Verdicts by a scan: of what it found, what it left out, and what is missing."""
        left_out = {id for id, device in facts.devices.items() if device.index in skip}
        answers = self._shared({id: facts.verdicts[id] for id in facts.devices.keys() - left_out})
        answers |= {id: absent(device, scan) for id, device in facts.lost.items()}
        self.verdicts.keep(facts.devices.keys() | facts.lost.keys())
        standing = self.verdicts.miss(left_out)
        return standing | self.verdicts.hear(
            answers | dict.fromkeys(left_out - standing.keys(), NOT_ANSWERING)
        )

    # --- sweep ----------------------------------------------------------------------------------

    async def _sweep(self) -> float:
        began = self._clock()
        answers = await self._driver.sweep(self.probation.skip)
        self._silence.end()
        self._sweep_seconds = self._clock() - began
        self.durations = self.durations.with_one(self._sweep_seconds)
        held = frozenset(self._grants.ledger).union(self._picture.facts.held)
        new = answers is not self._answers or held != self._held or not self.verdicts.settled
        self._held = held
        hint = new and self._weigh(answers)
        if self._due.wanted:  # a scan is wanted already, and waits
            return self._cadence.interval
        if self._doubt and self._clock() - self._scanned_at >= self._cadence.timings.doubt:
            logger.info("a device that did not answer the last scan answers now: scanning again")
            self._due.wanted = True
            return 0.0
        # The next round would be too late.
        if hint or self._clock() + self._cadence.interval - self._host_at > self._cadence.rescan_interval:
            self._host_at = self._clock()
            if await self._driver.host() != self._host:
                logger.info("device nodes or sysfs changed: scanning again")
                self._due.wanted = True
                return 0.0
            await self._compare_library()
        return self._cadence.interval

    async def _watch(self, card: str) -> float:
        """A sweep that asks nothing of one card, and is no reason for anything else.

        A worker that has ended is not replaced before the driver is done. The library opens every node when
        it lists them, and the driver refuses to change the VFs of a card of which a node is open.
        """
        if self._driver.pid is None:
            raise UnwatchedError(
                f"the worker has ended while the driver changes the VFs of {card}: device states are not "
                "asked until that is over"
            )
        own = {device.index for device in self._found.devices.values() if device.card == card}
        answers = await self._driver.sweep(self.probation.skip | own)
        self._silence.end()
        if answers is not self._answers or not self.verdicts.settled:
            self._weigh(answers)
        return self._cadence.interval

    async def _waits(self) -> bool:
        """Whether a scan has to wait, as it would end a worker that works for a library that does not."""
        if self._driver.pid is None:
            return False
        await self._compare_library()
        return self.library_unfit is not None

    async def _compare_library(self) -> None:
        """No reason to scan: a scan ends the worker that works. A trial shows whether the next one would."""
        present = await self._driver.replaced()
        if present != self._present:
            self._present, self._trials, self._trial_at = present, delays(*TRIAL_SECONDS), self._clock()
        if present is None:
            self.library_unfit = None
        elif self._trial_at is not None and self._clock() >= self._trial_at:
            await self._try_library()

    async def _try_library(self) -> None:
        before = self.library_unfit
        try:
            opened = await self._driver.trial()
        except (WorkerError, LibraryError, XpumlError) as error:
            self.library_unfit, self._trial_at = str(error), self._clock() + next(self._trials)
            if self.library_unfit != before:
                logger.warning(
                    "the library's file was replaced or removed, and the present one cannot be used: the "
                    "running worker goes on with the former one, and scans wait; do not restart the plugin "
                    "before XRE is installed whole: %s",
                    self.library_unfit,
                )
        else:
            self.library_unfit = self._trial_at = None
            if not self._due.wanted:
                logger.warning(
                    "the library's file was replaced, and a trial has opened the present one: the running "
                    "worker still has the former one; send SIGHUP to have the present one used path=%s "
                    "version=%r",
                    opened["library"],
                    opened["library_version"],
                )

    @property
    def library_older(self) -> bool:
        """Whether the library is older than its file: it was replaced or removed since it was opened."""
        return self._present is not None

    def _shared(self, answers: Mapping[str, Health]) -> dict[str, Health]:
        devices = self._found.devices.values()
        return shared(answers, {device.id: device.card for device in devices if device.kind is Kind.HALF})

    def _weigh(self, answers: list[StateAnswer | None]) -> bool:
        """Take in answers that may say something new; whether a healthy device's call failed."""
        self._answers = answers
        before = self._picture.facts.verdicts
        asked = [
            (device, answer)
            for device in self._found.devices.values()
            if (answer := _at(answers, device.index))
        ]
        self._hear(
            self._shared(
                {
                    device.id: judge(
                        answer.code, answer.state, device.arch, held=may_be_held(device, self._held)
                    )
                    for device, answer in asked
                }
            )
        )
        self._doubt = any(not answer.code and device.state is None for device, answer in asked)
        return any(answer.code and before[device.id].healthy for device, answer in asked)

    def _hear(self, answers: Mapping[str, Health]) -> None:
        """Take in answers; what they change goes into the picture. Nothing is taken in about a card that the
        driver is changing."""
        devices, before = self._found.devices, self._picture.facts.verdicts
        answers = {id: answer for id, answer in answers.items() if devices[id].card != self._card_in_change}
        verdicts = self.verdicts.hear(answers)
        changed = {id: verdict for id, verdict in verdicts.items() if verdict != before[id]}
        if changed:
            self._picture.submit(partial(after_verdicts, verdicts=changed))

    # --- trouble --------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Seconds for a scan; None for as many as any request has.

        Several devices at which the library hangs are found one after the other, and nobody watches the
        rest meanwhile: so the scans that follow the first hang are given less. A device that is convicted
        wrongly, as the machine is slow, is soon released.
        """
        if not self._hasty or self._scan_seconds is None:
            return None
        return min(self._driver.call_timeout, max(HASTY_SECONDS, HASTY_TIMES * self._scan_seconds))

    def _grace_left(self) -> float:
        """Seconds until the next grace ends; infinite where none is running."""
        since = [*self.probation.since(), *([] if self._bad_since is None else [self._bad_since])]
        now = self._clock()
        return min((left for at in since if (left := at + self._cadence.grace - now) > 0), default=math.inf)

    def _condemn(self) -> None:
        """What has been left out or silent for too long is not called healthy any more."""
        longest_round = self._cadence.interval + max(self._sweep_seconds, self._scan_seconds or 0.0)
        if self._silence.look(LOOK_SECONDS) >= max(self._cadence.grace, ROUNDS * longest_round):
            skip, verdict = self.probation.skip, self._verdict
            silent = [id for id, device in self._found.devices.items() if device.index not in skip]
            self._hear(dict.fromkeys(silent, verdict))
        overdue = self.probation.overdue(self._cadence.grace)
        if overdue:
            guilty = [id for id, device in self._found.devices.items() if device.index in overdue]
            self._hear(dict.fromkeys(guilty, NOT_ANSWERING))

    def _named(self, index: int | None) -> str:
        """The device at an index, in brackets, where that is known."""
        names = [
            f"{id}, {device.path}" for id, device in self._found.devices.items() if device.index == index
        ]
        return f" ({names[0]})" if names else ""

    def _failed(self, error: Exception, text: str, begun: float, *, whole: bool) -> float:
        """Say what is wrong, once; when the whole library does not answer for long, nothing is healthy.

        begun: the round. How long it took is not all the library's doing: we may have been stopped.
        """
        now = self._clock()
        if self._bad_since is None:
            self._bad_since = max(begun, now - self._driver.call_timeout)
        if whole and self._cadence.fail_on_init_error and self._picture.current is None:
            raise InitError(text) from error
        gone = UNWATCHED if isinstance(error, UnwatchedError) else LIBRARY_GONE
        self._verdict = gone if whole else UNHEARD
        first = self.trouble is None
        if text != self.trouble:
            logger.warning("%s", text)
            self.trouble = text
        if isinstance(error, DriverNotLoadedError | LibraryError):
            self.driver_gone.set(text)
        if whole:
            self.verdicts.miss(self._found.devices)
            if now - self._bad_since >= self._cadence.grace:
                self._hear(dict.fromkeys(self._found.devices, gone))
        return 0.0 if first else next(self._retries)

    def _recovered(self) -> None:
        self._bad_since, self._answered_at, self._verdict = None, self._clock(), UNHEARD
        if self._due.wanted:
            return  # nothing has been scanned yet
        self.driver_gone.set(None)
        self.probation.answered()
        self._retries = delays(*self._cadence.timings.scan)
        if self.trouble is not None:
            logger.info("the library answers again")
            self.trouble = None

    # --- words ----------------------------------------------------------------------------------

    def _report(self, scan: Scan, found: Found) -> None:
        self.last = scan
        versions = (scan.library, scan.library_version, scan.driver_version, scan.driver_release)
        if versions != self._versions:
            self._versions = versions
            logger.info(
                "library opened path=%s library_version=%r driver_version=%r driver_release=%r",
                scan.library,
                scan.library_version,
                scan.driver_version,
                scan.driver_release,
            )
            if is_too_old(scan.library_version):
                logger.warning(
                    "libxpuml %s is older than 4.0.11: install XRE 4.0.11 or newer on this node",
                    scan.library_version,
                )
        nodes = unlisted(scan, found)
        self.openings.expect([node.number for node in nodes if not node.beyond])
        if nodes != self.unlisted:
            self._report_unlisted(nodes, scan)
        if found.problems != self.problems:
            self.problems = found.problems
            for problem in found.problems:
                logger.warning("not offered: %s", problem)

    def _report_unlisted(self, nodes: tuple[Unlisted, ...], scan: Scan) -> None:
        said, self.unlisted = sentences(self.unlisted), nodes
        if nodes and len(nodes) == len(scan.host.nodes) and all(node.denied for node in nodes):
            logger.warning(
                "none of %s device nodes may be opened (%s): the plugin's container has to be privileged",
                len(nodes),
                strerror(nodes[0].errno),
            )
            return
        for sentence in sentences(nodes):
            if sentence not in said:
                logger.warning("device node without an index: %s", sentence)


def _at(answers: list[StateAnswer | None], index: int) -> StateAnswer | None:
    return answers[index] if index < len(answers) else None


def _advice(error: Exception, *, denied: bool) -> str:
    if isinstance(error, DriverNotLoadedError) and denied:
        return (
            f"no driver: {error}; /dev/xpuctrl is there and may not be opened: run the pod privileged; on a "
            "host with SELinux or AppArmor see its audit log"
        )
    if isinstance(error, DriverNotLoadedError):
        return (
            f"no driver: {error}; load the kunlun driver, and see that /dev/xpuctrl is there and may be "
            "opened (a container has to be privileged for that)"
        )
    if isinstance(error, LibraryError):
        return f"no usable libxpuml: {error}; install XRE 4.0.11 or newer, or name it by --xpuml-library"
    return str(error)
