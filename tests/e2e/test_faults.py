# SPDX-License-Identifier: Apache-2.0
"""Faults of library, driver and processes on a real node: what the kubelet comes to believe of devices."""

import os
import signal

import pytest

from .cluster import Amount, Cluster
from .machine import CARDS, Machine, granted
from .plugin import Plugin, serve
from .waiting import watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

STATE = "xpumlDeviceGetState"
ALL = Amount(CARDS, CARDS)
# Longer than a hang lasts until it is found: else the round that it holds up takes the others along.
QUICK = ("--call-timeout=1", "--health-grace=3", "--health-recovery=1", "--rescan-interval=1")
STEADY_SECONDS = 3
KILLS = 8


@pytest.fixture
def plugin(cluster: Cluster, daemon: Plugin) -> Plugin:
    """The plugin, serving, with less patience than it has of itself."""
    serve(daemon, cluster, *QUICK)
    return daemon


@pytest.mark.parametrize("action", ["hang", "crash", "fpe", "abort"])
def test_a_device_that_the_library_does_not_survive_leaves_alone_and_comes_back(
    cluster: Cluster, machine: Machine, plugin: Plugin, action: str
) -> None:
    pod = cluster.run_pod("survivor", devices=1)
    (held,) = granted(machine, pod, 1)
    sick = next(id for id in sorted(machine.ids()) if id != held)
    before = pod.state().identity

    machine.add_fault(STATE, action, card=machine.card_of(sick))
    cluster.wait_for_amount(Amount(CARDS, CARDS - 1))
    plugin.wait_for_log(rf"device unhealthy id={sick} .* reason=not-answering")
    others = cluster.run_pod("others", devices=CARDS - 2)
    assert granted(machine, others, CARDS - 2) == machine.ids().keys() - {held, sick}

    machine.clear_faults()
    cluster.wait_for_amount(ALL)
    last = cluster.run_pod("last", devices=1)
    assert granted(machine, last, 1) == {sick}
    assert pod.state().identity == before
    assert plugin.log.count("device unhealthy") == 1, "no other device was ever unhealthy"


def test_a_driver_that_goes_and_comes_back_takes_all_devices_along(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    offered = plugin.registered_ids()
    machine.set(driver="gone")
    cluster.wait_for_amount(Amount(CARDS, 0))
    plugin.wait_for_log("no driver: ")
    waiting = cluster.create_pod("waiting", devices=2)
    waiting.wait_until_unschedulable()

    machine.set(driver="loaded")
    cluster.wait_for_amount(ALL)
    waiting.wait_until_running()
    assert granted(machine, waiting, 2) < offered
    assert plugin.registered_ids() == offered


def test_workers_that_are_killed_again_and_again_cost_no_device_its_health(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    pod = cluster.run_pod("survivor", devices=2)
    ids, before, streams = granted(machine, pod, 2), pod.state().identity, plugin.streams()
    for _ in range(KILLS):
        for pid, command in plugin.processes().items():
            if "edges.worker" in command:
                os.kill(pid, signal.SIGKILL)
        watch_that("all are healthy", plugin.registered_ids, lambda now: len(now) == CARDS, seconds=0.5)
    assert cluster.amount() == ALL
    assert plugin.streams() == streams
    assert pod.state().identity == before
    assert granted(machine, pod, 2) == ids
    assert "device unhealthy" not in plugin.log


def test_a_plugin_that_was_stopped_for_a_while_goes_on(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    pids, streams = plugin.processes(), plugin.streams()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        watch_that("the node keeps its devices", cluster.amount, ALL.__eq__, seconds=STEADY_SECONDS)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    pod = cluster.run_pod("user", devices=CARDS)
    assert granted(machine, pod, CARDS) == machine.ids().keys()
    assert plugin.streams() == streams
    assert "device unhealthy" not in plugin.log
