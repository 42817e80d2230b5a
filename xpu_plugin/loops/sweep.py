# SPDX-License-Identifier: Apache-2.0
"""Health rounds and rescans: keeps the picture's devices and verdicts true to what the library says."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from xpu_plugin.edges.driver import Driver, LibraryError, WorkerError
from xpu_plugin.loops.backoff import delays, wait_for
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.devices import Found, Host, Scan, identify
from xpu_plugin.model.health import LIBRARY_GONE, NOT_ANSWERING, judge
from xpu_plugin.model.inventory import after_scan, after_verdicts
from xpu_plugin.xpuml import DriverNotLoadedError, StateAnswer, XpumlError


logger = logging.getLogger(__name__)

HOST_SECONDS = 10.0  # between comparisons of the host with what it was at the last scan
GRACE_SECONDS = 15.0  # verdicts stand so long while the library cannot be opened or counted
RETRY_SECONDS = (0.1, 10.0)  # back-off of failing scans: first, most
CONVICTED_SECONDS = (10.0, 300.0)  # back-off of a device at which the library hangs or crashes
DOUBT_SECONDS = 5.0  # after a scan, before another one for a device that did not answer it
UNSTABLE_SECONDS = 0.1  # before scanning again when nodes came or went during a scan
STRIKES = 2  # hangs or crashes in a row at one device that convict it
OLDEST_LIBRARY = (4, 0, 11)


class InitError(Exception):
    """The first scan failed and the administrator wants to be told by the exit status."""


@dataclass(slots=True)
class _Convict:
    """A device left out because asking it hangs or kills the library."""

    retry_at: float
    delays: Iterator[float] = field(default_factory=lambda: delays(*CONVICTED_SECONDS))


class Sweep:
    """One loop: scan when there is a reason to, else ask all states, each `interval` seconds.

    fail_on_init_error: raise InitError when the first scan fails, instead of trying on
    """

    def __init__(
        self,
        driver: Driver,
        picture: Picture,
        *,
        interval: float,
        fail_on_init_error: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._picture = picture
        self._interval = interval
        self._fail_on_init_error = fail_on_init_error
        self._clock = clock
        self._wake = asyncio.Event()
        self._forget = False
        self._due = True  # a scan is wanted
        self._begun = 0  # scans
        self._taken_in = 0  # the number of the last scan that was
        self._new = asyncio.Event()
        self.scans = 0  # that were taken in
        self._host: Host | None = None  # as the last scan saw it
        self._host_at = 0.0  # when it was compared last
        self._scanned_at = 0.0
        self._found = Found(devices={})
        self._empty_believed = False
        self._good_at = clock()  # when the library answered last
        self._strikes: tuple[int | None, int] = (None, 0)
        self._convicts: dict[int, _Convict] = {}
        self._retries = delays(*RETRY_SECONDS)
        self.trouble: str | None = None  # with the library, in a sentence
        self._versions: tuple[str | None, ...] | None = None
        self._problems: tuple[str, ...] = ()

    def rescan(self) -> None:
        """Scan at once and forget lost devices."""
        self._forget = self._due = True
        self._wake.set()

    async def rescanned(self) -> None:
        """Scan at once; returns when a scan that began after this call has been taken in."""
        begun = self._begun
        self._due = True
        self._wake.set()
        while self._taken_in <= begun:
            await self._new.wait()

    async def run(self) -> None:
        """Never returns; raises InitError only."""
        while True:
            delay = await self._round()
            if await wait_for(self._wake, delay):
                self._wake.clear()

    async def _round(self) -> float:
        """One comparison of what is known with what is; returns the seconds until the next."""
        try:
            if not self._due and any(
                convict.retry_at <= self._clock() for convict in self._convicts.values()
            ):
                self._due = True
            delay = await (self._scan() if self._due else self._sweep())
        except WorkerError as error:
            self._due = True
            self._strike(error)
            index = error.call.index if error.call else None
            delay = self._failed(error, f"{error}{self._named(index)}", whole=index is None)
        except (LibraryError, XpumlError) as error:
            self._due = True
            delay = self._failed(error, _advice(error), whole=True)
        else:
            self._recovered()
        return delay

    # --- scan -----------------------------------------------------------------------------------

    async def _scan(self) -> float:
        self._begun += 1
        begun, forget = self._begun, self._forget
        again: float | None = 0.0
        self._due = self._forget = False  # whoever asks from now on wants another one
        try:
            again = await self._take_in(forget=forget)
        finally:
            if again is not None:
                self._due, self._forget = True, forget or self._forget
        if again is not None:
            return again
        self.scans += 1
        self._taken_in = begun
        self._new.set()
        self._new = asyncio.Event()
        return self._interval

    async def _take_in(self, *, forget: bool) -> float | None:
        """Scan; for a scan that proves nothing, the seconds until the next one."""
        skip = self._skip()
        scan = await self._driver.scan(skip)
        if scan is None:
            return UNSTABLE_SECONDS
        if self._host is not None and scan.host != self._host and skip:
            self._convicts.clear()  # its indexes were those of another list of nodes
            self._host = None
            return 0.0
        if not scan.readings and (self._found.devices or scan.host.nodes) and not self._empty_believed:
            self._empty_believed = True  # if a fresh worker says so again
            return 0.0
        self._empty_believed = not scan.readings
        found = identify(scan, self._found)
        self._report(scan, found)
        self._host, self._found = scan.host, found
        self._host_at = self._scanned_at = self._clock()
        self._convicts = {index: convict for index, convict in self._convicts.items() if index in skip}
        hung = {id: NOT_ANSWERING for id, device in found.devices.items() if device.index in skip}
        self._picture.submit(lambda facts: after_verdicts(after_scan(facts, found, forget=forget), hung))
        return None

    def _skip(self) -> frozenset[int]:
        """Convicted devices whose time to be asked again has not come."""
        now = self._clock()
        return frozenset(index for index, convict in self._convicts.items() if convict.retry_at > now)

    # --- sweep ----------------------------------------------------------------------------------

    async def _sweep(self) -> float:
        answers = await self._driver.sweep(frozenset(self._convicts))
        before = self._picture.facts.verdicts
        verdicts = {
            id: judge(answer.code, answer.state, device.arch)
            for id, device in self._found.devices.items()
            if (answer := _at(answers, device.index))
        }
        self._picture.submit(partial(after_verdicts, verdicts=verdicts))
        asked = [
            (before[id], device, answer)
            for id, device in self._found.devices.items()
            if (answer := _at(answers, device.index))
        ]
        doubt = any(not answer.code and device.state is None for _, device, answer in asked)
        if doubt and self._clock() - self._scanned_at >= DOUBT_SECONDS:
            logger.info("a device that did not answer the last scan answers now: scanning again")
            self._due = True
            return 0.0
        hint = any(answer.code and verdict.healthy for verdict, _, answer in asked)
        if hint or self._clock() - self._host_at >= HOST_SECONDS:
            self._host_at = self._clock()
            if await self._driver.host() != self._host:
                logger.info("device nodes or sysfs changed: scanning again")
                self._due = True
                return 0.0
        return self._interval

    # --- trouble --------------------------------------------------------------------------------

    def _strike(self, error: WorkerError) -> None:
        """Count hangs and crashes in a row at one device; convict it when there are enough."""
        index = error.call.index if error.call else None
        if index is None:
            self._strikes = (None, 0)
            return
        last, times = self._strikes
        times = times + 1 if last == index else 1
        self._strikes = (index, times)
        convict = self._convicts.get(index)
        if convict is None and times < STRIKES:
            return
        convict = self._convicts.setdefault(index, _Convict(retry_at=0.0))
        convict.retry_at = self._clock() + next(convict.delays)
        self._strikes = (None, 0)
        guilty = {id: NOT_ANSWERING for id, device in self._found.devices.items() if device.index == index}
        if guilty:
            self._picture.submit(partial(after_verdicts, verdicts=guilty))

    def _named(self, index: int | None) -> str:
        """The device at an index, in brackets, where that is known."""
        names = [
            f"{id}, {device.path}" for id, device in self._found.devices.items() if device.index == index
        ]
        return f" ({names[0]})" if names else ""

    def _failed(self, error: Exception, text: str, *, whole: bool) -> float:
        """Say what is wrong, once; when the whole library does not answer for long, nothing is healthy."""
        if self._fail_on_init_error and self._picture.current is None:
            raise InitError(text) from error
        if text != self.trouble:
            logger.warning("%s", text)
            self.trouble = text
        if whole and self._clock() - self._good_at > GRACE_SECONDS and self._found.devices:
            self._picture.submit(
                partial(after_verdicts, verdicts=dict.fromkeys(self._found.devices, LIBRARY_GONE))
            )
        return next(self._retries)

    def _recovered(self) -> None:
        self._good_at = self._clock()
        if self._due:
            return  # nothing has been scanned yet
        self._retries = delays(*RETRY_SECONDS)
        if self.trouble is not None:
            logger.info("the library answers again")
            self.trouble = None

    # --- words ----------------------------------------------------------------------------------

    def _report(self, scan: Scan, found: Found) -> None:
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
        if found.problems != self._problems:
            self._problems = found.problems
            for problem in found.problems:
                logger.warning("not offered: %s", problem)


def _at(answers: list[StateAnswer | None], index: int) -> StateAnswer | None:
    return answers[index] if index < len(answers) else None


def is_too_old(version: str) -> bool:
    """Whether a library's version text ("4.0.12.1 commit: ...") is below what is supported."""
    numbers = version.split(" ", maxsplit=1)[0].split(".")[: len(OLDEST_LIBRARY)]
    if len(numbers) < len(OLDEST_LIBRARY) or not all(number.isdecimal() for number in numbers):
        return False
    return tuple(map(int, numbers)) < OLDEST_LIBRARY


def _advice(error: Exception) -> str:
    if isinstance(error, DriverNotLoadedError):
        return (
            f"no driver: {error}; load the kunlun driver, and see that /dev/xpuctrl is there and may be "
            "opened (a container has to be privileged for that)"
        )
    if isinstance(error, LibraryError):
        return f"no usable libxpuml: {error}; install XRE 4.0.11 or newer, or name it by --xpuml-library"
    return str(error)
