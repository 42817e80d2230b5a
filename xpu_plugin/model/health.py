# SPDX-License-Identifier: Apache-2.0
"""A device's answers over time -> Healthy or Unhealthy, with a reason.

The one rule that is right for every generation: healthy is a call that succeeded and said 201 (RUNNING).
KL2 drivers say 205 while a card resets, 207 for an error and 208 in an exception; KL1 cards say other
numbers, 205 for an error and 103 and 104 around a reset, so the numbers only choose the words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xpu_plugin.frozen import frozen
from xpu_plugin.xpuml import Arch, ReturnCode, State


@frozen(kw_only=False)
class Health:
    """Healthy when `reason` is None; else a stable code for it, and a sentence.

    of_card: what is said is said of the whole card, also where there are two devices of it
    """

    reason: str | None = None
    text: str = ""
    of_card: bool = False

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def well(self) -> bool:
        """Healthy, or merely kept back from new pods."""
        return self.healthy or self.reason in KEPT_BACK or self.held

    @property
    def held(self) -> bool:
        """Kept back as a container holds it that the kubelet does not count."""
        return self.reason in (FORGOTTEN_HOLDER, HELD_OTHERWISE)

    @property
    def in_change(self) -> bool:
        """Kept back as the driver changes its card's VFs, or may do so."""
        return self.reason in (CHANGING.reason, CHANGE_UNKNOWN)

    @property
    def grantable(self) -> bool:
        """Healthy, or kept back in a way that lets through what the kubelet asked for before it knew."""
        return self.well and not self.in_change and not self.held

    def __str__(self) -> str:
        """The kubelet's word for it."""
        return "Healthy" if self.healthy else "Unhealthy"


HEALTHY = Health()
IN_RESET = "in-reset"
CALL_FAILED = "call-failed"

LOST = Health("lost", "not found by the last scan, nor shown by sysfs")
NODE_MISSING = Health("node-missing", "its PCI function is there, and no /dev/xpuN of it that can be opened")
NOT_ANSWERING = Health("not-answering", "the library hung or crashed when it was asked about this device")
LIBRARY_GONE = Health("not-answering", "the library cannot be opened any more")
UNHEARD = Health(
    "not-answering",
    "no round has told its state for longer than --health-grace and than two rounds take: the library is "
    "slow, or fails at other devices",
)
UNWATCHED = Health(
    "not-answering",
    "its state is not asked for longer than --health-grace: the worker ended while the driver changes "
    "another card, and a new one would make the driver refuse that",
)
RECOVERING = Health("recovering", "it is back, and has to answer well for a while before it is offered")

_ABSENT = (LOST.reason, NODE_MISSING.reason)
_NOT_ITS_OWN = (LIBRARY_GONE, UNHEARD, UNWATCHED)  # the library's illness, and no change of the device

# Not sick, but kept back while their card's number of VFs is in question.
VF_UNDECIDED = Health("vf-undecided", "whether its card's number of VFs is to be changed is not known yet")
VF_CHANGE_PLANNED = Health(
    "vf-change-planned", "kept back from new pods, as its card's number of VFs is to be changed"
)
CHANGING = Health("changing", "its card's number of VFs is being changed")

# The same: the driver may carry out late what a former process has asked for.
CHANGE_UNKNOWN = "change-unknown"
ASKED_BEFORE = Health(
    CHANGE_UNKNOWN,
    "a former process of this plugin has asked the driver to change its card's VFs, and no scan has shown "
    "the result yet",
)
RECORD_UNREAD = Health(
    CHANGE_UNKNOWN,
    "whether a former process of this plugin has asked the driver to change its card's VFs is not known: "
    "vf-change.json in --state-dir cannot be read",
)
KEPT_BACK = (VF_UNDECIDED.reason, VF_CHANGE_PLANNED.reason, CHANGING.reason, CHANGE_UNKNOWN)

