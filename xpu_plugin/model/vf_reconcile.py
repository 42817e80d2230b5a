# SPDX-License-Identifier: Apache-2.0
"""The order in which cards get the desired VF count: one decision at a time.

`decide` is called after each change of its inputs, and after each action that it has returned. It never
assumes that an action succeeded: it waits for the next scan to show the result. So a start with an empty
Memory is safe at any time, and leads to the same end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import DeviceKind
from xpu_plugin.model.events import NORMAL, WARNING, Event
from xpu_plugin.model.health import (
    ASKED_BEFORE,
    CHANGING,
    RECORD_UNREAD,
    VF_CHANGE_PLANNED,
    VF_UNDECIDED,
    Health,
)
from xpu_plugin.model.reservation import LOOK_SECONDS, Prove, Users, Wait
from xpu_plugin.model.vf_plan import Card, CardPlan, DesiredVfs, Proof, Report, VfAction, proven, step_if_idle


CHECK_SECONDS = 0.5  # between scans, until a change shows
RETRY_SECONDS = (10.0, 600.0)  # after a failed change: first, most
DRIFT_SECONDS = (60.0, 3600.0)  # after a change by another program: first, most
MOST_REFUSALS = 5  # of an idle card with the same answer, before it is left alone
REVIEW_SECONDS = 60.0  # between comparisons of a card left alone with the host at its last refusal


@frozen
class VfPace:
    """Waits, as the constants above."""

    look: float = LOOK_SECONDS
    check: float = CHECK_SECONDS
    retry: tuple[float, float] = RETRY_SECONDS
    drift: tuple[float, float] = DRIFT_SECONDS


@frozen
class Limits:
    """The administrator's settings, in seconds."""

    settle: float = 10.0  # between withholding a card and changing it
    timeout: float = 60.0  # until a scan shows a change
    pending: float = 60.0  # from the start until the desired VF count is known
    apply: bool = True  # False: report only
    pace: VfPace = VfPace()


@frozen
class View(Users):
    """The facts at the moment of a decision."""

    desired: DesiredVfs
    cards: Mapping[str, Card]
    held: frozenset[str] = frozenset()  # cards that had a holder at our start
    stale_ids: frozenset[str] = frozenset()  # cards that a container may hold by ids of an earlier VF count
    scans: int = 0  # number of scans so far
    # The worker that asked the driver was killed and does not end: the driver may still carry out its
    # request.
    stuck: bool = False
    unread: float | None = None  # since when the record of an earlier request cannot be read; None if it was
    driver: str = ""  # the driver's version
    orders: int = 0  # number of SIGHUPs
    pace: VfPace = VfPace()


# --- memory ---------------------------------------------------------------------------------------


@frozen
class Change:
    """The change in progress. Its card is withheld first; then the driver is asked (`sent`)."""

    card: str
    sent: bool = False
    number: int  # VFs of the last request
    was: int  # VFs before the change
    until: float  # end of the wait before the request, or of the wait for its result
    scans: int = 0  # number of scans that are too old to show the result
    scan_at: float = 0.0  # time of the next scan
    failure: str = ""  # why the driver's answer was not a success
    refused: bool = False  # the failure is a refusal by the driver
    shown: str = ""  # the number that later scans have shown instead
    stuck: bool = False  # the driver had not finished that request at the last look
    inherited: bool = False  # a former process asked the driver and did not see the result


@frozen(kw_only=False)
class Request:
    """A request to the driver without a confirmed result. It is recorded before the driver is asked."""

    card: str
    number: int


@frozen
class Pause:
    """A pause before the next attempt for a card."""

    until: float
    seconds: float
    reason: str
    failed: bool  # after a failed change; False: after drift


@frozen
class Refusals:
    """Consecutive refusals of a card by the driver, without a holder and always with the same answer."""

    answer: str
    times: int
    host: tuple[object, ...]  # card and driver at that time


@frozen
class Memory:
    """The state between decisions. All of it may be lost at any time."""

    started: float = 0.0
    number: int | None = None
    change: Change | None = None
    # Card -> its VFs that a change of ours has taken, until it has the desired count. It keeps their nodes.
    begun: Mapping[str, int] = field(default_factory=dict)
    # Cards withheld since before the desired VF count was known -> the end of their wait.
    reserved: Mapping[str, float] = field(default_factory=dict)
    pauses: Mapping[str, Pause] = field(default_factory=dict)
    refusals: Mapping[str, Refusals] = field(default_factory=dict)
    settled: Mapping[str, int] = field(
        default_factory=dict
    )  # card -> its VFs when it last had the desired count
    # Card -> its last problem that was reported, until it has the desired count; "" -> that of the label.
    reported: Mapping[str, object] = field(default_factory=dict)
    orders: int = 0  # as in View, at the last decision

    @property
    def request(self) -> Request | None:
        """The request on record."""
        change = self.change
        return Request(change.card, change.number) if change is not None and change.sent else None

    def claims(self, desired: DesiredVfs) -> Mapping[str, int]:
        """Return card -> the number of VFs for which it keeps nodes, as in `within_handles`."""
        if self.request is None:
            return self.begun
        own = self.request.card
        return {**self.begun, own: max(self.begun.get(own, 0), desired.number or 0)}


