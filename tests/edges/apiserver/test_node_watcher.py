# SPDX-License-Identifier: Apache-2.0
"""The API server's edge against real sockets: what it says once, what it keeps up, and what it survives."""

import itertools
import json
import logging
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.api_server import (
    GATEKEEPER,
    KYVERNO,
    LIST,
    PATCH,
    POLICY,
    POST,
    SECRET,
    WATCH,
    WEBHOOK_DOWN,
    ApiServer,
    Reply,
    Request,
    certificate,
    write_kubeconfig,
)
from tests.support.waiting import PROMPT_SECONDS, SECONDS, wait_until
from xpu_plugin.edges.apiserver import client as api_module
from xpu_plugin.edges.apiserver import errand, node_watcher, node_writer
from xpu_plugin.edges.apiserver.client import has_credentials
from xpu_plugin.edges.apiserver.errand import Delays
from xpu_plugin.edges.apiserver.node_watcher import ApiError, NodeWatcher, remove
from xpu_plugin.model.events import Event, PodReference
from xpu_plugin.model.vf_label import LabelSight
from xpu_plugin.waiting import delays


NODE = "node-1.example"
LABEL = "baidu.com/sriov-num-vfs"
NEXT = "nor-this"


def with_labels(labels: str) -> bytes:
    """An event with that JSON text for labels."""
    metadata = f'{{"name": "{NODE}", "resourceVersion": "1", "labels": {labels}}}'
    return f'{{"type": "MODIFIED", "object": {{"metadata": {metadata}}}}}\n'.encode()


needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")


class Heard:
    """What a callback was called with."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.all: list[Any] = []

    def __call__(self, value: object) -> None:
        self.all.append(value)
        self._queue.put(value)

    def next(self) -> Any:
        return self._queue.get(timeout=SECONDS)


class Plugin:
    """A NodeWatcher and what it calls back."""

    def __init__(self, kubeconfig: Path | None, delays: Delays = delays, patience: float = 0.0) -> None:
        self.sights = Heard()
        self.labels = Heard()  # of the sights
        self.denied = Heard()
        self.api = NodeWatcher(
            node=NODE, label=LABEL, kubeconfig=kubeconfig, follower=self, delays=delays, patience=patience
        )

    def saw(self, sight: LabelSight) -> None:
        self.sights(sight)
        self.labels(sight.label)

    def tainted(self, effects: tuple[str, ...]) -> None:
        """Of a taint that is not named here."""


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("api_watch", "api_write")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (node_watcher, errand):
        monkeypatch.setattr(module, "AGAIN_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(node_writer, "REFUSED_AGAIN_SECONDS", (0.1, 0.5))
    monkeypatch.setattr(node_watcher, "SHORT_WATCH_SECONDS", 0.02)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


class Start(Protocol):
    def __call__(self, file: Path | None = ..., /, delays: Delays = ..., patience: float = ...) -> Plugin: ...


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
def started(kubeconfig: Path) -> Iterator[Start]:
    """Starts plugins, and stops them. Comes before the servers, so that it ends after them."""
    plugins = []

    def start(file: Path | None = kubeconfig, delays: Delays = delays, patience: float = 0.0) -> Plugin:
        plugins.append(Plugin(file, delays, patience))
        plugins[-1].api.start()
        return plugins[-1]

    yield start
    for plugin in plugins:
        plugin.api.stop()
    wait_until(lambda: not threads(), "no thread left")


@pytest.fixture
def server(started: Start, kubeconfig: Path) -> Iterator[ApiServer]:
    """One that the kubeconfig leads to."""
    with ApiServer(NODE) as server:
        write_kubeconfig(kubeconfig, server.url)
        yield server


def end(plugin: Plugin, server: ApiServer) -> None:
    """End the plugin while the server still accepts.

    `SSLContext.wrap_socket` of Python 3.11 leaks the socket if it is reset before the handshake.
    """
    plugin.api.stop()
    for stream in server.streams:
        stream.end()
    wait_until(lambda: not threads(), "no thread left")


class Log:
    """What was logged, and what by the modules of this edge, from `DEBUG` up."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog  # its records change from the set-up to the test

    def _lines(self, level: int, part: str) -> list[str]:
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.name in {module.__name__ for module in (api_module, errand, node_watcher, node_writer)}
            and record.levelno == level
            and part in record.getMessage()
        ]

    def has(self, part: str) -> bool:
        """Whether it is in any line or field, of any module."""
        return any(
            part in str(record.__dict__) or part in record.getMessage() for record in self._caplog.records
        )

    def debug(self, part: str = "") -> list[str]:
        return self._lines(logging.DEBUG, part)

    def info(self, part: str = "") -> list[str]:
        return self._lines(logging.INFO, part)

    def warnings(self, part: str = "") -> list[str]:
        return self._lines(logging.WARNING, part)

    def errors(self, part: str = "") -> list[str]:
        return self._lines(logging.ERROR, part)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


@pytest.fixture
def plugin(server: ApiServer, started: Start) -> Plugin:
    """One that has heard that its node has no label."""
    plugin = started()
    assert plugin.labels.next() is None
    return plugin


def assert_waits(requests: list[Request], *least: float) -> None:
    """Between two requests there is at least so much time each."""
    times = [request.arrived for request in requests]
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == len(least)
    assert all(wait >= bound for wait, bound in zip(waits, least, strict=True)), waits


# --- the label ------------------------------------------------------------------------------------


def test_only_changes_of_the_label_are_handed_over(server: ApiServer, plugin: Plugin) -> None:
    server.stream()
    server.change({"another": "1"}, {"and": "an annotation"})
    server.change({LABEL: "4"})
    assert plugin.labels.next() == "4"
    server.change({"another": None})
    server.change({LABEL: "4"})
    server.change({LABEL: "2"})
    assert plugin.labels.next() == "2"
    server.change({LABEL: None})
    assert plugin.labels.next() is None
    assert plugin.labels.all == [None, "4", "2", None]