# Not sick, but held by a container that the kubelet does not count.
FORGOTTEN_HOLDER = "forgotten-holder"
HELD_OTHERWISE = "held-otherwise"

_KL1_LOW_POWER = 202
_KL1_RESETS = (103, 104)  # before and after
_KL1_CARD = (100, 102, *_KL1_RESETS)  # states of the card; the others are those of one of its chips
_KL2_STATES = {
    State.UNUSED: "unused",
    State.IN_RESET: IN_RESET,
    State.ERROR: "state-error",
    State.IN_EXCEPTION: "in-exception",
}


def card_held(ids: Iterable[str]) -> Health:
    """What a device says whose card containers hold under `ids`, as it was split before."""
    return Health("card-held", f"a container still holds its card as {', '.join(ids)}, which it was before")


def forgotten_holder(holder: str | None) -> Health:
    """A device of which the kubelet has lost the record; `holder`: the container, as far as it is known."""
    return Health(
        FORGOTTEN_HOLDER,
        f"{holder or 'a container'} was granted it, and the kubelet has lost its record of that; delete that "
        "pod, and the device is offered again",
    )


def held_otherwise(holder: str, id: str, resource: str) -> Health:
    """A device that a container holds in a way that the kubelet does not count for the device as offered."""
    return Health(
        HELD_OTHERWISE,
        f"{holder} holds it as {id} of {resource}, which another plugin has granted; remove that plugin and "
        "delete that pod",
    )


def judge(code: int, state: int | None, arch: int | None = None, *, held: bool = True) -> Health:
    """What a state query's return code and raw state mean. held: whether a container may have the device

    A KL1 chip without a user goes to low power by itself, and wakes up when it is used.
    """
    if code != ReturnCode.SUCCESS or state is None:
        known = code in ReturnCode.__members__.values()
        text = ReturnCode(code).name.lower().replace("_", " ") if known else "unknown code"
        return Health(CALL_FAILED, f"the state query failed: {text} ({code})")
    if state == State.RUNNING or (arch == Arch.KL1 and state == _KL1_LOW_POWER and not held):
        return HEALTHY
    if arch == Arch.KL1:
        reason = IN_RESET if state in _KL1_RESETS else "state-error"
        text = f"state {state} of a KL1 card, running is {State.RUNNING:d}"
        return Health(reason, text, of_card=state in _KL1_CARD)
    reason = _KL2_STATES.get(State(state), "state-error") if state in list(State) else "state-error"
    text = f"state {state} ({reason}), running is {State.RUNNING:d}"
    return Health(reason, text, of_card=reason == IN_RESET)


def shared(answers: Mapping[str, Health], halves: Mapping[str, str]) -> dict[str, Health]:
    """Answers by device, with what one half of a card says of the whole card said of the other one, too,
    unless that has an illness of its own to tell of.

    halves: half -> card, also of halves without an answer
    """
    said = {halves[id]: answer for id, answer in answers.items() if id in halves and answer.of_card}
    if not said:
        return dict(answers)
    silent = {
        id: replace(said[card], text=f"its card's other half says: {said[card].text}")
        for id, card in halves.items()
        if card in said and answers.get(id, HEALTHY).reason in (None, CALL_FAILED)
    }
    return {**answers, **silent}


@frozen
class Rules:
    """When what is heard becomes a verdict.

    failures: failed calls in a row that make a healthy device unhealthy; an error state does so at once
    recovery: seconds of nothing but good answers that make it healthy again
    flaps, window: more changes of the verdict than that in so many seconds quarantine it, until it has
        answered alike for that long
    """

    failures: int = 2
    recovery: float = 10.0
    flaps: int = 5
    window: float = 600.0


