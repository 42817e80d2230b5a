# SPDX-License-Identifier: Apache-2.0
"""One node in the API server: its label, what we write on it, events about it.

Unreachable is not absent: an outage calls nobody back and takes nothing away. The node is listed and then
watched, by name, and only its metadata is asked for.
"""

import logging
import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xpu_plugin.edges.api import (
    BROKEN,
    COMPONENT,
    DENIED,
    MISSING,
    REFUSED,
    Failed,
    Server,
    advice,
    member,
    parsed,
)
from xpu_plugin.record import record


logger = logging.getLogger(__name__)

WATCH_SECONDS = (240, 480)  # for how long the server is asked to keep a watch open: least, most
WATCH_GRACE_SECONDS = 15.0  # of silence beyond that: the connection is dead, only nobody told us
SHORT_WATCH_SECONDS = 1.0  # what ends sooner is no sign of health
AGAIN_SECONDS = (1.0, 60.0)  # back-off: first, most
EVENTS_MOST = 64  # that wait to be sent
MESSAGE_BYTES = 1024  # of an event

Delays = Callable[[float, float], Iterator[float]]
"""A back-off: (first, most) seconds -> what to wait, time after time."""

NODES = "/api/v1/nodes"
_EVENTS = "/api/v1/namespaces/default/events"  # where those about what has no namespace belong
# Servers take the first form they know; those before 1.15 send the object whole.
_ITEM = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
NODE_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_CONFLICT, _GONE = 409, 410
_HOPELESS = (400, 404, 413, 422)  # an event that was so answered is not sent again


class ApiError(Exception):
    """The API server has not done what it was asked for; the text says why, in one line."""


def remove(
    node: str, kubeconfig: Path | None, *, labels: Collection[str], annotations: Collection[str]
) -> None:
    """Take labels and annotations from a node, whether or not it has them. Waits; raises ApiError."""
    what = "patch nodes"
    metadata = {"labels": dict.fromkeys(labels), "annotations": dict.fromkeys(annotations)}
    path = f"{NODES}/{quote(node, safe='')}"
    try:
        with Server(kubeconfig).open(
            "PATCH", path, what=what, accept=_ITEM, body={"metadata": metadata}
        ) as answer:
            answer.whole()
    except Failed as failure:
        raise ApiError(advice(failure) if failure.status in DENIED else str(failure)) from None


