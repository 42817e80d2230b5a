# SPDX-License-Identifier: Apache-2.0
"""An Event about the node or one of its pods, as `kubectl describe` shows it."""

from xpu_plugin.frozen import frozen


NORMAL, WARNING = "Normal", "Warning"
"""The kinds of Events that Kubernetes knows."""


@frozen
class PodReference:
    """A pod. uid: empty if unknown; `kubectl describe pod` searches for it"""

    namespace: str
    name: str
    uid: str = ""


@frozen
class Event:
    """An Event before it is sent."""

    kind: str
    """NORMAL or WARNING."""
    reason: str
    """One word in CamelCase, for programs."""
    text: str
    """Sentences for people."""
    pod: PodReference | None = None
    """The pod that it is about; None: the node."""
