# SPDX-License-Identifier: Apache-2.0
"""Removes the startup taint of one Node, and writes the condition of its cards.

Both read the Node once, and again when it was made anew. No taint is ever added.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from xpu_plugin.edges.apiserver.client import (
    BROKEN,
    ITEM,
    NODES,
    STRATEGIC,
    ApiServerClient,
    Failed,
    FailureCounts,
    NodeMetadata,
    member,
    node_metadata,
)
from xpu_plugin.edges.apiserver.errand import Delays, Errand, Task
from xpu_plugin.log import Message
from xpu_plugin.model.readiness import CONDITION, STARTING, Readiness, shows


logger = logging.getLogger(__name__)

LOOK_SECONDS = (1.0, 10.0)  # between looks at a Node that does not show the devices yet: first, most
CONFLICTS = 5  # in a row, before a pause: the kubelet writes to the same object
_CONFLICT = 409
_JSON = "application/json"
_STATUS = "patch nodes/status"


class _NodeDuty:
    """A write to one Node that begins with a look at the whole object. news: the writer's, with its lock"""

    def __init__(
        self, *, node: str, what: str, news: threading.Condition, delays: Delays, failures: FailureCounts
    ) -> None:
        self._what = what
        self._path = _path(node)
        self._news = news
        self._failures = failures
        self._uid: str | None = None
        self._known = False  # the Node was seen
        self._errand = Errand(what, delays, LOOK_SECONDS)

    @property
    def unwritten(self) -> tuple[str, ...]:
        return self._errand.unwritten

    def answered(self) -> None:
        self._errand.hurry()

    def _is_new(self, metadata: NodeMetadata) -> bool:
        """Take the present Node; return whether it is the first one, or was made anew."""
        if self._known and metadata.uid == self._uid:
            return False
        self._known, self._uid = True, metadata.uid
        self._errand.renew()
        return True

    def _tried(self, work: Callable[[ApiServerClient], None], server: ApiServerClient) -> bool:
        """Do the work; return whether it succeeded."""
        try:
            work(server)
        except Failed as failure:
            self._failures.add(failure)
            self._errand.failed(failure)
            return False
        self._errand.succeeded()
        return True


class StartupTaint(_NodeDuty):
    """The taint with one key, of any effect. It is removed while the wish is open, and no other with it.

    seen: takes its effects on the Node, none without it, after each look, on the writer's thread
    """

    def __init__(self, *, key: str, seen: Callable[[tuple[str, ...]], None], **node: Any) -> None:
        super().__init__(what="patch nodes", **node)
        self._key = key
        self._seen = seen
        self._wish = STARTING
        self._present: bool | None = None

    def wish(self, readiness: Readiness) -> None:
        with self._news:
            if readiness != self._wish:
                self._wish = readiness
                self._errand.renew()
                self._news.notify_all()

    def tasks(self) -> Iterator[Task]:
        if self._known and (self._present is None or (self._present and self._wish.open)):
            yield self._errand.due, self._look

    def saw(self, metadata: NodeMetadata) -> None:
        if self._is_new(metadata):
            self._present = None

    def _look(self, server: ApiServerClient) -> None:
        for _ in range(CONFLICTS):
            with suppress(_ConflictError):
                if self._tried(self._look_and_remove, server):
                    self._errand.put_off()
                return
        self._errand.put_off()

    def _look_and_remove(self, server: ApiServerClient) -> None:
        with self._news:
            wish, uid = self._wish, self._uid
        node = _read(server, self._path)
        metadata, taints = node_metadata(node, "get nodes"), _objects(member(node, "spec").get("taints"))
        others = [taint for taint in taints if taint.get("key") != self._key]
        effects = tuple(str(taint.get("effect")) for taint in taints if taint.get("key") == self._key)
        allocatable = member(member(node, "status"), "allocatable")
        if effects and wish.open and shows(allocatable, wish.allocatable):
            body: dict[str, object] = {
                # A Node that has changed since is refused: its taints may be others by now.
                "metadata": {"resourceVersion": metadata.version, "uid": metadata.uid},
                "spec": {"taints": others or None},
            }
            try:
                _patch(server, self._path, self._what, body, "application/merge-patch+json")
            except Failed as failure:
                if failure.status == _CONFLICT:
                    raise _ConflictError from None
                raise
            logger.info(
                Message(
                    "the startup taint is removed",
                    taint=self._key,
                    effects=list(effects),
                    reason=wish.reason,
                )
            )
            effects = ()
        with self._news:
            if self._uid == uid:  # otherwise another Node was seen meanwhile
                self._present = bool(effects)
        self._seen(effects)


