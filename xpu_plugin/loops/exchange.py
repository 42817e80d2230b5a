# SPDX-License-Identifier: Apache-2.0
"""The values that pass between the Node object and the parts of the plugin."""

from xpu_plugin.frozen import frozen
from xpu_plugin.model.events import Event
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
    """Events about the node; each part may put some."""


def exchange(desired: DesiredVfs = UNKNOWN) -> Exchange:
    """Make the values. desired: the desired VF count until another one is written"""
    return Exchange(desired=Value(desired), outcome=Value(VfOutcome()), events=Outbox())
