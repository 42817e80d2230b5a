# SPDX-License-Identifier: Apache-2.0
"""The one memory of grants: devices that were given to containers and may still be held."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.state.grants import GrantRecord, Shown
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.relay import Passed, Relay
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.inventory import card_of, is_old, ours, released
from xpu_plugin.model.ownership import (
    FORMER,
    Answers,
    Grant,
    Holding,
    Ledger,
    Terms,
    Word,
    after_word,
    by_card,
    examine,
    forgotten,
    word_of,
)
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.model.vf_plan import Card, Proof
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays


READ_SECONDS = (1.0, 60.0)  # between attempts to read a record that could not be read: first, most
SHOW_SECONDS = 60.0  # after a grant, for the kubelet's list; an ordinary init container's it never shows


class Grants:
    """The ledger of grants and its record on disk. Reads and writes take no await, unless they are `async`.

    A grant begins with `granted` or `started`, or comes from the record (`inherit`) or from the kubelet
    (`adopt`, `hear`). The answers of the kubelet (`hear`) or of all witnesses (`prove`) end it.

    record: as it was read at the start
    terms: conditions on which the kubelet's answers are trusted
    listed: set once the kubelet has a list of ours, so that it asks us for devices
    settled: True if the grants on record are older than `terms.settle` seconds
    """

    def __init__(
        self,
        picture: Picture,
        view: KubeletView,
        record: GrantRecord,
        terms: Terms,
        *,
        listed: asyncio.Event | None = None,
        settled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._view = view
        self._record = record
        self.terms = terms
        self._listed = listed or asyncio.Event()
        self._clock = clock
        self.relay = Relay()
        """Takes each grant while another instance has to know it."""
        self._given = asyncio.Event()  # some grant has not been listed yet
        self._unwritten = asyncio.Event()
        self._behind = asyncio.Event()  # the ledger lacks the content of the record
        self.inherited = 0  # number of times that the record entered the ledger
        self._ended: set[str] = set()  # grants that have ended and are still on the record
        self._resting: frozenset[str] = frozenset()  # of these, ids that the kubelet keeps for their pods
        self._forgotten: frozenset[str] = frozenset()
        self._before: set[str] = set()
        self._complete = False  # from now on each listed device was granted by us
        self._cards_at_start: frozenset[str] = frozenset()
        self.adopted = asyncio.Event()  # the holders at our start are known
        self._ledger: Value[Ledger] = Value({})
        self.inherit(clock() - (terms.settle if settled else 0.0))

    # --- reading --------------------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger:
        """The grants that are not known to have ended."""
        return self._ledger.current

    @property
    def version(self) -> int:
        """Number of changes of the ledger."""
        return self._ledger.version

    async def beyond(self, version: int) -> Ledger:
        """Return the ledger as soon as its version differs."""
        return await self._ledger.beyond(version)

    def waking(self, event: asyncio.Event) -> AbstractContextManager[None]:
        """Set the event at once, and at each change of the ledger within this context."""
        return self._ledger.waking(event)

    @property
    def paths(self) -> Mapping[str, str]:
        """Device id -> path of its node at its last grant, by this or a former process."""
        return self._record.paths

    @property
    def unread(self) -> bool:
        """Whether the record cannot be read now; it may hold more paths."""
        return self._record.unread

    async def kept(self, resource: str, ids: Collection[str]) -> Kept:
        """Return the kubelet's record of the grant of exactly these ids; it waits a few seconds at most."""
        return await self._view.kept(resource, ids)

    @property
    def forgotten(self) -> frozenset[str]:
        """Grants that the kubelet counts as free, because it lost its checkpoint."""
        return self._forgotten & self.ledger.keys()

    @property
    def before(self) -> Collection[str]:
        """Ids that containers held before our record was complete."""
        return self._before

    @property
    def cards_at_start(self) -> frozenset[str]:
        """Cards that had a holder when we started."""
        return self._cards_at_start

    def taken(self) -> frozenset[str]:
        """Cards with a grant by this process that is not known to have ended."""
        facts = self._picture.facts
        cards = {card_of(id, facts) for id, grant in self.ledger.items() if not grant.inherited}
        return frozenset(card for card in cards if card is not None)

    # --- beginning ------------------------------------------------------------------------------

    def granted(self, paths: Mapping[str, str]) -> None:
        """Take note of an Allocate answer with these devices, id -> path."""
        self._record.granted(paths)
        self._give(dict.fromkeys(paths, self._clock()))
        self.relay.put(Passed(paths, started=False))

    async def passed_on(self) -> bool:
        """Wait until the other instance of a hand-over knows all grants; False if it serves already."""
        return await self.relay.settled()

    async def started(self, paths: Mapping[str, str]) -> None:
        """Take note of a container that starts with these devices, in memory at once and then on the disk.

        It may be an ordinary init container, which the kubelet never lists. The wait for the disk is bounded.
        """
        self._record.granted(paths)
        self._give({id: self.ledger[id].allocated if id in self.ledger else None for id in paths})
        self.relay.put(Passed(paths, started=True))
        await self._record.started(paths)

    def _give(self, allocated: Mapping[str, float | None]) -> None:
        """allocated: as in `Grant`, by device id"""
        grant = Grant(at=self._clock(), known_to=self._view.instance)
        given = {id: replace(grant, allocated=at) for id, at in allocated.items()}
        self._ledger.set({**self.ledger, **given})
        self._given.set()

    # --- two instances --------------------------------------------------------------------------

    async def written(self) -> None:
        """Write the ends of grants at once, and wait for all writes in progress."""
        await self._record.forget(self._over)
        await self._record.saw(self._shown)
        await self._record.written()

    async def hold(self) -> None:
        """Write nothing until `keep` or `disown`; return when no write is in progress."""
        self._record.hold()
        await self._record.written()

    def share(self) -> tuple[Passed, Passed]:
        """Return the grants of this process, and pass on each later one by the relay."""
        self.relay.begin()
        own = {id: self.paths[id] for id, grant in self.ledger.items() if not grant.inherited}
        return Passed(own, started=False), Passed(dict(self._record.due), started=True)

    async def learn(self, passed: Passed) -> None:
        """Take note of a grant by the other instance."""
        self._record.granted(passed.paths)
        self._give(dict.fromkeys(passed.paths, self._clock()))
        if passed.started:
            await self._record.started(passed.paths)

    async def keep(self) -> None:
        """Write the record again, as its only writer."""
        self.relay.end()
        await self._record.release()

    def disown(self) -> None:
        """Leave the grants to another instance, which writes the record."""
        self.relay.end(refuse=True)
        self._record.disown()
        self._ledger.set(self._recorded())

    async def reread(self) -> None:
        """Take over the record as another process has written it meanwhile."""
        self.relay.end()
        await self._record.reread()
        self.inherit()

    async def complete(self) -> None:
        """Take over the record, and forget nothing: the other instance of a hand-over may have written it."""
        await self._record.reread()
        self._ledger.set({**self._recorded(), **self.ledger})
        self.inherited += 1
        self._claim()

    async def catch_up(self) -> bool:
        """Complete the ledger by the record, if that could not be read before. Return whether it is complete.
        The ledger forgets nothing."""
        if self._record.unread and not await self._record.reread():
            return False
        if self._behind.is_set():
            self._behind.clear()
            known = {
                id: grant
                for id, grant in self.ledger.items()
                if not grant.inherited or grant.known_to is not None
            }
            self._ledger.set({**self.ledger, **self._recorded(), **known})
            self.inherited += 1
            self._claim()
        return True

    def inherit(self, at: float | None = None) -> None:
        """Take over the record, in which former processes wrote their grants. at: time since which they are
        known, or now"""
        own = {id: grant for id, grant in self.ledger.items() if not grant.inherited}
        self._ledger.set({**self._recorded(at), **own})
        self.inherited += 1
        if self._record.unread:
            self._behind.set()
        else:
            self._behind.clear()

    def _recorded(self, at: float | None = None) -> Ledger:
        moment, life = self._clock() if at is None else at, self._view.instance
        return {id: self._inherited(id, moment, life) for id in self._record.paths}

    def _inherited(self, id: str, at: float, life: SocketIdentity | None) -> Grant:
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
        """Count the devices that containers hold at our start as granted, on record or not."""
        holdings = tuple(holdings)
        facts, at = self._picture.facts, self._clock()
        named = {(id, holding.resource) for holding in holdings for id in holding.ids}
        held = {id for id, _ in ours(named, facts, self._picture.policy) if not is_old(id)}
        self._before.update(id for id, _ in named)
        self._cards_at_start = frozenset(by_card(holdings, facts, self._picture.policy)[0])
        adopted = dict.fromkeys(held, Grant(at=at, inherited=True, shown=FORMER))
        self._ledger.set({**adopted, **self.ledger})
        self._claim()
        self.adopted.set()

    # --- ending ---------------------------------------------------------------------------------

    def hear(self, word: Word) -> None:
        """Take in the kubelet's answers. They end some grants, and show that others are forgotten."""
        if not self._complete and word.listing is not None:
            self._before.update(word.listed)
            self._complete = word.trusted and self._listed.is_set()
        if word.checkpoint is not None:
            self._rest(word.ended)
        before = self.ledger
        ledger = after_word({**self._found(word), **before}, word, self.terms.settle)
        self._forgotten = forgotten(ledger, word, self._forgotten)
        self._become(ledger)

    def prove(self, cards: Collection[Card], answers: Answers) -> dict[str, Proof]:
        """Return the proof for each of the cards, by the answers of all witnesses. They end some grants."""
        if answers.checkpoint is not None:
            self._rest(answers.ended)
        ledger, proofs = examine(
            self.ledger,
            cards,
            answers,
            self.terms,
            facts=self._picture.facts,
            policy=self._picture.policy,
        )
        self._become(ledger)
        return proofs

    def _rest(self, ids: Iterable[str]) -> None:
        """Keep the record of ids that the kubelet still has for an ended container. A finished init container
        starts again with them if its pod loses its sandbox."""
        before, self._resting = self._resting, frozenset(ids)
        if self._ended & (before - self._resting):
            self._unwritten.set()

    def _become(self, ledger: Ledger) -> None:
        before = self.ledger
        if ledger == before:
            return
        self._ended = (self._ended | before.keys()) - ledger.keys()
        self._ledger.set(ledger)
        self._unwritten.set()
        self._claim()

    def _found(self, word: Word) -> Ledger:
        """Return listed devices of ours without a grant; another plugin may have granted them."""
        held = {
            (id, holding.resource): holding.container
            for holding in (word.listing.holdings if word.listing else ())
            for id in holding.ids
            if id not in self.ledger
        }
        grant = Grant(at=word.began, inherited=True, shown=word.life, known_to=word.life, noted=True)
        return {
            id: replace(grant, holder=held[id, resource])
            for id, resource in ours(held, self._picture.facts, self._picture.policy)
        }

    def _claim(self) -> None:
        """Tell the picture which ids may still be held."""
        claimed = frozenset(self.ledger)
        if claimed != self._picture.facts.claimed:
            self._picture.submit(lambda facts: released(replace(facts, claimed=claimed)))

    # --- the record -----------------------------------------------------------------------------

    async def run(self, lock: Alone) -> None:
        """Record the grants that the kubelet lists, and those that have ended. Never returns.

        A later process can then tell a grant that has ended from one that is never listed.

        lock: allows to write the record
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(lock), name="ends of grants")
            group.create_task(self._keep_up(), name="record of grants")
            while True:
                await self._given.wait()
                await asyncio.sleep(self.terms.settle)
                since = self._clock() - SHOW_SECONDS
                if not any(grant.at > since and grant.shown is None for grant in self.ledger.values()):
                    self._given.clear()
                    continue
                answers = await self._view.answers(oldest=0.0)
                if answers.listed is not None:
                    self.hear(word_of(answers, self.terms))

    async def _keep_up(self) -> None:
        while True:
            await self._behind.wait()
            pauses = delays(*READ_SECONDS)
            while self._behind.is_set():
                await asyncio.sleep(next(pauses))
                await self.catch_up()

    async def _write(self, lock: Alone) -> None:
        while True:
            await self._unwritten.wait()
            async with lock.work():
                self._unwritten.clear()
                await self._record.forget(self._over)
                await self._record.saw(self._shown)

    def _over(self) -> frozenset[str]:
        """Return the ended grants at the moment of writing: one may be granted anew before that."""
        ended, self._ended = self._ended, self._ended & self._resting
        return frozenset(ended - self.ledger.keys() - self._resting)

    def _shown(self) -> dict[str, Shown]:
        life = self._view.instance
        return {
            id: Shown(grant.holder, str(life))
            for id, grant in self.ledger.items()
            if life is not None and grant.shown == life and grant.holder is not None
        }
