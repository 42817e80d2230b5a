# SPDX-License-Identifier: Apache-2.0
"""Writes labels and annotations of one Node, and Events about it and its pods.

The wanted keys come in parts, each with patches of its own: a refused part delays no other. Within a part,
refused labels and annotations are left out, named, and tried again later.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xpu_plugin.edges.apiserver.client import (
    BROKEN,
    COMPONENT,
    ITEM,
    NODES,
    POD_EVENTS,
    ApiServerClient,
    Failed,
    FailureCounts,
    NodeMetadata,
    advice,
    node_metadata,
)
from xpu_plugin.edges.apiserver.errand import Delays, Duty, Errand, Task
from xpu_plugin.log import Message
from xpu_plugin.model.events import Event
from xpu_plugin.model.refusals import Speaker


logger = logging.getLogger(__name__)

REFUSED_AGAIN_SECONDS = (10.0, 300.0)  # for refused keys: first, most
EVENTS_MOST = 64  # that wait to be sent, about the node and about its pods each
MESSAGE_BYTES = 1024  # of an event
REWRITTEN = (
    "an admission webhook of the cluster writes other values; ask its owner for an exception for this "
    "plugin's service account"
)
"""Why something is not written that the API server has taken."""

Key = tuple[str, str]
"""`labels` or `annotations`, and a name there."""
Values = Mapping[Key, str | None]
"""None stands for an absent key."""

_NAMESPACE = "default"  # of Events about objects without a namespace
_CONFLICT = 409
_HOPELESS = (400, 404, 413, 422)  # an Event with such an answer is not sent again


def values(
    *, labels: Mapping[str, str | None] | None = None, annotations: Mapping[str, str | None] | None = None
) -> Values:
    """Return labels and annotations as one mapping."""
    parts = {"labels": labels or {}, "annotations": annotations or {}}
    return {(where, name): value for where, own in parts.items() for name, value in own.items()}


def send(server: ApiServerClient, node: str, what: str, changes: Values) -> NodeMetadata:
    """Patch the Node; return its metadata after that. Raises Failed."""
    metadata: dict[str, dict[str, str | None]] = {}
    for (where, name), value in changes.items():
        metadata.setdefault(where, {})[name] = value
    path = f"{NODES}/{quote(node, safe='')}"
    with server.open("PATCH", path, what=what, accept=ITEM, body={"metadata": metadata}) as answer:
        return node_metadata(answer.whole(BROKEN), what)


class NodeWriter:
    """Keeps the keys of a Node as wanted, by `run` in a thread of its own. Other methods are for any
    thread."""

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
        self._duties: list[Duty] = []
        self._mail = _Mail(Errand("create events", delays))
        self._pod_mail = _Mail(Errand(POD_EVENTS, delays))

    def stop(self) -> None:
        """Ask `run` to return; do not wait."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    @property
    def news(self) -> threading.Condition:
        """The lock of all that is shared with the thread, and its notice."""
        return self._news

    def undertake(self, duty: Duty) -> None:
        """Take on another part of the Node, before `run`."""
        self._duties.append(duty)

    def saw(self, metadata: NodeMetadata) -> None:
        """Take the present Node."""
        with self._news:
            for duty in self._duties:
                duty.saw(metadata)
            self._seen = values(labels=metadata.labels, annotations=metadata.annotations)
            self._news.notify_all()

    def answered(self) -> None:
        """Take note of the first answer after an outage."""
        with self._news:
            self._back = True
            self._news.notify_all()

    def publish(self, part: str, wanted: Values) -> None:
        """Set the values that these keys of the Node shall have; return at once.

        The last call for a part wins; other keys are left alone. A change by another writer is reverted, with
        growing delays if it is repeated.
        """
        with self._news:
            own = self._parts.setdefault(part, _Part(self._delays))
            if wanted != own.wanted:
                own.wanted, own.anew = wanted, True
                self._news.notify_all()

    def event(self, event: Event) -> None:
        """Create an Event, if possible; return at once. If too many wait, the oldest is dropped."""
        mail = self._mail if event.pod is None else self._pod_mail
        with self._news:
            mail.add(_event(self._node, event))
            self._news.notify_all()

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each kind of write that failed at the last attempt."""
        with self._news:
            told = [text for part in self._parts.values() for text in part.unwritten]
            told += [text for duty in self._duties for text in duty.unwritten]
            told += [text for mail in (self._mail, self._pod_mail) for text in mail.errand.unwritten]
            return tuple(dict.fromkeys(told))

    def run(self) -> None:
        """Write until `stop`. Unforeseen errors are raised; it can be called again."""
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
        """Take in news that shorten waits, and keys that are as wanted meanwhile."""
        for part in self._parts.values():
            if part.anew:
                part.anew = False
                part.errand.renew()
            differing = self._differing(part)
            part.left_out = {key: why for key, why in part.left_out.items() if key in differing}
        if self._back:
            self._back = False
            mails = (self._mail.errand, self._pod_mail.errand)
            for errand in (*mails, *(part.errand for part in self._parts.values())):
                errand.hurry()
            for duty in self._duties:
                duty.answered()

    def _tasks(self) -> Iterator[Task]:
        """What is to be done, and when it may be."""
        for part in self._parts.values():
            differing = self._differing(part)
            again = {key: value for key, value in differing.items() if key in part.left_out}
            fresh = {key: value for key, value in differing.items() if key not in again}
            if fresh:
                yield part.errand.due, partial(self._patch, part, fresh)
            if again:
                yield part.again.due, partial(self._patch_each, part, again)
        for duty in self._duties:
            yield from duty.tasks()
        for mail in (self._mail, self._pod_mail):
            if mail.waiting:
                yield mail.errand.due, partial(self._post, mail, mail.waiting[0])

    def _differing(self, part: "_Part") -> Values:
        """Return the keys that differ from the wanted values; all of them if the Node is unknown."""
        seen = self._seen
        return {key: value for key, value in part.wanted.items() if seen is None or seen.get(key) != value}

    # --- labels and annotations -----------------------------------------------------------------------

    def _patch(self, part: "_Part", changes: Values, server: ApiServerClient) -> None:
        """Write all keys at once, or one by one if the content is refused."""
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
        part.errand.put_off()  # so that two writers of a label do not overwrite each other at full speed
        part.leave_out(rewritten)

    def _patch_each(self, part: "_Part", changes: Values, server: ApiServerClient) -> None:
        """Write the keys one by one, so that a refused key delays no other."""
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
        """Patch; return key -> reason for each key that the answer shows with another value. Raises
        Failed."""
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
        """Return the reports on the other parts: an equal one needs no second line."""
        with self._news:
            return [other.errand.complaint.last for other in self._parts.values() if other is not part]

    # --- events ---------------------------------------------------------------------------------------

    def _post(self, mail: "_Mail", event: dict[str, Any], server: ApiServerClient) -> None:
        errand, path = mail.errand, f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            with server.open("POST", path, what=errand.what, accept="application/json", body=event) as answer:
                answer.whole()
        except Failed as failure:
            if failure.status != _CONFLICT:  # which it has with itself, if only the answer was lost
                self._failures.add(failure)
                if failure.status not in _HOPELESS and failure.speaker is not Speaker.ADMISSION:
                    errand.failed(failure)
                    return
                errand.dropped(failure)
                self._sent(mail, event)
                return
        errand.succeeded()
        self._sent(mail, event)

    def _sent(self, mail: "_Mail", event: dict[str, Any]) -> None:
        """Forget the Event, which needs no further attempt."""
        with self._news:
            lost = mail.remove(event)
        if lost:
            logger.warning(
                Message("events about this node could not be sent in time and were dropped", events=lost)
            )


class _Mail:
    """Events that wait to be sent, the oldest first, and the errand that sends them."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.waiting: deque[dict[str, Any]] = deque(maxlen=EVENTS_MOST)
        self._lost = 0

    def add(self, event: dict[str, Any]) -> None:
        self._lost += len(self.waiting) == self.waiting.maxlen
        self.waiting.append(event)

    def remove(self, event: dict[str, Any]) -> int:
        """Remove an Event that was sent; return the number of those that were dropped meanwhile."""
        if self.waiting and self.waiting[0] is event:
            self.waiting.popleft()
        lost, self._lost = self._lost, 0
        return lost


