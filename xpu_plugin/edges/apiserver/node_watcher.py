# SPDX-License-Identifier: Apache-2.0
"""Watches one Node in the API server: its label, its UID, and the keys that we write.

Unreachable is not absent: an outage calls no follower and removes nothing. The Node is listed and then
watched, by name, and only its metadata is requested.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from xpu_plugin.edges.apiserver.client import (
    BROKEN,
    ITEM,
    MISSING,
    NODES,
    REFUSED,
    STRANGER,
    Answer,
    ApiServerClient,
    Failed,
    FailureCounts,
    NodeMetadata,
    advice,
    member,
    node_metadata,
    parsed,
    said,
)
from xpu_plugin.edges.apiserver.errand import Delays
from xpu_plugin.edges.apiserver.node_gate import NodeCondition, StartupTaint, remove_condition
from xpu_plugin.edges.apiserver.node_writer import NodeWriter, send, values
from xpu_plugin.errors import PluginError
from xpu_plugin.log import Message, Once
from xpu_plugin.model.events import Event
from xpu_plugin.model.readiness import Readiness
from xpu_plugin.model.refusals import Speaker
from xpu_plugin.model.vf_label import LabelSight


logger = logging.getLogger(__name__)

WATCH_SECONDS = (240, 480)  # time for which the server should keep a watch open: least, most
WATCH_GRACE_SECONDS = 15.0  # of silence beyond that: the connection is dead
SHORT_WATCH_SECONDS = 1.0  # a watch that ends sooner is no sign of health
AGAIN_SECONDS = (1.0, 60.0)  # back-off: first, most

NODE_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_GONE = 410


class ApiError(PluginError):
    """A request to the API server failed; the text gives the reason in one line."""


def remove(
    node: str, kubeconfig: Path | None, *, labels: Collection[str], annotations: Collection[str]
) -> None:
    """Remove labels and annotations, present or not, and our condition from a Node. Wait for the answers;
    raises ApiError."""
    changes = values(labels=dict.fromkeys(labels), annotations=dict.fromkeys(annotations))
    server = ApiServerClient(kubeconfig)
    try:
        send(server, node, "patch nodes", changes)
        remove_condition(server, node)
    except Failed as failure:
        raise ApiError(advice(failure)) from None


class Follower(Protocol):
    """Receives answers, on a thread of the watcher."""

    def saw(self, sight: LabelSight, /) -> None:
        """Take the Node: after the first answer, and after each change of its label or UID."""

    def denied(self, text: str, /) -> None:
        """Take a refusal to list or watch by the authorizer, once for each kind of refusal until an answer.

        text: a sentence for the log
        """

    def tainted(self, effects: tuple[str, ...], /) -> None:
        """Take the effects of the startup taint on the Node; none without it."""


class NodeWatcher:
    """Follows one Node's label and keeps the published keys on it, in two daemon threads.

    A refusal counts once it has lasted for `patience` seconds without another answer: an API server that has
    just started knows no roles, and refuses all clients. Rejected credentials are an outage like any other.

    An unforeseen error ends no thread: it is reported once, and the thread begins anew after a while.

    taint: key of the startup taint; condition: whether to write the condition of the cards
    """

    def __init__(
        self,
        *,
        node: str,
        label: str,
        kubeconfig: Path | None,
        follower: Follower,
        delays: Delays,
        patience: float = 0.0,
        taint: str | None = None,
        condition: bool = False,
    ) -> None:
        self._node = node
        self._label = label
        self._kubeconfig = kubeconfig
        self._follower = follower
        self._delays = delays
        self._stopping = threading.Event()
        self._threads: set[str] = set()  # names of the started threads

        # Of the watching thread.
        self._told: LabelSight | None = None  # the last value for the follower
        self._denied: set[str] = set()  # refusals that the follower knows
        self._complaint = Once()  # the kind of the present trouble
        self._patience = patience
        self._refused_since: float | None = None
        self._streaming_since: float | None = None
        self.watching = False  # whether a watch is open; read from anywhere
        self._barren = 0  # streams in a row that ended at once, without a line

        self._failures = FailureCounts()
        self._writer = NodeWriter(node=node, kubeconfig=kubeconfig, delays=delays, failures=self._failures)
        own = {"node": node, "news": self._writer.news, "delays": delays, "failures": self._failures}
        self._taint = None if taint is None else StartupTaint(key=taint, seen=follower.tainted, **own)
        self._condition = NodeCondition(**own) if condition else None
        for duty in (self._taint, self._condition):
            if duty is not None:
                self._writer.undertake(duty)

    def start(self) -> None:
        """Start the threads; return at once. The import of the client blocks the interpreter for a moment.

        Raises RuntimeError if a thread cannot be started. Another call starts the missing threads.
        """
        for name, target in (("api_watch", self._watch), ("api_write", self._writer.run)):
            if name not in self._threads:
                threading.Thread(target=self._kept_up, args=(name, target), name=name, daemon=True).start()
                self._threads.add(name)

    def stop(self) -> None:
        """Ask both threads to end; return at once. A blocked thread ends later, or with the process."""
        self._stopping.set()
        self._writer.stop()

    @property
    def failures(self) -> dict[tuple[str, int | None], int]:
        """Number of failed requests by request and HTTP status; None without a status."""
        return self._failures.counts

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence for each kind of write that failed at the last attempt."""
        return self._writer.unwritten

    def publish(
        self, part: str, *, labels: Mapping[str, str | None], annotations: Mapping[str, str | None]
    ) -> None:
        """Set the values that these keys of the Node shall have, None for absent; return at once.

        Each part is written by patches of its own. The last call for a part wins; other keys are left alone.
        A change by another client is reverted, with growing delays if it is repeated.
        """
        self._writer.publish(part, values(labels=labels, annotations=annotations))

    def gate(self, readiness: Readiness) -> None:
        """Remove the startup taint as soon as this is open, if one was named; return at once."""
        if self._taint is not None:
            self._taint.wish(readiness)

    def condition(self, readiness: Readiness) -> None:
        """Set the condition that the Node shall have, if it shall have one; return at once."""
        if self._condition is not None:
            self._condition.wish(readiness)

    def event(self, event: Event) -> None:
        """Create an Event (`kubectl describe node`), if possible; return at once.

        If too many wait, the oldest is dropped.
        """
        self._writer.event(event)

    def _kept_up(self, name: str, target: Callable[[], None]) -> None:
        """Call `work` until it returns, which it does at a stop."""
        again = self._delays(*AGAIN_SECONDS)
        known: set[str] = set()
        while True:
            began = time.monotonic()
            try:
                target()
            except Exception as error:  # noqa: BLE001 - an unforeseen error is a failed round, too
                if self._stopping.is_set():  # the follower may have ended already
                    return
                # The text of an error that is not known may quote a header, and so a token.
                where = f"{type(error).__name__} at {_place(error)}"
                self._failures.add(Failed(f"{name}: {where}"))
                if where not in known:
                    known.add(where)
                    logger.error(  # noqa: TRY400 - a traceback would show the text
                        Message(
                            "unforeseen error while talking to the API server; trying again",
                            thread=name,
                            error=where,
                        )
                    )
                if time.monotonic() - began > AGAIN_SECONDS[1]:
                    again = self._delays(*AGAIN_SECONDS)
                self._stopping.wait(next(again))
            else:
                return

    # --- watching: list, watch from there, list again when in doubt -----------------------------------

    def _watch(self) -> None:
        server = ApiServerClient(self._kubeconfig)
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
                self._failures.add(failure)
                if not self._stopping.is_set():
                    self._say(failure)
            healthy = self._streamed() >= SHORT_WATCH_SECONDS
            if healthy:
                again = self._delays(*AGAIN_SECONDS)
            if failed or not healthy:
                self._stopping.wait(max(next(again), least))

    def _list(self, server: ApiServerClient) -> str:
        """Act on the present Node; return the version to watch from."""
        what = "list nodes"
        with server.open("GET", NODES, what=what, accept=NODE_LIST, query=self._selector()) as answer:
            document = answer.whole()
        self._allowed(what)
        version = member(document, "metadata").get("resourceVersion")
        items = document.get("items") or []
        if not isinstance(version, str) or not isinstance(items, list):
            raise Failed(f"{what}: the answer is no list")
        nodes = [item for item in items if member(item, "metadata").get("name") == self._node]
        if not nodes:
            raise Failed(f"{what}: none is named {self._node}", kind=MISSING)
        self._saw(node_metadata(nodes[0], what))
        return version

    def _follow(self, server: ApiServerClient, version: str) -> str | None:
        """Act on changes until the stream ends; return the version to continue from, None for a new list."""
        what = "watch nodes"
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - so that the nodes of a cluster do not ask in step
        query = self._selector() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        try:
            answer = server.open(
                "GET", NODES, what=what, accept=ITEM, query=query, silence=seconds + WATCH_GRACE_SECONDS
            )
        except Failed as failure:
            if failure.status == _GONE:
                return None
            raise
        try:
            with answer:
                self._streaming_since = time.monotonic()
                self.watching = True
                return self._heard(answer, version)
        finally:
            self.watching = False

    def _heard(self, answer: Answer, version: str) -> str | None:
        """Act on each line of a watch; return as `_follow`."""
        what = "watch nodes"
        self._allowed(what)
        if self._complaint.last != BROKEN:
            self._answered()
        heard = False
        for line in answer.lines():
            heard = True
            if self._stopping.is_set():
                return None
            kind, about = _watched(line)
            if kind is None:
                return None
            if kind == "BOOKMARK":
                version = str(member(about, "metadata")["resourceVersion"])
            else:
                metadata = node_metadata(about, what)
                if metadata.name != self._node:
                    raise Failed(f"{what}: an event about another node", kind=BROKEN)
                if kind == "DELETED":
                    return None
                self._saw(metadata)
                version = metadata.version
            self._answered()
        if not heard and self._streamed() < SHORT_WATCH_SECONDS:
            self._barren += 1
            if self._barren > 1:  # the first time the server itself may have ended
                raise Failed(f"{what}: the stream ends as soon as it is open", kind=BROKEN)
            return None
        self._barren = 0
        self._answered()
        return version

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self._node}"}

    def _streamed(self) -> float:
        """Return the seconds for which this round's stream has been open."""
        return 0.0 if self._streaming_since is None else time.monotonic() - self._streaming_since

    def _saw(self, metadata: NodeMetadata) -> None:
        self._writer.saw(metadata)
        sight = LabelSight(uid=metadata.uid, label=metadata.labels.get(self._label))
        if self._told != sight and not self._stopping.is_set():
            self._told = sight
            self._follower.saw(sight)

    def _allowed(self, what: str) -> None:
        self._denied.discard(what)

    def _say(self, failure: Failed) -> None:
        """Report trouble once for each kind, until an answer."""
        if failure.speaker is Speaker.AUTHORIZER:
            self._complaint.changed(REFUSED)
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since >= self._patience and failure.what not in self._denied:
                self._denied.add(failure.what)
                self._follower.denied(advice(failure))
            return
        self._refused_since = None
        if failure.kind == MISSING:
            self._complain(
                Message("the API server knows no such node; see that --node-name is right", node=self._node),
                MISSING,
            )
        elif failure.speaker is Speaker.AUTHENTICATOR:
            self._complain(Message("no access to the API server", error=advice(failure)), STRANGER)
        else:
            self._complain(
                Message(
                    "no answer from the API server; until there is one, everything stays as it is",
                    error=failure,
                ),
                failure.kind,
            )

    def _complain(self, message: Message, kind: str) -> None:
        if self._complaint.changed(kind):
            logger.warning(message)

    def _answered(self) -> None:
        self._refused_since = None
        if self._complaint.healed():
            logger.info("the API server answers again")
            self._writer.answered()


def _watched(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """Return the type and object of a watch event; a type of None means that our version is too old."""
    what = "watch nodes"
    document = parsed(line, what, BROKEN)
    kind, about = document.get("type"), member(document, "object")
    if kind == "ERROR":
        if about.get("code") == _GONE:
            return None, {}
        seconds = member(about, "details").get("retryAfterSeconds")
        raise Failed(
            f"{what}: error {said(str(about.get('code')))} in the stream: {said(str(about.get('message')))}",
            kind=BROKEN,
            retry_after=seconds if isinstance(seconds, int) else 0,
        )
    version = member(about, "metadata").get("resourceVersion")
    if kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK") or not (version and isinstance(version, str)):
        raise Failed(f"{what}: what comes is no event", kind=BROKEN)
    return kind, about


def _place(error: BaseException) -> str:
    """Return `file:line` of the place that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
