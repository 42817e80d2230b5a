# SPDX-License-Identifier: Apache-2.0
"""The Node object: reads the desired VF count from its label, and writes the result to it.

An API server that cannot be reached changes nothing. Before its first answer the label last seen counts, else
`keep`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.log import Message, Once
from xpu_plugin.loops.exchange import Exchange
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.node_labels import node_labels
from xpu_plugin.model.timings import USUAL
from xpu_plugin.model.vf_label import LAST_SEEN, NEW_NODE, Kept, LabelSight, Unseen, decide
from xpu_plugin.model.vf_plan import ARGUMENT, DETAIL_ANNOTATION, KEEP, STATE_LABEL, UNKNOWN, DesiredVfs
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays, pause


if TYPE_CHECKING:
    from xpu_plugin.edges.apiserver.node_watcher import Follower, NodeWatcher
    from xpu_plugin.edges.state.label import LabelRecord

logger = logging.getLogger(__name__)

AGAIN_SECONDS = (1.0, 60.0)  # back-off for threads and files: first, most
STATE_PART, LABELS_PART = "state", "labels"  # the parts of the Node that we write, each by patches of its own


class NodeSync:
    """Turns the label into the desired VF count, and the report on it into a label and an annotation.

    exchange: takes the desired VF count, and whether the Node has the startup taint; gives the values to
    write, and the Events to send
    argument: the number of VFs that counts without a label, or if the API server always refused to show the
    Node and no label was ever seen
    connect: makes the API server's edge for a follower. `run` calls it; writes wait until then.
    record: holds the label last seen
    lock: allows to write the record; None leaves the record as it is
    patience: seconds without an answer until the label last seen counts
    between: seconds between two checks whether `cleanup` has removed the record
    """

    def __init__(
        self,
        *,
        exchange: Exchange,
        argument: int | None,
        connect: Callable[["Follower"], "NodeWatcher"],
        record: "LabelRecord",
        lock: Alone | None,
        patience: float,
        between: float = USUAL.record,
    ) -> None:
        self._argument = argument
        self._desired = exchange.desired
        self._outcome = exchange.outcome
        self._events = exchange.events
        self._readiness, self._condition = exchange.readiness, exchange.condition
        self.tainted = exchange.tainted
        self._labels: Value[Mapping[str, str | None]] = Value({})
        self._connect = connect
        self.api: NodeWatcher | None = None  # until `run`

        self._record = record
        self._lock = lock
        self._patience = patience
        self._between = between
        self._sight: LabelSight | Unseen | None = None  # the last answer about the Node
        self._unread = True  # the record has not been read yet
        self._kept: Kept | None = None
        self._written: Kept | None = None  # the content of the record
        self._changed = asyncio.Event()  # the content that the record should have
        self._explained = Once()  # the origin of the desired VF count

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each kind of write to the Node that failed at the last attempt."""
        return self.api.unwritten if self.api is not None else ()

    async def run(self) -> None:
        """Never returns."""
        self.api = api = self._connect(_Follower(asyncio.get_running_loop(), self))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_state(api), name="state on the node")
                group.create_task(self._write_labels(api), name="labels on the node")
                group.create_task(self._send_events(api), name="events about the node")
                group.create_task(self._open_gate(api), name="startup taint of the node")
                group.create_task(self._write_condition(api), name="condition of the node")
                group.create_task(self._remember(), name="record of the label")
                group.create_task(self._lose_patience(), name="patience with the API server")
                await _started(api)
        finally:
            api.stop()

    async def describe(self, picture: Picture, driver_version: Callable[[], str]) -> None:
        """Keep the labels of the Node equal to its devices. Never returns."""
        async for _ in picture.changes():
            facts = picture.facts
            expected = [device for id, device in facts.lost.items() if id not in facts.lingering]
            self._labels.set(node_labels((*expected, *facts.devices.values()), driver_version()))

    async def _write_state(self, api: "NodeWatcher") -> None:
        """Publish the report. Without one leave the state to another instance; before the desired VF count is
        known, too."""
        last: tuple[str, str] | None = None
        async for outcome in self._outcome.values():
            known = outcome.desired.origin is not None
            written = (str(outcome.report.state), outcome.report.detail()) if known else None
            if written == last:
                continue
            last = written
            if written is None:
                api.publish(STATE_PART, labels={}, annotations={})
            else:
                state, detail = written
                api.publish(STATE_PART, labels={STATE_LABEL: state}, annotations={DETAIL_ANNOTATION: detail})

    async def _write_labels(self, api: "NodeWatcher") -> None:
        async for labels in self._labels.values():
            if labels:
                api.publish(LABELS_PART, labels=labels, annotations={})

    async def _send_events(self, api: "NodeWatcher") -> None:
        while True:
            api.event(await self._events.get())

    async def _open_gate(self, api: "NodeWatcher") -> None:
        async for readiness in self._readiness.values():
            api.gate(readiness)

    async def _write_condition(self, api: "NodeWatcher") -> None:
        async for readiness in self._condition.values():
            api.condition(readiness)

    @property
    def _current(self) -> DesiredVfs:
        return self._desired.current

    # --- the desired VF count -------------------------------------------------------------------------------

    def see(self, sight: LabelSight | Unseen) -> None:
        """The node is shown so, or is not."""
        self._sight = sight
        if isinstance(sight, LabelSight):
            self._explained.healed()
        self._decide(self._current)

    def _decide(self, before: DesiredVfs) -> None:
        """Decide on the desired VF count. A label counts at once; anything else waits for the record."""
        sight = self._sight
        if sight is None or (
            self._unread and not (isinstance(sight, LabelSight) and sight.label is not None)
        ):
            return
        desired, kept = decide(sight, kept=self._kept, before=before, argument=self._argument)
        if kept != self._kept:
            self._kept = kept
            self._changed.set()
        if (desired.number, desired.origin) != (self._current.number, self._current.origin):
            logger.info(
                Message(
                    "desired VF count",
                    value=KEEP if desired.number is None else str(desired.number),
                    origin=desired.origin,
                )
            )
        self._desired.set(desired)
        if sight is Unseen.REFUSED:
            self._explain()

    def denied(self, text: str) -> None:
        """Let the argument count after a refusal without an earlier answer, unless a label was seen
        before."""
        logger.warning(Message("the node's label may not be read", error=text))
        self.see(Unseen.REFUSED)

    def _explain(self) -> None:
        """Report once which number counts after a refusal."""
        if not self._explained.changed(self._current.origin):
            return
        if self._current.origin == ARGUMENT:
            logger.warning("the argument --sriov-num-vfs counts, as the node's label may not be read")
        elif self._current.origin in (LAST_SEEN, NEW_NODE):
            logger.warning(
                Message(
                    "the label last seen counts, as the node's label may not be read; to let the argument "
                    "count run 'xpu-device-plugin cleanup' on this node",
                    label=self._kept.label if self._kept else None,
                )
            )

    async def _lose_patience(self) -> None:
        """Let the label last seen count, as an outage since the start lasts."""
        await asyncio.sleep(self._patience)
        if self._sight is None:
            self.see(Unseen.AWAY)

    # --- the label last seen --------------------------------------------------------------------------

    async def _remember(self) -> None:
        """Write the record when its content changes, and notice its removal."""
        self._written = await self._read()
        self._unread = False
        if self._kept is None:  # otherwise the label was seen meanwhile
            self._begin_with(self._written)
        if self._lock is None:
            return
        async with self._lock.work():
            self._written = await self._read()  # the instance before us may have written
        if not isinstance(self._sight, LabelSight):
            self._begin_with(self._written)
        again = delays(*AGAIN_SECONDS)
        while True:
            async with self._lock.work():
                kept = self._kept
                failed = kept != self._written and not await self._record.write(kept)
            if failed:
                await pause(self._changed, next(again))
                continue
            self._written, again = kept, delays(*AGAIN_SECONDS)
            await pause(self._changed, self._between)
            if self._waits and await self._record.missing() and self._waits:
                self._written = None
                self._begin_with(None)

    @property
    def _waits(self) -> bool:
        """Return whether only the record keeps the argument from counting; `cleanup` may remove it."""
        return self._current.origin in (LAST_SEEN, NEW_NODE) and self._kept == self._written

    async def _read(self) -> Kept | None:
        """Return the record as soon as it can be read."""
        again = delays(*AGAIN_SECONDS)
        while not await self._record.read():  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(next(again))
        return self._record.content

    def _begin_with(self, kept: Kept | None) -> None:
        """Decide anew with this recorded label."""
        self._kept = kept
        self._decide(UNKNOWN)


async def _started(api: "NodeWatcher") -> None:
    """Start the threads of the edge as soon as the system allows it."""
    complaint = Once()
    for seconds in delays(*AGAIN_SECONDS):
        try:
            api.start()
        except RuntimeError as error:
            if complaint.changed(str(error)):
                logger.warning(
                    Message("cannot start a thread for the API server; it is tried again", error=error)
                )
            await asyncio.sleep(seconds)
        else:
            return


class _Follower:
    """Carries answers from the thread of the API server to the event loop, unless the loop has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: NodeSync) -> None:
        self._loop = loop
        self._node = node

    def saw(self, sight: LabelSight) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._node.see, sight)

    def denied(self, text: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._node.denied, text)

    def tainted(self, effects: tuple[str, ...]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._node.tainted.set, bool(effects))
