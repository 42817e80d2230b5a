# SPDX-License-Identifier: Apache-2.0
"""The cadence of health rounds: a scan when one is due, else all states; and trouble with the library."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message
from xpu_plugin.loops.due import Due
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.library_trial import LibraryTrial
from xpu_plugin.loops.openings import Openings
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.scanner import InitError, Scanner
from xpu_plugin.loops.silence import Silence
from xpu_plugin.loops.unresponsive import Unresponsive
from xpu_plugin.model.health import (
    LIBRARY_GONE,
    NOT_ANSWERING,
    UNHEARD,
    UNWATCHED,
    Health,
    judge,
)
from xpu_plugin.model.histogram import none_yet
from xpu_plugin.model.inventory import after_verdicts, may_be_held
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays, pause
from xpu_plugin.xpuml import DriverNotLoadedError, StateAnswer, XpumlError


logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # within a round that lasts, between looks at how long devices have been silent
ROUNDS = 2.0  # that may be missed before a device counts as silent, where that is longer than the grace
_LENGTHS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


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


class Monitor:
    """One loop: scan when there is a reason to, else ask for all states, each `interval` seconds.
    Beside it run the loops of `unresponsive`, of `openings`, and of the history.

    prober: the worker that asks each device which hangs or kills the library, apart from all others
    """

    def __init__(
        self,
        worker: WorkerClient,
        prober: WorkerClient,
        picture: Picture,
        history: HealthHistory,
        grants: Grants,
        *,
        cadence: Cadence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._prober = prober
        self._picture = picture
        self._history = history
        self._grants = grants
        self._cadence = cadence
        self._clock = clock
        self._due = Due()
        self.unresponsive = Unresponsive(prober, self._due, pauses=cadence.timings.unresponsive, clock=clock)
        self.openings = Openings(prober, picture, self._due, clock=clock)
        self.trial = LibraryTrial(worker, self._due, clock=clock)
        self.scanner = Scanner(
            worker,
            picture,
            history,
            grants,
            self.unresponsive,
            openings=self.openings,
            due=self._due,
            clock=clock,
        )
        self._card_in_change: str | None = None  # the card that the driver is asked to change
        self._rounding = asyncio.Lock()  # held by each round
        self._answers: list[StateAnswer | None] = []  # of the last sweep
        self._held: frozenset[str] = frozenset()  # ids that a container may have, at the last sweep
        self._doubt = False  # a device that did not answer the scan did answer those
        self._bad_since: float | None = None  # when the library was asked and failed; None after an answer
        self._sweep_seconds = 0.0  # that the last good sweep took
        self._silence = Silence(clock)  # of the devices that are not left out
        self._verdict = UNHEARD  # on silent devices; another one when the whole library has failed
        self._retries = delays(*self._cadence.timings.scan)
        self.trouble: str | None = None  # with the library, in a sentence
        self._answered_at = clock()
        self.durations = none_yet(*_LENGTHS)  # of sweeps that all went well
        self.driver_gone: Value[str | None] = Value(None)  # why there is no driver, or no library, to ask

    def rescan(self) -> None:
        """Scan at once and forget lost devices."""
        self._due.want(forget=True)

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
            async with self._worker.states_only(), self._prober.states_only():
                yield
        finally:
            self._card_in_change = None
            self._due.want()

    def library(self) -> dict[str, object]:
        """What is known of the library that the running worker has open, or the last one had."""
        path, version, driver, release = self.scanner.versions
        return {
            "path": path,
            "version": version,
            "driver_version": driver,
            "driver_release": release,
            "older_than_its_file": self.trial.older,
            "its_file_unfit": self.trial.unfit,
            "trouble": self.trouble,
        }

    def clear(self, id: str) -> bool:
        """Lift the quarantine of a device; whether it was in one."""
        verdicts = self._history.clear(id)
        if verdicts:
            self._picture.submit(partial(after_verdicts, verdicts=verdicts))
        return verdicts is not None

    @property
    def unwatched(self) -> bool:
        """Whether no states are asked, as the worker ended while the driver changes the VFs of a card."""
        return self._verdict == UNWATCHED

    @property
    def age(self) -> float:
        """Seconds since the library last answered, or since the start if it never has."""
        return self._clock() - self._answered_at

    async def run(self) -> None:
        """Never returns; raises InitError only."""
        with self._worker.ended.waking(self._due.wake):
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
                scan = self._due.wanted and not await self.trial.waits()
                delay = await (self._scan() if scan else self._sweep())
        except WorkerError as error:
            self._due.want_next()
            index = error.call.index if error.call else None
            delay = self._failed(error, f"{error}{self.scanner.named(index)}", begun, whole=index is None)
            if index is not None and self._bad_since is not None:
                new = self.unresponsive.suspect(index, self._bad_since)
                if new:
                    self.scanner.hasten()
                    delay = 0.0  # on without it
        except (LibraryError, XpumlError) as error:
            self._due.want_next()
            delay = self._failed(error, _advice(error, denied=self._worker.control_denied), begun, whole=True)
        else:
            self._recovered()
        return delay

    async def _scan(self) -> float:
        again = await self.scanner.scan()
        if again is not None:
            return again
        self.trial.opened()
        self._silence.end()
        return self._cadence.interval

    # --- sweep ----------------------------------------------------------------------------------

    async def _sweep(self) -> float:
        began = self._clock()
        answers = await self._worker.sweep(self.unresponsive.skip)
        self._silence.end()
        self._sweep_seconds = self._clock() - began
        self.durations = self.durations.with_one(self._sweep_seconds)
        held = frozenset(self._grants.ledger).union(self._picture.facts.held)
        new = answers is not self._answers or held != self._held or not self._history.settled
        self._held = held
        hint = new and self._weigh(answers)
        if self._due.wanted:  # a scan is wanted already, and waits
            return self._cadence.interval
        if self._doubt and self._clock() - self.scanner.scanned_at >= self._cadence.timings.doubt:
            logger.info("a device that did not answer the last scan answers now: scanning again")
            self._due.want_next()
            return 0.0
        # The next round would be too late.
        if (
            hint
            or self._clock() + self._cadence.interval - self.scanner.host_at > self._cadence.rescan_interval
        ):
            if await self.scanner.host_changed():
                logger.info("device nodes or sysfs changed: scanning again")
                self._due.want_next()
                return 0.0
            await self.trial.compare()
        return self._cadence.interval

    async def _watch(self, card: str) -> float:
        """A sweep that asks nothing of one card, and is no reason for anything else.

        A worker that has ended is not replaced before the driver is done. The library opens every node when
        it lists them, and the driver refuses to change the VFs of a card of which a node is open.
        """
        if self._worker.pid is None:
            raise UnwatchedError(
                f"the worker has ended while the driver changes the VFs of {card}: device states are not "
                "asked until that is over"
            )
        own = {device.index for device in self.scanner.found.devices.values() if device.card == card}
        answers = await self._worker.sweep(self.unresponsive.skip | own)
        self._silence.end()
        if answers is not self._answers or not self._history.settled:
            self._weigh(answers)
        return self._cadence.interval

    def _weigh(self, answers: list[StateAnswer | None]) -> bool:
        """Take in answers that may say something new; whether a healthy device's call failed."""
        self._answers = answers
        before = self._picture.facts.verdicts
        asked = [
            (device, answer)
            for device in self.scanner.found.devices.values()
            if (answer := _at(answers, device.index))
        ]
        self._hear(
            self.scanner.shared(
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
        devices, before = self.scanner.found.devices, self._picture.facts.verdicts
        answers = {id: answer for id, answer in answers.items() if devices[id].card != self._card_in_change}
        verdicts = self._history.hear(answers)
        changed = {id: verdict for id, verdict in verdicts.items() if verdict != before[id]}
        if changed:
            self._picture.submit(partial(after_verdicts, verdicts=changed))

    # --- trouble --------------------------------------------------------------------------------

    def _grace_left(self) -> float:
        """Seconds until the next grace ends; infinite where none is running."""
        since = [*self.unresponsive.since(), *([] if self._bad_since is None else [self._bad_since])]
        now = self._clock()
        return min((left for at in since if (left := at + self._cadence.grace - now) > 0), default=math.inf)

    def _condemn(self) -> None:
        """What has been left out or silent for too long is not called healthy any more."""
        longest_round = self._cadence.interval + max(self._sweep_seconds, self.scanner.seconds or 0.0)
        if self._silence.look(LOOK_SECONDS) >= max(self._cadence.grace, ROUNDS * longest_round):
            skip, verdict = self.unresponsive.skip, self._verdict
            silent = [id for id, device in self.scanner.found.devices.items() if device.index not in skip]
            self._hear(dict.fromkeys(silent, verdict))
        overdue = self.unresponsive.overdue(self._cadence.grace)
        if overdue:
            guilty = [id for id, device in self.scanner.found.devices.items() if device.index in overdue]
            self._hear(dict.fromkeys(guilty, NOT_ANSWERING))

    def _failed(self, error: Exception, text: str, begun: float, *, whole: bool) -> float:
        """Say what is wrong, once; when the whole library does not answer for long, nothing is healthy.

        begun: the round. How long it took is not all the library's doing: we may have been stopped.
        """
        now = self._clock()
        if self._bad_since is None:
            self._bad_since = max(begun, now - self._worker.call_timeout)
        if whole and self._cadence.fail_on_init_error and self._picture.current is None:
            raise InitError(text) from error
        gone = UNWATCHED if isinstance(error, UnwatchedError) else LIBRARY_GONE
        self._verdict = gone if whole else UNHEARD
        first = self.trouble is None
        if text != self.trouble:
            logger.warning(Message("trouble with the library", error=text))
            self.trouble = text
        if isinstance(error, DriverNotLoadedError | LibraryError):
            self.driver_gone.set(text)
        if whole:
            self._history.miss(self.scanner.found.devices)
            if now - self._bad_since >= self._cadence.grace:
                self._hear(dict.fromkeys(self.scanner.found.devices, gone))
        return 0.0 if first else next(self._retries)

    def _recovered(self) -> None:
        self._bad_since, self._answered_at, self._verdict = None, self._clock(), UNHEARD
        if self._due.wanted:
            return  # nothing has been scanned yet
        self.driver_gone.set(None)
        self.unresponsive.answered()
        self._retries = delays(*self._cadence.timings.scan)
        if self.trouble is not None:
            logger.info("the library answers again")
            self.trouble = None


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
