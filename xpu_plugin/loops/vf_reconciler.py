# SPDX-License-Identifier: Apache-2.0
"""Changes the number of VFs, one card at a time: carries out the decisions of `model.vf_reconcile`."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.state.record import disk_trouble
from xpu_plugin.edges.state.vf_request import VfRecord
from xpu_plugin.edges.worker.client import BusyError, LibraryError, WorkerClient, WorkerError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, Once, note
from xpu_plugin.loops.exchange import Exchange
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.monitor import Monitor
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.health import Health
from xpu_plugin.model.inventory import stale_ids
from xpu_plugin.model.reservation import Prove, Wait
from xpu_plugin.model.vf_plan import (
    Card,
    DesiredVfs,
    Proof,
    Report,
    VfAction,
    VfOutcome,
    cards,
    described,
    within_handles,
)
from xpu_plugin.model.vf_reconcile import (
    Decision,
    Limits,
    Memory,
    Request,
    Rescan,
    SetVfs,
    VfReason,
    View,
    answered,
    decide,
    inherited,
)
from xpu_plugin.observable import Value
from xpu_plugin.waiting import wait_for
from xpu_plugin.xpuml import WrongDeviceError, XpumlError


logger = logging.getLogger(__name__)

CLEAR_SECONDS = 60.0  # between attempts to clear the record
_SPLIT = "xpumlDeviceSetSriovVfNum"


@frozen
class Orders:
    """Means for a request to the driver: a worker, the record that precedes it, the lock that allows it."""

    changer: WorkerClient
    """A worker client for nothing else; its worker lives for one request of the driver."""
    record: VfRecord
    """Of the last request; it is read by `inherit`."""
    lock: Alone


class VfReconciler:
    """Brings the cards to the desired VF count, as far as their users allow.

    orders: means for requests to the driver
    exchange: holds the desired VF count; takes the report on it, and Events
    """

    def __init__(
        self,
        orders: Orders,
        picture: Picture,
        monitor: Monitor,
        grants: Grants,
        proof: IdleProof,
        *,
        exchange: Exchange,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changer, self._record, self._lock = orders.changer, orders.record, orders.lock
        self._unread: float | None = None  # time since which the record is ours and unreadable
        self._clear_at = 0.0  # time of the next attempt to clear the record
        self._orders = 0
        self._picture = picture
        self._monitor = monitor
        self._grants = grants
        self._proof = proof
        self._limits = limits
        self._desired = exchange.desired
        self._outcome = exchange.outcome
        self._events = exchange.events
        self._noted = Once()
        self._clock = clock
        self._wake = asyncio.Event()
        self._memory = Memory(started=clock())
        self._proofs: Mapping[str, Proof] = {}
        self._waiting: Value[bool] = Value(False)  # the end of a container may change the next decision
        self.drifts: Mapping[str, int] = {}  # card -> number of changes by another program

    @property
    def desired(self) -> DesiredVfs:
        return self._desired.current

    @property
    def report(self) -> Report:
        """The last report."""
        return self._outcome.current.report

    @property
    def claims(self) -> Mapping[str, int]:
        """As for `within_handles`."""
        return self._memory.claims(self.desired)

    async def inherit(self) -> None:
        """Begin anew, and withhold the card of a former process's request. Call this once the node is ours,
        and before the first list or the scan that replaces the picture."""
        # Proofs and a change of an earlier tenure do not count any more.
        self._memory, self._proofs = Memory(started=self._clock()), {}
        self._unread = self._clock()
        await self._read()
        if self._picture.current is not None:
            self._keep_back(decide(self._memory, self._view(), self._limits).kept_back)

    async def _read(self) -> None:
        await self._record.read()
        if self._record.unread:
            return
        self._unread = None
        begun = {**self._record.begun, **self._memory.begun}
        self._memory = replace(self._memory, begun=begun)
        request = self._record.request
        if request not in (None, self._memory.request):
            logger.info(
                Message(
                    "a former process has asked the driver for VFs", vfs=request.number, card=request.card
                )
            )
            self._memory = inherited(self._memory, self._view(), self._limits, request)

    def begin(self) -> None:
        """Withhold cards that may have to be changed. Call this before the first list."""
        self._keep_back(decide(self._memory, self._view(), self._limits).kept_back)

    def again(self) -> None:
        """Try cards again that are left alone, as the administrator asks."""
        self._orders += 1
        self._wake.set()

    def leave(self) -> None:
        """Report nothing any more, as another instance does."""
        self._outcome.set(VfOutcome())

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="grants for apply")
            group.create_task(self._proof.attend(self._waiting), name="ends of containers")
            await self._carry_out()

    async def _follow(self) -> None:
        """Decide anew after a grant, which calls off a change of its card.

        Without a planned change and a withheld card there is nothing to call off, and no decision for each
        Allocate. Each later decision takes the grant into account.
        """
        while True:
            await self._grants.beyond(self._grants.version)
            if self._memory.change is not None or self._picture.facts.kept_back:
                self._wake.set()

    async def _carry_out(self) -> None:
        with (
            self._picture.waking(self._wake),
            self._desired.waking(self._wake),
            self._proof.ended.waking(self._wake),
        ):
            while True:
                async with self._lock.work():
                    if self._unread is not None:
                        await self._read()
                    decision = self._decide()
                    await self._clear()
                    if isinstance(decision.action, SetVfs):
                        await self._act(decision)
                        continue
                await self._act(decision)

    def _view(self) -> View:
        return View(
            now=self._clock(),
            desired=self.desired,
            cards=within_handles(
                cards(self._picture.facts, self._picture.policy),
                self.desired,
                self._picture.facts,
                self._picture.policy,
                claims=self.claims,
            ),
            proofs=self._proofs,
            taken=self._grants.taken(),
            held=self._grants.cards_at_start,
            stale_ids=frozenset(stale_ids(self._picture.facts)),
            scans=self._monitor.scanner.scans,
            stuck=self._changer.stuck,
            unread=self._unread,
            driver=self._monitor.scanner.driver_version(),
            orders=self._orders,
            ended=self._proof.ended.current,
            look=self._limits.pace.look,
            pace=self._limits.pace,
        )

    def _decide(self) -> Decision:
        """Decide, publish and report without an await: a grant comes before this or after it."""
        self._wake.clear()
        view = self._view()
        decision = decide(self._memory, view, self._limits)
        self._memory = decision.memory
        self._waiting.set(decision.awaits_an_end or bool(view.stale_ids))
        self._keep_back(decision.kept_back)
        for news in decision.news:
            reason, card, detail = news.reason, news.card or None, news.text.removeprefix(f"{news.card}: ")
            if reason is VfReason.APPLIED:
                logger.info(Message("VFs are as desired", reason=reason, card=card, detail=detail))
            else:
                logger.warning(Message("VFs are not as desired", reason=reason, card=card, detail=detail))
            self._events.put(news.event)
        self._outcome.set(VfOutcome(desired=self.desired, report=decision.report))
        drifted = Counter(news.card for news in decision.news if news.reason is VfReason.DRIFT)
        self.drifts = {
            step.card: self.drifts.get(step.card, 0) + drifted[step.card] for step in decision.report.steps
        }
        self._remember(decision)
        return decision

    def _remember(self, decision: Decision) -> None:
        """Note a decision and its inputs, unless it repeats the last one. Cards with the desired VF count are
        left out."""
        noted: dict[str, object] = {
            "action": _named(decision.action),
            "desired": {
                "number": self.desired.number,
                "origin": self.desired.origin,
                "problem": self.desired.problem,
            },
            "cards": described(
                step for step in decision.report.steps if step.action is not VfAction.KEEP or step.reason
            ),
            "kept_back": {card: health.reason for card, health in decision.kept_back.items()},
            "proofs": {
                card: {"holders": list(proof.holders), "doubt": proof.doubt}
                for card, proof in self._proofs.items()
            },
            "taken": sorted(self._grants.taken()),
            "witnesses": dict(self._proof.witnesses),
        }
        if self._noted.changed(noted):
            note("vfs", **noted)

    def _keep_back(self, kept_back: Mapping[str, Health]) -> None:
        if kept_back != self._picture.facts.kept_back:
            self._picture.submit(lambda facts: replace(facts, kept_back=kept_back))

    async def _act(self, decision: Decision) -> None:
        match decision.action:
            case Wait(None):
                await self._wake.wait()
            case Wait(float() as seconds):
                await wait_for(self._wake, seconds)
            case Prove(addresses):
                known = cards(self._picture.facts, self._picture.policy)
                asked = [known[address] for address in addresses]
                self._proofs = {**self._proofs, **await self._proof.look(asked)}
            case Rescan(seconds):
                try:
                    async with asyncio.timeout(seconds):
                        await self._monitor.scanner.rescanned()
                except TimeoutError:
                    pass  # the next decision goes by the clock
            case SetVfs() as order:
                await self._set(order)

    async def _set(self, order: SetVfs) -> None:
        card, failure, refused, asked = order.card, "", False, True
        assert card.index is not None  # noqa: S101 - or nothing would have been decided
        try:
            await self._record.write(Request(card.address, order.number), begun=self._memory.begun)
        except OSError as error:
            asked = False
            failure = (
                f"the driver is not asked, as the request cannot be recorded in {self._record.path}: "
                f"{disk_trouble(error)}; mount --state-dir writable"
            )
        else:
            try:
                async with self._monitor.changing(card.address):
                    await self._ask(card, card.index, order.number)
            except XpumlError as error:
                failure, refused = str(error), error.function == _SPLIT
            except (WorkerError, LibraryError, WrongDeviceError, ValueError) as error:
                failure = str(error)
        if refused:
            failure = (
                f"the driver refuses {order.number} VFs: {failure}; a process may have the card or one of "
                "its VFs open, or this board cannot be split so"
            )
        view = self._view()
        self._memory = answered(
            self._memory, view, self._limits, failure=failure, refused=refused, asked=asked
        )

    async def _ask(self, card: Card, index: int, number: int) -> None:
        """Ask the driver by a worker of its own, which lists the nodes first."""
        try:
            if await self._changer.scan(only=index) is None:
                raise BusyError("device nodes came or went when the driver was about to be asked")
            logger.info(Message("asking the driver for VFs", vfs=number, card=card.address, vfs_now=card.vfs))
            await self._changer.set_sriov_vf_num(index, number, card.address, seconds=self._limits.timeout)
        finally:
            self._changer.dismiss()

    async def _clear(self) -> None:
        """Clear the record after the end of a change."""
        request, begun = self._memory.request, self._memory.begun
        if self._unread is not None or request is not None or self._record.says(None, begun=begun):
            return
        if self._clock() < self._clear_at:
            return
        try:
            await self._record.write(None, begun=begun)
        except OSError as error:
            self._clear_at = self._clock() + CLEAR_SECONDS
            logger.warning(
                Message(
                    "cannot clear the record of a change of VFs; a restart of this plugin keeps that card "
                    "from new pods for --vf-timeout",
                    path=self._record.path,
                    error=disk_trouble(error),
                )
            )


def _named(action: Wait | Prove | Rescan | SetVfs) -> str:
    match action:
        case Prove(addresses):
            return f"look who uses {', '.join(addresses)}"
        case SetVfs(card, number):
            return f"ask the driver for {number} VFs of {card.address}"
        case Rescan():
            return "scan"
    return "wait"
