# SPDX-License-Identifier: Apache-2.0
"""Scans of all devices, their time limit, and the result of the last one."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from os import strerror

from xpu_plugin.edges.worker.client import WorkerClient
from xpu_plugin.errors import PluginError
from xpu_plugin.log import Message
from xpu_plugin.loops.due import Due
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.openings import Openings
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.unresponsive import Unresponsive
from xpu_plugin.model.absence import absent
from xpu_plugin.model.devices import DeviceKind, Found, Host, Scan, identify
from xpu_plugin.model.health import NOT_ANSWERING, Health, shared
from xpu_plugin.model.inventory import Facts, after_scan, after_verdicts, unusable_serials
from xpu_plugin.model.unlisted import Unlisted, sentences, unlisted
from xpu_plugin.xpuml import is_too_old


logger = logging.getLogger(__name__)

HASTY_SECONDS = 1.0  # minimum for a scan after a hang: the library may hang at the next device, too
HASTY_TIMES = 4.0  # times the duration of the last good scan, if that is more
UNSTABLE_SECONDS = 0.1  # before the next scan if nodes came or went during the last one


class InitError(PluginError):
    """The plugin must end: the first scan failed and --fail-on-init-error is set, or the configuration does
    not fit this node."""


class Scanner:
    """Brings all devices into the picture, with their verdicts.

    due: tells whether a scan is due; the start of a scan resets it
    """

    def __init__(
        self,
        worker: WorkerClient,
        picture: Picture,
        history: HealthHistory,
        grants: Grants,
        unresponsive: Unresponsive,
        *,
        openings: Openings,
        due: Due,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._picture = picture
        self._history = history
        self._grants = grants
        self._unresponsive = unresponsive
        self._openings = openings
        self._due = due
        self._clock = clock
        self._begun = 0  # scans
        self._taken_in = 0  # the number of the last scan that was
        self._new = asyncio.Event()
        self.scans = 0  # that were taken in
        self._host: Host | None = None  # as the last scan saw it
        self.host_at = 0.0  # when it was compared last
        self.scanned_at = 0.0
        self.found = Found(devices={})
        self._empty_believed = False
        self._hasty = False
        self.seconds: float | None = None  # that the last good scan took
        self.last: Scan | None = None  # that was taken in
        self.versions: tuple[str | None, ...] = (None,) * 4  # of library and driver
        self.problems: tuple[str, ...] = ()  # why something is not offered
        self.unlisted: tuple[Unlisted, ...] = ()  # nodes, by the last scan

    def driver_version(self) -> str:
        """The version by the last scan; empty before the first scan."""
        return self.last.driver_release or self.last.driver_version if self.last else ""

    async def rescanned(self) -> None:
        """Scan at once; return when a scan that began after this call is in the picture."""
        begun = self._begun
        self._due.want()
        while self._taken_in <= begun:
            await self._new.wait()

    async def host_changed(self) -> bool:
        """Return whether nodes or sysfs differ from the last scan. Raises WorkerError."""
        self.host_at = self._clock()
        return await self._worker.host() != self._host

    def hasten(self) -> None:
        """Give the following scans less time, as the library hangs at a device."""
        self._hasty = True

    def named(self, index: int | None) -> str:
        """Return the id of the device at an index, in brackets; empty if it is unknown."""
        names = [f"{id}, {device.path}" for id, device in self.found.devices.items() if device.index == index]
        return f" ({names[0]})" if names else ""

    def shared(self, answers: Mapping[str, Health]) -> dict[str, Health]:
        """Answers as both halves of a card have them."""
        devices = self.found.devices.values()
        return shared(
            answers, {device.id: device.card for device in devices if device.kind is DeviceKind.HALF}
        )

    # --- scan -----------------------------------------------------------------------------------

    async def scan(self) -> float | None:
        """Scan; for a scan that proves nothing, the seconds until the next one."""
        self._begun += 1
        begun, forget = self._begun, self._due.begin()
        again: float | None = 0.0
        try:
            again = await self._take_in(forget=forget)
        finally:
            if again is not None:
                self._due.want_next(forget=forget)
        if again is None:
            self.scans += 1
            self._taken_in = begun
            self._new.set()
            self._new = asyncio.Event()
        return again

    async def _take_in(self, *, forget: bool) -> float | None:
        """Scan; for a scan that proves nothing, the seconds until the next one."""
        skip, begun = self._unresponsive.skip, self._clock()
        scan = await self._worker.scan(skip, seconds=self._patience())
        if scan is None:
            return UNSTABLE_SECONDS
        if self._host is not None and scan.host != self._host and skip:
            self._unresponsive.clear()  # its indexes were those of another list of nodes
            self._host, self._hasty = None, True
            return 0.0
        if not scan.readings and (self.found.devices or scan.host.nodes) and not self._empty_believed:
            self._empty_believed = True  # if a fresh worker reports the same
            return 0.0
        self._empty_believed = not scan.readings
        found = identify(scan, self.found)
        if (refusal := unusable_serials(self._picture.policy, found.devices.values())) is not None:
            raise InitError(refusal)  # before a denied device is offered
        self._report(scan, found)
        self._host, self.found = scan.host, found
        self.host_at = self.scanned_at = self._clock()
        self.seconds, self._hasty = self._clock() - begun, False
        facts = after_scan(self._picture.facts, found, forget=forget, claimed=self._grants.ledger)
        verdicts = self._judge(facts, scan, skip)
        self._picture.submit(lambda _: after_verdicts(facts, verdicts))
        return None

    def _judge(self, facts: Facts, scan: Scan, skip: Collection[int]) -> Mapping[str, Health]:
        """Return the verdicts by a scan, for devices that it found, left out or missed."""
        left_out = {id for id, device in facts.devices.items() if device.index in skip}
        answers = self.shared({id: facts.verdicts[id] for id in facts.devices.keys() - left_out})
        answers |= {id: absent(device, scan) for id, device in facts.lost.items()}
        self._history.keep(facts.devices.keys() | facts.lost.keys())
        standing = self._history.miss(left_out)
        return standing | self._history.hear(
            answers | dict.fromkeys(left_out - standing.keys(), NOT_ANSWERING)
        )

    def _patience(self) -> float | None:
        """Return the seconds for a scan; None for the usual time of a request.

        Several devices that hang are found one after the other, and the rest is not watched meanwhile. So the
        scans after the first hang have less time. A device that is suspected wrongly on a slow machine is
        soon released.
        """
        if not self._hasty or self.seconds is None:
            return None
        return min(self._worker.call_timeout, max(HASTY_SECONDS, HASTY_TIMES * self.seconds))

    # --- words ----------------------------------------------------------------------------------

    def _report(self, scan: Scan, found: Found) -> None:
        self.last = scan
        versions = (scan.library, scan.library_version, scan.driver_version, scan.driver_release)
        if versions != self.versions:
            self.versions = versions
            logger.info(
                Message(
                    "library opened",
                    path=scan.library,
                    library_version=scan.library_version,
                    driver_version=scan.driver_version,
                    driver_release=scan.driver_release,
                )
            )
            if is_too_old(scan.library_version):
                logger.warning(
                    Message(
                        "libxpuml is older than 4.0.11: install XRE 4.0.11 or newer on this node",
                        library_version=scan.library_version,
                    )
                )
        nodes = unlisted(scan, found)
        self._openings.expect([node.number for node in nodes if not node.beyond])
        if nodes != self.unlisted:
            self._report_unlisted(nodes, scan)
        if found.problems != self.problems:
            self.problems = found.problems
            for problem in found.problems:
                logger.warning(Message("device not offered", error=problem))

    def _report_unlisted(self, nodes: tuple[Unlisted, ...], scan: Scan) -> None:
        said, self.unlisted = sentences(self.unlisted), nodes
        if nodes and len(nodes) == len(scan.host.nodes) and all(node.denied for node in nodes):
            logger.warning(
                Message(
                    "no device node may be opened: the plugin's container has to be privileged",
                    nodes=len(nodes),
                    error=strerror(nodes[0].errno),
                )
            )
            return
        for sentence in sentences(nodes):
            if sentence not in said:
                logger.warning(Message("device node without an index", error=sentence))
