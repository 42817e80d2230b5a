# SPDX-License-Identifier: Apache-2.0
"""Virtual functions: the desired VF count, the cards as they are, and the resulting plan. Pure functions."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model import boards
from xpu_plugin.model.devices import Device, DeviceKind, matches
from xpu_plugin.model.health import PROBING
from xpu_plugin.model.inventory import Facts, Policy


KEEP = "keep"
MOST_VFS = 63
LONGEST_LABEL = 63  # characters of a label's value, by Kubernetes
ACCEPTED = f"a whole number from 0 to {MOST_VFS}, or {KEEP}"

LABEL = "baidu.com/sriov-num-vfs"
STATE_LABEL = f"{LABEL}.state"
DETAIL_ANNOTATION = f"{LABEL}.detail"


# --- the desired VF count -------------------------------------------------------------------------


@frozen
class DesiredVfs:
    """The number of VFs that each card shall have."""

    number: int | None = None  # None keeps every card as it is
    origin: str | None = None  # the source of the number; None until it is known
    problem: str = ""  # why the label does not count, or why a label is missing
    instead: str = "the last valid desired VF count stays"  # the consequence of `problem`


UNKNOWN = DesiredVfs()
_LABELLED, ARGUMENT = f"label {LABEL}", "argument --sriov-num-vfs"


def parse(text: str) -> int | None:
    """Parse a number of VFs; None means `keep`. Raises ValueError."""
    if text == KEEP:
        return None
    if re.fullmatch(r"0|[1-9][0-9]?", text) and int(text) <= MOST_VFS:
        return int(text)
    raise ValueError(f"{text[:LONGEST_LABEL]!r} is not accepted; accepted: {ACCEPTED}")


def by_argument(number: int | None) -> DesiredVfs:
    return DesiredVfs(number=number, origin=ARGUMENT)


def by_label(before: DesiredVfs, label: str | None, argument: int | None) -> DesiredVfs:
    """Return the desired VF count for a node with this label, or without one (None).

    A bad label keeps the number of before; that is `keep` if there was none.
    """
    if label is None:
        return by_argument(argument)
    try:
        return DesiredVfs(number=parse(label), origin=_LABELLED)
    except ValueError as error:
        return replace(before, origin=before.origin or _LABELLED, problem=f"{_LABELLED}: {error}")


# --- cards ----------------------------------------------------------------------------------------


@frozen
class Card:
    """One board as it is now."""

    address: str
    vfs: int
    complete: bool  # all its VFs are in sight, each with its node
    index: int | None  # the library's rank of its PF; None if the PF is not in sight
    # The numbers of VFs that it accepts besides 0; empty if it cannot be split, None if unknown.
    vf_counts: tuple[int, ...] | None
    excluded: str = ""  # why --allow or --deny excludes it
    trouble: str = ""  # why it must not be changed now
    beyond: str = ""  # why the host has no room for its VFs
    devices: tuple[Device, ...]

    @property
    def splits(self) -> bool:
        """Return whether it surely can be split."""
        return bool(self.vf_counts)


def cards(facts: Facts, policy: Policy) -> dict[str, Card]:
    """Return the cards of the last scan, by address."""
    grouped: dict[str, list[Device]] = {}
    for device in facts.devices.values():
        grouped.setdefault(device.card, []).append(device)
    return {address: _card(address, grouped[address], facts, policy) for address in sorted(grouped)}


def _card(address: str, devices: list[Device], facts: Facts, policy: Policy) -> Card:
    own = [device for device in devices if device.kind is not DeviceKind.VF]
    in_sight = len(devices) - len(own)
    splits = [int(device.split[2:]) for device in devices if device.split.startswith("of")]
    number = max(splits, default=0)
    return Card(
        address=address,
        vfs=number,
        complete=in_sight == number,
        index=own[0].index if own else None,
        vf_counts=own[0].vf_counts if own else None,
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
    # A program may open the nodes of all cards, and the driver refuses a change while a node is open.
    for card, probe in facts.probed.items():
        if card == devices[0].card or probe == PROBING:
            return f"{card}: {probe.text}"
    for device in own:  # the driver is asked nothing about a card that may hang
        if (error := facts.driver_errors.get(device.card)) is not None:
            return f"{device.id} is unhealthy: {error.text}"
    return ""


# --- handles --------------------------------------------------------------------------------------

BUDGET = "handle-budget"


def within_handles(
    observed: Mapping[str, Card],
    desired: DesiredVfs,
    facts: Facts,
    policy: Policy,
    *,
    claims: Mapping[str, int] | None = None,
) -> dict[str, Card]:
    """Return the cards, with a reason for each one of which the desired VFs need too many nodes /dev/xpuN.

    Cards in PCI order get nodes until the limit is reached; no later card gets any then. A card in trouble
    keeps its share. All present nodes count, also those of cards that stay as they are.

    claims: card -> its VFs that a change of ours has taken: it keeps nodes for them, as far as it needs these
    """
    limit = policy.handles
    if limit is None:
        limit = boards.handle_limit(device.board for device in facts.devices.values())
    number = desired.number
    if not limit or number is None:
        return dict(observed)
    changed = [card for card in observed.values() if _changes(card, number)]
    claimed = {
        card.address: max(min((claims or {}).get(card.address, 0), number), _in_sight(card))
        for card in changed
    }
    present = len(facts.devices) + facts.unnamed + sum(claimed.values()) - sum(map(_in_sight, changed))
    more = {address: number - own for address, own in claimed.items()}
    least = present + sum(grown for grown in more.values() if grown < 0)  # after all cards have shrunk
    bounded, spent = dict(observed), False
    for address, grown in more.items():
        if grown <= 0:
            continue
        spent = spent or least + grown > limit
        if spent:
            reason = (
                f"{BUDGET}: with {number} VFs of this card the host would have {least + grown} nodes "
                f"/dev/xpuN, PFs included; accepted: {limit} (--vf-handle-limit)"
            )
            bounded[address] = replace(observed[address], beyond=reason)
            continue
        least, present = least + grown, present + grown
        if present > limit:
            reason = (
                f"{BUDGET}: waits until another card has fewer VFs; the host would have {present} nodes "
                f"/dev/xpuN, PFs included; accepted: {limit} (--vf-handle-limit)"
            )
            bounded[address] = replace(observed[address], trouble=observed[address].trouble or reason)
    return bounded


def _in_sight(card: Card) -> int:
    return sum(device.kind is DeviceKind.VF for device in card.devices)


def _changes(card: Card, number: int) -> bool:
    return not card.excluded and card.vfs != number and card.vf_counts != () and _accepts(card, number)


# --- the plan -------------------------------------------------------------------------------------


class VfAction(StrEnum):
    """The next action for a card."""

    KEEP = "keep"
    APPLY = "apply"
    BLOCKED = "blocked"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"


@frozen
class Proof:
    """The result of a check for users of a card. A card is idle only without holders and without doubt."""

    at: float = 0.0  # begin of the check, in seconds of the caller's clock
    done: float = 0.0  # its end
    holders: tuple[str, ...] = ()
    doubt: str = ""
    # Containers that only the kubelet's checkpoint names, and of which the pods are gone. The kubelet forgets
    # them when it writes its next checkpoint; until then the card is not changed.
    fading: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        return not self.holders and not self.doubt

    @property
    def text(self) -> str:
        """The reason why the card is not idle."""
        if self.holders:
            return f"held by {', '.join(self.holders)}"
        return f"cannot prove idle: {self.doubt}"


@frozen
class CardPlan:
    """The plan for one card."""

    card: str
    desired: int | None  # None means `keep`
    actual: int
    action: VfAction
    reason: str = ""  # a sentence, or empty
    holders: tuple[str, ...] = ()


def step_if_idle(desired: DesiredVfs, card: Card) -> CardPlan:
    """Return the step for a card, on the condition that it has no users."""
    step = CardPlan(card=card.address, desired=desired.number, actual=card.vfs, action=VfAction.KEEP)
    number = desired.number
    if number is None or number == card.vfs or card.excluded:
        return replace(step, reason=card.excluded)
    if card.vf_counts == ():
        return replace(step, action=VfAction.UNSUPPORTED, reason="this card cannot be split")
    if card.beyond:
        return replace(step, action=VfAction.FAILED, reason=card.beyond)
    if card.trouble:
        return replace(step, action=VfAction.BLOCKED, reason=card.trouble)
    if card.vf_counts is None:
        return replace(
            step, action=VfAction.BLOCKED, reason="the library does not report whether it can be split"
        )
    if not _accepts(card, number):
        # Asked for a wrong number, the driver removes the present VFs before it refuses.
        reason = f"this card accepts {_listed(card.vf_counts)} VFs, not {number}"
        return replace(step, action=VfAction.FAILED, reason=reason)
    return replace(step, action=VfAction.APPLY)


def _accepts(card: Card, number: int) -> bool:
    return number == 0 or card.vf_counts is None or number in card.vf_counts


def _listed(counts: tuple[int, ...]) -> str:
    """Return accepted numbers as a text: `0 to 3`, or `0, 2 or 4`."""
    if counts == tuple(range(1, len(counts) + 1)):
        return f"0 to {len(counts)}"
    return f"{', '.join(map(str, (0, *counts[:-1])))} or {counts[-1]}"


def plan(
    desired: DesiredVfs, observed: Mapping[str, Card], proofs: Mapping[str, Proof]
) -> tuple[CardPlan, ...]:
    """Plan a step for each card. A card that has the desired VF count, or may have users, is not changed."""
    return tuple(
        proven(step_if_idle(desired, card), proofs.get(address)) for address, card in observed.items()
    )


def proven(step: CardPlan, proof: Proof | None) -> CardPlan:
    """Return the step, or a blocked one if the card has users or the proof is missing."""
    if step.action is not VfAction.APPLY:
        return step
    proof = proof or Proof(doubt="not checked yet")
    if proof.idle:
        return step
    return replace(step, action=VfAction.BLOCKED, reason=proof.text, holders=proof.holders)


# --- the report -----------------------------------------------------------------------------------


class VfState(StrEnum):
    """The state of a card or a node, the worst last."""

    SUCCESS = "success"
    PENDING = "pending"
    BLOCKED = "blocked"
    FAILED = "failed"


_STATES = {
    VfAction.KEEP: VfState.SUCCESS,
    VfAction.APPLY: VfState.PENDING,
    VfAction.BLOCKED: VfState.BLOCKED,
    VfAction.FAILED: VfState.FAILED,
}


@frozen
class Report:
    """The state of all cards for the administrator. The reason of a step also names a pause or a change."""

    steps: tuple[CardPlan, ...]
    problem: str = ""  # of the label itself

    @property
    def state(self) -> VfState:
        """The worst state of all cards. Cards that cannot be split count only if all cards are such."""
        capable = any(step.action is not VfAction.UNSUPPORTED for step in self.steps)
        states = [_STATES[step.action] for step in self.steps if step.action is not VfAction.UNSUPPORTED]
        if self.problem or (self.steps and not capable):
            states.append(VfState.FAILED)
        return max(states, key=list(VfState).index, default=VfState.SUCCESS)

    def detail(self) -> str:
        """Return the problem of the label and each card as JSON."""
        document: dict[str, object] = {"problem": self.problem} if self.problem else {}
        return json.dumps(document | {"cards": described(self.steps)}, separators=(",", ":"))


@frozen
class VfOutcome:
    """The report on a desired number of VFs."""

    desired: DesiredVfs = UNKNOWN
    report: Report = Report(steps=())


def document(desired: DesiredVfs, report: Report, witnesses: Mapping[str, str]) -> dict[str, object]:
    """Return the JSON of `plan`. Its names are an interface: none is renamed or removed.

    witnesses: sources of the kubelet, and whether each has answered
    """
    return {
        "desired": {
            "number": KEEP if desired.number is None else desired.number,
            "origin": desired.origin,
            "problem": desired.problem,
        },
        "state": str(report.state),
        "cards": [
            {**card, "action": str(step.action)}
            for card, step in zip(described(report.steps), report.steps, strict=True)
        ],
        "witnesses": dict(witnesses),
    }


def described(steps: Iterable[CardPlan]) -> list[dict[str, object]]:
    """Describe each card with JSON values."""
    return [
        {
            "address": step.card,
            "desired": KEEP if step.desired is None else step.desired,
            "actual": step.actual,
            "state": str(_STATES.get(step.action, step.action)),
            "reason": step.reason,
            "holders": list(step.holders),
        }
        for step in steps
    ]