class _Part:
    """Keys that are written together.

    anew: the content has changed, and the waits have not begun anew yet
    left_out: refused key -> reason
    again: time of the next attempt for these
    """

    def __init__(self, delays: Delays) -> None:
        self.wanted: Values = {}
        self.anew = False
        self.errand = Errand("patch nodes", delays)
        self.again = Errand("patch nodes", delays, REFUSED_AGAIN_SECONDS)
        self.left_out: Mapping[Key, str] = {}

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each present trouble."""
        left_out = (
            f"not written on this node, and tried again later: {', '.join(names)}: {why}"
            for names, why in _named(self.left_out)
        )
        return (*self.errand.unwritten, *left_out)

    def leave_out(self, refused: Mapping[Key, str]) -> None:
        """Leave out refused keys for a while, and name them once."""
        if not refused:
            return
        new = {key: why for key, why in refused.items() if key not in self.left_out}
        self.left_out = {**self.left_out, **refused}
        self.again.put_off()
        for names, why in _named(new):
            logger.warning(Message("not written on this node, and tried again later", names=names, error=why))

    def take_in(self, taken: Iterable[Key]) -> None:
        """Take note of written keys."""
        written = [key for key in taken if key in self.left_out]
        if written:
            logger.info(Message("written on this node after all", names=_names(written)))
            self.left_out = {key: why for key, why in self.left_out.items() if key not in written}


def _named(refused: Mapping[Key, str]) -> Iterator[tuple[list[str], str]]:
    """Yield each reason, after the names of all keys that are left out for it."""
    for why in dict.fromkeys(refused.values()):
        keys = [key for key, own in refused.items() if own == why]
        yield _names(keys), why


def _names(keys: Iterable[Key]) -> list[str]:
    return [f"{where.removesuffix('s')} {name}" for where, name in keys]


def _event(node: str, event: Event) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    pod = event.pod
    about = node if pod is None else pod.name
    namespace = _NAMESPACE if pod is None else pod.namespace
    involved = (
        # The kubelet writes the node's name as UID, and `kubectl describe node` searches for it.
        {"kind": "Node", "name": node, "uid": node}
        if pod is None
        else {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod.name, "uid": pod.uid}
    )
    # A name of its own: an event that is sent again because the answer was lost is not made twice.
    name = f"{about[:200].rstrip('-.')}.{uuid.uuid4().hex[:16]}"
    # Foreign text may hold half a surrogate pair, which is no UTF-8.
    text = event.text.encode(errors="backslashreplace")[:MESSAGE_BYTES].decode(errors="ignore")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "source": {"component": COMPONENT, "host": node},
        "type": event.kind,
        "reason": event.reason,
        "message": text,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
