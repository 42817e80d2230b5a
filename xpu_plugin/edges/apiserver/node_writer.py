# SPDX-License-Identifier: Apache-2.0
"""What we write in the API server: labels and annotations of one node, and events about it.

What is wanted comes in parts, each with patches of its own: a refusal of one part holds up no other. Within a
part, labels and annotations that are refused are left out, named, and tried again later.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

from xpu_plugin.edges.apiserver.client import (
    AWAY,
    BROKEN,
    COMPONENT,
    ITEM,
    NODES,
    REFUSED,
    ApiServerClient,
    Failed,
    FailureCounts,
    NodeMetadata,
    advice,
    node_metadata,
)
from xpu_plugin.log import Once
from xpu_plugin.model.refusals import Speaker


logger = logging.getLogger(__name__)

AGAIN_SECONDS = (1.0, 60.0)  # back-off: first, most
REFUSED_AGAIN_SECONDS = (10.0, 300.0)  # for what is left out: first, most
EVENTS_MOST = 64  # that wait to be sent
MESSAGE_BYTES = 1024  # of an event
REWRITTEN = (
    "an admission webhook of the cluster writes other values; ask its owner for an exception for this "
    "plugin's service account"
)
"""Why something is not written that the API server has taken."""

Delays = Callable[[float, float], Iterator[float]]
"""A back-off: (first, most) seconds -> what to wait, time after time."""
Key = tuple[str, str]
"""`labels` or `annotations`, and a name there."""
Values = Mapping[Key, str | None]
"""None stands for an absent key."""

_EVENTS = "/api/v1/namespaces/default/events"  # where those about what has no namespace belong
_WHO_WE_ARE = (Speaker.AUTHENTICATOR, Speaker.AUTHORIZER)  # what refuses us, and not what we write
_CONFLICT = 409
_HOPELESS = (400, 404, 413, 422)  # an event that was so answered is not sent again


def values(
    *, labels: Mapping[str, str | None] | None = None, annotations: Mapping[str, str | None] | None = None
) -> Values:
    """Labels and annotations as one mapping."""
    parts = {"labels": labels or {}, "annotations": annotations or {}}
    return {(where, name): value for where, own in parts.items() for name, value in own.items()}


def send(server: ApiServerClient, node: str, what: str, changes: Values) -> NodeMetadata:
    """Patch the node; its metadata after that. Raises Failed."""
    metadata: dict[str, dict[str, str | None]] = {}
    for (where, name), value in changes.items():
        metadata.setdefault(where, {})[name] = value
    path = f"{NODES}/{quote(node, safe='')}"
    with server.open("PATCH", path, what=what, accept=ITEM, body={"metadata": metadata}) as answer:
        return node_metadata(answer.whole(BROKEN), what)


class NodeWriter:
    """Keeps a node as it is wanted, by `run` in a thread of its own; all else may be called from anywhere."""

    def __init__(
        self, *, node: str, kubeconfig: Path | None, delays: Delays, failures: FailureCounts
    ) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._delays = delays
        self._failures = failures

        # Shared, under the lock of `_news`.
        self._news = threading.Condition()
        self._stopping = False
        self._seen: Values | None = None
        self._back = False  # the API server, after an outage
        self._parts: dict[str, _Part] = {}
        self._events: deque[dict[str, object]] = deque(maxlen=EVENTS_MOST)
        self._lost = 0
        self._posting = _Errand("create events", delays)

    def stop(self) -> None:
        """Ask `run` to return; returns at once."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def saw(self, metadata: NodeMetadata) -> None:
        """The node is like this now."""
        with self._news:
            self._seen = values(labels=metadata.labels, annotations=metadata.annotations)
            self._news.notify_all()

    def answered(self) -> None:
        """There are answers again after an outage."""
        with self._news:
            self._back = True
            self._news.notify_all()

    def publish(self, part: str, wanted: Values) -> None:
        """What these keys of the node are to be from now on; returns at once.

        The last call for a part wins, and keys that it does not name are left alone. Another writer's change
        of them is mended, ever more slowly if it comes again and again.
        """
        with self._news:
            own = self._parts.setdefault(part, _Part(self._delays))
            if wanted != own.wanted:
                own.wanted, own.anew = wanted, True
                self._news.notify_all()

    def event(self, *, kind: str, reason: str, message: str) -> None:
        """Have an event about the node made, if possible; returns at once. Of too many that wait the oldest
        is dropped."""
        event = _event(self._node, kind=kind, reason=reason, message=message)
        with self._news:
            self._lost += len(self._events) == self._events.maxlen
            self._events.append(event)
            self._news.notify_all()

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each kind of writing that failed when it was tried last."""
        with self._news:
            told = [text for part in self._parts.values() for text in part.unwritten]
            return tuple(dict.fromkeys([*told, *self._posting.unwritten]))

    def run(self) -> None:
        """Write until stopped. Raises what is not foreseen, and can be called again."""
        server = ApiServerClient(self._kubeconfig)
        while True:
            with self._news:
                if self._stopping:
                    return
                self._renew()
                tasks = list(self._tasks())
                now = time.monotonic()
                due = [do for when, do in tasks if when <= now]
                if not due:
                    self._news.wait(min(when for when, _ in tasks) - now if tasks else None)
                    continue
            for do in due:
                do(server)

    def _renew(self) -> None:
        """Take in what makes waits shorter, and what is as wanted meanwhile."""
        for part in self._parts.values():
            if part.anew:
                part.anew = False
                part.errand.renew()
            differing = self._differing(part)
            part.left_out = {key: why for key, why in part.left_out.items() if key in differing}
        if self._back:
            self._back = False
            for errand in (self._posting, *(part.errand for part in self._parts.values())):
                errand.hurry()

    def _tasks(self) -> Iterator[tuple[float, Callable[[ApiServerClient], None]]]:
        """What is to be done, and when it may be."""
        for part in self._parts.values():
            differing = self._differing(part)
            again = {key: value for key, value in differing.items() if key in part.left_out}
            fresh = {key: value for key, value in differing.items() if key not in again}
            if fresh:
                yield part.errand.due, partial(self._patch, part, fresh)
            if again:
                yield part.again.due, partial(self._patch_each, part, again)
        if self._events:
            yield self._posting.due, partial(self._post, self._events[0])

    def _differing(self, part: "_Part") -> Values:
        """What is not as wanted, by what is known of the node; all of it if nothing is."""
        seen = self._seen
        return {key: value for key, value in part.wanted.items() if seen is None or seen.get(key) != value}

    # --- labels and annotations -----------------------------------------------------------------------

    def _patch(self, part: "_Part", changes: Values, server: ApiServerClient) -> None:
        """All at once; one by one where the content is refused."""
        try:
            rewritten = self._send(server, part, changes)
        except Failed as failure:
            if failure.speaker is None or not failure.speaker.minds_content:
                part.errand.failed(failure, others=self._others(part))
            elif len(changes) == 1:
                part.errand.succeeded(others=self._others(part))
                part.leave_out(dict.fromkeys(changes, advice(failure)))
            else:
                self._patch_each(part, changes, server)
            return
        part.errand.succeeded(others=self._others(part))
        part.errand.put_off()  # so that a quarrel about a label is not carried on as fast as we can
        part.leave_out(rewritten)

    def _patch_each(self, part: "_Part", changes: Values, server: ApiServerClient) -> None:
        """One by one, so that what is refused holds up nothing else."""
        refused: dict[Key, str] = {}
        taken = []
        for key, value in changes.items():
            try:
                refused |= self._send(server, part, {key: value})
            except Failed as failure:
                if failure.speaker is None or not failure.speaker.minds_content:
                    part.errand.failed(failure, others=self._others(part))
                    part.again.put_off()
                    break
                refused[key] = advice(failure)
            if key not in refused:
                taken.append(key)
        else:
            part.errand.succeeded(others=self._others(part))
            part.errand.put_off()
        part.take_in(taken)
        part.leave_out(refused)

    def _send(self, server: ApiServerClient, part: "_Part", changes: Values) -> dict[Key, str]:
        """Patch; what the node has otherwise than we wrote it, by the answer -> why. Raises Failed."""
        with self._news:
            before = self._seen
        try:
            metadata = send(server, self._node, part.errand.what, changes)
        except Failed as failure:
            self._failures.add(failure)
            raise
        now = values(labels=metadata.labels, annotations=metadata.annotations)
        with self._news:
            # What the watch has seen meanwhile may be newer than this answer; if it was older, the watch
            # goes on to our own change.
            if self._seen is before:
                self._seen = now
        return {key: REWRITTEN for key, value in changes.items() if now.get(key) != value}

    def _others(self, part: "_Part") -> Iterable[object]:
        """What has been said of the other parts: the same needs no second line."""
        with self._news:
            return [other.errand.complaint.last for other in self._parts.values() if other is not part]

    # --- events ---------------------------------------------------------------------------------------

    def _post(self, event: dict[str, object], server: ApiServerClient) -> None:
        errand = self._posting
        try:
            with server.open(
                "POST", _EVENTS, what=errand.what, accept="application/json", body=event
            ) as answer:
                answer.whole()
        except Failed as failure:
            if failure.status != _CONFLICT:  # which it has with itself, if only the answer was lost
                self._failures.add(failure)
                if failure.status not in _HOPELESS and failure.speaker is not Speaker.ADMISSION:
                    errand.failed(failure)
                    return
                errand.dropped(failure)
                self._sent(event)
                return
        errand.succeeded()
        self._sent(event)

    def _sent(self, event: dict[str, object]) -> None:
        """Forget the event, which is not to be sent any more."""
        with self._news:
            if self._events and self._events[0] is event:
                self._events.popleft()
            lost, self._lost = self._lost, 0
        if lost:
            logger.warning("%d events about this node could not be sent in time and were dropped", lost)


class _Errand:
    """One kind of writing: when it may be done next, and what has been said about its failing."""

    def __init__(self, what: str, delays: Delays, seconds: tuple[float, float] | None = None) -> None:
        self.what = what
        self.due = self._soonest = 0.0
        self.complaint = Once()  # the kind of trouble there is
        self.unwritten: tuple[str, ...] = ()
        self._seconds = seconds or AGAIN_SECONDS
        self._delays = delays
        self._again = delays(*self._seconds)
        self._unreachable = False

    def renew(self) -> None:
        """There is something new to be done: the waits grow from the beginning."""
        self._again = self._delays(*self._seconds)
        self.due = min(self.due, self._soonest)

    def hurry(self) -> None:
        """There are answers again: what only lacked one is tried soon."""
        if self._unreachable:
            self.renew()

    def put_off(self, least: float = 0.0) -> None:
        """Not again before the next wait is over, nor within `least` seconds; a quiet time makes it short."""
        now = time.monotonic()
        if now - self.due > self._seconds[1]:
            self.renew()
        self.due = now + max(next(self._again), least)
        self._soonest = now + max(self._seconds[0], least)

    def failed(self, failure: Failed, others: Iterable[object] = ()) -> None:
        """An API server that is away is not mentioned: the watch says so. others: what is said already"""
        self.put_off(failure.retry_after)
        self._unreachable = failure.status is None and failure.kind == AWAY
        text = _failed(failure)
        self.unwritten = (text,)
        complaint = REFUSED if failure.speaker in _WHO_WE_ARE else BROKEN
        if self._unreachable or not self.complaint.changed(complaint) or complaint in others:
            logger.debug("%s", failure)
        else:
            logger.warning("%s", text)

    def dropped(self, failure: Failed) -> None:
        """What was to be written is given up; the next may be taken."""
        text = _dropped(failure)
        if failure.speaker is Speaker.ADMISSION:
            self.unwritten = (text,)
            if not self.complaint.changed(text):
                return
        logger.warning("%s", text)

    def succeeded(self, others: Iterable[object] = ()) -> None:
        """The trouble is over, and that is said if the others have not the same."""
        self._unreachable = False
        self.unwritten = ()
        last = self.complaint.last
        if self.complaint.healed() and last not in others:
            logger.info("the API server lets us %s again", self.what)


class _Part:
    """What is wanted together.

    anew: it was changed, and the waits know nothing of that yet
    left_out: what is refused -> why; again: when that is tried next
    """

    def __init__(self, delays: Delays) -> None:
        self.wanted: Values = {}
        self.anew = False
        self.errand = _Errand("patch nodes", delays)
        self.again = _Errand("patch nodes", delays, REFUSED_AGAIN_SECONDS)
        self.left_out: Mapping[Key, str] = {}

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each trouble there is."""
        return (*self.errand.unwritten, *_named(self.left_out))

    def leave_out(self, refused: Mapping[Key, str]) -> None:
        """These are refused: they are named once, and not tried again for a while."""
        if not refused:
            return
        new = {key: why for key, why in refused.items() if key not in self.left_out}
        self.left_out = {**self.left_out, **refused}
        self.again.put_off()
        for text in _named(new):
            logger.warning("%s", text)

    def take_in(self, taken: Iterable[Key]) -> None:
        """These were written."""
        written = [key for key in taken if key in self.left_out]
        if written:
            logger.info("written on this node after all: %s", _names(written))
            self.left_out = {key: why for key, why in self.left_out.items() if key not in written}


