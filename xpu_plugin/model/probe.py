# SPDX-License-Identifier: Apache-2.0
"""A probe of a suspected device: when the administrator's program runs, and the meaning of its end.

`decide` is called after each change of its inputs, and after each action that it has returned. It has the
card withheld and proven idle twice, as before a change of VFs.
"""

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.events import NORMAL, WARNING
from xpu_plugin.model.health import PROBE_PLANNED, PROBE_STUCK, PROBING, Health
from xpu_plugin.model.reservation import Prove, Users, Wait
from xpu_plugin.model.vf_plan import Proof


PAUSE_SECONDS = (600.0, 3600.0)  # between two probes of a device: first, most
WELL, SICK = 0, 1  # exit statuses


# --- the decision ---------------------------------------------------------------------------------


@frozen
class View(Users):
    """The facts at the moment of a decision."""

    suspects: Mapping[str, str]  # device id -> its card: present devices with a driver error
    paused: Mapping[str, float] = field(default_factory=dict)  # device id -> end of its pause
    # VFs of some card are being changed, or will be: a probe may open its node, and the driver would refuse.
    changing: bool = False
    stuck: bool = False  # the last probe was killed and has not ended


@frozen(kw_only=False)
class Run:
    """Run the program for a device. From here on its card must not be granted."""

    id: str
    card: str


@frozen
class Planned:
    """The next probe. Its card is withheld."""

    probe: Run
    until: float  # end of the wait


@frozen
class Memory:
    """The state between decisions."""

    planned: Planned | None = None
    last: Run | None = None  # the last probe, until it has ended


@frozen
class Decision:
    """The next memory and action, and the cards to withhold with the reason.

    awaits_an_end: the end of a container may change the next decision
    """

    memory: Memory
    withheld: Mapping[str, Health]
    action: Wait | Prove | Run
    awaits_an_end: bool = False


def decide(memory: Memory, view: View, settle: float) -> Decision:
    """Return the next action. settle: seconds between withholding a card and the second proof"""
    if memory.last is not None and view.stuck:
        return Decision(
            memory=Memory(last=memory.last), withheld={memory.last.card: PROBE_STUCK}, action=Wait(view.look)
        )
    if memory.planned is not None and (decision := _go_on(memory.planned, view)) is not None:
        return decision
    return _begin(view, settle)


def _go_on(planned: Planned, view: View) -> Decision | None:
    """Return the decision on the planned probe; None calls it off."""
    probe = planned.probe
    if view.suspects.get(probe.id) != probe.card or view.changing:
        return None
    step = view.settled(probe.card, planned.until)
    if step is None or (isinstance(step, Proof) and step.fading):
        return None
    if isinstance(step, Proof):
        return Decision(memory=Memory(last=probe), withheld={probe.card: PROBING}, action=probe)
    return Decision(memory=Memory(planned=planned), withheld={probe.card: PROBE_PLANNED}, action=step)


def _begin(view: View, settle: float) -> Decision:
    due = [id for id in view.suspects if view.paused.get(id, view.now) <= view.now]
    if not due:
        ends = [view.paused[id] - view.now for id in view.suspects]
        return Decision(memory=Memory(), withheld={}, action=Wait(min(ends) if ends else None))
    if view.changing:
        return Decision(memory=Memory(), withheld={}, action=Wait(view.look))
    cards = dict.fromkeys(view.suspects[id] for id in due)
    if stale := tuple(card for card in cards if not view.fresh(card)):
        return Decision(memory=Memory(), withheld={}, action=Prove(stale))
    # First the one that has waited longest; so one that is probed again and again delays no other.
    free = sorted((view.paused.get(id, float("-inf")), id) for id in due if view.free(view.suspects[id]))
    if not free:
        return Decision(memory=Memory(), withheld={}, action=Wait(view.look), awaits_an_end=True)
    _, id = free[0]
    planned = Planned(probe=Run(id, view.suspects[id]), until=view.now + settle)
    return Decision(
        memory=Memory(planned=planned),
        withheld={planned.probe.card: PROBE_PLANNED},
        action=Wait(settle),
    )


# --- the end --------------------------------------------------------------------------------------


class ProbeResult(StrEnum):
    """The results of a probe. Only the first two are answers."""

    PASSED = "passed"
    SICK = "sick"
    FAILED = "failed"
    KILLED = "killed"
    LATE = "late"
    NOT_STARTED = "not-started"
    STUCK = "stuck"


EVENTS = {
    ProbeResult.PASSED: (NORMAL, "XPUProbePassed"),
    ProbeResult.SICK: (WARNING, "XPUProbeSick"),
}
NO_ANSWER = (WARNING, "XPUProbeFailed")
"""Kind and reason of the Event for any other result."""


def result_of(status: int) -> ProbeResult:
    """Return the result by an exit status; negative: a signal that ended the program."""
    if status < 0:
        return ProbeResult.KILLED
    return {WELL: ProbeResult.PASSED, SICK: ProbeResult.SICK}.get(status, ProbeResult.FAILED)
