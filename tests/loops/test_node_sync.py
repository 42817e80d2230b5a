# SPDX-License-Identifier: Apache-2.0
"""The node's label as the wish, and what is written on the node, against a stand-in for the API server's edge
that records what it is told and calls back when the test says so."""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support import tasks
from tests.support.devices import device, found
from tests.support.locks import Lock
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.apiserver.node_watcher import Follower, NodeWatcher
from xpu_plugin.edges.state.label import LabelRecord, forget
from xpu_plugin.loops import node_sync as node_module
from xpu_plugin.loops.exchange import Exchange
from xpu_plugin.loops.node_sync import LABELS_PART, STATE_PART, NodeSync
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.events import Event
from xpu_plugin.model.health import NOT_ANSWERING
from xpu_plugin.model.inventory import Policy, after_scan, after_verdicts
from xpu_plugin.model.node_labels import COUNT, DRIVER, MEMORY, MODEL, VFS
from xpu_plugin.model.readiness import STARTING, Readiness
from xpu_plugin.model.timings import USUAL
from xpu_plugin.model.vf_label import LAST_SEEN, NEW_NODE, Kept, LabelSight
from xpu_plugin.model.vf_plan import (
    DETAIL_ANNOTATION,
    LABEL,
    STATE_LABEL,
    UNKNOWN,
    CardPlan,
    DesiredVfs,
    Report,
    VfAction,
    VfOutcome,
    by_argument,
)
from xpu_plugin.observable import Outbox, Value


A = "0000:3b:00.0"
UID, NEW_UID = "uid-1", "uid-2"
Start = Callable[..., contextlib.AbstractAsyncContextManager["Tried"]]

pytestmark = pytest.mark.usefixtures("leaves_no_task")


