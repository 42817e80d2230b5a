# SPDX-License-Identifier: Apache-2.0
"""The startup taint and the condition of the cards, against real sockets: what is written, what is left."""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import GET, PATCH, ApiServer, Reply, write_kubeconfig
from tests.support.waiting import SECONDS, wait_until
from xpu_plugin.edges.apiserver import errand, node_gate, node_watcher
from xpu_plugin.edges.apiserver.node_watcher import NodeWatcher
from xpu_plugin.model.readiness import STARTING, Readiness, Reason, Status
from xpu_plugin.model.vf_label import LabelSight
from xpu_plugin.waiting import delays


NODE = "node-1"
KEY, XPU = "baidu.com/xpu-startup", "baidu.com/xpu"
READY = Readiness(status=Status.TRUE, reason=Reason.LISTED, message="all are listed", allocatable={XPU: 4})
GONE = Readiness(status=Status.FALSE, reason=Reason.NO_LIBRARY, message="no driver")
OURS = [{"key": KEY, "effect": "NoSchedule"}, {"key": KEY, "effect": "NoExecute", "value": "true"}]
OTHERS = [
    {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "timeAdded": "2026-11-29T00:00:00Z"},
    {"key": f"{KEY}-2", "effect": "NoSchedule"},
]


class Plugin:
    """A watcher, and what it tells of the taint."""

    def __init__(self, kubeconfig: Path, **options: Any) -> None:
        self.told: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
        self.api = NodeWatcher(
            node=NODE, label="label", kubeconfig=kubeconfig, follower=self, delays=delays, **options
        )
        self.api.start()

    def saw(self, sight: LabelSight) -> None:
        """Take the label, which is no matter here."""

    def denied(self, text: str) -> None:
        """Take a refusal of it."""

    def tainted(self, effects: tuple[str, ...]) -> None:
        self.told.put(effects)

    def next(self) -> tuple[str, ...]:
        return self.told.get(timeout=SECONDS)


Start = Callable[..., Plugin]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errand, "AGAIN_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(node_watcher, "AGAIN_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(node_gate, "LOOK_SECONDS", (0.02, 0.1))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    plugins = []

    def start(**options: Any) -> Plugin:
        plugins.append(Plugin(tmp_path / "kubeconfig", **options))
        return plugins[-1]

    yield start
    for plugin in plugins:
        plugin.api.stop()


