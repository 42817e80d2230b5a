# SPDX-License-Identifier: Apache-2.0
"""Devices that are held under another id or resource than the present one.

The former plugin called devices "0", "1" and so on. An administrator may rename resources. A kubelet may lose
its checkpoint. The kubelet counts a device as taken only under the resource and id of the grant. So the
device keeps both until its container ends. If that does not help, the device is withheld.

A held device that is not there, or is not offered, stays in the list as well: in the status of its pod, a
device that the list lacks is healthy.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.log import Message
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.health import HELD_OTHERWISE, Health
from xpu_plugin.model.inventory import card_of, held_beyond, held_otherwise, released
from xpu_plugin.model.ownership import Answers, Holding, word_of
from xpu_plugin.model.timings import USUAL
from xpu_plugin.model.vf_plan import cards
from xpu_plugin.model.withholding import withheld


logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0  # between checks for a changed checkpoint ...
NEW_SECONDS = 0.1  # ... and after the start of a kubelet, which may have lost it ...
NEW_FOR_SECONDS = 10.0  # ... for so long
RESTART_SECONDS = 5.0  # for a kubelet that restarts to answer again
SETTLE_SECONDS = 30.0  # a grant counts as held for this time without being listed
SOURCES = 2  # the pod resources API and the checkpoint
FIRST_LOOKS = 30  # before the first list, while neither answers ...
FIRST_SECONDS = 1.0  # ... between these
LOOKS_TO_RELEASE = 2  # in a row, with both sources answering


class Aliases:
    """Keeps `Facts.held`, `Facts.withheld` and `Facts.lingering` true.

    between: seconds between looks at both sources, while a device is held, or the holders are not known
    before: seconds at most for the look before a registration
    """

    def __init__(
        self,
        picture: Picture,
        view: KubeletView,
        grants: Grants,
        proof: IdleProof,
        *,
        between: float = USUAL.holders,
        before: float = USUAL.before,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._view = view
        self._grants = grants
        self._proof = proof
        self.between = between
        self._before = before
        self._clock = clock
        self._absent: dict[str, int] = {}
        self._complete = False
        self._inherited = -1  # `Grants.inherited` when the last look at both sources began
        self._serving = False  # the first list has gone out
        self._complaint: str | None = None
        self._trouble_since: float | None = None
        self._instance: object = None
        self._checkpoint: object = ()  # `KubeletView.checkpoint_state` when the last look began
        self._examined: frozenset[str] = frozenset()  # what was forgotten at the last look at both sources
        self._seen: tuple[Holding, ...] = ()  # at the last look, by both sources

    async def run(self) -> None:
        """Ask both sources while there is a question, and read a checkpoint that has changed. Never
        returns."""
        self._serving = True
        waited, new_for = 0.0, 0.0
        while True:
            pause = min(NEW_SECONDS if new_for > 0 else WATCH_SECONDS, self.between)
            await asyncio.sleep(pause)
            waited, new_for = waited + pause, new_for - pause
            instance = self._view.instance
            if instance not in (None, self._instance):
                self._instance, new_for = instance, NEW_FOR_SECONDS
            facts = self._picture.facts
            known = self._complete and self._inherited == self._grants.inherited
            asking = facts.held or facts.withheld or facts.lingering or self._grants.forgotten or not known
            if waited >= self.between and asking:
                waited = 0.0
                await self.look()
                await self._look_for_users()
            elif self._view.checkpoint_state != self._checkpoint:
                await self.glance()
            if self._grants.forgotten - self._examined:  # the list may say that the pod is gone
                await self.look()

    async def first_look(self) -> None:
        """Look before the first list is sent, and count all holders as grants. Wait a bounded time for a
        source that answers."""
        self._instance = self._view.instance
        for _ in range(FIRST_LOOKS):
            if await self.look():
                break
            await asyncio.sleep(FIRST_SECONDS)
        self._grants.adopt(self._seen)
        self._keep_listed()

    async def before_registration(self) -> None:
        """Read the checkpoint, for a bounded time. Another plugin may have granted devices meanwhile, and a
        kubelet that has just started may have lost it."""
        try:
            async with asyncio.timeout(self._before):
                await self.glance()
        except TimeoutError:
            self._complete = False  # `run` looks again, and reports trouble that lasts

    async def look(self) -> bool:
        """Ask both sources, and submit the result. In doubt a held device stays held.

        Return whether any source answered.
        """
        inherited = self._grants.inherited  # a grant that is known only later needs newer answers
        checkpoint = self._view.checkpoint_state  # another part may read the file as well
        answers = await self._view.answers(oldest=0.0)
        complaints = answers.complaints
        if not complaints:
            self._trouble_since = None
        elif self._trouble_since is None:
            self._trouble_since = self._clock()
        if self._trouble_since is None or self._lasts(self._trouble_since):
            self._complain("; ".join(complaints) or None)
        self._complete = not complaints
        self._take_in(answers, complete=self._complete)
        self._inherited, self._checkpoint = inherited, checkpoint
        self._examined = self._grants.forgotten
        return len(complaints) < SOURCES

    def _lasts(self, since: float) -> bool:
        """Return whether trouble is worth a warning. A kubelet that restarts while we serve is not."""
        return not self._serving or self._clock() - since >= RESTART_SECONDS

    async def glance(self) -> None:
        """Read the checkpoint alone. This releases nothing."""
        checkpoint = self._view.checkpoint_state
        answers = await self._view.answers(oldest=0.0, checkpoint_alone=True)
        if answers.complaints:
            self._complete = False
        self._take_in(answers, complete=False)
        self._checkpoint = checkpoint

    async def _look_for_users(self) -> None:
        """Ask the driver for users of forgotten devices. The kubelet does not know when such a holder
        ends."""
        facts = self._picture.facts
        asked = {card_of(id, facts) for id in self._grants.forgotten}
        known = cards(facts, self._picture.policy)
        if here := [card for address, card in known.items() if address in asked]:
            await self._proof.look(here)

    def _take_in(self, answers: Answers, *, complete: bool) -> None:
        """Draw the conclusions. complete: both sources have answered"""
        self._grants.hear(word_of(answers, self._grants.terms))
        self._seen = answers.holdings
        self._keep_listed()
        facts, policy = self._picture.facts, self._picture.policy
        present = held_otherwise(self._named(), {**facts.lost, **facts.devices}, policy)
        lost = self._grants.forgotten
        present.update({id: resource for id, resource in facts.held.items() if id in lost})
        closed = withheld(self._seen, self._grants.ledger, lost, facts=facts, policy=policy)
        if not complete:
            stays = {id: own for id, own in facts.withheld.items() if own.reason == HELD_OTHERWISE}
            closed = {**stays, **closed}
        over = self._over(present, complete=complete)
        held = {id: resource for id, resource in {**facts.held, **present}.items() if id not in over}
        self._submit(held, closed, over)

    def _named(self) -> set[tuple[str, str]]:
        """Return the (id, resource) pairs that containers held at the last look."""
        return {(id, holding.resource) for holding in self._seen for id in holding.ids}

    def _keep_listed(self) -> None:
        """Keep held devices in the list that no scan has found, or that are not offered."""
        named, policy, paths = self._named(), self._picture.policy, self._grants.paths
        kept = held_beyond(named, self._picture.facts, policy, paths)
        for id in sorted(kept.lingering - self._picture.facts.lingering):
            logger.info(Message("device listed for its holder only", id=id))
        self._picture.submit(lambda _: kept)

    def _over(self, present: Mapping[str, str], *, complete: bool) -> frozenset[str]:
        """Return the aliases and lingering devices that no container has any more."""
        now, facts = self._clock(), self._picture.facts
        ledger = self._grants.ledger.items()
        new = {id for id, own in ledger if own.allocated is not None and now - own.allocated < SETTLE_SECONDS}
        named = present.keys() | {id for id, _ in self._named()} | self._grants.forgotten
        lingering = facts.lingering & facts.claimed  # others linger by an id in `Facts.held`
        gone = ((facts.held.keys() - present.keys()) | (lingering - named)) - new
        self._absent = {id: self._absent.get(id, 0) + complete for id in gone}
        return frozenset(id for id, looks in self._absent.items() if looks >= LOOKS_TO_RELEASE)

    def _submit(self, held: Mapping[str, str], closed: Mapping[str, Health], over: Collection[str]) -> None:
        facts = self._picture.facts
        after = released(replace(facts, held=held, withheld=closed), over)
        if after == facts:
            return
        for id in sorted(held.keys() - facts.held.keys()):
            logger.info(
                Message(
                    "device held from before; it is offered so while the kubelet counts it as held",
                    id=id,
                    resource=held[id],
                )
            )
        for id in sorted(facts.held.keys() - held.keys()):
            logger.info(Message("device not held any more; it is offered as configured again", id=id))
        self._picture.submit(lambda _: after)

    def _complain(self, complaint: str | None) -> None:
        if complaint != self._complaint and complaint:
            logger.warning(Message("cannot read the holders of devices", error=complaint))
        self._complaint = complaint