@dataclass
class Api:
    """What the node was told to publish, and whether it runs."""

    follower: Follower
    started: int = 0
    stopped: int = 0
    lacks: int = 0  # how often no thread can be started
    published: list[tuple[Mapping[str, str | None], Mapping[str, str | None]]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of what was published
    events: list[tuple[str, str, str]] = field(default_factory=list)
    gates: list[Readiness] = field(default_factory=list)
    conditions: list[Readiness] = field(default_factory=list)

    def start(self) -> None:
        if self.lacks:
            self.lacks -= 1
            raise RuntimeError("can't start new thread")
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def publish(
        self, part: str, *, labels: Mapping[str, str | None], annotations: Mapping[str, str | None]
    ) -> None:
        self.parts.append(part)
        self.published.append((labels, annotations))

    def event(self, event: Event) -> None:
        self.events.append((event.kind, event.reason, event.text))

    def gate(self, readiness: Readiness) -> None:
        self.gates.append(readiness)

    def condition(self, readiness: Readiness) -> None:
        self.conditions.append(readiness)


class Desired(Value[DesiredVfs]):
    """Remembers each wish, and the thread that has written it."""

    def __init__(self) -> None:
        super().__init__(UNKNOWN)
        self.wishes: list[DesiredVfs] = []
        self.threads: set[int] = set()

    def set(self, value: DesiredVfs) -> None:
        if value != self.current:
            self.wishes.append(value)
            self.threads.add(threading.get_ident())
        super().set(value)


class Tried:
    """A node, the stand-in it talks to, and the wishes it has told."""

    def __init__(
        self,
        *,
        argument: int | None,
        record: LabelRecord,
        patience: float = 1000.0,
        alone: Callable[[], Awaitable[None]] | None = None,
        lacks: int = 0,
        between: float = USUAL.record,
    ) -> None:
        self.apis: list[Api] = []
        self.desired, self.outcome, self.events = Desired(), Value(VfOutcome()), Outbox[Event]()
        self.exchange = Exchange(desired=self.desired, outcome=self.outcome, events=self.events)
        self.wishes, self.threads = self.desired.wishes, self.desired.threads
        self.record = record
        self._lacks = lacks
        self.node = NodeSync(
            exchange=self.exchange,
            argument=argument,
            connect=self._connect,
            record=record,
            lock=None if alone is None else Lock(alone),
            patience=patience,
            between=between,
        )

    def _connect(self, follower: Follower) -> NodeWatcher:
        self.apis.append(Api(follower, lacks=self._lacks))
        return cast(NodeWatcher, self.apis[-1])

    @property
    def api(self) -> Api:
        (api,) = self.apis
        return api

    async def report(self, report: Report) -> None:
        """Have this report on the wish, which is written if it has to be."""
        self.outcome.set(VfOutcome(desired=self.desired.current, report=report))
        await settled()

    async def after(self, number: int) -> DesiredVfs:
        """The wish that was told as the `number`th."""
        await until(lambda: len(self.wishes) >= number, f"{number} wishes")
        assert len(self.wishes) == number
        return self.wishes[-1]

    async def label(self, label: str | None, uid: str = UID) -> DesiredVfs:
        """The wish that this label makes, told by a thread of the API server's edge."""
        before = len(self.wishes)
        await asyncio.to_thread(self.api.follower.saw, LabelSight(uid=uid, label=label))
        return await self.after(before + 1)

    async def kept(self, kept: Kept | None) -> None:
        """Wait until the record has this."""
        while not await self.record.read() or self.record.content != kept:  # noqa: ASYNC110 - it is a file
            await asyncio.sleep(0.01)


@pytest.fixture
def running(tmp_path: Path) -> Start:
    """Runs a node, with the record of the nodes before it."""
    return lambda argument=0, **more: _running(argument, LabelRecord(tmp_path), **more)


@contextlib.asynccontextmanager
async def _running(argument: int | None, record: LabelRecord, **more: Any) -> AsyncIterator[Tried]:
    tried = Tried(argument=argument, record=record, **more)
    async with tasks.running(tried.node.run()):
        await until(lambda: tried.apis and tried.api.started, "the start of the API server's edge")
        yield tried


async def settled() -> None:
    """What was called on the loop from a thread before this has been called."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(loop.call_soon_threadsafe, done.set)
    async with asyncio.timeout(SECONDS):
        await done.wait()


def step(actual: int = 0, action: VfAction = VfAction.APPLY, reason: str = "") -> CardPlan:
    return CardPlan(card=A, desired=2, actual=actual, action=action, reason=reason)


PENDING, DONE = Report(steps=(step(),)), Report(steps=(step(2, VfAction.KEEP),))


# --- the wish -------------------------------------------------------------------------------------


async def test_no_desired_count_is_told_before_the_api_server_has_answered(running: Start) -> None:
    async with running(argument=2) as tried:
        await settled()
        assert tried.wishes == []
        assert tried.api.stopped == 0
    assert (tried.api.started, tried.api.stopped) == (1, 1)


async def test_each_change_of_the_label_is_another_desired_count(running: Start) -> None:
    async with running(argument=1) as tried:
        desired = [await tried.label(label) for label in ("3", "keep", None, "0")]
    assert [own.number for own in desired] == [3, None, 1, 0]
    assert desired[0].origin == f"label {LABEL}"
    assert desired[2] == by_argument(1)


async def test_what_a_thread_says_is_told_on_the_loop(running: Start) -> None:
    async with running() as tried:
        await tried.label("3")
        await asyncio.to_thread(tried.api.follower.denied, "403")
        await settled()
    assert tried.threads == {threading.get_ident()}


async def test_a_thread_that_is_late_finds_nobody_and_does_not_fail(running: Start) -> None:
    """The edge's threads may end after the loop."""
    loop = asyncio.new_event_loop()

    async def begin() -> Tried:
        async with running(argument=2) as tried:
            return tried

    def all_of_a_life() -> Tried:
        try:
            return loop.run_until_complete(begin())
        finally:
            loop.close()

    tried = await asyncio.to_thread(all_of_a_life)
    tried.api.follower.saw(LabelSight(uid=UID, label="3"))
    tried.api.follower.denied("403")
    assert tried.wishes == []


# --- refusals -------------------------------------------------------------------------------------


async def test_a_refusal_makes_the_argument_count(running: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with running(argument=2) as tried:
        tried.api.follower.denied("nodes is forbidden")
        assert await tried.after(1) == by_argument(2)
        tried.api.follower.denied("nodes is still forbidden")
        await settled()
        assert len(tried.wishes) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert caplog.text.count("the argument --sriov-num-vfs counts") == 1
    assert caplog.text.count("nodes is forbidden") == 1


async def test_the_label_counts_as_soon_as_it_can_be_read_after_all(running: Start) -> None:
    async with running(argument=2) as tried:
        tried.api.follower.denied("403")
        assert await tried.after(1) == by_argument(2)
        assert (await tried.label("3")).number == 3
        tried.api.follower.denied("403")
        await settled()
        assert len(tried.wishes) == 2


# --- the label last seen --------------------------------------------------------------------------


async def at_once() -> None:
    """No other instance is there."""


@pytest.fixture
async def seen_before(running: Start) -> None:
    """Another life of the plugin has seen label 3, argument 1."""
    async with running(argument=1, alone=at_once) as tried:
        assert (await tried.label("3")).number == 3
        await tried.kept(Kept(label="3", node=UID))


@pytest.mark.usefixtures("seen_before")
async def test_an_outage_at_the_start_leaves_the_label_last_seen(running: Start) -> None:
    async with running(argument=1, patience=0.05) as tried:
        assert await tried.after(1) == DesiredVfs(number=3, origin=LAST_SEEN)
        assert (await tried.label("2")).number == 2


@pytest.mark.usefixtures("seen_before")
async def test_a_refusal_leaves_the_label_last_seen_and_names_the_way_back_once(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(argument=1) as tried:
        tried.api.follower.denied("nodes is forbidden")
        assert await tried.after(1) == DesiredVfs(number=3, origin=LAST_SEEN)
        tried.api.follower.denied("nodes is still forbidden")
        await settled()
        assert len(tried.wishes) == 1
    way = "to let the argument count run 'xpu-device-plugin cleanup' on this node label=\"3\""
    assert caplog.text.count(way) == 1
    assert "the argument --sriov-num-vfs counts" not in caplog.text


@pytest.mark.usefixtures("seen_before")
async def test_a_refusal_after_an_outage_leaves_the_label_last_seen_and_is_explained(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(argument=1, patience=0.0) as tried:
        await tried.after(1)
        tried.api.follower.denied("nodes is forbidden")
        await settled()
        assert len(tried.wishes) == 1
    assert caplog.text.count("the label last seen counts") == 1


@pytest.mark.usefixtures("seen_before")
async def test_a_label_that_was_removed_is_forgotten(running: Start) -> None:
    async with running(argument=1, alone=at_once) as tried:
        assert await tried.label(None) == by_argument(1)
        await tried.kept(None)
    async with running(argument=1) as tried:
        tried.api.follower.denied("nodes is forbidden")
        assert await tried.after(1) == by_argument(1)


@pytest.mark.usefixtures("seen_before")
@pytest.mark.parametrize("refused", [True, False])
async def test_cleanup_lets_the_argument_count_without_a_restart(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    async with running(between=0.02, argument=1, alone=at_once) as tried:
        if refused:
            tried.api.follower.denied("nodes is forbidden")
            assert (await tried.after(1)).origin == LAST_SEEN
        else:
            assert (await tried.label(None, NEW_UID)).origin == NEW_NODE
            await tried.kept(Kept(label=None, node=UID))
        assert forget(tmp_path)
        assert await tried.after(2) == by_argument(1)
    assert not forget(tmp_path)


async def test_cleanup_during_an_outage_leaves_everything(
    running: Start, tmp_path: Path, seen_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(between=0.02, argument=1, alone=at_once, patience=0.0) as tried:
        assert (await tried.after(1)).origin == LAST_SEEN
        forget(tmp_path)
        assert await tried.after(2) == UNKNOWN


@pytest.mark.usefixtures("seen_before")
async def test_a_sub_command_or_a_second_instance_keeps_nothing(running: Start) -> None:
    waits = asyncio.Event()

    async def forever() -> None:
        await waits.wait()

    for alone in (None, forever):
        async with running(argument=1, alone=alone) as tried:
            await tried.label("2")
            await settled()
            assert await tried.record.read()
            assert tried.record.content == Kept(label="3", node=UID)


@pytest.mark.usefixtures("seen_before")
async def test_what_the_instance_before_has_written_counts_after_the_lock(running: Start) -> None:
    turn = asyncio.Event()

    async def wait() -> None:
        await turn.wait()

    async with running(argument=1, alone=wait, patience=0.0) as tried:
        assert (await tried.after(1)).number == 3
        await tried.record.write(Kept(label="2", node=UID))
        turn.set()
        assert await tried.after(2) == DesiredVfs(number=2, origin=LAST_SEEN)


@pytest.mark.usefixtures("seen_before")
async def test_only_a_label_counts_before_the_record_can_be_read(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EIO is no reason to take it for empty."""
    monkeypatch.setattr(node_module, "AGAIN_SECONDS", (0.01, 0.02))
    file, aside = tmp_path / "label.json", tmp_path / "aside"
    file.rename(aside)
    file.symlink_to(file)  # ELOOP, as good as EIO
    async with running(argument=1, alone=at_once) as tried:
        await asyncio.to_thread(tried.api.follower.saw, LabelSight(uid=UID, label=None))
        tried.api.follower.denied("nodes is forbidden")
        await until(lambda: "cannot read a record" in caplog.text, "it is said")
        assert tried.wishes == []
        aside.replace(file)
        assert await tried.after(1) == DesiredVfs(number=3, origin=LAST_SEEN)
    assert caplog.text.count("cannot read a record") == 1
    file.rename(aside)
    file.symlink_to(file)
    async with running(argument=1, alone=at_once) as tried:
        assert (await tried.label("2")).number == 2
        file.unlink()
        await tried.kept(Kept(label="2", node=UID))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"label": 3, "node": null}',
        '{"label": "many", "node": null}',
        '{"label": "2", "node": 1}',
    ],
)
async def test_a_damaged_record_counts_as_none_and_is_kept_aside(
    running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (tmp_path / "label.json").write_text(content)
    async with running(argument=1, alone=at_once) as tried:
        tried.api.follower.denied("nodes is forbidden")
        assert await tried.after(1) == by_argument(1)
        await tried.label("2")
        await tried.kept(Kept(label="2", node=UID))
    assert caplog.text.count("a damaged record counts as empty") == 1
    assert (tmp_path / "label.json.damaged").read_text() == content


async def test_a_record_that_cannot_be_written_is_said_once_and_tried_again(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_module, "AGAIN_SECONDS", (0.01, 0.02))
    file = tmp_path / "label.json"
    async with running(argument=1, alone=at_once) as tried:
        await tried.label("1")
        await tried.kept(Kept(label="1", node=UID))
        file.unlink()
        file.mkdir()
        (file / "full").touch()
        await tried.label("2")
        await until(lambda: "cannot write a record" in caplog.text, "it is said")
        (file / "full").unlink()
        file.rmdir()
        await tried.kept(Kept(label="2", node=UID))
    assert caplog.text.count("cannot write a record") == 1


# --- threads --------------------------------------------------------------------------------------


async def test_a_lack_of_threads_is_waited_for(
    running: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_module, "AGAIN_SECONDS", (0.01, 0.02))
    async with running(argument=1, lacks=3) as tried:
        assert (await tried.label("2")).number == 2
        assert (tried.api.started, tried.api.lacks) == (1, 0)
    assert caplog.text.count("cannot start a thread for the API server") == 1


# --- what is written ------------------------------------------------------------------------------


async def test_nothing_is_published_before_there_is_a_desired_count_and_then_the_same_report_is(
    running: Start,
) -> None:
    async with running(argument=2) as tried:
        await tried.report(PENDING)
        assert tried.api.published == []
        await tried.label(None)
        await tried.report(PENDING)
    assert tried.api.published == [({STATE_LABEL: "pending"}, {DETAIL_ANNOTATION: PENDING.detail()})]


async def test_without_a_report_the_state_is_left_to_another_instance(running: Start) -> None:
    async with running() as tried:
        await tried.label("2")
        await tried.report(DONE)
        tried.outcome.set(VfOutcome())
        await settled()
        assert tried.api.published[1:] == [({}, {})]
        await tried.report(DONE)
        assert tried.api.published[2:] == tried.api.published[:1]


async def test_only_what_has_changed_is_published(running: Start) -> None:
    async with running() as tried:
        await tried.label("2")
        for report in (PENDING, PENDING, DONE, DONE, PENDING):
            await tried.report(report)
        states = [labels[STATE_LABEL] for labels, _ in tried.api.published]
        assert states == ["pending", "success", "pending"]
        await tried.report(Report(steps=(step(reason="waits its turn"),)))
        assert len(tried.api.published) == 4
        detail = tried.api.published[-1][1][DETAIL_ANNOTATION]
        assert detail
        assert json.loads(detail)["cards"][0]["reason"] == "waits its turn"


async def test_what_is_to_be_written_before_there_is_an_edge_is_written_then(tmp_path: Path) -> None:
    tried = Tried(argument=0, record=LabelRecord(tmp_path))
    picture = Picture(Policy(resource="baidu.com/xpu"))
    picture.submit(lambda facts: after_scan(facts, found(device(A))))
    async with tasks.running(tried.node.describe(picture, lambda: "4.0.12.1")):
        tried.events.put(Event(kind="Warning", reason="XPUUnhealthy", text="one"))
        tried.events.put(Event(kind="Normal", reason="XPURecovered", text="two"))
        await settled()
        assert tried.apis == []
        async with tasks.running(tried.node.run()):
            await until(lambda: tried.apis and tried.api.started, "the start of the API server's edge")
            await settled()
            assert tried.api.events == [("Warning", "XPUUnhealthy", "one"), ("Normal", "XPURecovered", "two")]
            ((labels, _),) = tried.api.published
            assert labels[COUNT] == "1"


# --- what the node has ----------------------------------------------------------------------------


async def test_the_node_is_labelled_with_what_it_has_beside_the_state(running: Start) -> None:
    picture = Picture(Policy(resource="baidu.com/xpu"))
    picture.submit(lambda facts: after_scan(facts, found(device(A))))
    version = "4.0.12.1 commit: 1"
    async with running() as tried, tasks.running(tried.node.describe(picture, lambda: version)):
        await until(lambda: tried.api.published, "labels")
        has = {MODEL: "R200", COUNT: "1", MEMORY: "16384", DRIVER: "4.0.12.1", VFS: "true"}
        assert tried.api.published == [(has, {})]

        await tried.label("2")
        await tried.report(DONE)
        assert tried.api.published[-1] == ({STATE_LABEL: "success"}, {DETAIL_ANNOTATION: DONE.detail()})

        # A device that falls ill, or is lost, is one that the node has.
        picture.submit(lambda facts: after_verdicts(facts, {A: NOT_ANSWERING}))
        picture.submit(lambda facts: after_scan(facts, found()))
        more = [device(A), device("0000:3c:00.0", number=1)]
        picture.submit(lambda facts: after_scan(facts, found(*more)))
        await until(lambda: len(tried.api.published) == 3, "other labels")
        assert tried.api.published[-1] == ({**has, COUNT: "2"}, {})
        assert tried.api.parts == [LABELS_PART, STATE_PART, LABELS_PART], "each by patches of its own"


# --- readiness ------------------------------------------------------------------------------------


async def test_readiness_goes_to_the_edge_and_the_taint_comes_from_it(running: Start) -> None:
    ready, listed = replace(STARTING, message="ready"), replace(STARTING, message="listed")
    async with running() as tried:
        tried.exchange.readiness.set(ready)
        tried.exchange.condition.set(listed)
        await until(lambda: tried.api.gates[-1:] == [ready], "the gate")
        await until(lambda: tried.api.conditions[-1:] == [listed], "the condition")
        assert tried.exchange.tainted.current is None
        await asyncio.to_thread(tried.api.follower.tainted, ("NoSchedule",))
        await until(lambda: tried.exchange.tainted.current is True, "the taint")
        await asyncio.to_thread(tried.api.follower.tainted, ())
        await until(lambda: tried.exchange.tainted.current is False, "no taint")