def test_one_node_and_its_metadata_are_asked_for(server: ApiServer, started: Start) -> None:
    started()
    [listing], [watch] = server.wait(LIST), server.wait(WATCH)
    assert listing.path == watch.path == "/api/v1/nodes"
    assert listing.query == {"fieldSelector": f"metadata.name={NODE}"}
    assert listing.headers["accept"] == (
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
    )
    assert watch.headers["accept"] == (
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
    )
    assert 240 <= int(watch.query.pop("timeoutSeconds")) <= 480
    assert watch.query == {
        "fieldSelector": f"metadata.name={NODE}",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "1000",
    }
    assert listing.token == watch.token == SECRET
    assert watch.headers["user-agent"] == "xpu-device-plugin"


def test_a_watch_that_ends_is_taken_up_where_it_was(server: ApiServer, plugin: Plugin) -> None:
    """At the version of the last event, or the last bookmark."""
    stream = server.stream()
    server.change({LABEL: "1"})
    stream.end()
    stream = server.stream(2)
    stream.send(server.bookmark(2000))
    stream.end()
    server.stream(3)
    assert [watch.query["resourceVersion"] for watch in server.of(WATCH)] == ["1000", "1001", "2000"]
    assert len(server.of(LIST)) == 1
    assert plugin.labels.all == [None, "1"]


def test_lines_may_come_in_pieces_or_many_at_once(server: ApiServer, plugin: Plugin) -> None:
    stream = server.stream()
    events = []
    for value in "123":
        server.labels[LABEL] = value
        events.append(json.dumps(server.modified()).encode() + b"\n")
    first, second, third = events
    stream.raw(first[:20])
    stream.raw(first[20:-1])
    stream.raw(first[-1:] + second + third[:5])
    stream.raw(third[5:])
    assert [plugin.labels.next() for _ in "123"] == ["1", "2", "3"]


