# SPDX-License-Identifier: Apache-2.0
"""The node in the API server: its label is the wish, and what became of it is written there.

An API server that cannot be reached changes nothing: not before it has answered once, when the wish is
`keep`, and not later.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.model.change import News, Reason
from xpu_plugin.model.labels import node_labels
from xpu_plugin.model.vf import (
    DETAIL_ANNOTATION,
    STATE_LABEL,
    UNKNOWN,
    Report,
    Wish,
    by_argument,
    by_label,
)


if TYPE_CHECKING:
    from xpu_plugin.edges.nodeapi import NodeApi

logger = logging.getLogger(__name__)

EVENTS_MOST = 64  # that wait for the edge


class Node:
    """Turns the label into a wish, and reports into a label, an annotation and Events.

    argument: the number of VFs that counts without a label, or when the API server refuses to show it from
    the start on; connect: makes the API server's edge from two callbacks, for a label's value and for a
    refusal, that may be called on any thread. It is called by `run`; what is to be written until then waits.
    """

    def __init__(
        self,
        *,
        argument: int | None,
        connect: Callable[[Callable[[str | None], None], Callable[[str], None]], "NodeApi"],
    ) -> None:
        self._argument = argument
        self._wished: Callable[[Wish], None] = _to_nobody
        self._wish = UNKNOWN
        self._last: tuple[str, str] | None = None
        self._labels: dict[str, str | None] = {}
        self._annotations: dict[str, str | None] = {}
        self._events: deque[tuple[str, str, str]] = deque(maxlen=EVENTS_MOST)  # that wait
        self._connect = connect
        self.api: NodeApi | None = None  # until `run`

    async def run(self, wished: Callable[[Wish], None]) -> None:
        """Tell `wished` of each wish. Never returns; cancelled, it does not wait for it."""
        loop = asyncio.get_running_loop()
        self._wished = wished
        self.api = api = self._connect(partial(_hop, loop, self._label), partial(_hop, loop, self._denied))
        if self._labels:
            self._publish()
        while self._events:
            self.event(*self._events.popleft())
        api.start()
        try:
            await asyncio.Event().wait()
        finally:
            api.stop()

    def tell(self, report: Report, news: Collection[News]) -> None:
        """Write down what became of the wish; nothing before there is one."""
        if self._wish.origin is not None:
            written = (str(report.state), report.detail())
            if written != self._last:
                self._last = written
                self._labels[STATE_LABEL], self._annotations[DETAIL_ANNOTATION] = written
                self._publish()
        for one in news:
            kind = "Normal" if one.reason is Reason.APPLIED else "Warning"
            self.event(kind, str(one.reason), one.text)

    async def describe(self, picture: Picture, driver_version: Callable[[], str]) -> None:
        """Keep the node labelled with what it has. Never returns."""
        generation = NEVER
        while True:
            generation = (await picture.beyond(generation)).generation
            facts = picture.facts
            labels = node_labels({**facts.lost, **facts.devices}.values(), driver_version())
            if self._labels != {**self._labels, **labels}:
                self._labels |= labels
                self._publish()

    def event(self, kind: str, reason: str, text: str) -> None:
        """Have an Event about the node made."""
        if self.api is None:
            self._events.append((kind, reason, text))
        else:
            self.api.event(kind=kind, reason=reason, message=text)

    def _publish(self) -> None:
        if self.api is not None:
            self.api.publish(labels=dict(self._labels), annotations=dict(self._annotations))

    def _label(self, label: str | None) -> None:
        self._take(by_label(self._wish, label, self._argument))

    def _denied(self, text: str) -> None:
        """Without an answer ever, a refusal makes the argument count."""
        logger.warning("%s", text)
        if self._wish.origin is None:
            logger.warning("the argument --sriov-num-vfs counts, as the node's label may not be read")
            self._take(by_argument(self._argument))

    def _take(self, wish: Wish) -> None:
        self._wish = wish
        self._wished(wish)


def _hop(loop: asyncio.AbstractEventLoop, call: Callable[[str], None], value: str) -> None:
    """From the API server's thread to the event loop, unless that has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, value)


def _to_nobody(wish: Wish) -> None:
    """Nobody listens yet."""