def _named(refused: Mapping[Key, str]) -> Iterator[str]:
    """A sentence for each reason, with all that is left out for it."""
    for why in dict.fromkeys(refused.values()):
        keys = [key for key, own in refused.items() if own == why]
        yield _left_out(_names(keys), why)


def _left_out(names: str, why: str) -> str:
    return f"not written on this node, and tried again later: {names}: {why}"


def _failed(failure: Failed) -> str:
    if failure.speaker in _WHO_WE_ARE:
        return advice(failure)
    return f"cannot write to the API server: {failure}"


def _dropped(failure: Failed) -> str:
    if failure.speaker is Speaker.ADMISSION:
        return f"events about this node are dropped: {advice(failure)}"
    return f"an event about this node is dropped: {failure}"


def _names(keys: Iterable[Key]) -> str:
    return ", ".join(f"{where.removesuffix('s')} {name}" for where, name in keys)


def _event(node: str, *, kind: str, reason: str, message: str) -> dict[str, object]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # A name of its own: an event that is sent again because the answer was lost is not made twice.
    name = f"{node[:200].rstrip('-.')}.{uuid.uuid4().hex[:16]}"
    # Text that was read elsewhere may hold half a surrogate pair, which is no UTF-8.
    text = message.encode(errors="backslashreplace")[:MESSAGE_BYTES].decode(errors="ignore")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        # The node's name as UID is what the kubelet writes, and what `kubectl describe node` looks for.
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "source": {"component": COMPONENT, "host": node},
        "type": kind,
        "reason": reason,
        "message": text,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