@pytest.mark.parametrize("gone", ["status", "event"])
def test_a_version_that_is_too_old_leads_to_a_list(
    server: ApiServer, plugin: Plugin, log: Log, gone: str
) -> None:
    stream = server.stream()
    server.labels[LABEL] = "3"  # and the watch does not hear of it
    server.version = 5000
    if gone == "status":
        server.script(WATCH, Reply.refusal(410, "too old resource version"))
        stream.end()
    else:
        stream.send({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
    assert plugin.labels.next() == "3"
    server.stream(2)
    assert len(server.of(LIST)) >= 2
    assert server.of(WATCH)[-1].query["resourceVersion"] == "5000"
    assert log.warnings() == []


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b"[1]\n",
        b'{"type": "MODIFIED", "object": 7}\n',
        b'{"type": "WHAT", "object": {"metadata": {"resourceVersion": "1"}}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"name": "another", "resourceVersion": "1"}}}\n',
        b'{"type": ["MODIFIED"], "object": {"metadata": {"resourceVersion": "1"}}}\n',
        b'{"type": "MODIFIED", "object": {"metadata": {"name": "node-1.example", "resourceVersion": {}}}}\n',
        b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": 7}}}\n',
        with_labels('{"baidu.com/sriov-num-vfs": {"a": 1}}'),
        with_labels('{"baidu.com/sriov-num-vfs": 2}'),
        with_labels("[1]"),
        b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n',
        b'{"type": "ERROR", "object": {"code": [], "message": {"a": "\\ud800"}}}\n',
        b'{"type": "ERROR", "object": {"details": {"retryAfterSeconds": %b}}}\n' % (b"9" * 400),
        b'{"type": "ERROR", "object": {"details": {"retryAfterSeconds": %b}}}\n' % (b"9" * 5000),
        b'{"type": "ERROR", "object": {"details": {"retryAfterSeconds": true}}}\n',
        b"[" * 100_000 + b"\n",
        b"x" * 300_000,
    ],
)
def test_nonsense_in_the_stream_is_complained_of_and_survived(
    server: ApiServer, started: Start, log: Log, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(api_module, "LONGEST_LINE", 200_000)
    plugin = started()
    assert plugin.labels.next() is None
    for number in (1, 2, 3):
        server.stream(number).raw(line)
    server.stream(4)
    server.change({LABEL: "1"})
    assert plugin.labels.next() == "1"
    wait_until(lambda: log.info("answers again"), "it is well again")
    assert len(log.warnings('everything stays as it is error="watch nodes: ')) == 1
    assert len(log.info("answers again")) == 1


@pytest.mark.parametrize("deleted", [False, True])
def test_a_node_that_is_not_there_is_said_once_and_waited_for(
    server: ApiServer, started: Start, log: Log, deleted: bool
) -> None:
    server.labels[LABEL] = "4"
    server.exists = deleted
    plugin = started()
    if deleted:
        assert plugin.labels.next() == "4"
        server.exists = False
        server.stream().send({"type": "DELETED", "object": {"metadata": server.metadata()}})
    server.wait(LIST, 5)
    unknown = f"the API server knows no such node; see that --node-name is right node={NODE}"
    assert len(log.warnings(unknown)) == 1
    assert plugin.labels.all == ["4"] * deleted, "it is no answer"
    server.labels.clear()
    server.exists = True
    assert plugin.labels.next() is None


def test_a_node_that_was_made_anew_is_handed_over_by_its_uid(server: ApiServer, started: Start) -> None:
    server.labels[LABEL] = "4"
    plugin = started()
    first = plugin.sights.next()
    stream = server.stream()
    server.uid = "00000000-0000-0000-0000-000000000002"
    server.change({"another": "1"})
    stream.end()
    assert plugin.sights.next() == LabelSight(uid=server.uid, label="4")
    assert (first.uid == server.uid, first.label) == (False, "4")


# --- what is not foreseen -------------------------------------------------------------------------


def test_what_is_not_foreseen_in_the_watch_is_a_failed_round(
    server: ApiServer, plugin: Plugin, log: Log
) -> None:
    server.stream()
    wait_until(lambda: plugin.api.watching, "a watch")
    watched = []

    def fail(value: object) -> None:
        watched.append(plugin.api.watching)
        raise OverflowError(SECRET)

    plugin.labels, taken = fail, plugin.labels  # type: ignore[assignment]  # a callback that fails
    for number, value in enumerate("123", start=2):
        server.change({LABEL: value})
        server.stream(number)
    plugin.labels = taken
    server.change({LABEL: "4"})
    assert plugin.labels.next() == "4"
    assert len(watched) == 3
    assert len(log.errors("unforeseen error while talking to the API server; trying again")) == 1
    assert len(log.errors(f'thread=api_watch error="OverflowError at {Path(__file__).name}:')) == 1
    assert not log.has(SECRET)
    assert plugin.api.failures["api_watch", None] == 3
    assert len(threads()) == 2


def test_a_watch_that_failed_is_none(server: ApiServer, started: Start) -> None:
    """Not before the next one is open."""
    plugin = started(delays=lambda first, most: iter([1000.0] * 9))
    assert plugin.labels.next() is None
    stream = server.stream()
    wait_until(lambda: plugin.api.watching, "a watch")
    stream.raw(b'{"type": "ERROR", "object": {"details": {"retryAfterSeconds": %b}}}\n' % (b"9" * 400))
    wait_until(lambda: not plugin.api.watching, "it is over")
    assert len(threads()) == 2


def test_what_is_not_foreseen_in_writing_is_a_failed_round(
    server: ApiServer, started: Start, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = api_module.node_metadata
    left = [MemoryError(), MemoryError()]

    def metadata(document: object, what: str) -> api_module.NodeMetadata:
        if left:
            raise left.pop()
        return whole(document, what)

    monkeypatch.setattr(node_writer, "node_metadata", metadata)
    plugin = started()
    plugin.api.event(Event(kind="Normal", reason="Tested", text=""))
    for number, state in enumerate(("one", "two", "three"), start=1):
        plugin.api.publish("state", labels={"state": state}, annotations={})
        server.wait(PATCH, number)
    wait_until(lambda: server.labels["state"] == "three", "it is written")
    wait_until(lambda: server.events, "the event is made")
    assert left == []
    assert len(log.errors(f'thread=api_write error="MemoryError at {Path(__file__).name}:')) == 1
    assert len(log.errors()) == 1


def test_a_thread_that_cannot_be_started_is_started_later(
    server: ApiServer, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Plugin(kubeconfig)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "api_write":
            raise RuntimeError("can't start new thread")
        start(thread)

    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    with monkeypatch.context() as lacking:
        lacking.setattr(threading.Thread, "start", refused)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                plugin.api.start()
    try:
        assert plugin.labels.next() is None
        assert [thread.name for thread in threads()] == ["api_watch"]
        plugin.api.start()
        server.wait(PATCH)
        assert len(server.of(LIST)) == 1
    finally:
        plugin.api.stop()


# --- outages --------------------------------------------------------------------------------------


def test_an_outage_is_said_once_and_changes_nothing(server: ApiServer, started: Start, log: Log) -> None:
    server.labels[LABEL] = "4"
    plugin = started()
    assert plugin.labels.next() == "4"
    server.stream()
    server.close()
    wait_until(lambda: log.warnings("no answer"), "the outage is noticed")
    with ApiServer(NODE, port=server.port) as other:
        other.labels[LABEL] = "4"
        other.script(LIST, *[Reply.refusal(500), Reply.refusal(503)] * 2)
        other.stream()
        other.change({LABEL: "5"})
        assert plugin.labels.next() == "5"
        [warning] = log.warnings()
    assert plugin.labels.all == ["4", "5"]
    assert plugin.denied.all == []
    assert len(log.info("answers again")) == 1
    assert "Connection refused" in warning
    assert "everything stays as it is" in warning


def test_a_half_open_connection_ends_by_its_silence(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(node_watcher, "WATCH_SECONDS", (0, 0))
    monkeypatch.setattr(node_watcher, "WATCH_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(api_module, "ANSWER_SECONDS", 1000.0)
    plugin = started()
    assert plugin.labels.next() is None
    server.stream()
    server.labels[LABEL] = "1"  # without an event
    stream = server.stream(2)
    assert server.of(WATCH)[-1].query["resourceVersion"] == "1000"
    stream.send(server.modified())
    assert plugin.labels.next() == "1"
    assert log.warnings() == []


def test_the_kernel_watches_over_an_idle_watch(server: ApiServer, started: Start) -> None:
    """Linux shows the timer that a connection waits for: 2 is that of keep-alive."""
    started()
    server.stream()
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    timers = [
        fields[5].partition(":")[0]
        for fields in sockets
        if fields[2] == f"0100007F:{server.port:04X}" and fields[3] == "01"
    ]
    assert timers == ["02"]


def test_a_server_that_says_nothing_is_given_up_and_asked_again(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "ANSWER_SECONDS", 0.2)
    server.script(LIST, Reply(held=threading.Event()))
    plugin = started()
    assert plugin.labels.next() is None


def test_a_stream_that_breaks_is_not_worth_a_word(server: ApiServer, plugin: Plugin, log: Log) -> None:
    for number in (1, 2, 3):
        stream = server.stream(number)
        stream.send(server.bookmark(1000))
        stream.raw(b'{"type": "MODIF')
        stream.cut()
    server.stream(4)
    server.change({LABEL: "1"})
    assert plugin.labels.next() == "1"
    assert log.warnings() == []


def test_streams_that_end_at_once_are_slowed_down_and_replaced_by_lists(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(node_watcher, "SHORT_WATCH_SECONDS", 5.0)
    server.script(WATCH, *[Reply(body=b"")] * 4)
    plugin = started()
    assert plugin.labels.next() is None
    server.wait(WATCH, 2)
    server.labels[LABEL] = "1"
    assert plugin.labels.next() == "1"
    server.stream()
    assert_waits(server.of(WATCH)[:4], 0.015, 0.03, 0.06)
    assert len(log.warnings("the stream ends as soon as it is open")) == 1


def test_errors_are_met_with_growing_waits(server: ApiServer, started: Start) -> None:
    server.script(LIST, *[Reply.refusal(500)] * 4)
    plugin = started()
    assert plugin.labels.next() is None
    assert_waits(server.of(LIST), 0.015, 0.03, 0.06, 0.075)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_may_ask_for_patience_within_bounds(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(api_module, "RETRY_AFTER_MOST_SECONDS", 0.5)
    server.script(LIST, Reply.refusal(status, Retry_After="3600"))
    plugin = started()
    assert plugin.labels.next() is None
    first, second = server.of(LIST)
    assert 0.5 <= second.arrived - first.arrived < SECONDS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"items": 7, "metadata": {}}',
        b'{"items": []}',
        b'{"metadata": {"resourceVersion": %b}, "items": []}' % (b"9" * 5000),
        b'{"metadata": {"resourceVersion": "1"}, "items": [1, null, {"metadata": []}]}',
        b'{"metadata": {"resourceVersion": "1"}, "items": [%b]}'
        % json.dumps({"metadata": {"name": NODE, "resourceVersion": "1", "labels": {LABEL: ["x"]}}}).encode(),
        b"x" * 300_000,
        b'{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "another", "labels": {}}}]}',
    ],
)
def test_nonsense_for_a_list_is_no_answer(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(api_module, "LONGEST_LINE", 200_000)
    server.labels[LABEL] = "4"
    server.script(LIST, *[Reply(body=body)] * 2)
    plugin = started()
    assert plugin.labels.next() == "4"
    assert len(server.of(LIST)) == 3
    assert plugin.labels.all == ["4"]


# --- refusals and credentials ---------------------------------------------------------------------


def test_an_api_server_that_has_just_started_refuses_for_a_while_and_is_not_believed(
    server: ApiServer, started: Start
) -> None:
    server.script(LIST, *[Reply.refusal(403)] * 3)
    plugin = started(patience=3600.0)
    assert plugin.labels.next() is None
    assert plugin.denied.all == []


def test_a_refusal_that_lasts_is_told(server: ApiServer, started: Start) -> None:
    server.script(LIST, *[Reply.refusal(403)] * 1000)
    began = time.monotonic()
    plugin = started(patience=0.3)
    assert "list nodes" in str(plugin.denied.next())
    assert time.monotonic() - began >= 0.3


def test_a_refusal_counts_from_the_end_of_an_outage(server: ApiServer, started: Start) -> None:
    """Refused, away, and refused again at once: the second was as short as the first."""
    away = [Reply.refusal(503)] * 12  # for longer than the patience
    server.script(LIST, Reply.refusal(403), *away, Reply.refusal(403))
    plugin = started(patience=0.3)
    assert plugin.labels.next() is None
    assert plugin.denied.all == []


@pytest.mark.parametrize(("kind", "verb"), [(LIST, "list nodes"), (WATCH, "watch nodes")])
def test_a_missing_right_is_named_once_until_it_is_there(
    server: ApiServer, started: Start, kind: str, verb: str
) -> None:
    server.script(kind, *[Reply.refusal(403)] * 3)
    plugin = started()
    text = plugin.denied.next()
    assert f"does not let us {verb} (HTTP 403)" in text
    assert "deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrole.yaml" in text
    assert "deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrolebinding.yaml" in text
    stream = server.stream()
    assert plugin.labels.all == [None]
    assert len(plugin.denied.all) == 1
    server.script(kind, *[Reply.refusal(403)] * 2)
    if kind == LIST:
        stream.send({"type": "ERROR", "object": {"code": 410}})
    else:
        stream.end()
    server.stream(2)
    assert len(plugin.denied.all) == 2, "it was answered in between"


def test_a_token_that_was_exchanged_is_read_again(
    server: ApiServer, kubeconfig: Path, started: Start
) -> None:
    server.tokens = {SECRET}
    plugin = started()
    assert plugin.labels.next() is None
    stream = server.stream()
    write_kubeconfig(kubeconfig, server.url, token=NEXT)
    server.tokens = {NEXT}
    stream.end()
    server.stream(2)
    assert [request.token for request in server.of(WATCH)] == [SECRET, SECRET, NEXT]
    plugin.api.event(Event(kind="Normal", reason="Tested", text=""))
    server.wait(POST)
    assert plugin.denied.all == []


def test_a_token_that_is_not_accepted_is_said_once(
    server: ApiServer, kubeconfig: Path, started: Start, log: Log
) -> None:
    server.tokens = {NEXT}
    plugin = started()
    server.wait(LIST, 5)
    assert len(log.warnings("does not accept our credentials (HTTP 401 to list nodes)")) == 1
    assert len(log.warnings()) == 1
    assert not log.has("role")
    write_kubeconfig(kubeconfig, server.url, token=NEXT)
    assert plugin.labels.next() is None
    assert plugin.denied.all == [], "it is an outage and no answer"


@pytest.mark.parametrize("reply", [Reply.refusal(403, "Forbidden"), Reply(403, b"<html>no</html>")])
def test_only_the_authorizers_refusal_is_one(
    server: ApiServer, started: Start, log: Log, reply: Reply
) -> None:
    """A proxy in between may say 403 too."""
    server.script(LIST, *[reply] * 3)
    plugin = started()
    assert plugin.labels.next() is None
    assert plugin.denied.all == []
    assert len(log.warnings('everything stays as it is error="list nodes: HTTP 403')) == 1


@needs_openssl
def test_within_a_cluster_the_service_account_is_used(
    started: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    ca, tls = certificate(tmp_path)
    monkeypatch.setattr(api_module, "TOKEN_FILE", token)
    monkeypatch.setattr(api_module, "CA_FILE", ca)
    with ApiServer(NODE, tls=tls) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        assert has_credentials(None)
        server.tokens = {SECRET}
        server.labels[LABEL] = "4"
        plugin = started(None)
        assert plugin.labels.next() == "4"
        stream = server.stream()
        token.write_text(NEXT)
        server.tokens = {NEXT}
        stream.end()
        server.stream(2)
        assert server.of(WATCH)[-1].token == NEXT
        assert plugin.denied.all == []
        end(plugin, server)


@needs_openssl
def test_a_server_that_the_authority_does_not_know_is_not_talked_to(
    started: Start, tmp_path: Path, log: Log
) -> None:
    _, tls = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    with ApiServer(NODE, tls=tls) as server:
        plugin = started(
            write_kubeconfig(tmp_path / "config", server.url, **{"certificate-authority": str(other)})
        )
        wait_until(lambda: log.warnings("CERTIFICATE_VERIFY_FAILED"), "it is refused")
        assert server.requests == []
        assert plugin.labels.all == []
        end(plugin, server)


@pytest.mark.parametrize("content", [None, "", "users: [", "{}"])
def test_credentials_that_cannot_be_read_are_waited_for(
    server: ApiServer, kubeconfig: Path, started: Start, log: Log, content: str | None
) -> None:
    good = kubeconfig.read_text()
    kubeconfig.unlink()
    if content is not None:
        kubeconfig.write_text(content)
    plugin = started()
    wait_until(lambda: log.warnings("no answer"), "it is said")
    kubeconfig.write_text(good)
    assert plugin.labels.next() is None


def test_whether_there_are_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    monkeypatch.setattr(api_module, "TOKEN_FILE", token)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT", raising=False)
    assert has_credentials(tmp_path / "kubeconfig")
    assert not has_credentials(None)
    token.write_text(SECRET)
    assert not has_credentials(None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert has_credentials(None)
    token.unlink()
    assert not has_credentials(None)


@pytest.mark.parametrize("token", [SECRET, f"{SECRET}\n", f"{SECRET}\nX: y"])
def test_no_token_is_logged_even_if_it_is_none(
    server: ApiServer, tmp_path: Path, started: Start, log: Log, token: str
) -> None:
    server.tokens = set()
    plugin = started(write_kubeconfig(tmp_path / "kubeconfig", server.url, token=token))
    plugin.api.publish("state", labels={LABEL: "1"}, annotations={})
    plugin.api.event(Event(kind="Normal", reason="Tested", text=""))
    if token == SECRET:
        server.wait(LIST, 3)
        server.wait(POST, 2)
    else:
        wait_until(lambda: log.debug("create events"), "it was tried")
        wait_until(lambda: log.warnings("no answer"), "it was said")
    assert not log.has(SECRET)


# --- what is published ----------------------------------------------------------------------------


def test_what_differs_is_patched_and_nothing_else(server: ApiServer, started: Start) -> None:
    server.labels.update({"state": "old", "same": "1", "another": "x"})
    server.annotations.update({"detail": "old"})
    plugin = started()
    assert plugin.labels.next() is None
    plugin.api.publish(
        "state",
        labels={"state": "new", "same": "1", "never": None},
        annotations={"detail": None, "more": "text"},
    )
    [patch] = server.wait(PATCH)
    assert patch.path == f"/api/v1/nodes/{NODE}"
    assert patch.headers["content-type"] == "application/merge-patch+json"
    assert patch.body == {
        "metadata": {"labels": {"state": "new"}, "annotations": {"detail": None, "more": "text"}}
    }
    # Requests are written down before they are answered.
    wait_until(lambda: server.annotations == {"more": "text"}, "it is applied")
    assert server.labels == {"state": "new", "same": "1", "another": "x"}


def test_what_is_so_already_is_not_patched(server: ApiServer, started: Start) -> None:
    server.labels["state"] = "one"
    plugin = started()
    assert plugin.labels.next() is None
    plugin.api.publish("state", labels={"state": "one"}, annotations={})
    plugin.api.publish("state", labels={"state": "two"}, annotations={})
    server.wait(PATCH)
    plugin.api.publish("state", labels={"state": "two"}, annotations={})
    plugin.api.publish("state", labels={"state": "three"}, annotations={})
    patches = server.wait(PATCH, 2)
    assert [patch.body["metadata"] for patch in patches] == [
        {"labels": {"state": "two"}},
        {"labels": {"state": "three"}},
    ]


def test_what_somebody_takes_away_is_mended(server: ApiServer, plugin: Plugin) -> None:
    server.stream()
    plugin.api.publish("state", labels={"state": "success"}, annotations={"detail": "text"})
    server.wait(PATCH)
    server.change({"state": None})
    assert server.wait(PATCH, 2)[-1].body == {"metadata": {"labels": {"state": "success"}}}
    server.change({"another": "1"}, {"detail": "malformed"})
    assert server.wait(PATCH, 3)[-1].body == {"metadata": {"annotations": {"detail": "text"}}}
    plugin.api.publish("state", labels={}, annotations={})
    server.change({"state": None})
    plugin.api.publish("state", labels={"last": "1"}, annotations={})
    assert server.wait(PATCH, 4)[-1].body == {"metadata": {"labels": {"last": "1"}}}


def test_a_quarrel_is_slowed_down(server: ApiServer, plugin: Plugin) -> None:
    server.stream()
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    for number in range(1, 6):
        server.wait(PATCH, number)
        wait_until(lambda: "state" in server.labels, "it was patched")
        server.change({"state": None})
    assert_waits(server.wait(PATCH, 6), 0.015, 0.03, 0.06, 0.075, 0.075)


class Impatience:
    """A back-off that, on the thread of that name, all but gives up after the first wait."""

    def __init__(self, *, of: str) -> None:
        self._of = of

    def __call__(self, first: float, most: float) -> Iterator[float]:
        yield first
        while True:
            yield 1000.0 if threading.current_thread().name == self._of else first


def test_something_new_does_not_wait_for_a_quarrel_to_end(server: ApiServer, started: Start) -> None:
    plugin = started(delays=Impatience(of="api_write"))
    assert plugin.labels.next() is None
    server.stream()
    plugin.api.publish("state", labels={"state": "pending"}, annotations={})
    server.wait(PATCH)
    wait_until(lambda: "state" in server.labels, "it was patched")
    server.change({"state": None})
    server.wait(PATCH, 2)
    wait_until(lambda: "state" in server.labels, "it was patched")
    server.change({"state": None})
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    assert server.wait(PATCH, 3)[-1].body == {"metadata": {"labels": {"state": "success"}}}


def test_a_quarrel_of_long_ago_is_forgotten(server: ApiServer, started: Start) -> None:
    plugin = started(delays=lambda first, most: iter([0.0, 0.02, 1000.0]))
    assert plugin.labels.next() is None
    server.stream()
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    for number in range(1, 5):
        server.wait(PATCH, number)
        wait_until(lambda: "state" in server.labels, "it was patched")
        over = time.monotonic() + 0.15
        wait_until(lambda: time.monotonic() > over, "more than the longest wait")  # noqa: B023 - at once
        server.change({"state": None})
    server.wait(PATCH, 5)


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        (
            [Reply.refusal(500, "etcd"), Reply.refusal(500, "etcd"), Reply.refusal(409), Reply.refusal(429)],
            "HTTP 500 etcd",
        ),
        ([Reply.refusal(500, WEBHOOK_DOWN)] * 2, f"HTTP 500 {WEBHOOK_DOWN}"),
        ([Reply(body=b"{}")] * 2, "what comes is no"),
        ([Reply(body=b"[]")] * 2, "what comes is no"),
        ([Reply(body=b'{"metadata": {"labels": 5}}')] * 2, "what comes is no"),
    ],
    ids=["failures", "a webhook that is down", "an empty object", "a list", "no labels"],
)
def test_a_patch_is_tried_until_it_is_taken(
    server: ApiServer, started: Start, log: Log, replies: list[Reply], error: str
) -> None:
    server.script(PATCH, *replies)
    plugin = started()
    plugin.api.publish("state", labels={"state": "success", "more": "1"}, annotations={})
    last = server.wait(PATCH, len(replies) + 1)[-1]
    assert last.body == {"metadata": {"labels": {"state": "success", "more": "1"}}}, "all of it"
    wait_until(lambda: log.info('takes a request again request="patch nodes"'), "it was taken")
    assert server.labels == {"state": "success", "more": "1"}
    [warning] = log.warnings()
    words = json.dumps(f"patch nodes: {error}", ensure_ascii=False).removesuffix('"')
    assert warning.startswith(f"cannot write to the API server error={words}")


def test_patience_that_is_asked_for_is_kept_for_something_new_too(
    server: ApiServer, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "RETRY_AFTER_MOST_SECONDS", 0.5)
    server.script(PATCH, Reply.refusal(429, Retry_After="3600"))
    plugin = started()
    plugin.api.publish("state", labels={"state": "pending"}, annotations={})
    [first] = server.wait(PATCH)
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    second = server.wait(PATCH, 2)[-1]
    assert second.body == {"metadata": {"labels": {"state": "success"}}}
    assert second.arrived - first.arrived >= 0.5


def test_the_last_desired_count_counts_after_an_outage(server: ApiServer, started: Start, log: Log) -> None:
    """And as soon as there is an answer, however long the waits have become."""
    plugin = started(delays=Impatience(of="api_write"))
    assert plugin.labels.next() is None
    server.stream()
    server.close()
    wait_until(lambda: log.warnings("no answer"), "the outage is noticed")
    plugin.api.publish("state", labels={"state": "pending"}, annotations={})
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    wait_until(lambda: len(log.debug("patch nodes")) >= 2, "it waits long")
    with ApiServer(NODE, port=server.port) as other:
        [patch] = other.wait(PATCH)
        assert patch.body == {"metadata": {"labels": {"state": "success"}}}


def test_a_missing_right_to_make_events_is_logged_once(server: ApiServer, started: Start, log: Log) -> None:
    server.script(POST, *[Reply.refusal(403)] * 3)
    plugin = started()
    plugin.api.event(Event(kind="Normal", reason="Tested", text=""))
    server.wait(POST, 4)
    assert len(log.warnings("does not let us create events (HTTP 403)")) == 1
    assert plugin.denied.all == []


@pytest.mark.parametrize("seconds", ["9" * 400, "86401", "-5", "1.5", "soon"])
def test_a_wait_that_no_server_asks_for_is_none(server: ApiServer, started: Start, seconds: str) -> None:
    server.script(LIST, Reply.refusal(429, Retry_After=seconds))
    plugin = started()
    assert plugin.labels.next() is None


def test_a_missing_right_is_said_once_for_all_parts(server: ApiServer, started: Start, log: Log) -> None:
    allowed = threading.Event()
    server.admission = lambda _: None if allowed.is_set() else Reply.refusal(403)
    plugin = started()
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    plugin.api.publish("labels", labels={"model": "R200", "count": "1"}, annotations={})
    server.wait(PATCH, 6)
    [warning], [text] = log.warnings(), plugin.api.unwritten
    assert warning == f'cannot write to the API server error="{text}"'
    assert "apply deployment/xpu-operator_rbac" in plugin.api.unwritten[0]
    allowed.set()
    wait_until(lambda: len(server.labels) == 3, "all is written")
    wait_until(lambda: log.info('takes a request again request="patch nodes"'), "it is said")
    wait_until(lambda: plugin.api.unwritten == (), "nothing is unwritten")
    assert len(log.info('takes a request again request="patch nodes"')) == 1


@pytest.mark.parametrize(
    ("status", "message"), [(403, GATEKEEPER), (422, POLICY), (403, POLICY), (400, KYVERNO)]
)
def test_a_refusal_by_a_webhook_or_a_policy_is_told_in_its_words(
    server: ApiServer, started: Start, log: Log, status: int, message: str
) -> None:
    server.admission = lambda changes: Reply.refusal(status, message)
    plugin = started()
    plugin.api.publish("state", labels={"state": "success"}, annotations={"detail": "text"})
    server.wait(PATCH, 3 + 2 + 2)  # together, each, and each again
    [warning] = log.warnings()
    assert warning.startswith(
        'not written on this node, and tried again later names=["label state", "annotation detail"] error="'
    )
    assert "role" not in warning
    [text] = plugin.api.unwritten
    assert text.startswith(
        "not written on this node, and tried again later: label state, annotation detail: "
    )
    assert f"refuses to patch nodes (HTTP {status}): {' '.join(message.split())}" in text
    assert json.dumps(text.partition("detail: ")[2], ensure_ascii=False) in warning


def test_labels_that_are_refused_are_named_and_left_out_until_they_are_taken(
    server: ApiServer, started: Start, log: Log
) -> None:
    reserved = {"model", "count"}
    why = 'admission webhook "guard" denied the request: reserved'

    server.admission = lambda changes: Reply.refusal(403, why) if reserved & changes.keys() else None
    plugin = started()
    assert plugin.labels.next() is None
    has = {"model": "R200", "count": "1", "memory": "16384", "driver": "4"}
    plugin.api.publish("labels", labels=has, annotations={})
    plugin.api.publish("state", labels={"state": "success"}, annotations={"detail": "text"})
    wait_until(lambda: {"memory", "driver", "state"} <= server.labels.keys(), "the others are written")
    assert server.annotations == {"detail": "text"}
    wait_until(lambda: plugin.api.unwritten, "it is told")
    [text] = plugin.api.unwritten
    assert text.startswith("not written on this node, and tried again later: label model, label count: ")
    assert why in text
    plugin.api.publish("labels", labels={**has, "memory": "8192"}, annotations={})
    wait_until(lambda: server.labels["memory"] == "8192", "what is not refused goes on")
    [warning] = log.warnings()
    assert 'names=["label model", "label count"]' in warning
    reserved.clear()
    wait_until(lambda: has.keys() <= server.labels.keys(), "they are tried again")
    wait_until(lambda: plugin.api.unwritten == (), "nothing is left out")
    after = log.info("written on this node after all")
    assert sorted(name for line in after for name in re.findall("label ([a-z]+)", line)) == ["count", "model"]
    assert log.warnings() == [warning]


def test_what_is_left_out_is_tried_ever_more_rarely(server: ApiServer, started: Start) -> None:
    server.admission = lambda _: Reply.refusal(403, GATEKEEPER)
    plugin = started()
    plugin.api.publish("labels", labels={"model": "R200"}, annotations={})
    assert_waits(server.wait(PATCH, 4), 0.075, 0.15, 0.3)


def test_a_webhook_that_rewrites_what_we_write_is_told_and_not_fought(
    server: ApiServer, started: Start, log: Log
) -> None:
    server.mutation = lambda key, value: value.upper() if key == "state" else value
    plugin = started()
    assert plugin.labels.next() is None
    server.stream()
    plugin.api.publish("state", labels={"state": "success"}, annotations={"detail": "text"})
    wait_until(log.warnings, "it is told")
    [warning] = log.warnings()
    assert plugin.api.unwritten
    assert (
        'names=["label state"] error="an admission webhook of the cluster writes other values; ask its owner'
        in warning
    )
    first, second = server.wait(PATCH, 2)
    assert second.arrived - first.arrived >= 0.075
    assert second.body == {"metadata": {"labels": {"state": "success"}}}
    server.mutation = lambda key, value: value
    wait_until(lambda: server.labels["state"] == "success", "it is written")
    wait_until(lambda: plugin.api.unwritten == (), "and that is known")


def test_writing_does_not_wait_for_the_watch(server: ApiServer, started: Start) -> None:
    server.script(LIST, Reply(held=threading.Event()))
    plugin = started()
    server.wait(LIST)
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    server.wait(PATCH)
    assert len(server.of(LIST)) == 1


def test_requests_that_fail_are_counted_by_what_was_asked_and_status(
    server: ApiServer, started: Start
) -> None:
    server.script(LIST, Reply.refusal(403), Reply.refusal(500), Reply(body=b"malformed"))
    server.script(PATCH, Reply.refusal(409))
    plugin = started()
    assert not plugin.api.watching
    plugin.api.publish("state", labels={"state": "success"}, annotations={})
    server.wait(PATCH, 2)
    wait_until(lambda: plugin.api.watching, "a watch")
    assert plugin.api.failures == {
        ("list nodes", 403): 1,
        ("list nodes", 500): 1,
        ("list nodes", None): 1,
        ("patch nodes", 409): 1,
    }
    server.stream().end()
    server.wait(WATCH, 2)
    assert len(plugin.api.failures) == 4, "a watch that ends is none"


# --- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply.refusal(403), "does not let us patch nodes (HTTP 403)"),
        (Reply.refusal(404, 'nodes "node-1" not found'), 'patch nodes: HTTP 404 nodes "node-1" not found'),
    ],
)
def test_what_cannot_be_removed_is_an_error(
    server: ApiServer, kubeconfig: Path, reply: Reply, words: str
) -> None:
    server.script(PATCH, reply)
    with pytest.raises(ApiError, match=re.escape(words)):
        remove(NODE, kubeconfig, labels=["ours"], annotations=[])


# --- events ---------------------------------------------------------------------------------------


def test_an_event_is_one_that_describe_node_shows(server: ApiServer, started: Start) -> None:
    plugin = started()
    plugin.api.event(Event(kind="Warning", reason="Blocked", text="x" + "ü" * 1000))
    plugin.api.event(Event(kind="Normal", reason="Done", text="pod \ud800"))
    first, second = server.wait(POST, 2)
    assert first.path == "/api/v1/namespaces/default/events"
    event = first.body
    assert event.pop("firstTimestamp") == event.pop("lastTimestamp")
    name = event["metadata"].pop("name")
    assert name.startswith(f"{NODE}.")
    assert name != second.body["metadata"]["name"]
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "default"},
        "involvedObject": {"kind": "Node", "name": NODE, "uid": NODE},
        "source": {"component": "xpu-device-plugin", "host": NODE},
        "type": "Warning",
        "reason": "Blocked",
        "message": "x" + "ü" * 511,
        "count": 1,
    }
    assert second.body["message"] == "pod \\ud800", "half a surrogate pair as text"
    stamp = second.body["lastTimestamp"]
    age = time.time() - time.mktime(time.strptime(stamp + "+0000", "%Y-%m-%dT%H:%M:%SZ%z")) + time.timezone
    assert abs(age) < 60


def test_an_event_about_a_pod_is_one_that_describe_pod_shows_and_waits_for_no_other(
    server: ApiServer, started: Start, log: Log
) -> None:
    """A right to make Events about pods that is missing delays no Event about the node."""
    server.script(POST, Reply.refusal(403), Reply())
    plugin = started()
    pod = PodReference(namespace="research", name="train", uid="uid-1")
    plugin.api.event(Event(kind="Warning", reason="Tested", text="1", pod=pod))
    [refused] = server.wait(POST)
    assert refused.path == "/api/v1/namespaces/research/events"
    assert refused.body["metadata"]["namespace"] == "research"
    assert refused.body["metadata"]["name"].startswith("train.")
    assert refused.body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "research",
        "name": "train",
        "uid": "uid-1",
    }
    plugin.api.event(Event(kind="Normal", reason="Tested", text="2"))
    server.wait(POST, 3)
    [warning] = log.warnings()
    assert "create events about pods" in warning
    assert "deployment/pod-events.yaml" in warning


