# SPDX-License-Identifier: Apache-2.0
"""One device's answer -> Healthy or Unhealthy, with a reason.

The one rule that is right for every generation: healthy is a call that succeeded and said 201 (RUNNING).
KL2 drivers say 205 while a card resets, 207 for an error and 208 in an exception; KL1 cards say other
numbers, 205 for an error among them, so the numbers only choose the words.
"""

from dataclasses import dataclass

from xpu_plugin.xpuml import Arch, ReturnCode, State


@dataclass(frozen=True, slots=True)
class Health:
    """Healthy when `reason` is None; else a stable code for it, and a sentence."""

    reason: str | None = None
    text: str = ""

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def well(self) -> bool:
        """Healthy, or merely kept back from new pods."""
        return self.healthy or self in (WISH_PENDING, WITHDRAWN, CHANGING)

    @property
    def grantable(self) -> bool:
        """Healthy, or kept back in a way that lets through what the kubelet asked for before it knew."""
        return self.well and self != CHANGING

    def __str__(self) -> str:
        """The kubelet's word for it."""
        return "Healthy" if self.healthy else "Unhealthy"


HEALTHY = Health()
LOST = Health("lost", "not found by the last scan")
NOT_ANSWERING = Health("not-answering", "the library hung or crashed when it was asked about this device")
LIBRARY_GONE = Health("not-answering", "the library cannot be opened any more")

# Not sick, but kept back while their card's number of VFs is in question.
WISH_PENDING = Health("wish-pending", "whether its card's number of VFs is to be changed is not known yet")
WITHDRAWN = Health("withdrawn", "kept back from new pods, as its card's number of VFs is to be changed")
CHANGING = Health("changing", "its card's number of VFs is being changed")

_KL2_STATES = {
    State.UNUSED: "unused",
    State.IN_RESET: "in-reset",
    State.ERROR: "state-error",
    State.IN_EXCEPTION: "in-exception",
}


def judge(code: int, state: int | None, arch: int | None = None) -> Health:
    """What a state query's return code and raw state mean."""
    if code != ReturnCode.SUCCESS or state is None:
        known = code in ReturnCode.__members__.values()
        text = ReturnCode(code).name.lower().replace("_", " ") if known else "unknown code"
        return Health("call-failed", f"the state query failed: {text} ({code})")
    if state == State.RUNNING:
        return HEALTHY
    if arch == Arch.KL1:
        return Health("state-error", f"state {state} of a KL1 card, running is {State.RUNNING:d}")
    reason = _KL2_STATES.get(State(state), "state-error") if state in list(State) else "state-error"
    return Health(reason, f"state {state} ({reason}), running is {State.RUNNING:d}")
