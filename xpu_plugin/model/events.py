# SPDX-License-Identifier: Apache-2.0
"""An Event about the node, as `kubectl describe node` shows it."""

from xpu_plugin.frozen import frozen


NORMAL, WARNING = "Normal", "Warning"
"""The kinds of Events that Kubernetes knows."""


@frozen
class Event:
    """An Event before it is sent."""

    kind: str
    """NORMAL or WARNING."""
    reason: str
    """One word in CamelCase, for programs."""
    text: str
    """Sentences for people."""
