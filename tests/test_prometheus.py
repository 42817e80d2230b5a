# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes the daemon through faults: every metric is there, and alerts fire and resolve."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.support.daemon import IDS, Node, shows
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.processes import processes_that_know
from tests.support.prometheus import SELDOM, Prometheus, Scraped
from xpu_plugin.model.metric_families import FAMILIES, OF_THE_PROCESS
from xpu_plugin.simulation.kubelet import Kubelet


pytestmark = [
    pytest.mark.usefixtures("leaves_no_process"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="needs prometheus, of Debian's package of that name"
    ),
    pytest.mark.timeout(180),
]


@pytest.fixture
def kubelet(kubelet: Kubelet) -> Kubelet:
    own_pod(kubelet)
    return kubelet


async def test_every_metric_arrives_and_alerts_follow_through_faults(
    node: Node, kubelet: Kubelet, tmp_path: Path
) -> None:
    scraped = Scraped(node, "--pod-name=plugin")
    await shows(kubelet, IDS)
    grant = await kubelet.allocate(RESOURCE, 1, pod="train")
    held = grant.ids[0]
    prometheus = Prometheus(tmp_path, scraped.port)
    try:
        await prometheus.until(
            lambda: prometheus.query(f'xpu_device_holder{{pod="train",id="{held}"}}'), "the first scrapes"
        )
        endings = {"histogram": "_count"}
        expected = {
            family.name + endings.get(family.type, "")
            for family in (*FAMILIES, *OF_THE_PROCESS)
            if family.name not in SELDOM
        }
        assert expected - await asyncio.to_thread(prometheus.names) == set()

        # Before the first scrape the plugin seemed to be absent.
        await prometheus.until(lambda: not prometheus.alerts(), "no alerts")

        # A card falls ill, with a pod on it, and recovers.
        card = IDS.index(held)
        node.machine.set_card(card, {"state": "207"})
        sick = f'xpu_device_unhealthy{{reason="state-error",id="{held}"}} == 1'
        await prometheus.until(lambda: prometheus.query(sick), "the illness")
        await prometheus.until(
            lambda: {"XPUUnhealthy", "XPUUnhealthyInUse"} <= prometheus.alerts(), "alerts of the illness"
        )
        node.machine.set_card(card, {"state": ""})
        await prometheus.until(
            lambda: not {"XPUUnhealthy", "XPUUnhealthyInUse"} & prometheus.alerts(), "the end of these alerts"
        )
        turns = f'xpu_device_transitions_total{{id="{held}"}}'
        (turned,) = {value for _, value in await asyncio.to_thread(prometheus.query, turns)}
        assert turned == 1

        # The driver is unloaded and loaded again.
        node.machine.set({"driver": "gone"})
        await prometheus.until(lambda: "XPULibraryDown" in prometheus.alerts(), "the alert of the driver")
        node.machine.set({"driver": "loaded"})
        await prometheus.until(
            lambda: "XPULibraryDown" not in prometheus.alerts(), "the end of the driver's alert"
        )

        # The kubelet goes and comes back.
        await kubelet.stop()
        await prometheus.until(
            lambda: "XPUKubeletNotConnected" in prometheus.alerts(), "the alert of the kubelet"
        )
        await kubelet.start()
        await prometheus.until(
            lambda: "XPUKubeletNotConnected" not in prometheus.alerts(), "the end of the kubelet's alert"
        )
    finally:
        prometheus.stop()
    assert processes_that_know(tmp_path) == []
