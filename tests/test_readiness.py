# SPDX-License-Identifier: Apache-2.0
"""The whole plugin with a kubelet and an API server: no pod before the cards are ready, and each pod hears of
its devices."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.api_server import PATCH, ApiServer, Reply, write_kubeconfig
from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.model import vf_reconcile
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import Kubelet


KEY = "baidu.com/xpu-startup"
TAINTS = [{"key": "another", "effect": "NoSchedule"}, {"key": KEY, "effect": "NoSchedule"}]
OPTIONS = (
    f"--startup-taint={KEY}",
    "--node-condition",
    "--node-name=here",
    "--pod-name=plugin",
    "--pod-list-delay=0.3",
    "--label-timeout=0",
)
IMPATIENT = impatient(
    Timings(holders=0.1, listed=0.2, stays=0.2, behind=0.2, vfs=vf_reconcile.VfPace(look=0.1, check=0.05))
)

pytestmark = pytest.mark.usefixtures("leaves_no_process")


class Cluster(ApiServer):
    """An API server that shows what the kubelet has, and notes the list when the taint goes."""

    def __init__(self, kubelet: Kubelet) -> None:
        super().__init__("here")
        self.kubelet = kubelet
        self.at_removal: list[str] | None = None
        self.taints = list(TAINTS)

    def shown(self) -> Reply:
        self.allocatable = {RESOURCE: str(self.kubelet.allocatable(RESOURCE))}
        return super().shown()

    def usual(self, request: object) -> Reply:
        before = len(self.taints)
        answer = super().usual(request)  # type: ignore[arg-type]  # as it came
        if len(self.taints) < before:
            self.at_removal = sorted(self.kubelet.devices(RESOURCE))
        return answer

    @property
    def condition(self) -> tuple[str, str] | None:
        return next(((own["status"], own["reason"]) for own in self.conditions), None)


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    async with node.kubelet() as kubelet:
        own_pod(kubelet)
        yield kubelet


@pytest.fixture
def cluster(node: Node, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with Cluster(kubelet) as cluster:
        write_kubeconfig(node.place / "kubeconfig", cluster.url)
        yield cluster


def begin(node: Node, *arguments: str) -> Daemon:
    access = f"--kubeconfig={node.place}/kubeconfig"
    return node.start(*OPTIONS, access, *arguments, program=IMPATIENT)


async def test_the_taint_goes_once_the_kubelet_lists_the_cards(
    node: Node, kubelet: Kubelet, cluster: Cluster
) -> None:
    begin(node)
    await until(lambda: cluster.taints == TAINTS[:1], "the taint is gone")
    assert cluster.at_removal == IDS
    await until(lambda: cluster.condition == ("True", "DevicesListed"), "the condition")


@pytest.mark.parametrize("how", ["argument", "label"])
async def test_the_taint_goes_with_the_last_card_that_is_split(
    node: Node, kubelet: Kubelet, cluster: Cluster, how: str
) -> None:
    if how == "label":
        cluster.labels["baidu.com/sriov-num-vfs"] = "2"
    begin(node, f"--sriov-num-vfs={2 if how == 'argument' else 'keep'}")
    await until(lambda: cluster.taints == TAINTS[:1], "the taint is gone")
    assert cluster.at_removal is not None
    assert len(cluster.at_removal) == 8
    await until(lambda: cluster.condition == ("True", "DevicesListed"), "the condition")


async def test_a_card_that_the_driver_does_not_split_keeps_no_pod_away(
    node: Node, kubelet: Kubelet, cluster: Cluster
) -> None:
    node.machine.add_fault("xpumlDeviceSetSriovVfNum", "code:999")
    begin(node, "--sriov-num-vfs=2")
    await until(lambda: cluster.taints == TAINTS[:1], "the taint is gone")
    assert cluster.at_removal == IDS


async def test_without_a_driver_the_taint_stays_and_an_event_says_why(
    node: Node, kubelet: Kubelet, cluster: Cluster
) -> None:
    node.machine.set({"driver": "gone"})
    begin(node)
    told = f"the startup taint {KEY} stays on this node: no driver: "
    # On a slow machine another one comes first: nothing has been scanned yet.
    await until(lambda: any(event["message"].startswith(told) for event in cluster.events), "an Event")
    assert {(event["type"], event["reason"]) for event in cluster.events} == {("Warning", "XPUNotReady")}
    await until(lambda: cluster.condition == ("False", "NoDriverOrLibrary"), "the condition")
    assert cluster.taints == TAINTS
    node.machine.set({"driver": "loaded"})
    await until(lambda: cluster.taints == TAINTS[:1], "the taint is gone")
    assert cluster.at_removal == IDS


async def test_a_node_without_cards_loses_the_taint(node: Node, cluster: Cluster) -> None:
    """Also without a kubelet: no list is to be waited for."""
    node.machine.set({"driver": "gone"})
    (node.place / "nothing").mkdir()
    begin(node, f"--sysfs-root={node.place}/nothing")
    await until(lambda: cluster.taints == TAINTS[:1], "the taint is gone")
    await until(lambda: cluster.condition == ("False", "NoXPU"), "the condition")


async def test_a_device_that_falls_ill_changes_nothing_and_a_lost_driver_does(
    node: Node, kubelet: Kubelet, cluster: Cluster
) -> None:
    begin(node, "--health-grace=0")
    await until(lambda: cluster.condition == ("True", "DevicesListed"), "the condition")
    written = [own.body for own in cluster.of(PATCH) if own.path.endswith("/status")]
    node.machine.set_card(0, {"state": "207"})
    await shows_well(kubelet, IDS[1:])
    await until(
        lambda: any("healthy devices: 3" in own["message"] for own in cluster.conditions), "the number"
    )
    after = [own.body for own in cluster.of(PATCH) if own.path.endswith("/status")][len(written) :]
    assert {own["status"]["conditions"][0]["status"] for own in after} == {"True"}
    node.machine.set({"driver": "gone"})
    await until(lambda: cluster.condition == ("False", "NoDriverOrLibrary"), "the condition")


async def shows_well(kubelet: Kubelet, ids: list[str]) -> None:
    await kubelet.until(
        lambda: sorted(own.id for own in kubelet.devices(RESOURCE).values() if own.healthy) == ids,
        timeout=SECONDS,
        what=f"{ids} are healthy",
    )


async def test_a_pod_hears_of_its_device_by_the_reason_of_the_log(
    node: Node, kubelet: Kubelet, cluster: Cluster
) -> None:
    daemon = begin(node, "--pod-events", "--health-interval=1")
    await shows(kubelet, IDS)
    grant = await kubelet.allocate(RESOURCE, 2, pod="train", namespace="research")
    await until(lambda: cluster.condition == ("True", "DevicesListed"), "the condition")
    began = time.monotonic()
    for id in grant.ids:
        node.machine.set_card(IDS.index(id), {"state": "207"})
    await until(lambda: of_pods(cluster), "an Event of the pod")
    print(f"from the fault to the Event: {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < PROMPT_SECONDS
    event = of_pods(cluster)[0]
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "research",
        "name": "train",
        "uid": grant.uid,
    }
    assert (event["type"], event["reason"]) == ("Warning", "XPUUnhealthy")
    assert "state-error, state 207" in event["message"]
    await daemon.says("device unhealthy")
    await daemon.says("reason=state-error")


def of_pods(cluster: Cluster) -> list[dict[str, Any]]:
    return [event for event in cluster.events if event["involvedObject"]["kind"] == "Pod"]


async def test_without_an_api_server_the_options_are_named_in_one_line(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start(f"--startup-taint={KEY}", "--node-condition")
    await shows(kubelet, IDS)
    await daemon.says_exactly("options without effect, as they need the API server", times=1)
    await daemon.says('options=["--startup-taint", "--node-condition"]')
