# SPDX-License-Identifier: Apache-2.0
"""No pod before the cards are ready, and the health of devices in the pods that hold them, on a real node."""

import time
from collections.abc import Iterator

import pytest

from .access import Access
from .cluster import Cluster
from .machine import CARDS, Machine, granted
from .plugin import Start
from .waiting import wait_until


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.usefixtures("no_marks")]

KEY, OTHER = "baidu.com/xpu-startup", "baidu.com/e2e-other"
CONDITION = "XPUReady"
ERROR, RUNNING = 207, 201
SECONDS = 60
EVENT_SECONDS = 2.0
HEALTH_IN_PODS = (1, 36)
"""From this release on the kubelet writes the health of devices into the status of pods."""


@pytest.fixture
def tainted(cluster: Cluster) -> Iterator[None]:
    """A node with the startup taint and another one, and without a condition of ours."""

    def taint(*what: str) -> None:
        cluster.kubectl("taint", "node", cluster.node, "--overwrite", *what)

    taint(f"{KEY}=:NoSchedule", f"{OTHER}=:PreferNoSchedule")
    cluster.forget_condition(CONDITION)
    try:
        yield
    finally:
        for key in {KEY, OTHER}.intersection(cluster.taints()):
            taint(f"{key}-")
        cluster.forget_condition(CONDITION)


def test_a_pod_waits_for_the_last_card_that_is_split(
    cluster: Cluster, machine: Machine, access: Access, start: Start, tainted: None
) -> None:
    """The pod that stands for the plugin's own was there before the taint."""
    access.give_further()
    pod = cluster.create_pod("early", devices=1)
    pod.wait_until_unschedulable()
    start("2", f"--startup-taint={KEY}", "--node-condition", "--vf-decision-wait=60")
    wait_until("the startup taint goes", cluster.taints, lambda keys: KEY not in keys, seconds=SECONDS)
    assert cluster.taints() == [OTHER]
    assert machine.vfs() == dict.fromkeys(machine.vfs(), 2)
    pod.wait_until_running()
    (held,) = granted(machine, pod, 1)
    assert held.endswith("-of2")
    wait_until(
        "the node's condition",
        lambda: cluster.condition(CONDITION),
        ("True", "DevicesListed").__eq__,
        seconds=SECONDS,
    )


def test_a_pod_shows_the_health_of_its_device(
    cluster: Cluster, machine: Machine, access: Access, start: Start
) -> None:
    access.give_further()
    start("keep", "--pod-events", "--health-recovery=1")
    cluster.wait_for_allocatable(CARDS)
    pod, bystander = cluster.run_pod("train", devices=1), cluster.run_pod("bystander", devices=1)
    (held,), (other,) = granted(machine, pod, 1), granted(machine, bystander, 1)
    in_status = cluster.version() >= HEALTH_IN_PODS

    began = time.monotonic()
    machine.set_card(machine.card_of(held), state=ERROR)
    wait_until("an Event of the pod", pod.events, lambda text: "XPUUnhealthy" in text, seconds=SECONDS)
    print(f"from the fault to the Event, by kubectl: {time.monotonic() - began:.2f} s")
    assert f"{held} at /dev/" in pod.events()
    assert "state-error, state 207" in pod.events()
    if in_status:
        wait_until("the pod's status", pod.device_health, {held: "Unhealthy"}.__eq__, seconds=SECONDS)
        assert bystander.device_health() == {other: "Healthy"}

    machine.set_card(machine.card_of(held), state=RUNNING)
    wait_until("an Event of the pod", pod.events, lambda text: "XPURecovered" in text, seconds=SECONDS)
    if in_status:
        wait_until("the pod's status", pod.device_health, {held: "Healthy"}.__eq__, seconds=SECONDS)
    assert "XPU" not in bystander.events()
