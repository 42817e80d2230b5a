# SPDX-License-Identifier: Apache-2.0
"""Events as a test sees them."""

from xpu_plugin.model.events import Event
from xpu_plugin.observable import Outbox


class _Into(Outbox[Event]):
    def __init__(self, events: list[Event]) -> None:
        super().__init__()
        self._put = events

    def put(self, event: Event) -> None:
        self._put.append(event)


def outbox_into(events: list[Event]) -> Outbox[Event]:
    """An outbox that keeps all events in a list, in their order."""
    return _Into(events)
