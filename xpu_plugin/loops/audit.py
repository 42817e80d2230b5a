# SPDX-License-Identifier: Apache-2.0
"""The audit: compares the holders by kubelet, driver and our grants, and reports contradictions."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.log import Message
from xpu_plugin.model.audit import EVENTS, AuditFinding, AuditKind, AuditView, findings
from xpu_plugin.model.devices import Process
from xpu_plugin.model.events import WARNING, Event
from xpu_plugin.model.inventory import our_resources
from xpu_plugin.model.ownership import word_of
from xpu_plugin.waiting import Cooldown, wait_for
from xpu_plugin.xpuml import XpumlError


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
CONFIRM_SECONDS = 10.0  # until an uncertain finding is checked again; then it counts
AGAIN_SECONDS = 3600.0  # before a finding that was gone is reported once more
MOST_LINES = 8  # for findings of one kind at one look; more of them share one line with this number of names
MUTE_SECONDS = (60.0, 3600.0)  # for the driver, after a request cost a worker: first, most


class Audit:
    """Finds contradictions, and puts them into the log and into Events."""

    def __init__(self, plugin: "Plugin", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._plugin = plugin
        self._worker = plugin.worker
        self._picture = plugin.picture
        self._grants = plugin.grants
        self._clock = clock
        self._wake = asyncio.Event()
        self._suspected: frozenset[AuditFinding] = frozenset()
        self._confirmed: frozenset[AuditFinding] = frozenset()
        self._told: dict[AuditFinding, float] = {}
        self._mute: Cooldown[WorkerClient] = Cooldown(*MUTE_SECONDS, clock=clock)
        self._looked_at: float | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of present findings by kind."""
        found = Counter(finding.kind for finding in self._confirmed)
        return {kind: found[kind] for kind in AuditKind}

    @property
    def age(self) -> float | None:
        """Seconds since the last look with a reliable answer of the kubelet; None before the first."""
        return None if self._looked_at is None else self._clock() - self._looked_at

    async def run(self) -> None:
        """Never returns."""
        await self._grants.adopted.wait()
        with self._picture.waking(self._wake), self._grants.waking(self._wake):
            while True:
                await self.look()
                suspicious = self._suspected - self._confirmed
                if await wait_for(self._wake, CONFIRM_SECONDS if suspicious else LOOK_SECONDS):
                    await asyncio.sleep(self._grants.terms.settle)  # the kubelet's list lags
                    self._wake.clear()

    async def look(self) -> None:
        """Ask all sources once. Without a reliable answer of the kubelet, earlier findings stay."""
        await self._plugin.aliases.look()  # withholds what was granted otherwise
        answers = await self._plugin.view.answers(oldest=0.0)
        word = word_of(answers, self._grants.terms)
        if word.listing is None or self._picture.current is None or not word.trusted:
            return
        probed = self._probed()
        processes = await self._processes()
        probed |= self._probed()
        self._grants.hear(word)
        ledger, lost, facts = self._grants.ledger, self._grants.forgotten, self._picture.facts
        evidence = AuditView(
            listing=word.listing,
            checkpoint=word.checkpoint,
            entries=self._picture.current.entries,
            recorded=self._grants.paths.keys(),
            settled={id for id, grant in ledger.items() if word.began - grant.at > self._grants.terms.settle},
            before=self._grants.before,
            former={id: grant.holder for id, grant in ledger.items() if id in lost and grant.holder},
            ours=our_resources((*facts.lost.values(), *facts.devices.values()), self._picture.policy),
            processes={address: own for address, own in processes.items() if address not in probed},
        )
        self._looked_at = word.began
        self._judge(findings(evidence))

    def _judge(self, found: frozenset[AuditFinding]) -> None:
        confirmed = (found & self._suspected) | {finding for finding in found if finding.certain}
        for kind, text in _lines(confirmed - self._confirmed):
            logger.warning(Message("audit finding", kind=kind, detail=text))
        for kind, text in _lines(self._confirmed - confirmed):
            logger.info(Message("audit finding is over", kind=kind, detail=text))
        self._suspected, self._confirmed = found, confirmed
        now = self._clock()
        self._told = {
            own: at for own, at in self._told.items() if own in confirmed or now - at < AGAIN_SECONDS
        }
        news = sorted(confirmed - self._told.keys(), key=str)
        for kind in AuditKind:
            texts = [finding.text for finding in news if finding.kind is kind]
            if texts:
                self._plugin.exchange.events.put(
                    Event(kind=WARNING, reason=EVENTS[kind], text=" | ".join(texts))
                )
        self._told.update(dict.fromkeys(news, now))

    def _probed(self) -> set[str]:
        """Return the PCI addresses at which a process of a probe may be."""
        facts = self._picture.facts
        cards = {card for card, probe in facts.probed.items() if probe.in_change}
        return {device.address for device in facts.devices.values() if device.card in cards}

    async def _processes(self) -> Mapping[str, tuple[Process, ...] | None]:
        """Return the processes by the driver; none if a request would cost too much."""
        if self._worker.stuck or self._worker in self._mute:
            return {}
        try:
            return await self._worker.processes(self._plugin.monitor.unresponsive.skip)
        except WorkerError as error:
            if error.call is not None:
                self._mute.begin(self._worker)
                logger.warning(
                    Message("cannot read the processes at devices; it is asked again later", error=error)
                )
        except (LibraryError, XpumlError):
            pass  # the sweep reports this
        return {}


def _lines(found: Collection[AuditFinding]) -> Iterator[tuple[AuditKind, str]]:
    """Yield the lines for the log, each with its kind."""
    for kind in AuditKind:
        texts = [finding.text for finding in sorted(found, key=str) if finding.kind is kind]
        if (rest := len(texts) - MOST_LINES) > 0:
            texts = [f"{' | '.join(texts[:MOST_LINES])} | and {rest} more"]
        yield from ((kind, text) for text in texts)