@pytest.fixture
def server(start: Start, tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(NODE) as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        server.taints = [OTHERS[0], *OURS, OTHERS[1]]
        server.allocatable = {XPU: "4"}
        yield server


# --- the taint ------------------------------------------------------------------------------------


def test_it_stays_until_the_cards_are_ready_and_then_goes_alone(server: ApiServer, start: Start) -> None:
    plugin = start(taint=KEY)
    assert plugin.next() == ("NoSchedule", "NoExecute")
    plugin.api.gate(GONE)
    plugin.api.gate(READY)
    assert plugin.next() == ()
    assert server.taints == OTHERS
    [patch] = server.of(PATCH)
    assert patch.path == f"/api/v1/nodes/{NODE}"
    assert patch.body["metadata"].keys() == {"resourceVersion", "uid"}


def test_the_last_taint_leaves_no_list(server: ApiServer, start: Start) -> None:
    server.taints = OURS
    start(taint=KEY).api.gate(READY)
    [patch] = server.wait(PATCH)
    assert patch.body["spec"] == {"taints": None}


def test_without_it_nothing_is_written_and_the_node_is_read_once(server: ApiServer, start: Start) -> None:
    server.taints = OTHERS
    plugin = start(taint=KEY)
    assert plugin.next() == ()
    for readiness in (READY, GONE, READY):
        plugin.api.gate(readiness)
    server.stream().send(server.modified())
    plugin.api.publish("state", labels={"a": "b"}, annotations={})
    server.wait(PATCH)
    assert (len(server.of(PATCH)), len(server.of(GET))) == (1, 1)
    assert server.taints == OTHERS


def test_a_node_that_does_not_show_the_devices_yet_keeps_it(server: ApiServer, start: Start) -> None:
    server.allocatable = {XPU: "0"}
    plugin = start(taint=KEY)
    plugin.api.gate(READY)
    server.wait(GET, 3)
    assert server.of(PATCH) == []
    server.allocatable = {XPU: "4"}
    while plugin.next():
        pass
    assert server.taints == OTHERS


def test_a_change_of_another_client_meanwhile_is_not_undone(server: ApiServer, start: Start) -> None:
    late = {"key": "another", "effect": "NoSchedule"}
    answer = server.shown()
    server.taints = [*server.taints, late]
    server.change({})
    server.script(GET, answer)
    plugin = start(taint=KEY)
    plugin.api.gate(READY)
    while plugin.next():
        pass
    assert server.taints == [*OTHERS, late]


def test_it_goes_again_from_a_node_that_was_made_anew(server: ApiServer, start: Start) -> None:
    plugin = start(taint=KEY)
    plugin.api.gate(READY)
    while plugin.next():
        pass
    server.stream()
    server.renewed(taints=OURS)
    assert plugin.next() == ("NoSchedule", "NoExecute"), "its kubelet does not show the devices yet"
    server.allocatable = {XPU: "4"}
    while plugin.next():
        pass
    assert server.taints == []


def test_a_wish_that_ends_before_it_was_granted_does_not_count(server: ApiServer, start: Start) -> None:
    server.allocatable = {}
    plugin = start(taint=KEY)
    plugin.api.gate(READY)
    server.wait(GET, 2)
    plugin.api.gate(GONE)
    plugin.api.publish("state", labels={"a": "b"}, annotations={})
    server.wait(PATCH)  # by the same thread: what it was doing with the taint is over
    server.allocatable = {XPU: "4"}
    looks = len(server.of(GET))
    plugin.api.publish("state", labels={"a": "c"}, annotations={})
    server.wait(PATCH, 2)
    assert (len(server.of(GET)), server.taints) == (looks, [OTHERS[0], *OURS, OTHERS[1]])


@pytest.mark.parametrize("refusal", [Reply.refusal(403), Reply.refusal(500), Reply(body=b"[]")])
def test_a_request_that_fails_is_told_and_tried_again(
    server: ApiServer, start: Start, refusal: Reply
) -> None:
    server.script(GET, refusal)
    server.script(PATCH, refusal)
    plugin = start(taint=KEY)
    plugin.api.gate(READY)
    wait_until(lambda: plugin.api.unwritten, "it is told")
    while plugin.next():
        pass
    assert server.taints == OTHERS
    wait_until(lambda: not plugin.api.unwritten, "it is over")


# --- the condition --------------------------------------------------------------------------------


def conditions(server: ApiServer, number: int) -> list[dict[str, str]]:
    return [patch.body["status"]["conditions"][0] for patch in server.wait(PATCH, number)]


def test_the_condition_is_written_at_each_change_and_no_other_is_touched(
    server: ApiServer, start: Start
) -> None:
    ready = {"type": "Ready", "status": "True"}
    server.conditions = [ready]
    plugin = start(condition=True)
    [first] = conditions(server, 1)
    assert (first["type"], first["status"], first["reason"]) == ("XPUReady", "Unknown", "NotScanned")
    assert first["message"] == STARTING.message
    assert first["lastHeartbeatTime"] == first["lastTransitionTime"]
    plugin.api.condition(READY)
    second = conditions(server, 2)[1]
    assert (second["status"], second["reason"]) == ("True", "DevicesListed")
    assert server.of(PATCH)[1].path == f"/api/v1/nodes/{NODE}/status"
    wait_until(lambda: len(server.conditions) == 2, "it is beside the kubelet's")
    assert server.conditions[0] == ready
    assert len(server.of(GET)) == 1


def test_a_status_that_stays_keeps_the_time_of_its_transition(server: ApiServer, start: Start) -> None:
    """Also that of the plugin before."""
    before = {"type": "XPUReady", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    server.conditions = [before]
    plugin = start(condition=True)
    plugin.api.condition(STARTING)
    [written] = conditions(server, 1)
    assert "lastTransitionTime" not in written
    plugin.api.condition(GONE)
    assert "lastTransitionTime" in conditions(server, 2)[1]


def test_a_node_that_was_made_anew_gets_its_condition(server: ApiServer, start: Start) -> None:
    plugin = start(condition=True)
    plugin.api.condition(GONE)
    wait_until(lambda: server.conditions and server.conditions[0]["status"] == "False", "it is written")
    server.stream()
    server.renewed()
    wait_until(lambda: server.conditions, "it is written again")
    assert server.conditions[0]["lastTransitionTime"]


def test_the_role_that_the_condition_needs_is_named(server: ApiServer, start: Start) -> None:
    server.script(PATCH, Reply.refusal(403))
    plugin = start(condition=True)
    wait_until(lambda: plugin.api.unwritten, "it is told")
    assert "deployment/node-condition.yaml" in plugin.api.unwritten[0]


@pytest.mark.parametrize("reason", Reason)
def test_reasons_are_those_that_kubernetes_accepts(reason: Reason) -> None:
    assert reason.isalnum()
    assert reason[0].isupper()