class _ConflictError(Exception):
    """The Node has changed since the look."""


class NodeCondition(_NodeDuty):
    """The condition XPUReady in the Node's status. It is written at a change, and not as a heartbeat."""

    def __init__(self, **node: Any) -> None:
        super().__init__(what=_STATUS, **node)
        self._wish = STARTING
        self._written: Readiness | None = None
        self._status: str | None = None  # in the Node, at our last look or write; None without the condition
        self._looked = False

    def wish(self, readiness: Readiness) -> None:
        with self._news:
            self._wish = readiness
            self._news.notify_all()

    def tasks(self) -> Iterator[Task]:
        if self._known and (self._written is None or _content(self._written) != _content(self._wish)):
            yield self._errand.due, self._write

    def saw(self, metadata: NodeMetadata) -> None:
        if self._is_new(metadata):
            self._written, self._status, self._looked = None, None, False

    def _write(self, server: ApiServerClient) -> None:
        if self._tried(self._look_and_write, server):
            self._errand.put_off()  # so that a condition that flaps is written ever more rarely

    def _look_and_write(self, server: ApiServerClient) -> None:
        with self._news:
            wish, uid, status, looked = self._wish, self._uid, self._status, self._looked
        if not looked:
            status = _status(_read(server, self._path))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": CONDITION,
            "status": str(wish.status),
            "reason": str(wish.reason),
            "message": wish.message,
            "lastHeartbeatTime": now,
        }
        if status != wish.status:
            condition["lastTransitionTime"] = now
        _write_status(server, self._path, condition)
        with self._news:
            if self._uid == uid:
                self._written, self._status, self._looked = wish, str(wish.status), True


def remove_condition(server: ApiServerClient, node: str) -> None:
    """Remove the condition from a Node that has it. Raises Failed."""
    path = _path(node)
    if _status(_read(server, path)) is not None:
        _write_status(server, path, {"type": CONDITION, "$patch": "delete"})


def _content(readiness: Readiness) -> tuple[str, str, str]:
    return (readiness.status, readiness.reason, readiness.message)


def _objects(found: Any) -> list[dict[str, Any]]:
    """Return a list of objects in a Node; empty for an absent list. Raises Failed. `Any`: foreign JSON"""
    objects = [] if found is None else found
    if isinstance(objects, list) and all(isinstance(own, dict) for own in objects):
        return objects
    raise Failed("get nodes: the answer is no node", kind=BROKEN)


def _status(node: dict[str, Any]) -> str | None:
    """Return the status of our condition in a Node; None without the condition."""
    found = _objects(member(node, "status").get("conditions"))
    return next((str(own.get("status")) for own in found if own.get("type") == CONDITION), None)


def _path(node: str) -> str:
    return f"{NODES}/{quote(node, safe='')}"


def _read(server: ApiServerClient, path: str) -> dict[str, Any]:
    with server.open("GET", path, what="get nodes", accept=_JSON) as answer:
        return answer.whole(BROKEN)


def _write_status(server: ApiServerClient, path: str, condition: dict[str, str]) -> None:
    _patch(server, f"{path}/status", _STATUS, {"status": {"conditions": [condition]}}, STRATEGIC)


def _patch(server: ApiServerClient, path: str, what: str, body: dict[str, object], content: str) -> None:
    with server.open("PATCH", path, what=what, accept=ITEM, body=body, content=content) as answer:
        node_metadata(answer.whole(BROKEN), what)