@frozen
class History:
    """What has been heard of one device, as far as it still matters. Times are of one monotonic clock.

    verdict: what stands, but for a quarantine; good_since: when its good answers began, None after a bad one
    failures: failed calls in a row; changed_at: when good answers last became bad ones, or the reverse
    turns: when the verdict became healthy or unhealthy
    blameless: its illness is that of the whole library, which is no change of its own
    quarantine: the reason of its last illness, while it is kept from new pods whatever it answers; else None
    """

    verdict: Health
    good_since: float | None
    changed_at: float
    failures: int = 0
    turns: tuple[float, ...] = ()
    blameless: bool = False
    quarantine: str | None = None

    @property
    def settled(self) -> bool:
        """Healthy for good: another good answer changes nothing."""
        return self.verdict.healthy and self.good_since is not None and self.quarantine is None

    @property
    def health(self) -> Health:
        return self.verdict if self.quarantine is None else quarantined(self.quarantine)


def begin(answer: Health, now: float, *, quarantine: str | None = None) -> History:
    """The history of a device that was not known: its first answer counts at once."""
    good_since = now if answer.healthy else None
    return History(verdict=answer, good_since=good_since, changed_at=now, quarantine=quarantine)


def heard(history: History, answer: Health, now: float, rules: Rules) -> History:
    """Take in one more answer, or what stands for one: LOST, NODE_MISSING, NOT_ANSWERING, LIBRARY_GONE,
    UNHEARD, UNWATCHED."""
    good = answer.healthy
    if good and history.settled:
        return history  # as nearly always
    if good is not (history.good_since is not None):
        history = replace(history, changed_at=now, good_since=now if good else None)
    history = replace(history, failures=history.failures + 1 if answer.reason == CALL_FAILED else 0)
    before, verdict = history, _verdict(history, answer, now, rules)
    blameless = verdict in _NOT_ITS_OWN or (verdict == RECOVERING and history.blameless)
    history = replace(history, verdict=verdict, blameless=blameless)
    if verdict.healthy is before.verdict.healthy:
        return _freed(history, now, rules)
    if blameless or before.blameless:
        return history
    turns = (*(turn for turn in history.turns if now - turn < rules.window), now)
    quarantine = history.quarantine
    if quarantine is None and len(turns) > rules.flaps:
        quarantine = verdict.reason or before.verdict.reason
    # Answers may come seldom: the one that ends an illness may be the one that ends the quarantine.
    return _freed(replace(history, turns=turns[-rules.flaps - 1 :], quarantine=quarantine), now, rules)


def quarantined(reason: str) -> Health:
    """What a device in quarantine says of itself; `reason`: of its last illness."""
    return Health(
        "quarantined",
        f"it became healthy and unhealthy too often, at last by {reason}; offered again after "
        "--health-flap-window without a change, or by: xpu-device-plugin clear",
    )


def missed(history: History) -> History:
    """It could not be asked, which is neither good nor bad: what stands stays, a recovery begins anew."""
    return history if history.verdict.healthy else replace(history, good_since=None)


def cleared(history: History) -> History:
    """Lift the quarantine and forget what led to it."""
    return replace(history, turns=(), quarantine=None)


def inherited(history: History, quarantine: str | None) -> History:
    """Somebody else says whether it is in quarantine, and for what last illness."""
    if quarantine is not None:
        return replace(history, quarantine=quarantine)
    return history if history.quarantine is None else cleared(history)


def _verdict(history: History, answer: Health, now: float, rules: Rules) -> Health:
    last = history.verdict
    if history.good_since is None:
        excused = answer.reason == CALL_FAILED and last.healthy and history.failures < rules.failures
        return last if excused else answer
    if last.healthy or now - history.good_since >= rules.recovery:
        return HEALTHY
    return RECOVERING if last.reason in _ABSENT or last in _NOT_ITS_OWN else last


def _freed(history: History, now: float, rules: Rules) -> History:
    """Quiet for the whole window ends a quarantine."""
    if history.quarantine is None or now - history.changed_at < rules.window:
        return history
    return cleared(history)