# --- decisions ------------------------------------------------------------------------------------


@frozen(kw_only=False)
class Rescan:
    """Scan again; give up after so many seconds."""

    seconds: float


@frozen(kw_only=False)
class SetVfs:
    """Ask the driver, then call `answered`. From here on the card must not be granted."""

    card: Card
    number: int


class VfReason(StrEnum):
    """The reasons of Events about transitions."""

    APPLIED = "VFApplied"
    BLOCKED = "VFBlocked"
    FAILED = "VFFailed"
    DRIFT = "VFDrift"


@frozen
class News:
    """A transition, reported once."""

    reason: VfReason
    card: str  # empty if it concerns the label itself
    text: str

    @property
    def event(self) -> Event:
        kind = NORMAL if self.reason is VfReason.APPLIED else WARNING
        return Event(kind=kind, reason=str(self.reason), text=self.text)


@frozen
class Decision:
    """The next memory and action, the cards to withhold with the reason, the report, and the news."""

    memory: Memory
    kept_back: Mapping[str, Health]
    action: Wait | Prove | Rescan | SetVfs
    report: Report
    news: tuple[News, ...] = ()

    @property
    def awaits_an_end(self) -> bool:
        """Whether the end of a container may change the next decision."""
        return any(step.holders for step in self.report.steps)