class NodeApi:
    """Follows one node's label and keeps what we publish on it, in two daemon threads.

    Both callbacks come from a thread. `on_label` gets the label's value, None when the node has no such
    label: after the first answer, and then when the value changes. `on_denied` gets a sentence, which is for
    the callee to log, when listing or watching turns out to be refused: once for each kind of refusal, until
    that has been answered again. It has to have lasted for `patience` seconds, seen at both ends and with
    nothing else between: an API server that has just started knows of no roles, and refuses everybody.
    """

    def __init__(
        self,
        *,
        node: str,
        label: str,
        kubeconfig: Path | None,
        on_label: Callable[[str | None], None],
        on_denied: Callable[[str], None],
        delays: Delays,
        patience: float = 0.0,
    ) -> None:
        self._node = node
        self._label = label
        self._kubeconfig = kubeconfig
        self._on_label = on_label
        self._on_denied = on_denied
        self._delays = delays
        self._stopping = threading.Event()

        # Of the watching thread.
        self._told: tuple[str | None] | None = None  # the value handed over last, if any was
        self._denied: set[tuple[str, int]] = set()  # (what, status) that on_denied has heard of
        self._complaint: str | None = None  # the kind of trouble there is
        self._patience = patience
        self._refused_since: float | None = None
        self._streaming_since: float | None = None
        self.watching = False  # whether a watch is open; read from anywhere
        self._barren = 0  # streams in a row that ended at once, without a line

        # Shared, under the lock of `_news`.
        self._news = threading.Condition()
        self._seen: _Metadata | None = None
        self._wanted: _Metadata | None = None
        self._wanted_anew = False
        self._back = False  # the API server, after an outage
        self._events: deque[dict[str, object]] = deque(maxlen=EVENTS_MOST)
        self._lost = 0
        self._failures: Counter[tuple[str, int | None]] = Counter()

    def start(self) -> None:
        """Begin; returns at once. The import of the client holds the interpreter for a moment."""
        for target in (self._watch, self._write):
            threading.Thread(
                target=self._guarded, args=(target,), name=f"api{target.__name__}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask both threads to end; returns at once. One that is blocked ends later, or with the process."""
        self._stopping.set()
        with self._news:
            self._news.notify_all()

    @property
    def failures(self) -> dict[tuple[str, int | None], int]:
        """How many requests have failed, by what was asked and HTTP status, None where there was none."""
        with self._news:
            return dict(self._failures)

    def publish(self, *, labels: Mapping[str, str | None], annotations: Mapping[str, str | None]) -> None:
        """What these keys of the node are to be from now on, None for absent; returns at once.

        The last call wins, and keys that it does not name are left alone. Somebody else's change of them is
        mended, ever more slowly if it comes again and again.
        """
        wanted = _Metadata(labels=dict(labels), annotations=dict(annotations))
        with self._news:
            if wanted != self._wanted:
                self._wanted, self._wanted_anew = wanted, True
                self._news.notify_all()

    def event(self, *, kind: str, reason: str, message: str) -> None:
        """Have an event about the node (`kubectl describe node`) made, if possible; returns at once.

        `kind` is Normal or Warning. Of too many that wait the oldest is dropped.
        """
        event = _event(self._node, kind=kind, reason=reason, message=message)
        with self._news:
            self._lost += len(self._events) == self._events.maxlen
            self._events.append(event)
            self._news.notify_all()

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception:
            if not self._stopping.is_set():  # else: who is called back has gone already
                raise

    # --- watching: list, watch from there, list again when in doubt -----------------------------------

    def _watch(self) -> None:
        server = Server(self._kubeconfig)
        again = self._delays(*AGAIN_SECONDS)
        version: str | None = None
        while not self._stopping.is_set():
            least = 0.0
            failed = False
            self._streaming_since = None
            try:
                if version is None:
                    version = self._list(server)
                if self._stopping.is_set():
                    return
                version = self._follow(server, version)
            except Failed as failure:
                version, failed, least = None, True, failure.retry_after
                self._failed(failure)
                if not self._stopping.is_set():
                    self._say(failure)
            self.watching = False
            healthy = self._streamed() >= SHORT_WATCH_SECONDS
            if healthy:
                again = self._delays(*AGAIN_SECONDS)
            if failed or not healthy:
                self._stopping.wait(max(next(again), least))

    def _list(self, server: "Server") -> str:
        """Act on the node as it is; the version to watch from."""
        what = "list nodes"
        with server.open("GET", NODES, what=what, accept=NODE_LIST, query=self._selector()) as answer:
            document = answer.whole()
        self._allowed(what)
        version = member(document, "metadata").get("resourceVersion")
        items = document.get("items") or []
        if not isinstance(version, str) or not isinstance(items, list):
            raise Failed(f"{what}: the answer is no list")
        nodes = [
            metadata for item in items if (metadata := member(item, "metadata")).get("name") == self._node
        ]
        if not nodes:
            raise Failed(f"{what}: none is named {self._node}", kind=MISSING)
        self._saw(nodes[0])
        return version

    def _follow(self, server: "Server", version: str) -> str | None:
        """Act on changes until the stream ends; the version to go on from, None if that is to be listed."""
        what = "watch nodes"
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - so that a cluster's nodes do not ask in step
        query = self._selector() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        try:
            answer = server.open(
                "GET", NODES, what=what, accept=_ITEM, query=query, silence=seconds + WATCH_GRACE_SECONDS
            )
        except Failed as failure:
            if failure.status == _GONE:
                return None
            raise
        with answer:
            self._streaming_since = time.monotonic()
            self.watching = True
            self._allowed(what)
            if self._complaint != BROKEN:
                self._answered()
            heard = False
            for line in answer.lines():
                heard = True
                if self._stopping.is_set():
                    return None
                kind, metadata = _watched(line)
                if kind is None:
                    return None
                if kind != "BOOKMARK":
                    if metadata.get("name") != self._node:
                        raise Failed(f"{what}: an event about another node", kind=BROKEN)
                    if kind == "DELETED":
                        return None
                    self._saw(metadata)
                self._answered()
                version = str(metadata["resourceVersion"])
        if not heard and self._streamed() < SHORT_WATCH_SECONDS:
            self._barren += 1
            if self._barren > 1:  # the first time it may have been the server's end
                raise Failed(f"{what}: the stream ends as soon as it is open", kind=BROKEN)
            return None
        self._barren = 0
        self._answered()
        return version

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self._node}"}

    def _streamed(self) -> float:
        """For how many seconds this round's stream has been open."""
        return 0.0 if self._streaming_since is None else time.monotonic() - self._streaming_since

    def _failed(self, failure: "Failed") -> None:
        with self._news:
            # The text of each begins with what was asked for.
            self._failures[failure.what or str(failure).partition(":")[0], failure.status] += 1

    def _saw(self, metadata: dict[str, Any]) -> None:
        labels, annotations = member(metadata, "labels"), member(metadata, "annotations")
        with self._news:
            self._seen = _Metadata(labels=labels, annotations=annotations)
            self._news.notify_all()
        value = labels.get(self._label)
        if self._told != (value,) and not self._stopping.is_set():
            self._told = (value,)
            self._on_label(value)

    def _allowed(self, what: str) -> None:
        self._denied = {refusal for refusal in self._denied if refusal[0] != what}

    def _say(self, failure: "Failed") -> None:
        """Once for each kind of trouble, until there is an answer."""
        if failure.status in DENIED:
            self._complaint = REFUSED
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since < self._patience:
                return
            if (failure.what, failure.status) not in self._denied:
                self._denied.add((failure.what, failure.status))
                self._on_denied(advice(failure))
            return
        self._refused_since = None
        if failure.kind == MISSING:
            self._complain(
                f"the API server knows no node {self._node}; see that this plugin was told the right name",
                MISSING,
            )
        else:
            self._complain(
                f"no answer from the API server: {failure}; until there is one, everything stays as it is",
                failure.kind,
            )

    def _complain(self, text: str, kind: str) -> None:
        if kind != self._complaint:
            self._complaint = kind
            logger.warning("%s", text)

    def _answered(self) -> None:
        self._refused_since = None
        if self._complaint is not None:
            self._complaint = None
            logger.info("the API server answers again")
            with self._news:
                self._back = True
                self._news.notify_all()

    # --- writing: what differs, and events ------------------------------------------------------------

    def _write(self) -> None:
        server = Server(self._kubeconfig)
        patching = _Errand("patch nodes", self._delays)
        posting = _Errand("create events", self._delays)
        while not self._stopping.is_set():
            with self._news:
                if self._wanted_anew:
                    self._wanted_anew = False
                    patching.renew()
                if self._back:
                    self._back = False
                    patching.hurry()
                    posting.hurry()
                seen, changes = self._seen, self._changes()
                event = self._events[0] if self._events else None
                due = [errand.due for errand, work in ((patching, changes), (posting, event)) if work]
                now = time.monotonic()
                if not due or min(due) > now:
                    self._news.wait(min(due) - now if due else None)
                    continue
            if changes and patching.due <= now:
                self._patch(server, patching, changes, seen)
            if event and posting.due <= now:
                self._post(server, posting, event)

    def _changes(self) -> dict[str, dict[str, str | None]]:
        """The merge patch that makes the node as wanted, by what is known of it; empty if it is."""
        if self._wanted is None:
            return {}
        wanted, seen = self._wanted, self._seen
        changes = {
            "labels": _difference(wanted.labels, seen.labels if seen else None),
            "annotations": _difference(wanted.annotations, seen.annotations if seen else None),
        }
        return {where: difference for where, difference in changes.items() if difference}

    def _patch(
        self,
        server: "Server",
        errand: "_Errand",
        changes: dict[str, dict[str, str | None]],
        before: "_Metadata | None",
    ) -> None:
        path = f"{NODES}/{quote(self._node, safe='')}"
        try:
            with server.open(
                "PATCH", path, what=errand.what, accept=_ITEM, body={"metadata": changes}
            ) as answer:
                metadata = member(answer.whole(), "metadata")
        except Failed as failure:
            self._failed(failure)
            errand.failed(failure)
            return
        errand.succeeded()
        errand.put_off()  # so that a quarrel about a label is not carried on as fast as we can
        with self._news:
            # What the watch has seen meanwhile may be newer than this answer; if it was older, the watch
            # goes on to our own change.
            if self._seen is before:
                self._seen = _Metadata(
                    labels=member(metadata, "labels") | changes.get("labels", {}),
                    annotations=member(metadata, "annotations") | changes.get("annotations", {}),
                )

    def _post(self, server: "Server", errand: "_Errand", event: dict[str, object]) -> None:
        try:
            with server.open(
                "POST", _EVENTS, what=errand.what, accept="application/json", body=event
            ) as answer:
                answer.whole()
        except Failed as failure:
            if failure.status != _CONFLICT:
                self._failed(failure)
            if failure.status in _HOPELESS:
                logger.warning("an event about this node is dropped: %s", failure)
            elif failure.status != _CONFLICT:  # which it has with itself, if only the answer was lost
                errand.failed(failure)
                return
        errand.succeeded()
        with self._news:
            if self._events and self._events[0] is event:
                self._events.popleft()
            lost, self._lost = self._lost, 0
        if lost:
            logger.warning("%d events about this node could not be sent in time and were dropped", lost)


