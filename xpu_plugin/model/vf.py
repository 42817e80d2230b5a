# SPDX-License-Identifier: Apache-2.0
"""Virtual functions: what is wished, what is there, and what follows for each card. Nothing is remembered."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device, Kind, matches
from xpu_plugin.model.inventory import Facts, Policy


KEEP = "keep"
MOST_VFS = 63
LONGEST_LABEL = 63  # characters of a label's value, by Kubernetes
ACCEPTED = f"a whole number from 0 to {MOST_VFS}, or {KEEP}"

LABEL = "baidu.com/sriov-num-vfs"
STATE_LABEL = f"{LABEL}.state"
DETAIL_ANNOTATION = f"{LABEL}.detail"


# --- the wish -------------------------------------------------------------------------------------


@frozen
class Wish:
    """How many VFs each card is to have.

    number: None means that every card is to stay as it is
    origin: where the wish is from; None until it is known
    problem: why the label that is there does not count, or that there should be one
    instead: what counts meanwhile
    """

    number: int | None = None
    origin: str | None = None
    problem: str = ""
    instead: str = "the last valid wish stays"


UNKNOWN = Wish()
_LABELLED, ARGUMENT = f"label {LABEL}", "argument --sriov-num-vfs"


def parse(text: str) -> int | None:
    """A number of VFs, None for `keep`. Raises ValueError."""
    if text == KEEP:
        return None
    if re.fullmatch(r"0|[1-9][0-9]?", text) and int(text) <= MOST_VFS:
        return int(text)
    raise ValueError(f"{text[:LONGEST_LABEL]!r} is not accepted; accepted: {ACCEPTED}")


def by_argument(number: int | None) -> Wish:
    return Wish(number=number, origin=ARGUMENT)


def by_label(before: Wish, label: str | None, argument: int | None) -> Wish:
    """The wish once the node is known to have this label, or none. A bad one leaves the wish as it was:
    `keep` if there was none yet."""
    if label is None:
        return by_argument(argument)
    try:
        return Wish(number=parse(label), origin=_LABELLED)
    except ValueError as error:
        return replace(before, origin=before.origin or _LABELLED, problem=f"{_LABELLED}: {error}")


# --- cards ----------------------------------------------------------------------------------------


@frozen
class Card:
    """One board as it is now.

    vfs: how many VFs it has; complete: they are all in sight, each with its node
    index: the library's rank of its PF, None while that is not in sight
    most: VFs that its driver would allow, 0 for a card that cannot be split, None where that is not known
    excluded: why it is none of our business; trouble: why nothing may be changed on it now
    """

    address: str
    vfs: int
    complete: bool
    index: int | None
    most: int | None
    excluded: str = ""
    trouble: str = ""
    devices: tuple[Device, ...]


def cards(facts: Facts, policy: Policy) -> dict[str, Card]:
    """The cards of the last scan, by address."""
    grouped: dict[str, list[Device]] = {}
    for device in facts.devices.values():
        grouped.setdefault(device.card, []).append(device)
    return {address: _card(address, grouped[address], facts, policy) for address in sorted(grouped)}


def _card(address: str, devices: list[Device], facts: Facts, policy: Policy) -> Card:
    own = [device for device in devices if device.kind is not Kind.VF]
    in_sight = len(devices) - len(own)
    splits = [int(device.split[2:]) for device in devices if device.split.startswith("of")]
    number = max(splits, default=0)
    return Card(
        address=address,
        vfs=number,
        complete=in_sight == number,
        index=own[0].index if own else None,
        most=own[0].max_vfs if own else None,
        excluded=_excluded(own, devices, policy),
        trouble=_trouble(own, devices, facts),
        devices=tuple(devices),
    )


def _excluded(own: Sequence[Device], devices: Sequence[Device], policy: Policy) -> str:
    if any(matches(device, policy.deny) for device in own):
        return "excluded by --deny"
    if policy.allow and not any(matches(device, policy.allow) for device in devices):
        return "not named by --allow"
    return ""


def _trouble(own: Sequence[Device], devices: Sequence[Device], facts: Facts) -> str:
    if not own:
        return "the card itself does not answer, only its VFs do"
    sick = [device for device in devices if not facts.verdicts[device.id].healthy]
    for device in sick:
        verdict = facts.verdicts[device.id]
        if device in own or verdict.reason in ("not-answering", "call-failed"):
            return f"{device.id} is unhealthy: {verdict.text}"
    return ""


# --- the plan -------------------------------------------------------------------------------------


class Action(StrEnum):
    """What is to be done with a card."""

    KEEP = "keep"
    APPLY = "apply"
    BLOCKED = "blocked"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"


@frozen
class Proof:
    """Whether anybody uses a card: it is idle only without holders and without doubt.

    at, done: when the look began and ended, in seconds of the caller's clock
    """

    at: float = 0.0
    done: float = 0.0
    holders: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def idle(self) -> bool:
        return not self.holders and not self.doubt

    @property
    def text(self) -> str:
        """Why it is not idle."""
        if self.holders:
            return f"held by {', '.join(self.holders)}"
        return f"cannot prove idle: {self.doubt}"


@frozen
class Step:
    """What follows for one card. wished: None means `keep`; reason: a sentence where there is one to say."""

    card: str
    wished: int | None
    actual: int
    action: Action
    reason: str = ""
    holders: tuple[str, ...] = ()


def wanted(wish: Wish, card: Card) -> Step:
    """What is to be done with a card if nobody uses it."""
    step = Step(card=card.address, wished=wish.number, actual=card.vfs, action=Action.KEEP)
    number = wish.number
    if number is None or number == card.vfs or card.excluded:
        return replace(step, reason=card.excluded)
    if card.most == 0:
        return replace(step, action=Action.UNSUPPORTED, reason="this card cannot be split")
    if card.trouble:
        return replace(step, action=Action.BLOCKED, reason=card.trouble)
    if card.most is None:
        return replace(
            step, action=Action.BLOCKED, reason="the library does not tell whether it can be split"
        )
    if number > card.most:
        # The driver would take the present VFs away before it refuses.
        return replace(step, action=Action.FAILED, reason=f"this card can have {card.most} VFs at most")
    return replace(step, action=Action.APPLY)


def plan(wish: Wish, observed: Mapping[str, Card], proofs: Mapping[str, Proof]) -> tuple[Step, ...]:
    """What follows for each card. One as wished is never touched; one without proof of idleness neither."""
    return tuple(proven(wanted(wish, card), proofs.get(address)) for address, card in observed.items())


def proven(step: Step, proof: Proof | None) -> Step:
    """The step, unless the card's users forbid it."""
    if step.action is not Action.APPLY:
        return step
    proof = proof or Proof(doubt="not looked yet")
    if proof.idle:
        return step
    return replace(step, action=Action.BLOCKED, reason=proof.text, holders=proof.holders)


