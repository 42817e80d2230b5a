# SPDX-License-Identifier: Apache-2.0
"""How cards come to have the VFs wished: one decision at a time, from what is known now.

`decide` is called whenever something may have changed, and after each action that it asked for. It never
trusts that an action had its effect: it looks at what the next scan says. So it may be begun anew at any
moment with an empty Memory, and arrives at the same end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Kind
from xpu_plugin.model.events import NORMAL, WARNING, Event
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    RECORD_UNREAD,
    WISH_PENDING,
    WITHDRAWN,
    Health,
)
from xpu_plugin.model.vf import Action, Card, Proof, Report, Step, Wish, proven, wanted


LOOK_SECONDS = 5.0  # between looks at who uses a card that is to be changed
CHECK_SECONDS = 0.5  # between scans, until a change shows
RETRY_SECONDS = (10.0, 600.0)  # after a change that failed: first, most
DRIFT_SECONDS = (60.0, 3600.0)  # after a change that was not ours: first, most
MOST_REFUSALS = 5  # of an idle card with the same answer, before it is left alone
REVIEW_SECONDS = 60.0  # between comparisons of a card left alone with what it was when the driver refused


@frozen
class Limits:
    """What the administrator sets, in seconds.

    settle: between withdrawing a card and changing it; timeout: for a change to show in a scan
    pending: from the start on, for the wish to become known; apply: whether anything may be changed
    """

    settle: float = 10.0
    timeout: float = 60.0
    pending: float = 60.0
    apply: bool = True


@frozen
class View:
    """What is known now.

    proofs: the last look at each card
    taken: cards of which we gave something away that is not known to have ended, at this very instant
    held: cards that had a holder when we started
    estranged: cards that a container may hold as they were split before
    scans: how many scans have been taken in
    stuck: whether the worker that asked the driver was killed and does not end: the driver may yet do what
        that one has asked for
    unread: since when the record of a former process's request cannot be read, None if it was read
    driver: the driver's version; orders: how often the administrator has asked to begin anew (SIGHUP)
    """

    now: float
    wish: Wish
    cards: Mapping[str, Card]
    proofs: Mapping[str, Proof]
    taken: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    estranged: frozenset[str] = frozenset()
    scans: int = 0
    stuck: bool = False
    unread: float | None = None
    driver: str = ""
    orders: int = 0


# --- what is remembered ---------------------------------------------------------------------------


@frozen
class Change:
    """The one change under way: its card is withdrawn first, then the driver is asked (`sent`) and its effect
    looked for.

    number: VFs asked for last; was: VFs before; until: the end of the settling, or of the looking
    scans: those that say nothing new; scan_at: no sooner is another one wanted
    failure: why the driver's answer was no success; refused: whether it was a refusal of the driver's
    shown: what the scans since then have shown instead
    stuck: whether the driver had not let go of that request when it was looked at last
    inherited: whether a former process has asked the driver, and did not see what came of it
    """

    card: str
    sent: bool = False
    number: int
    was: int
    until: float
    scans: int = 0
    scan_at: float = 0.0
    failure: str = ""
    refused: bool = False
    shown: str = ""
    stuck: bool = False
    inherited: bool = False


@frozen(kw_only=False)
class Request:
    """What the driver was asked for and has not been seen to have done: written down before it is asked."""

    card: str
    number: int


@frozen
class Pause:
    """A card that is left alone for a while. failed: because a change failed, else because of drift."""

    until: float
    seconds: float
    reason: str
    failed: bool


@frozen
class Refusals:
    """How often in a row the driver has refused a card without a holder, always with the same answer.

    host: what the host showed of card and driver then
    """

    answer: str
    times: int
    host: tuple[object, ...]


@frozen
class Memory:
    """All of it may be lost at any time.

    reserved: cards kept back since before the wish was known -> when they have settled
    settled: card -> its VFs when it was last as wished
    told: card -> the last bad news of it, until it is as wished; under no card, what is wrong with the wish
    orders: as in View, when it was looked at last
    """

    started: float = 0.0
    number: int | None = None
    change: Change | None = None
    reserved: Mapping[str, float] = field(default_factory=dict)
    pauses: Mapping[str, Pause] = field(default_factory=dict)
    refusals: Mapping[str, Refusals] = field(default_factory=dict)
    settled: Mapping[str, int] = field(default_factory=dict)
    told: Mapping[str, object] = field(default_factory=dict)
    orders: int = 0

    @property
    def request(self) -> Request | None:
        """What the record has to say."""
        change = self.change
        return Request(change.card, change.number) if change is not None and change.sent else None


# --- what is decided ------------------------------------------------------------------------------


@frozen(kw_only=False)
class Wait:
    """Nothing to do for so many seconds, None: until something changes."""

    seconds: float | None


@frozen(kw_only=False)
class Prove:
    """Look who uses these cards."""

    cards: tuple[str, ...]


@frozen(kw_only=False)
class Scan:
    """Scan anew; give up after so many seconds."""

    seconds: float


@frozen(kw_only=False)
class SetVfs:
    """Ask the driver, and tell `answered`. Nobody may be granted the card from here on."""

    card: Card
    number: int


class Reason(StrEnum):
    """Of a transition that somebody may want to hear of; the words are those of Events."""

    APPLIED = "VFApplied"
    BLOCKED = "VFBlocked"
    FAILED = "VFFailed"
    DRIFT = "VFDrift"


@frozen
class News:
    """A transition, told once. card: empty for what concerns the wish itself"""

    reason: Reason
    card: str
    text: str

    @property
    def event(self) -> Event:
        kind = NORMAL if self.reason is Reason.APPLIED else WARNING
        return Event(kind=kind, reason=str(self.reason), text=self.text)


@frozen
class Decision:
    """What to remember, which cards new pods are kept off and why, what to do next, what to tell."""

    memory: Memory
    kept_back: Mapping[str, Health]
    action: Wait | Prove | Scan | SetVfs
    report: Report
    news: tuple[News, ...] = ()


def decide(memory: Memory, view: View, limits: Limits) -> Decision:
    """The next action. Calling it again with the same view decides the same, but after SetVfs, when
    `answered` is due, and after a Wait of no time."""
    memory, drifts = _notice(memory, view)
    changed = _go_on(memory, view) if memory.change else None
    memory, action, news = changed or (memory, None, ())
    if action is None:
        memory, action = _begin(memory, view, limits)
    steps = tuple(_told(memory, view, limits, card) for card in view.cards.values())
    memory, turns = _turns(memory, steps, view.wish)
    kept_back = _kept_back(memory, view, limits)
    if isinstance(action, Wait) and kept_back and _pending(memory, view, limits):
        left = memory.started + limits.pending - view.now
        action = Wait(left if action.seconds is None else min(action.seconds, left))
    return Decision(
        memory=memory,
        kept_back=kept_back,
        action=action,
        report=Report(steps=steps, problem=view.wish.problem),
        news=(*drifts, *news, *turns),
    )


def answered(
    memory: Memory,
    view: View,
    limits: Limits,
    *,
    failure: str = "",
    refused: bool = False,
    asked: bool = True,
) -> Memory:
    """The driver has answered, or will not: `failure` says how. The truth is what the next scans say.

    asked: False when it was not asked at all; then the change is over at once
    """
    assert memory.change is not None  # noqa: S101 - only a change asks the driver
    if not asked:
        return _failed(memory, memory.change, view, failure)
    until = view.now + limits.timeout
    change = replace(memory.change, until=until, scans=view.scans, failure=failure, refused=refused)
    return replace(memory, change=change)


def inherited(memory: Memory, view: View, limits: Limits, request: Request) -> Memory:
    """A former process has asked the driver for this: its card stays closed until a later scan than those so
    far shows it, or it has had as much time as a change of ours."""
    change = Change(
        card=request.card,
        sent=True,
        number=request.number,
        was=request.number,
        until=view.now + limits.timeout,
        scans=view.scans,
        inherited=True,
    )
    return replace(memory, change=change)


# --- beginning ------------------------------------------------------------------------------------


def _begin(memory: Memory, view: View, limits: Limits) -> tuple[Memory, Wait | Prove]:
    """Find a card to change; whoever is to be changed has to be looked at first."""
    memory = replace(memory, change=None)
    estranged = tuple(sorted(address for address in view.estranged if address in view.cards))
    if not limits.apply or view.unread is not None:
        unseen = tuple(address for address in estranged if not _fresh(view, address))
        wait = Wait(LOOK_SECONDS if estranged or view.unread is not None else None)
        return replace(memory, reserved={}), Prove(unseen) if unseen else wait
    actions = {address: wanted(view.wish, card).action for address, card in view.cards.items()}
    waiting = [card for card in view.cards.values() if actions[card.address] is Action.APPLY]
    left = {card.address for card in waiting if _left_alone(memory, view, card)}
    due = [card for card in waiting if card.address not in left and not _paused(memory, view, card.address)]
    asked = dict.fromkeys((*(card.address for card in due), *estranged))
    stale = tuple(address for address in asked if not _fresh(view, address))
    if stale:
        return memory, Prove(stale)
    free = [card for card in due if _free(view, card.address)]
    reserved = {}
    if _pending(memory, view, limits):
        # Kept back already: they may settle together.
        settled = view.now + limits.settle
        reserved = {
            card.address: memory.reserved.get(card.address, settled)
            for card in free
            if not card.vfs or card.address in memory.reserved
        }
    if not free:
        paused = [card for card in waiting if card not in due and card.address not in left]
        ends = [memory.pauses[card.address].until - view.now for card in paused]
        if left:
            ends.append(REVIEW_SECONDS)
        # That a PF is well again makes no other picture, as it is not offered: nobody would wake us.
        if due or estranged or Action.BLOCKED in actions.values():
            ends.append(LOOK_SECONDS)
        return replace(memory, reserved={}), Wait(max(min(ends), 0.0) if ends else None)
    card = min(free, key=lambda card: (card.address not in reserved, card.address))
    assert view.wish.number is not None  # noqa: S101 - `keep` changes nothing
    change = Change(
        card=card.address,
        number=view.wish.number,
        was=card.vfs,
        until=reserved.pop(card.address, view.now + limits.settle),
    )
    memory = replace(memory, change=change, reserved=reserved)
    return memory, Wait(max(change.until - view.now, 0.0))


def _fresh(view: View, address: str) -> bool:
    proof = view.proofs.get(address)
    return proof is not None and view.now - proof.done < LOOK_SECONDS


def _free(view: View, address: str) -> bool:
    """Whether nobody used the card at the last look, and nobody was given it since."""
    return address in view.proofs and view.proofs[address].idle and address not in view.taken


def _host(view: View, card: Card) -> tuple[object, ...]:
    """What of the host may make the driver answer otherwise."""
    own = [device for device in card.devices if device.kind is not Kind.VF]
    return (view.driver, card.vfs, *((device.node, device.max_vfs, device.serial) for device in own))


def _left_alone(memory: Memory, view: View, card: Card) -> bool:
    """Whether the driver has refused this card too often, and nothing has changed since."""
    refusals = memory.refusals.get(card.address)
    return refusals is not None and refusals.times >= MOST_REFUSALS and refusals.host == _host(view, card)


def _paused(memory: Memory, view: View, address: str) -> bool:
    pause = memory.pauses.get(address)
    return pause is not None and view.now < pause.until


# --- going on -------------------------------------------------------------------------------------

_Next = tuple[Memory, Wait | Prove | Scan | SetVfs, tuple[News, ...]] | None


def _go_on(memory: Memory, view: View) -> _Next:
    """The next action of the change under way; None when there is none, whereupon it is over."""
    change = memory.change
    assert change is not None  # noqa: S101 - asked by decide
    card = view.cards.get(change.card)
    if change.inherited:
        return _awaited(memory, change, card, view)
    return _sent(memory, change, card, view) if change.sent else _withdrawn(memory, change, card, view)


def _withdrawn(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    if card is None or wanted(view.wish, card).action is not Action.APPLY or change.card in view.taken:
        return None
    if view.now < change.until:
        return memory, Wait(change.until - view.now), ()
    if view.proofs[change.card].at < change.until:
        return memory, Prove((change.card,)), ()
    if not view.proofs[change.card].idle:
        return None
    return _send(memory, change, card, view)


def _send(memory: Memory, change: Change, card: Card, view: View) -> _Next:
    # The driver itself would go through 0 as well, and lose the VFs on the way if it then refuses.
    assert view.wish.number is not None  # noqa: S101 - the step is to apply
    number = 0 if card.vfs else view.wish.number
    change = replace(change, sent=True, number=number, scan_at=0.0)
    return replace(memory, change=change), SetVfs(card, number), ()


def _sent(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    if change.failure and (view.stuck or change.stuck):
        # What scans say now may be changed yet: one from after the end of that is wanted.
        until = max(change.until, view.now + RETRY_SECONDS[0])
        change = replace(change, scans=view.scans, until=until, stuck=view.stuck)
        return replace(memory, change=change), Wait(CHECK_SECONDS if view.stuck else 0.0), ()
    left = change.until - view.now
    if view.scans == change.scans:
        if left > 0:
            wait = min(change.scan_at - view.now, left)
            return memory, Wait(wait) if wait > 0 else Scan(left), ()
        reason = change.failure or change.shown or "no scan has shown what came of it"
        return _failed(memory, change, view, reason), Wait(0.0), ()
    if card is not None and card.complete and card.index is not None:
        if card.vfs == view.wish.number:
            text = f"{card.address} has {card.vfs} VFs now, {change.was} before"
            news = News(reason=Reason.APPLIED, card=card.address, text=text)
            return _over(memory, change.card), Wait(0.0), (news,)
        if card.vfs == change.number and not change.failure:
            if wanted(view.wish, card).action is Action.APPLY:
                return _send(memory, change, card, view)
            return None  # the wish is another one meanwhile, and asks for nothing
    if change.failure:
        return _failed(memory, change, view, change.failure), Wait(0.0), ()
    what = "nothing of the card" if card is None else f"{card.vfs} VFs" + " in part" * (not card.complete)
    shown = f"asked for {change.number} VFs, the library shows {what}"
    if left <= 0:
        return _failed(memory, change, view, shown), Wait(0.0), ()
    change = replace(change, scans=view.scans, scan_at=view.now + CHECK_SECONDS, shown=shown)
    return replace(memory, change=change), Wait(min(CHECK_SECONDS, left)), ()


def _awaited(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    """Nothing follows from what a former process has asked for: a change begins with a look at the card."""
    if view.scans != change.scans:
        if card is not None and card.complete and card.index is not None and card.vfs == change.number:
            return None
        change = replace(change, scans=view.scans, scan_at=view.now + CHECK_SECONDS)
        memory = replace(memory, change=change)
    left = change.until - view.now
    if left <= 0:
        text = (
            f"{change.card}: a former process of this plugin has asked the driver for {change.number} VFs, "
            "and no scan has shown them within --vf-timeout"
        )
        news = News(reason=Reason.FAILED, card=change.card, text=text)
        return replace(memory, change=None), Wait(0.0), (news,)
    wait = min(change.scan_at - view.now, left)
    return memory, Wait(wait) if wait > 0 else Scan(left), ()


def _over(memory: Memory, card: str) -> Memory:
    pauses = {
        address: pause for address, pause in memory.pauses.items() if address != card or not pause.failed
    }
    refusals = {address: refusals for address, refusals in memory.refusals.items() if address != card}
    return replace(memory, change=None, pauses=pauses, refusals=refusals)


def _failed(memory: Memory, change: Change, view: View, reason: str) -> Memory:
    memory = _pause(memory, view, change.card, reason, RETRY_SECONDS, failed=True)
    refusals = {address: own for address, own in memory.refusals.items() if address != change.card}
    card = view.cards.get(change.card)
    if change.refused and card is not None:
        host, last = _host(view, card), memory.refusals.get(change.card)
        again = last is not None and (last.answer, last.host) == (reason, host)
        times = last.times + 1 if again and last else 1
        refusals[change.card] = Refusals(answer=reason, times=times, host=host)
    return replace(memory, change=None, refusals=refusals)


def _pause(
    memory: Memory, view: View, card: str, reason: str, seconds: tuple[float, float], *, failed: bool
) -> Memory:
    """Twice as long as the last time, if that was not long ago."""
    first, most = seconds
    last = memory.pauses.get(card)
    again = last is not None and last.failed == failed and view.now < last.until + 2 * most
    length = min(last.seconds * 2, most) if again and last else first
    pause = Pause(until=view.now + length, seconds=length, reason=reason, failed=failed)
    return replace(memory, pauses={**memory.pauses, card: pause})


# --- noticing -------------------------------------------------------------------------------------


def _notice(memory: Memory, view: View) -> tuple[Memory, tuple[News, ...]]:
    """A new wish begins anew, as an order does for cards left alone; a card that was as wished and is not any
    more was changed by somebody else."""
    if view.wish.number != memory.number:
        memory = replace(memory, number=view.wish.number, pauses={}, refusals={}, settled={})
    if view.orders != memory.orders:
        pauses = {card: pause for card, pause in memory.pauses.items() if card not in memory.refusals}
        memory = replace(memory, orders=view.orders, pauses=pauses, refusals={})
    news = []
    settled = {address: number for address, number in memory.settled.items() if address in view.cards}
    changing = memory.change.card if memory.change and memory.change.sent else None
    for address, card in view.cards.items():
        if view.wish.number is None or card.excluded or address == changing:
            settled.pop(address, None)
        elif card.vfs == view.wish.number:
            settled[address] = card.vfs
        elif (was := settled.pop(address, None)) is not None:
            text = f"somebody else has split {address}: {was} VFs before, {card.vfs} now"
            memory = _pause(memory, view, address, text, DRIFT_SECONDS, failed=False)
            news.append(News(reason=Reason.DRIFT, card=address, text=text))
    return replace(memory, settled=settled), tuple(news)


# --- telling --------------------------------------------------------------------------------------


_UNREAD = (
    "whether a former process of this plugin has asked the driver for VFs is not known, as vf-change.json in "
    "--state-dir cannot be read; no card is changed before"
)


def _pending(memory: Memory, view: View, limits: Limits) -> bool:
    return view.now < memory.started + limits.pending


def _kept_back(memory: Memory, view: View, limits: Limits) -> dict[str, Health]:
    kept: dict[str, Health] = {}
    if unread := [address for address, card in view.cards.items() if _in_doubt(view, limits, card)]:
        kept = dict.fromkeys(unread, RECORD_UNREAD)
    elif limits.apply and _pending(memory, view, limits):
        unheld = view.cards.keys() - view.taken - view.held
        kept = {address: WISH_PENDING for address in unheld if _undecided(view, view.cards[address])}
        kept.update(dict.fromkeys(memory.reserved.keys() - view.taken, WITHDRAWN))
    if (change := memory.change) is not None:
        sent = ASKED_BEFORE if change.inherited else CHANGING
        kept[change.card] = sent if change.sent else WITHDRAWN
    return kept


def _in_doubt(view: View, limits: Limits, card: Card) -> bool:
    """Whether it may be the card that a former process has asked the driver to change."""
    unread = view.unread is not None and view.now < view.unread + limits.timeout
    return unread and card.most != 0


def _undecided(view: View, card: Card) -> bool:
    """Whether a whole card may have to be split: nobody has said yet, or nobody has looked yet. One that is
    split stays offered, as a reboot leaves none such."""
    asked = view.wish.origin is not None
    looked = card.address in view.proofs or wanted(view.wish, card).action is not Action.APPLY
    return bool(card.most) and not card.vfs and not card.excluded and not (asked and looked)


def _told(memory: Memory, view: View, limits: Limits, card: Card) -> Step:
    """A card's step with what is being done about it."""
    step = wanted(view.wish, card)
    change = memory.change
    if change is not None and change.card == card.address:
        what = "being changed" if change.sent else "withdrawn, settling"
        if change.inherited:
            what = f"a former process of this plugin has asked the driver for {change.number} VFs"
        if change.failure and view.stuck:
            what = f"{change.failure}; the driver has not let go of that request"
        return replace(step, wished=view.wish.number, action=Action.APPLY, reason=what)
    in_doubt = step.action is Action.KEEP and not card.excluded and _in_doubt(view, limits, card)
    due = step.action is Action.APPLY and limits.apply and view.unread is not None
    if in_doubt or due:
        return replace(step, action=Action.BLOCKED, reason=_UNREAD)
    pause = memory.pauses.get(card.address)
    if step.action is Action.KEEP and not card.complete and pause is not None and pause.failed:
        return replace(step, action=Action.FAILED, reason=pause.reason)
    if step.action is not Action.APPLY:
        return step
    if not limits.apply:
        return replace(step, action=Action.BLOCKED, reason="--vf-policy is never")
    if _left_alone(memory, view, card):
        refusals = memory.refusals[card.address]
        reason = (
            f"{refusals.answer}; the card was idle and the answer the same {refusals.times} times, so it is "
            "left alone: wish for another number, or correct the cause and send SIGHUP to the plugin"
        )
        return replace(step, action=Action.FAILED, reason=reason)
    if pause is not None and _paused(memory, view, card.address):
        reason = f"{pause.reason}; it is tried again later"
        return replace(step, action=Action.FAILED if pause.failed else Action.APPLY, reason=reason)
    proof = view.proofs.get(card.address)
    if proof is None:
        return replace(step, reason="about to be looked at")
    if card.address in view.taken and proof.idle:
        return replace(step, action=Action.BLOCKED, reason="granted to a container just now")
    return replace(proven(step, proof), reason=proof.text if not proof.idle else "waits its turn")


def _turns(memory: Memory, steps: Iterable[Step], wish: Wish) -> tuple[Memory, tuple[News, ...]]:
    """What has turned bad. Said again only after it was well, or for another wish or another failure."""
    told: dict[str, object] = {"": wish.problem} if wish.problem else {}
    news = []
    if wish.problem and memory.told.get("") != wish.problem:
        news.append(News(reason=Reason.FAILED, card="", text=f"{wish.problem}; {wish.instead}"))
    for step in steps:
        before = memory.told.get(step.card)
        if step.action is Action.BLOCKED:
            # By a doubt, and then by a holder, is worth another word; not the other way round.
            held = bool(step.holders) or before == (Reason.BLOCKED, step.wished, True)
            now: object = (Reason.BLOCKED, step.wished, held)
        elif step.action is Action.FAILED:
            now = (Reason.FAILED, step.wished, step.reason)
        elif step.action is Action.APPLY and before is not None:
            told[step.card] = before
            continue
        else:
            continue
        told[step.card] = now
        if now != before:
            reason = Reason.BLOCKED if step.action is Action.BLOCKED else Reason.FAILED
            news.append(News(reason=reason, card=step.card, text=f"{step.card}: {step.reason}"))
    return replace(memory, told=told), tuple(news)
