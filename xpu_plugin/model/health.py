# SPDX-License-Identifier: Apache-2.0
"""A device's answers over time -> Healthy or Unhealthy, with a reason.

One rule is right for every generation: a device is healthy if the call succeeds and returns 201 (RUNNING).
KL2 drivers return 205 while a card resets, 207 for an error and 208 in an exception. KL1 cards return other
numbers: 205 for an error, 103 and 104 around a reset. So other numbers only choose the text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xpu_plugin.frozen import frozen
from xpu_plugin.xpuml import Arch, ReturnCode, State


@frozen(kw_only=False)
class Health:
    """The health of a device: healthy, or unhealthy for a reason."""

    reason: str | None = None  # a stable code; None if healthy
    text: str = ""  # a sentence about the reason
    of_card: bool = False  # it applies to the whole card, also if the card has two devices
    closed: bool = False  # besides, a probe has it: no container starts with it

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def well(self) -> bool:
        """Healthy, or only withheld from new pods."""
        return self.healthy or self.reason in KEPT_BACK or self.held

    @property
    def held(self) -> bool:
        """Withheld, as a container holds it and the kubelet does not count that, or counts no other one."""
        return self.reason in (FORGOTTEN_HOLDER, HELD_OTHERWISE, EXCLUDED.reason)

    @property
    def in_change(self) -> bool:
        """Withheld, as the driver changes its card's VFs, or may do so, or a probe has the card."""
        return self.closed or self.reason in _IN_CHANGE

    @property
    def lost(self) -> bool:
        """The device is not there."""
        return self.reason == LOST.reason

    @property
    def grantable(self) -> bool:
        """Healthy, or withheld in a way that still allows a grant which the kubelet began before it knew."""
        return self.well and not self.in_change and not self.held

    def __str__(self) -> str:
        """The kubelet's word for it."""
        return "Healthy" if self.healthy else "Unhealthy"


HEALTHY = Health()
IN_RESET = "in-reset"
CALL_FAILED = "call-failed"

LOST = Health("lost", "not found by the last scan, nor shown by sysfs")
NOT_SEEN = Health(LOST.reason, "a container holds it, and no scan has found it since the plugin's start")
SPLIT_OTHERWISE = Health(
    LOST.reason,
    "its card is split otherwise now, and a container still holds it as it was; end that container",
)
NODE_MISSING = Health("node-missing", "its PCI function is present, but no /dev/xpuN of it can be opened")
NOT_ANSWERING = Health("not-answering", "the library hung or crashed during a call for this device")
LIBRARY_GONE = Health("not-answering", "the library cannot be opened any more")
UNHEARD = Health(
    "not-answering",
    "no round has returned its state for longer than --health-grace and than two rounds take: the library is "
    "slow, or fails at other devices",
)
UNWATCHED = Health(
    "not-answering",
    "its state is not read for longer than --health-grace: the worker ended while the driver changes "
    "another card, and a new worker would make the driver refuse that change",
)
RECOVERING = Health("recovering", "it answers again; it is offered after a while of good answers")

_ABSENT = (LOST.reason, NODE_MISSING.reason)
_NOT_ITS_OWN = (LIBRARY_GONE, UNHEARD, UNWATCHED)  # failures of the library, not of the device

# Healthy, but withheld while the number of VFs of their card is in question.
VF_UNDECIDED = Health(
    "vf-undecided", "the plugin does not know yet whether to change its card's number of VFs"
)
VF_CHANGE_PLANNED = Health(
    "vf-change-planned", "withheld from new pods, as its card's number of VFs will be changed"
)
CHANGING = Health("changing", "its card's number of VFs is being changed")

# The same: the driver may carry out a former process's request late.
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

# The same, for a probe of a device of their card. The last one is a fault of its own.
PROBE_PLANNED = Health("probe-planned", "withheld from new pods, as a device of its card will be probed")
PROBING = Health("probing", "a probe of --probe has its card")
PROBE_STUCK = Health(
    "probe-stuck", "a probe of its card was killed and does not end: the driver holds it; reboot the node"
)

KEPT_BACK = (
    VF_UNDECIDED.reason,
    VF_CHANGE_PLANNED.reason,
    CHANGING.reason,
    CHANGE_UNKNOWN,
    PROBE_PLANNED.reason,
    PROBING.reason,
)
_IN_CHANGE = (CHANGING.reason, CHANGE_UNKNOWN, PROBING.reason, PROBE_STUCK.reason)

# Healthy, but held by a container that the kubelet does not count.
FORGOTTEN_HOLDER = "forgotten-holder"
HELD_OTHERWISE = "held-otherwise"

# Healthy, and listed for its holder only.
EXCLUDED = Health("excluded", "--allow or --deny excludes it, and a container still holds it")

DRIVER_ERROR = "driver-error"

_KL1_LOW_POWER = 202
_KL1_RESETS = (103, 104)  # before and after
_KL1_CARD = (100, 102, *_KL1_RESETS)  # states of the card; other states are of one of its chips
_KL2_STATES = {
    State.UNUSED: "unused",
    State.IN_RESET: IN_RESET,
    State.ERROR: "state-error",
    State.IN_EXCEPTION: "in-exception",
}