@record
class _Metadata:
    """What a node's metadata is, or parts of it are to be: a value of None stands for an absent key."""

    labels: Mapping[str, str | None]
    annotations: Mapping[str, str | None]


def _difference(
    wanted: Mapping[str, str | None], seen: Mapping[str, str | None] | None
) -> dict[str, str | None]:
    return {key: value for key, value in wanted.items() if seen is None or seen.get(key) != value}


class _Errand:
    """One kind of writing: when it may be done next, and what has been said about its failing."""

    def __init__(self, what: str, delays: Delays) -> None:
        self.what = what
        self.due = self._soonest = 0.0
        self._delays = delays
        self._again = delays(*AGAIN_SECONDS)
        self._complaint: str | None = None
        self._unreachable = False

    def renew(self) -> None:
        """There is something new to be done: the waits grow from the beginning."""
        self._again = self._delays(*AGAIN_SECONDS)
        self.due = min(self.due, self._soonest)

    def hurry(self) -> None:
        """There are answers again: what only lacked one is tried soon."""
        if self._unreachable:
            self.renew()

    def put_off(self, least: float = 0.0) -> None:
        """Not again before the next wait is over, nor within `least` seconds; a quiet time makes it short."""
        now = time.monotonic()
        if now - self.due > AGAIN_SECONDS[1]:
            self.renew()
        self.due = now + max(next(self._again), least)
        self._soonest = now + max(AGAIN_SECONDS[0], least)

    def failed(self, failure: "Failed") -> None:
        """An API server that is away is not mentioned: the watch says so."""
        self.put_off(failure.retry_after)
        self._unreachable = failure.status is None
        denied = failure.status in DENIED
        complaint = REFUSED if denied else BROKEN
        if self._unreachable or complaint == self._complaint:
            logger.debug("%s", failure)
            return
        self._complaint = complaint
        if denied:
            logger.warning("%s", advice(failure))
        else:
            logger.warning("cannot write to the API server: %s", failure)

    def succeeded(self) -> None:
        self._unreachable = False
        if self._complaint is not None:
            logger.info("the API server lets us %s again", self.what)
            self._complaint = None