# --- the report -----------------------------------------------------------------------------------


class State(StrEnum):
    """What is said of a card or a node, the worst last."""

    SUCCESS = "success"
    PENDING = "pending"
    BLOCKED = "blocked"
    FAILED = "failed"


_STATES = {
    Action.KEEP: State.SUCCESS,
    Action.APPLY: State.PENDING,
    Action.BLOCKED: State.BLOCKED,
    Action.FAILED: State.FAILED,
}


@frozen
class Report:
    """What the administrator sees. steps: a card that is paused or being changed says so as its reason;
    problem: what is wrong with the wish itself"""

    steps: tuple[Step, ...]
    problem: str = ""

    @property
    def state(self) -> State:
        """The worst of all cards. Cards that cannot be split count only where there are no others."""
        capable = any(step.action is not Action.UNSUPPORTED for step in self.steps)
        states = [_STATES[step.action] for step in self.steps if step.action is not Action.UNSUPPORTED]
        if self.problem or (self.steps and not capable):
            states.append(State.FAILED)
        return max(states, key=list(State).index, default=State.SUCCESS)

    def detail(self) -> str:
        """JSON: what is wrong with the wish, and each card."""
        document: dict[str, object] = {"problem": self.problem} if self.problem else {}
        return json.dumps(document | {"cards": described(self.steps)}, separators=(",", ":"))


@frozen
class Outcome:
    """The report on a desired number of VFs."""

    wish: Wish = UNKNOWN
    report: Report = Report(steps=())


def document(wish: Wish, report: Report) -> dict[str, object]:
    """What `plan` prints as JSON; programs read these names: they stay, and others are only added."""
    return {
        "wish": {
            "number": KEEP if wish.number is None else wish.number,
            "origin": wish.origin,
            "problem": wish.problem,
        },
        "state": str(report.state),
        "cards": [
            {**card, "action": str(step.action)}
            for card, step in zip(described(report.steps), report.steps, strict=True)
        ],
    }


def described(steps: Iterable[Step]) -> list[dict[str, object]]:
    """Each card in words that JSON knows."""
    return [
        {
            "address": step.card,
            "wished": KEEP if step.wished is None else step.wished,
            "actual": step.actual,
            "state": str(_STATES.get(step.action, step.action)),
            "reason": step.reason,
            "holders": list(step.holders),
        }
        for step in steps
    ]