def card_held(ids: Iterable[str]) -> Health:
    """The health of a device if containers hold its card under `ids` of an earlier split."""
    return Health("card-held", f"a container still holds its card as {', '.join(ids)}, by an earlier split")


def forgotten_holder(holder: str | None) -> Health:
    """The health of a device after the kubelet has lost its grant. holder: the container, if known"""
    return Health(
        FORGOTTEN_HOLDER,
        f"{holder or 'a container'} was granted it, and the kubelet has lost its record of that; delete that "
        "pod, and the device is offered again",
    )


def held_otherwise(holder: str, id: str, resource: str) -> Health:
    """The health of a device that a container holds by another plugin's grant."""
    return Health(
        HELD_OTHERWISE,
        f"{holder} holds it as {id} of {resource}, which another plugin has granted; remove that plugin and "
        "delete that pod",
    )


def driver_error(line: str, why: str) -> Health:
    """The health of a device that is sick by the kernel's log. why: a phrase about the rule that it met"""
    return Health(
        DRIVER_ERROR,
        f"the kernel's log has {line!r}, {why}; offered again after a passed probe, a reset, a reboot, or: "
        "xpu-device-plugin clear",
    )


def with_probe(health: Health, probe: Health) -> Health:
    """Return the health of a device while its card is withheld for a probe, which has a reason of its own.
    An unhealthy device keeps its reason, unless the probe is stuck."""
    if health.healthy:
        return probe
    if not probe.in_change:
        return health
    reason = PROBE_STUCK.reason if probe == PROBE_STUCK else health.reason
    return replace(health, reason=reason, text=f"{probe.text}; {health.text}", closed=True)


def judge(code: int, state: int | None, arch: int | None = None, *, held: bool = True) -> Health:
    """Return the health by a state query's return code and raw state. held: a container may have the device

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
    """Return the answers, with the answer of one half about its whole card applied to the other half.

    A half with a failure of its own keeps it.
    halves: half -> card, also of halves without an answer
    """
    said = {halves[id]: answer for id, answer in answers.items() if id in halves and answer.of_card}
    if not said:
        return dict(answers)
    silent = {
        id: replace(said[card], text=f"reported by its card's other half: {said[card].text}")
        for id, card in halves.items()
        if card in said and answers.get(id, HEALTHY).reason in (None, CALL_FAILED)
    }
    return {**answers, **silent}


@frozen
class Rules:
    """The rules by which answers become a verdict."""

    failures: int = 2  # consecutive failed calls until unhealthy; an error state counts at once
    recovery: float = 10.0  # seconds of only good answers until healthy again
    # More changes of the verdict than `flaps` within `window` seconds are a reason for quarantine. It ends
    # after `window` seconds without a change.
    flaps: int = 5
    window: float = 600.0


@frozen
class History:
    """The relevant answers of one device so far. Times are of one monotonic clock."""

    verdict: Health  # without regard to a quarantine
    good_since: float | None  # begin of the present good answers; None after a bad one
    changed_at: float  # last change between good and bad answers
    failures: int = 0  # consecutive failed calls
    turns: tuple[float, ...] = ()  # times of changes of the verdict between healthy and unhealthy
    blameless: bool = False  # the failure is that of the whole library, so no change of the device
    quarantine: str | None = None  # the reason of the last failure while in quarantine; else None

    @property
    def settled(self) -> bool:
        """Return whether another good answer changes nothing."""
        return self.verdict.healthy and self.good_since is not None and self.quarantine is None

    @property
    def health(self) -> Health:
        return self.verdict if self.quarantine is None else quarantined(self.quarantine)


def begin(answer: Health, now: float, *, quarantine: str | None = None) -> History:
    """Begin the history of an unknown device: its first answer counts at once."""
    good_since = now if answer.healthy else None
    return History(verdict=answer, good_since=good_since, changed_at=now, quarantine=quarantine)


def heard(history: History, answer: Health, now: float, rules: Rules) -> History:
    """Take in one more answer, or its replacement: LOST, NODE_MISSING, NOT_ANSWERING, LIBRARY_GONE, UNHEARD,
    UNWATCHED."""
    good = answer.healthy
    if good and history.settled:
        return history  # by far the most frequent case
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
    # Answers may be rare: the answer that ends a failure may also end the quarantine.
    return _freed(replace(history, turns=turns[-rules.flaps - 1 :], quarantine=quarantine), now, rules)


def quarantined(reason: str) -> Health:
    """The health of a device in quarantine. reason: of its last failure"""
    return Health(
        "quarantined",
        f"it became healthy and unhealthy too often, at last by {reason}; offered again after "
        "--health-flap-window without a change, or by: xpu-device-plugin clear",
    )


def missed(history: History) -> History:
    """Take in a missing answer: the verdict stays, and a recovery starts again."""
    return history if history.verdict.healthy else replace(history, good_since=None)


def cleared(history: History) -> History:
    """Lift the quarantine and forget its causes."""
    return replace(history, turns=(), quarantine=None)


def inherited(history: History, quarantine: str | None) -> History:
    """Take over another instance's quarantine; None lifts ours."""
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
    """End a quarantine after a whole window without a change."""
    if history.quarantine is None or now - history.changed_at < rules.window:
        return history
    return cleared(history)