def _watched(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """A watch event's type and its object's metadata; a type of None: what we know is too old."""
    what = "watch nodes"
    document = parsed(line, what, BROKEN)
    kind, about = document.get("type"), member(document, "object")
    if kind == "ERROR":
        if about.get("code") == _GONE:
            return None, {}
        seconds = member(about, "details").get("retryAfterSeconds")
        raise Failed(
            f"{what}: error {about.get('code')} in the stream: {str(about.get('message'))[:300]}",
            kind=BROKEN,
            retry_after=float(seconds) if isinstance(seconds, int) else 0.0,
        )
    metadata = member(about, "metadata")
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not metadata.get("resourceVersion"):
        raise Failed(f"{what}: what comes is no event", kind=BROKEN)
    return kind, metadata


def _event(node: str, *, kind: str, reason: str, message: str) -> dict[str, object]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # A name of its own: an event that is sent again because the answer was lost is not made twice.
    name = f"{node[:200].rstrip('-.')}.{uuid.uuid4().hex[:16]}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        # The node's name as UID is what the kubelet writes, and what `kubectl describe node` looks for.
        "involvedObject": {"kind": "Node", "name": node, "uid": node},
        "source": {"component": COMPONENT, "host": node},
        "type": kind,
        "reason": reason,
        "message": message.encode()[:MESSAGE_BYTES].decode(errors="ignore"),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