def test_events_that_a_webhook_refuses_are_dropped_and_that_is_said_once(
    server: ApiServer, started: Start, log: Log
) -> None:
    server.script(POST, *[Reply.refusal(403, GATEKEEPER)] * 2)
    plugin = started()
    for number in "123":
        plugin.api.event(Event(kind="Normal", reason="Tested", text=number))
    wait_until(lambda: len(server.events) == 1, "the last is taken")
    [warning] = log.warnings()
    assert warning.startswith("events about this node are dropped error=")
    assert json.dumps(GATEKEEPER, ensure_ascii=False)[1:-1] in warning


def test_an_event_is_tried_until_it_is_taken_or_hopeless(server: ApiServer, started: Start, log: Log) -> None:
    # The first is taken in the end, and only the answer was lost; the second is never taken.
    server.script(POST, *map(Reply.refusal, (500, 429, 409)), Reply.refusal(422, "bad"))
    plugin = started()
    for number in "1234":
        plugin.api.event(Event(kind="Normal", reason="Tested", text=number))
    server.wait(POST, 6)
    assert [request.body["message"] for request in server.of(POST)] == ["1", "1", "1", "2", "3", "4"]
    wait_until(lambda: len(server.events) == 2, "the last is taken")
    assert log.warnings() == [
        'cannot write to the API server error="create events: HTTP 500 as scripted"',
        'an event about this node is dropped error="create events: HTTP 422 bad"',
    ]
    assert log.info('takes a request again request="create events"')


