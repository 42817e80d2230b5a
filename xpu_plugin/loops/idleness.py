# SPDX-License-Identifier: Apache-2.0
"""Asks everybody who may know who uses a card, and remembers what we gave away."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xpu_plugin.edges.driver import Driver, LibraryError, WorkerError
from xpu_plugin.edges.grants import GrantRecord, Shown
from xpu_plugin.edges.kubelet import KUBELET_SOCKET, Identity
from xpu_plugin.edges.kubelet_view import written_by
from xpu_plugin.edges.podresources import UnknownHoldersError, checkpoint_of, list_pods
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.devices import Usage
from xpu_plugin.model.holders import (
    FORMER,
    Answers,
    Checkpoint,
    Grant,
    Holding,
    Ledger,
    Listing,
    Terms,
    Word,
    after_word,
    by_card,
    examine,
    forgotten,
)
from xpu_plugin.model.inventory import card_of, estranged, is_old, our_resources
from xpu_plugin.model.vf import Card, Proof
from xpu_plugin.waiting import delays
from xpu_plugin.xpuml import WrongDeviceError, XpumlError


logger = logging.getLogger(__name__)

MUTE_SECONDS = (60.0, 3600.0)  # for a card at which asking who uses it costs a worker: first, most
READ_SECONDS = (1.0, 60.0)  # between attempts to read a record that could not be read: first, most
SHOW_SECONDS = 60.0  # after a grant, for the kubelet's list; an ordinary init container's it never shows


@dataclass(slots=True)
class _Mute:
    """A card that is not asked until a while has passed."""

    delays: Iterator[float]
    until: float = 0.0
    why: str = ""


class Idleness:
    """Looks who uses cards. record: of grants, which may be held still; settled: as if it had been known for
    long what the record says"""

    def __init__(
        self,
        driver: Driver,
        picture: Picture,
        terms: Terms,
        *,
        device_plugin_dir: Path,
        pod_resources_socket: Path,
        record: GrantRecord,
        settled: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver
        self._picture = picture
        self.terms = terms
        self._directory = device_plugin_dir
        self._socket = pod_resources_socket
        self._clock = clock
        self._wall_clock = wall_clock
        self._record = record
        self._granted = asyncio.Event()
        self._heard = asyncio.Event()
        self._behind = asyncio.Event()  # the ledger has not what the record says
        self._ended: set[str] = set()  # grants that have ended, which the record does not say yet
        self._forgotten: frozenset[str] = frozenset()
        self._mute: dict[str, _Mute] = {}
        self._ledger: Ledger = {}
        self.inherit(clock() - (terms.settle if settled else 0.0))

    def inherit(self, at: float | None = None) -> None:
        """What the record says is what former plugins have granted. at: since when that is known, or now"""
        own = {id: grant for id, grant in self._ledger.items() if not grant.inherited}
        self._ledger = {**self._recorded(at), **own}
        if self._record.unread:
            self._behind.set()
        else:
            self._behind.clear()

    async def _catch_up(self) -> bool:
        """Have the ledger know what the record says, also one that could not be read before; whether it does.
        Nothing that is known without it is forgotten."""
        if self._record.unread and not await self._record.reread():
            return False
        if self._behind.is_set():
            self._behind.clear()
            known = {
                id: grant
                for id, grant in self._ledger.items()
                if not grant.inherited or grant.known_to is not None
            }
            self._ledger = {**self._ledger, **self._recorded(), **known}
            self._claim()
        return True

    def _recorded(self, at: float | None = None) -> Ledger:
        moment, life = self._clock() if at is None else at, self._life()
        return {id: self._inherited(id, moment, life) for id in self._record.paths}

    def _inherited(self, id: str, at: float, life: Identity | None) -> Grant:
        shown = self._record.holders.get(id)
        if shown is None:
            # The record of an older release names no holder.
            known = FORMER if id in self._record.listed else None
            return Grant(at=at, inherited=True, shown=known, known_to=known)
        same = life is not None and shown.kubelet == str(life)
        return Grant(
            at=at,
            inherited=True,
            shown=life if same else FORMER,
            holder=shown.container,
            known_to=life if same else shown.kubelet,
            noted=True,
        )

    def adopt(self, holdings: Iterable[Holding]) -> None:
        """What containers hold of our cards when we start is as good as granted, whatever the record says."""
        facts, at = self._picture.facts, self._clock()
        held = {id for holding in holdings for id in holding.ids if not is_old(id) and card_of(id, facts)}
        self._ledger = {
            **{id: Grant(at=at, inherited=True, shown=FORMER) for id in held},
            **self._ledger,
        }
        self._claim()

    def _claim(self) -> None:
        """Let the picture know what may be held still, if that makes a difference to it."""
        facts, claimed = self._picture.facts, frozenset(self._ledger)
        if estranged(facts) != estranged(replace(facts, claimed=claimed)):
            self._picture.submit(lambda facts: replace(facts, claimed=claimed))

    def granted(self, ids: Collection[str]) -> None:
        """An Allocate was answered with these ids, or a container starts with them."""
        grant = Grant(at=self._clock(), known_to=self._life())
        self._ledger = {**self._ledger, **dict.fromkeys(ids, grant)}
        self._granted.set()

    def hear(self, word: Word) -> None:
        """Take in what the kubelet says of holders: some grants end by it, and some turn out forgotten."""
        before = self._ledger
        self._ledger = after_word({**self._found(word), **before}, word, self.terms.settle)
        self._forgotten = forgotten(self._ledger, word, self._forgotten)
        if self._ledger != before:
            self._ended = (self._ended | before.keys()) - self._ledger.keys()
            self._heard.set()
            self._claim()

    def _found(self, word: Word) -> Ledger:
        """Listed devices of ours of which there is no grant, as another plugin may have given them."""
        facts, policy = self._picture.facts, self._picture.policy
        ours = our_resources((*facts.lost.values(), *facts.devices.values()), policy)
        grant = Grant(at=word.began, inherited=True, shown=word.life, known_to=word.life, noted=True)
        return {
            id: replace(grant, holder=holding.container)
            for holding in (word.listing.holdings if word.listing else ())
            for id in holding.ids
            if id not in self._ledger and (not is_old(id) or holding.resource in ours) and card_of(id, facts)
        }

    async def run(self, alone: Callable[[], Awaitable[None]]) -> None:
        """Write down which grants the kubelet lists, so that a later process knows one that has ended from
        one that is never listed; and which have ended. Never returns.

        alone: waits until no other plugin may write the record
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(alone), name="ends of grants")
            group.create_task(self._keep_up(), name="record of grants")
            while True:
                await self._granted.wait()
                await asyncio.sleep(self.terms.settle)
                since = self._clock() - SHOW_SECONDS
                if not any(grant.at > since and grant.shown is None for grant in self._ledger.values()):
                    self._granted.clear()
                    continue
                began, life = self._clock(), self._life()
                listing = await self._list()
                if isinstance(listing, Listing):
                    self.hear(Word(began=began, life=life, listing=listing))

    async def _keep_up(self) -> None:
        while True:
            await self._behind.wait()
            pauses = delays(*READ_SECONDS)
            while self._behind.is_set():
                await asyncio.sleep(next(pauses))
                await self._catch_up()

    async def _follow(self, alone: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._heard.wait()
            await alone()
            self._heard.clear()
            await self._record.forget(self._over)
            await self._record.saw(self._shown)

    def _over(self) -> frozenset[str]:
        """Asked for when they are about to be written: one may be granted anew meanwhile."""
        ended, self._ended = self._ended, set()
        return frozenset(ended - self._ledger.keys())

    def _shown(self) -> dict[str, Shown]:
        life = self._life()
        return {
            id: Shown(grant.holder, str(life))
            for id, grant in self._ledger.items()
            if life is not None and grant.shown == life and grant.holder is not None
        }

    @property
    def ledger(self) -> Ledger:
        """What was granted and is not known to have ended."""
        return self._ledger

    @property
    def behind(self) -> bool:
        """Whether the record of grants could not be read yet, so that the ledger lacks what it says."""
        return self._behind.is_set()

    @property
    def forgotten(self) -> frozenset[str]:
        """Those of them that the kubelet counts as free, having lost its checkpoint."""
        return self._forgotten & self._ledger.keys()

    def taken(self) -> frozenset[str]:
        """Cards of which something was granted by us, and that is not known to have ended."""
        facts = self._picture.facts
        cards = {card_of(id, facts) for id, grant in self._ledger.items() if not grant.inherited}
        return frozenset(card for card in cards if card is not None)

    def cards_of(self, holdings: Iterable[Holding]) -> frozenset[str]:
        """The cards that these containers hold something of."""
        return frozenset(by_card(holdings, self._picture.facts, self._picture.policy)[0])

    async def look(self, cards: Collection[Card]) -> dict[str, Proof]:
        """Ask everybody about these cards."""
        if not await self._catch_up():
            doubt = "the record of grants cannot be read"
            now = self._clock()
            return {card.address: Proof(at=now, done=now, doubt=doubt) for card in cards}
        began = self._clock()
        usages: dict[str, Usage | str] = {}
        for card in cards:
            usages[card.address] = await self._usage(card)
        life = self._life()
        listing = await self._list()
        checkpoint = await self._checkpoint()
        answers = Answers(
            began=began,
            done=self._clock(),
            listing=listing,
            checkpoint=None if checkpoint is None else checkpoint.holdings,
            own=written_by(life, checkpoint),
            life=life if life == self._life() else None,
            age=self._wall_clock() - life.changed_ns / 1e9 if life else 0.0,
            usages=usages,
        )
        before = self._ledger
        self._ledger, proofs = examine(
            self._ledger,
            cards,
            answers,
            self.terms,
            facts=self._picture.facts,
            policy=self._picture.policy,
        )
        self._claim()
        await self._record.forget(lambda: [id for id in before if id not in self._ledger])
        return proofs

    async def _usage(self, card: Card) -> Usage | str:
        """What driver and sysfs say, or why they do not.

        A card at which that costs a worker is left alone for a while, or the others would never be asked; and
        so are all while a worker is stuck.
        """
        mute = self._mute.get(card.address)
        if mute is not None and self._clock() < mute.until:
            return mute.why
        if self._driver.stuck:
            return "a worker that was killed does not end: the driver holds it"
        try:
            usage = await self._driver.usage([device.index for device in card.devices], card.address)
        except WorkerError as error:
            if error.call is None:  # nobody's fault: there is none that has scanned, say
                return str(error)
            mute = mute or _Mute(delays(*MUTE_SECONDS))
            mute.until, mute.why = self._clock() + next(mute.delays), str(error)
            self._mute[card.address] = mute
            logger.warning("asking who uses %s: %s; it is asked again later", card.address, error)
            return mute.why
        except (LibraryError, XpumlError, WrongDeviceError) as error:
            return str(error)
        self._mute.pop(card.address, None)
        return usage

    async def _list(self) -> Listing | str | None:
        try:
            return await list_pods(self._socket)
        except UnknownHoldersError as error:
            return str(error)

    async def _checkpoint(self) -> Checkpoint | None:
        try:
            return await checkpoint_of(self._directory)
        except UnknownHoldersError:
            return None

    def _life(self) -> Identity | None:
        return Identity.of(self._directory / KUBELET_SOCKET)
