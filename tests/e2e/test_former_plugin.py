# SPDX-License-Identifier: Apache-2.0
"""Taking over from the former plugin: what its pods hold stays counted and unshared until they end.

It called devices "0" to "3", after their nodes. A kubelet counts a device as taken only while it is on the
list by the id it was granted as; and kubelet 1.20 forgets a dead pod's ids no earlier than when it admits
the next pod that asks for the resource.
"""

import pytest

from .cluster import RESOURCE, Amount, Cluster, Pod
from .machine import CARDS, CONTROL, Machine
from .plugin import Plugin, serve
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.compatibility, pytest.mark.timeout(240)]

RELEASE_SECONDS = 75
"""A fresh grant counts as held for 30 s; then two looks 10 s apart."""
PATIENCE_SECONDS = 3


def nodes_of(machine: Machine, pod: Pod, devices: int) -> frozenset[str]:
    """The device nodes of a running pod, after a check from the inside that it can open no other."""
    view = machine.view_from(pod)
    assert view.visible == view.openable
    assert CONTROL in view.openable
    nodes = view.openable - {CONTROL}
    assert len(nodes) == devices, f"{pod.name} has {sorted(nodes)}"
    return nodes


def old_ids(nodes: frozenset[str]) -> frozenset[str]:
    return frozenset(name.removeprefix("xpu") for name in nodes)


def take_over(former: Plugin, successor: Plugin, cluster: Cluster) -> None:
    assert former.registered_ids() == {str(number) for number in range(CARDS)}
    assert former.terminate()[0] == 0
    serve(successor, cluster)
    assert cluster.amount() == Amount(CARDS, CARDS)


def wait_for_ids(plugin: Plugin, ids: frozenset[str]) -> None:
    wait_until(
        f"the kubelet knows the devices as {sorted(ids)}",
        plugin.registered_ids,
        lambda registered: registered == ids,
        seconds=RELEASE_SECONDS,
    )


def assert_waits_for_devices(pod: Pod) -> None:
    assert f"Insufficient {RESOURCE}" in pod.wait_until_unschedulable().message
    watch_that(
        f"pod {pod.name} waits", pod.state, lambda state: state.phase == "Pending", seconds=PATIENCE_SECONDS
    )


def test_what_a_pod_of_the_former_plugin_holds_is_given_to_nobody_else(
    cluster: Cluster, machine: Machine, former: Plugin, daemon: Plugin
) -> None:
    old = cluster.run_pod("old", devices=2)
    of_old, before = nodes_of(machine, old, 2), old.state().identity
    take_over(former, daemon, cluster)
    assert old.state().identity == before
    lasting = frozenset(id for id, node in machine.ids().items() if node not in of_old)
    assert daemon.registered_ids() == lasting | old_ids(of_old)

    greedy = cluster.create_pod("greedy", devices=3)
    assert_waits_for_devices(greedy)
    young = cluster.run_pod("young", devices=1)
    of_young = nodes_of(machine, young, 1)
    assert of_young.isdisjoint(of_old)
    old.restart_container()
    assert nodes_of(machine, old, 2) == of_old
    assert greedy.state().phase == "Pending"
    greedy.delete()

    old.delete()
    last = cluster.run_pod("last", devices=1)  # this makes the kubelet forget the old ids
    assert nodes_of(machine, last, 1).isdisjoint(of_old | of_young)
    wait_for_ids(daemon, frozenset(machine.ids()))
    assert cluster.amount() == Amount(CARDS, CARDS)
    heir = cluster.run_pod("heir", devices=2)
    assert nodes_of(machine, heir, 2) == of_old
    assert machine.nodes_of(machine.view_from(heir).ids) == of_old | {CONTROL}


def test_old_ids_die_out_also_where_every_device_was_held_by_one(
    cluster: Cluster, machine: Machine, former: Plugin, daemon: Plugin
) -> None:
    old = cluster.run_pod("old", devices=CARDS)
    everything = nodes_of(machine, old, CARDS)
    take_over(former, daemon, cluster)
    assert daemon.registered_ids() == old_ids(everything)
    heir = cluster.create_pod("heir", devices=1)
    assert_waits_for_devices(heir)
    old.restart_container()
    assert nodes_of(machine, old, CARDS) == everything

    # As the kubelet knows no other ids yet, the next pod gets one of the old: it holds it for its own life.
    old.delete()
    heir.wait_until_running()
    of_heir = nodes_of(machine, heir, 1)
    others = frozenset(id for id, node in machine.ids().items() if node not in of_heir)
    wait_for_ids(daemon, others | old_ids(of_heir))
    assert cluster.amount() == Amount(CARDS, CARDS)
    heir.restart_container()
    assert nodes_of(machine, heir, 1) == of_heir
    greedy = cluster.create_pod("greedy", devices=CARDS)
    assert_waits_for_devices(greedy)
    greedy.delete()

    heir.delete()
    last = cluster.run_pod("last", devices=CARDS - 1)
    assert nodes_of(machine, last, CARDS - 1) == everything - of_heir
    wait_for_ids(daemon, frozenset(machine.ids()))
    assert cluster.amount() == Amount(CARDS, CARDS)