def test_of_too_many_events_the_oldest_are_dropped_and_counted(
    server: ApiServer, started: Start, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that is being sent, which takes no other along."""
    monkeypatch.setattr(node_writer, "EVENTS_MOST", 3)
    held = threading.Event()
    server.script(POST, Reply(held=held))
    plugin = started()
    plugin.api.event(Event(kind="Normal", reason="Tested", text="0"))
    server.wait(POST)
    for number in "1234":
        plugin.api.event(Event(kind="Normal", reason="Tested", text=number))
    held.set()
    posts = server.wait(POST, 4)
    assert [post.body["message"] for post in posts] == ["0", "2", "3", "4"]
    wait_until(lambda: log.warnings("dropped events=2"), "it is said")


# --- threads and imports --------------------------------------------------------------------------


def test_stopping_waits_for_nobody(server: ApiServer, plugin: Plugin) -> None:
    stream = server.stream()
    assert len(threads()) == 2
    assert all(thread.daemon for thread in threads())
    begun = time.monotonic()
    plugin.api.stop()
    assert time.monotonic() - begun < PROMPT_SECONDS
    wait_until(lambda: [thread.name for thread in threads()] == ["api_watch"], "the writer ends")
    server.change({LABEL: "1"})
    stream.end()
    wait_until(lambda: not threads(), "the watch ends")
    assert plugin.labels.all == [None], "no follower is called after the stop"


def test_an_answer_after_the_stop_is_nobody_s(server: ApiServer, started: Start) -> None:
    held = threading.Event()
    server.script(LIST, Reply(body=server.listed().body, held=held))
    plugin = started()
    server.wait(LIST)
    plugin.api.stop()
    held.set()
    wait_until(lambda: not threads(), "the watch ends")
    assert plugin.labels.all == []


def test_a_process_ends_though_a_read_is_blocked(server: ApiServer, kubeconfig: Path) -> None:
    code = f"""
import sys, threading
from pathlib import Path
from xpu_plugin.edges.apiserver.node_watcher import NodeWatcher
from xpu_plugin.model.events import Event
assert not any(name.partition(".")[0] in ("kubernetes", "urllib3") for name in sys.modules)
from xpu_plugin.waiting import delays
answered = threading.Event()
class Follower:
    denied = print
    def saw(self, sight):
        answered.set()
api = NodeWatcher(node={NODE!r}, label="x", kubeconfig=Path({str(kubeconfig)!r}), delays=delays,
              follower=Follower())
api.publish("state", labels={{"a": "b"}}, annotations={{}})
api.event(Event(kind="Normal", reason="Tested", text=""))
api.start()
assert answered.wait({SECONDS})
input()
heavy = ("kubernetes.client.models.", "kubernetes.client.api.", "aiohttp")
print(*[name for name in sys.modules if name.startswith(heavy)])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            server.stream()
            server.wait(PATCH)
            server.wait(POST)
            output, _ = process.communicate("\n", timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    assert output.split() == [], "neither the client's models nor its APIs, which are most of its weight"