def decide(memory: Memory, view: View, limits: Limits) -> Decision:
    """Return the next action.

    The same view leads to the same decision, except after SetVfs, when `answered` is due, and after Wait(0).
    """
    memory, drifts = _notice(memory, view)
    changed = _go_on(memory, view) if memory.change else None
    memory, action, news = changed or (memory, None, ())
    if action is None:
        memory, action = _begin(memory, view, limits)
    steps = tuple(_step(memory, view, limits, card) for card in view.cards.values())

    memory, turns = _turns(memory, steps, view.desired)
    kept_back = _kept_back(memory, view, limits)
    if isinstance(action, Wait) and kept_back and _pending(memory, view, limits):
        left = memory.started + limits.pending - view.now
        action = Wait(left if action.seconds is None else min(action.seconds, left))
    return Decision(
        memory=memory,
        kept_back=kept_back,
        action=action,
        report=Report(steps=steps, problem=view.desired.problem),
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
    """Record the driver's answer, or its absence (`failure`). The next scans show the actual result.

    asked: False if the driver was not asked at all; then the change is over at once
    """
    assert memory.change is not None  # noqa: S101 - only a change asks the driver
    if not asked:
        return _failed(memory, memory.change, view, failure)
    until = view.now + limits.timeout
    change = replace(memory.change, until=until, scans=view.scans, failure=failure, refused=refused)
    return replace(memory, change=change)


def inherited(memory: Memory, view: View, limits: Limits, request: Request) -> Memory:
    """Take over a request of a former process.

    Its card stays withheld until a later scan shows the number, or until a change of ours would time out.
    """
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
    """Choose the next card. A card is eligible only after a recent check of its users."""
    memory = replace(memory, change=None)
    stale_ids = tuple(sorted(address for address in view.stale_ids if address in view.cards))
    if not limits.apply or view.unread is not None:
        unseen = tuple(address for address in stale_ids if not view.fresh(address))
        wait = Wait(view.look if stale_ids or view.unread is not None else None)
        return replace(memory, reserved={}), Prove(unseen) if unseen else wait
    actions = {address: step_if_idle(view.desired, card).action for address, card in view.cards.items()}
    waiting = [card for card in view.cards.values() if actions[card.address] is VfAction.APPLY]
    left = {card.address for card in waiting if _left_alone(memory, view, card)}
    due = [card for card in waiting if card.address not in left and not _paused(memory, view, card.address)]
    asked = dict.fromkeys((*(card.address for card in due), *stale_ids))
    stale = tuple(address for address in asked if not view.fresh(address))
    if stale:
        return memory, Prove(stale)
    free = [card for card in due if view.free(card.address)]
    reserved = {}
    if _pending(memory, view, limits):
        # These are withheld already: their waits run at the same time.
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
        # A PF that recovers is not offered, so it makes no new inventory and no change to wake us.
        if due or stale_ids or VfAction.BLOCKED in actions.values():
            ends.append(view.look)
        return replace(memory, reserved={}), Wait(max(min(ends), 0.0) if ends else None)
    card = min(free, key=lambda card: (card.address not in reserved, card.address))
    assert view.desired.number is not None  # noqa: S101 - `keep` changes nothing
    change = Change(
        card=card.address,
        number=view.desired.number,
        was=card.vfs,
        until=reserved.pop(card.address, view.now + limits.settle),
    )
    memory = replace(memory, change=change, reserved=reserved)
    return memory, Wait(max(change.until - view.now, 0.0))


def _host(view: View, card: Card) -> tuple[object, ...]:
    """Return the facts of the host on which the driver's answer may depend."""
    own = [device for device in card.devices if device.kind is not DeviceKind.VF]
    return (view.driver, card.vfs, *((device.node, device.max_vfs, device.serial) for device in own))


def _left_alone(memory: Memory, view: View, card: Card) -> bool:
    """Return whether the driver has refused this card too often, without a change of the host since."""
    refusals = memory.refusals.get(card.address)
    return refusals is not None and refusals.times >= MOST_REFUSALS and refusals.host == _host(view, card)


def _paused(memory: Memory, view: View, address: str) -> bool:
    pause = memory.pauses.get(address)
    return pause is not None and view.now < pause.until


# --- the change in progress -----------------------------------------------------------------------

_Next = tuple[Memory, Wait | Prove | Rescan | SetVfs, tuple[News, ...]] | None


def _go_on(memory: Memory, view: View) -> _Next:
    """Return the next action of the change in progress; None ends the change."""
    change = memory.change
    assert change is not None  # noqa: S101 - asked by decide
    card = view.cards.get(change.card)
    if change.inherited:
        return _awaited(memory, change, card, view)
    return _sent(memory, change, card, view) if change.sent else _planned(memory, change, card, view)


def _planned(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    if card is None or step_if_idle(view.desired, card).action is not VfAction.APPLY:
        return None
    proof = view.settled(change.card, change.until)
    if proof is None:
        return None
    if not isinstance(proof, Proof):
        return memory, proof, ()
    if proof.fading:
        text = f"the kubelet's checkpoint still names {', '.join(proof.fading)}, of which the pod is gone"
        memory = _pause(memory, view, change.card, text, view.pace.retry, failed=False)
        return replace(memory, change=None), Wait(0.0), ()
    return _send(memory, change, card, view)


def _send(memory: Memory, change: Change, card: Card, view: View) -> _Next:
    # Asked for another number, the driver removes the VFs first, and loses them if it then refuses.
    assert view.desired.number is not None  # noqa: S101 - the step is to apply
    number = 0 if card.vfs else view.desired.number
    begun = {card.address: card.vfs, **memory.begun} if card.vfs and view.desired.number else memory.begun
    change = replace(change, sent=True, number=number, scan_at=0.0)
    return replace(memory, change=change, begun=begun), SetVfs(card, number), ()


def _sent(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    if change.failure and (view.stuck or change.stuck):
        # The driver may still change the card: only a scan from after the end of the request counts.
        until = max(change.until, view.now + view.pace.retry[0])
        change = replace(change, scans=view.scans, until=until, stuck=view.stuck)
        return replace(memory, change=change), Wait(view.pace.check if view.stuck else 0.0), ()
    left = change.until - view.now
    if view.scans == change.scans:
        if left > 0:
            wait = min(change.scan_at - view.now, left)
            return memory, Wait(wait) if wait > 0 else Rescan(left), ()
        if change.shown:
            return _failed(memory, change, view, change.shown), Wait(0.0), ()
        return memory, Rescan(view.pace.retry[0]), ()  # `_unseen`
    if card is not None and card.complete and card.index is not None:
        if card.vfs == view.desired.number:
            text = f"{card.address} has {card.vfs} VFs now, {change.was} before"
            news = News(reason=VfReason.APPLIED, card=card.address, text=text)
            return _over(memory, change.card), Wait(0.0), (news,)
        if card.vfs == change.number and not change.failure:
            if step_if_idle(view.desired, card).action is VfAction.APPLY:
                return _send(memory, change, card, view)
            return None  # the desired VF count has changed meanwhile and needs no action
    if change.failure:
        return _failed(memory, change, view, change.failure), Wait(0.0), ()
    what = "nothing of the card" if card is None else f"{card.vfs} VFs" + " in part" * (not card.complete)
    shown = f"asked for {change.number} VFs, the library shows {what}"
    if left <= 0:
        return _failed(memory, change, view, shown), Wait(0.0), ()
    change = replace(change, scans=view.scans, scan_at=view.now + view.pace.check, shown=shown)
    return replace(memory, change=change), Wait(min(view.pace.check, left)), ()


def _unseen(change: Change, view: View) -> bool:
    """Return whether the result of a request of ours is overdue without any scan since.

    The picture is older than the request, so the card stays withheld until a scan.
    """
    own = change.sent and not change.inherited and not change.shown
    return own and view.scans == change.scans and view.now >= change.until


def _awaited(memory: Memory, change: Change, card: Card | None, view: View) -> _Next:
    """Wait for the result of a former process's request. A change of ours begins with a check of its own."""
    if view.scans != change.scans:
        if card is not None and card.complete and card.index is not None and card.vfs == change.number:
            return None
        change = replace(change, scans=view.scans, scan_at=view.now + view.pace.check)
        memory = replace(memory, change=change)
    left = change.until - view.now
    if left <= 0:
        text = (
            f"{change.card}: a former process of this plugin has asked the driver for {change.number} VFs, "
            "and no scan has shown them within --vf-timeout"
        )
        news = News(reason=VfReason.FAILED, card=change.card, text=text)
        return replace(memory, change=None), Wait(0.0), (news,)
    wait = min(change.scan_at - view.now, left)
    return memory, Wait(wait) if wait > 0 else Rescan(left), ()


def _over(memory: Memory, card: str) -> Memory:
    pauses = {
        address: pause for address, pause in memory.pauses.items() if address != card or not pause.failed
    }
    refusals = {address: refusals for address, refusals in memory.refusals.items() if address != card}
    return replace(memory, change=None, pauses=pauses, refusals=refusals)


def _failed(memory: Memory, change: Change, view: View, reason: str) -> Memory:
    memory = _pause(memory, view, change.card, reason, view.pace.retry, failed=True)
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
    """Pause a card, twice as long as the last time if that was recent."""
    first, most = seconds
    last = memory.pauses.get(card)
    again = last is not None and last.failed == failed and view.now < last.until + 2 * most
    length = min(last.seconds * 2, most) if again and last else first
    pause = Pause(until=view.now + length, seconds=length, reason=reason, failed=failed)
    return replace(memory, pauses={**memory.pauses, card: pause})


# --- changes from outside -------------------------------------------------------------------------


def _notice(memory: Memory, view: View) -> tuple[Memory, tuple[News, ...]]:
    """Take in a new desired VF count, an order, and drift.

    A new count resets the memory; an order (SIGHUP) resets cards that are left alone. A card that had the
    desired count and lost it was changed by another program.
    """
    if view.desired.number != memory.number:
        memory = replace(memory, number=view.desired.number, pauses={}, refusals={}, settled={})
    if view.orders != memory.orders:
        pauses = {card: pause for card, pause in memory.pauses.items() if card not in memory.refusals}
        memory = replace(memory, orders=view.orders, pauses=pauses, refusals={})
    memory = replace(memory, begun=_unfinished(memory, view))
    news = []
    settled = {address: number for address, number in memory.settled.items() if address in view.cards}
    changing = memory.change.card if memory.change and memory.change.sent else None
    for address, card in view.cards.items():
        if view.desired.number is None or card.excluded or address == changing:
            settled.pop(address, None)
        elif card.vfs == view.desired.number:
            settled[address] = card.vfs
        elif (was := settled.pop(address, None)) is not None:
            text = f"another program has split {address}: {was} VFs before, {card.vfs} now"
            memory = _pause(memory, view, address, text, view.pace.drift, failed=False)
            news.append(News(reason=VfReason.DRIFT, card=address, text=text))
    return replace(memory, settled=settled), tuple(news)


def _unfinished(memory: Memory, view: View) -> dict[str, int]:
    """Return the begun changes that are not over: the card lacks the desired VFs, or is not in sight."""
    number = view.desired.number
    if number is None and view.desired.origin is not None:  # it stays as it is
        return {}
    return {
        address: was
        for address, was in memory.begun.items()
        if address not in view.cards or view.cards[address].vfs != number
    }


# --- the report -----------------------------------------------------------------------------------


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
        kept = {address: VF_UNDECIDED for address in unheld if _undecided(view, view.cards[address])}
        kept.update(dict.fromkeys(memory.reserved.keys() - view.taken, VF_CHANGE_PLANNED))
    if (change := memory.change) is not None:
        sent = ASKED_BEFORE if change.inherited else CHANGING
        kept[change.card] = sent if change.sent else VF_CHANGE_PLANNED
    return kept


def _in_doubt(view: View, limits: Limits, card: Card) -> bool:
    """Return whether a former process may have asked the driver to change this card."""
    unread = view.unread is not None and view.now < view.unread + limits.timeout
    return unread and card.vf_counts != ()


def _undecided(view: View, card: Card) -> bool:
    """Return whether a whole card may have to be split: the desired VF count or its users are unknown.

    A card that is split stays offered, as no card is split after a reboot.
    """
    asked = view.desired.origin is not None
    looked = card.address in view.proofs or step_if_idle(view.desired, card).action is not VfAction.APPLY
    return card.splits and not card.vfs and not card.excluded and not (asked and looked)


def _step(memory: Memory, view: View, limits: Limits, card: Card) -> CardPlan:
    """Return a card's step with the progress of its change."""
    step = step_if_idle(view.desired, card)
    change = memory.change
    if change is not None and change.card == card.address:
        what = "being changed" if change.sent else "withheld, waiting for --pod-list-delay"
        if change.inherited:
            what = f"a former process of this plugin has asked the driver for {change.number} VFs"
        if change.failure and view.stuck:
            what = f"{change.failure}; the driver has not finished that request"
        elif _unseen(change, view):
            reason = "; ".join(filter(None, (change.failure, "no scan has shown the result")))
            return replace(step, desired=view.desired.number, action=VfAction.FAILED, reason=reason)
        return replace(step, desired=view.desired.number, action=VfAction.APPLY, reason=what)
    in_doubt = step.action is VfAction.KEEP and not card.excluded and _in_doubt(view, limits, card)
    due = step.action is VfAction.APPLY and limits.apply and view.unread is not None
    if in_doubt or due:
        return replace(step, action=VfAction.BLOCKED, reason=_UNREAD)
    pause = memory.pauses.get(card.address)
    if step.action is VfAction.KEEP and not card.complete and pause is not None and pause.failed:
        return replace(step, action=VfAction.FAILED, reason=pause.reason)
    if step.action is not VfAction.APPLY:
        return step
    if not limits.apply:
        return replace(step, action=VfAction.BLOCKED, reason="--vf-policy is never")
    if _left_alone(memory, view, card):
        refusals = memory.refusals[card.address]
        reason = (
            f"{refusals.answer}; the card was idle and the answer the same {refusals.times} times, so it is "
            "left alone: set another number, or correct the cause and send SIGHUP to the plugin"
        )
        return replace(step, action=VfAction.FAILED, reason=reason)
    if pause is not None and _paused(memory, view, card.address):
        reason = f"{pause.reason}; it is tried again later"
        return replace(step, action=VfAction.FAILED if pause.failed else VfAction.APPLY, reason=reason)
    proof = view.proofs.get(card.address)
    if proof is None:
        return replace(step, reason="waiting for a check of its users")
    if card.address in view.taken and proof.idle:
        return replace(step, action=VfAction.BLOCKED, reason="granted to a container just now")
    return replace(proven(step, proof), reason=proof.text if not proof.idle else "waiting for its turn")


def _turns(memory: Memory, steps: Iterable[CardPlan], desired: DesiredVfs) -> tuple[Memory, tuple[News, ...]]:
    """Return the new problems. Each is reported again only after a success, or for another number or
    failure."""
    reported: dict[str, object] = {"": desired.problem} if desired.problem else {}
    news = []
    if desired.problem and memory.reported.get("") != desired.problem:
        news.append(News(reason=VfReason.FAILED, card="", text=f"{desired.problem}; {desired.instead}"))
    for step in steps:
        before = memory.reported.get(step.card)
        if step.action is VfAction.BLOCKED:
            # A holder after a doubt is reported again; a doubt after a holder is not.

            held = bool(step.holders) or before == (VfReason.BLOCKED, step.desired, True)
            now: object = (VfReason.BLOCKED, step.desired, held)
        elif step.action is VfAction.FAILED:
            now = (VfReason.FAILED, step.desired, step.reason)
        elif step.action is VfAction.APPLY and before is not None:
            reported[step.card] = before
            continue
        else:
            continue
        reported[step.card] = now
        if now != before:
            reason = VfReason.BLOCKED if step.action is VfAction.BLOCKED else VfReason.FAILED
            news.append(News(reason=reason, card=step.card, text=f"{step.card}: {step.reason}"))
    return replace(memory, reported=reported), tuple(news)
