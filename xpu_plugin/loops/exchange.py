# SPDX-License-Identifier: Apache-2.0
"""The values that pass between the Node object and the parts of the plugin."""

from dataclasses import field

from xpu_plugin.frozen import frozen
from xpu_plugin.model.events import Event
from xpu_plugin.model.readiness import STARTING, Readiness
from xpu_plugin.model.vf_plan import UNKNOWN, DesiredVfs, VfOutcome
from xpu_plugin.observable import Outbox, Value


@frozen
class Exchange:
    """Without an API server nothing reads `outcome` and `events`, and nothing writes `desired`."""

    desired: Value[DesiredVfs]
    """The number of VFs; written by the node, or once by the argument."""
    outcome: Value[VfOutcome]
    """The report on the desired number; written by the part that changes VFs."""
    events: Outbox[Event]
    """Events about the node and its pods; each part may put some."""
    readiness: Value[Readiness] = field(default_factory=lambda: Value(STARTING))
    """Whether the cards are ready for pods at this moment; for the startup taint."""
    condition: Value[Readiness] = field(default_factory=lambda: Value(STARTING))
    """The same for the Node's condition: without the moment in which the kubelet takes in another list."""
    tainted: Value[bool | None] = field(default_factory=lambda: Value(None))
    """Whether the node has the startup taint; None if unknown."""


def exchange(desired: DesiredVfs = UNKNOWN) -> Exchange:
    """Make the values. desired: the desired VF count until another one is written"""
    return Exchange(desired=Value(desired), outcome=Value(VfOutcome()), events=Outbox())
