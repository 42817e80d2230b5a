# SPDX-License-Identifier: Apache-2.0
"""What people look at, on a real node: metrics, Events and labels agree with what the node really does."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import free_port
from tests.support.prometheus import SELDOM, Prometheus
from xpu_plugin.model.metric_families import FAMILIES, OF_THE_PROCESS

from .cluster import DESIRED_LABEL, NODE_LABELS, Cluster
from .hooks import Hooks, require_restart
from .machine import CARDS, Machine, granted
from .metrics import PAGE_SECONDS, has, page, wait_for
from .outages import restart_kubelet
from .plugin import Plugin, Start
from .waiting import wait_until


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.usefixtures("no_marks")]

ERROR, RUNNING = 207, 201


def test_metrics_and_events_follow_pods_and_faults(cluster: Cluster, machine: Machine, start: Start) -> None:
    port = free_port()
    start("keep", f"--metrics-address=:{port}", "--health-recovery=1")
    cluster.wait_for_allocatable(CARDS)
    pod = cluster.run_pod("train", devices=1)
    (held,) = granted(machine, pod, 1)

    holder = {"namespace": cluster.namespace, "pod": pod.name}
    text = wait_for(port, "xpu_device_holder", 1, id=held, **holder)
    assert has(text, "xpu_devices", CARDS, health="Healthy")
    assert has(text, "xpu_plugin_streams", 1)
    assert has(text, "xpu_plugin_pod_resources_up", 1)
    assert has(text, "xpu_plugin_granted_devices_total", 1)
    assert has(text, "xpu_plugin_request_duration_seconds_count", 1, method="PreStartContainer")
    wait_for(port, "xpu_plugin_api_watching", 1)

    machine.set_card(machine.card_of(held), state=ERROR)
    wait_for(port, "xpu_device_unhealthy", 1, id=held, reason="state-error")
    wait_until(
        "an Event names device and pod",
        cluster.events,
        lambda events: any(
            reason == "XPUUnhealthy" and held in text and f"{cluster.namespace}/{pod.name}/" in text
            for _, reason, text in events
        ),
        seconds=PAGE_SECONDS,
    )
    machine.set_card(machine.card_of(held), state=RUNNING)
    wait_for(port, "xpu_device_healthy", 1, id=held)
    wait_until(
        "an Event says that it is well again",
        cluster.events,
        lambda events: any(reason == "XPURecovered" for _, reason, _ in events),
        seconds=PAGE_SECONDS,
    )
    assert not has(page(port), "xpu_plugin_audit_findings", 1)

    pod.delete()
    wait_until(
        "the pod's series is gone",
        lambda: page(port),
        lambda text: text and pod.name not in text,
        seconds=PAGE_SECONDS,
    )


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus, of Debian's package of that name"
)
def test_a_prometheus_sees_every_metric_and_alerts_come_and_go_with_faults(
    hooks: Hooks, cluster: Cluster, machine: Machine, start: Start, tmp_path: Path
) -> None:
    require_restart(hooks)
    port = free_port()
    start(0, f"--metrics-address=:{port}", "--health-recovery=1", "--health-grace=1")
    cluster.wait_for_allocatable(CARDS)
    pod = cluster.run_pod("train", devices=1)
    (held,) = granted(machine, pod, 1)
    prometheus = Prometheus(tmp_path, port)

    def sees(query: str, value: float) -> None:
        def values() -> list[float]:
            try:
                return [seen for _, seen in prometheus.query(query)]
            except OSError:  # while it starts
                return []

        wait_until(f"Prometheus sees {query}", values, [value].__eq__, seconds=PAGE_SECONDS)

    def fires(*alerts: str) -> None:
        wait_until(f"{alerts} fire", prometheus.alerts, set(alerts).issubset, seconds=PAGE_SECONDS)

    def ends(*alerts: str) -> None:
        wait_until(f"{alerts} end", prometheus.alerts, set(alerts).isdisjoint, seconds=PAGE_SECONDS)

    try:
        sees(f'xpu_device_holder{{id="{held}",namespace="{cluster.namespace}",pod="{pod.name}"}}', 1)
        endings = {"histogram": "_count"}
        expected = {own.name + endings.get(own.type, "") for own in (*FAMILIES, *OF_THE_PROCESS)}
        assert expected - SELDOM - prometheus.names() == set()
        sees('sum(xpu_devices{health="Healthy"})', CARDS)
        sees(f'xpu_device_memory_total_bytes{{id="{held}"}}', 16384 << 20)
        ends("XPUPluginAbsent", "XPUUnhealthy", "XPULibraryDown")

        machine.set_card(machine.card_of(held), state=ERROR)
        sees(f'xpu_device_unhealthy{{id="{held}",reason="state-error"}}', 1)
        fires("XPUUnhealthy", "XPUUnhealthyInUse")
        machine.set_card(machine.card_of(held), state=RUNNING)
        ends("XPUUnhealthy", "XPUUnhealthyInUse")

        restart_kubelet(hooks)
        sees("xpu_plugin_registrations_total", 2)
        sees("xpu_plugin_streams", 1)

        pod.delete()
        machine.set(driver="gone")
        fires("XPULibraryDown")
        machine.set(driver="loaded")
        ends("XPULibraryDown")
        sees('sum(xpu_devices{health="Healthy"})', CARDS)
    finally:
        prometheus.stop()


def test_labels_say_what_the_node_has_until_they_are_cleaned_up(
    hooks: Hooks, cluster: Cluster, daemon: Plugin, start: Start, tmp_path: Path
) -> None:
    start("keep", "--node-labels")
    labels = wait_until(
        "the node bears its labels",
        lambda: cluster.metadata().get("labels", {}),
        lambda labels: set(NODE_LABELS) <= labels.keys(),
        seconds=PAGE_SECONDS,
    )
    assert [labels[name] for name in NODE_LABELS[:3]] == ["R200", str(CARDS), "16384"]
    assert daemon.terminate()[0] == 0
    access = (f"--kubeconfig={tmp_path / 'kubeconfig'}", f"--node-name={cluster.node}")
    subprocess.run((*hooks.plugin, "cleanup", *access), check=True, timeout=PAGE_SECONDS)
    assert [mark for mark in cluster.marks() if mark != DESIRED_LABEL] == []
