# SPDX-License-Identifier: Apache-2.0
"""The main job on a real node: pods get their devices and no others, also when the plugin is killed.

Every test has a fresh machine of four cards and a fresh plugin (see conftest.py).
"""

from collections.abc import Sequence

import pytest

from .cluster import RESOURCE, Amount, Cluster, Pod
from .hooks import Hooks, require_restart
from .machine import CARDS, Machine, View, granted
from .outages import restart_kubelet
from .plugin import Plugin, leftovers
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.compatibility, pytest.mark.timeout(240)]

RUNNING, ERROR = 201, 207  # states as the driver numbers them

PATIENCE_SECONDS = 3
"""How long something is watched that is not to happen."""
EXIT_SECONDS = 1
REFUSAL_SECONDS = 45
"""A kubelet tries again to start a container every 10 to 20 s."""


def assert_nothing_shared(*grants: frozenset[str]) -> None:
    together = [device for ids in grants for device in ids]
    assert len(together) == len(set(together)), f"granted twice: {[sorted(ids) for ids in grants]}"


def identities(pods: Sequence[Pod]) -> dict[str, tuple[str, str, str, int]]:
    """Equal as long as no container was touched."""
    return {pod.name: pod.state().identity for pod in pods}


def test_the_node_offers_every_card(cluster: Cluster, machine: Machine, plugin: Plugin) -> None:
    assert cluster.amount() == Amount(CARDS, CARDS)
    assert cluster.described_amount() == Amount(CARDS, CARDS)
    assert plugin.registered_ids() == machine.ids().keys()


def test_a_pod_reaches_its_two_devices_and_no_other(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    pod = cluster.run_pod("pair", devices=2)
    ids = granted(machine, pod, 2)
    assert ids < machine.ids().keys()
    assert "State:          Running" in pod.describe()


def test_a_pod_that_asks_for_nothing_reaches_nothing(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    bystander = cluster.run_pod("bystander", devices=0)
    nothing: frozenset[str] = frozenset()
    assert machine.view_from(bystander) == View(ids=nothing, visible=nothing, openable=nothing)


def test_a_third_pod_waits_until_devices_are_freed(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    first = cluster.run_pod("first", devices=2)
    second = cluster.run_pod("second", devices=1)
    of_first, of_second = granted(machine, first, 2), granted(machine, second, 1)
    assert_nothing_shared(of_first, of_second)

    third = cluster.create_pod("third", devices=2)
    assert f"Insufficient {RESOURCE}" in third.wait_until_unschedulable().message
    watch_that(
        "the third pod waits", third.state, lambda state: state.phase == "Pending", seconds=PATIENCE_SECONDS
    )
    untouched = identities([first, second])

    second.delete()
    third.wait_until_running()
    of_third = granted(machine, third, 2)
    assert_nothing_shared(granted(machine, first, 2), of_third)
    assert of_first.isdisjoint(of_third)
    assert identities([first]) == {first.name: untouched[first.name]}


def test_a_sick_card_leaves_and_comes_back(cluster: Cluster, machine: Machine, plugin: Plugin) -> None:
    sick = machine.id_of("xpu1")
    machine.set_card(1, state=ERROR)
    assert cluster.wait_for_allocatable(CARDS - 1) == Amount(CARDS, CARDS - 1)

    others = cluster.run_pod("others", devices=CARDS - 1)
    assert granted(machine, others, CARDS - 1) == machine.ids().keys() - {sick}
    last = cluster.create_pod("last", devices=1)
    last.wait_until_unschedulable()

    machine.set_card(1, state=RUNNING)
    assert cluster.wait_for_allocatable(CARDS) == Amount(CARDS, CARDS)
    last.wait_until_running()
    assert granted(machine, last, 1) == {sick}


def test_a_kubelet_that_restarts_gets_its_devices_back(
    hooks: Hooks, cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    require_restart(hooks)
    pod = cluster.run_pod("survivor", devices=2)
    ids = granted(machine, pod, 2)
    before, streams = identities([pod]), plugin.streams()

    restart_kubelet(hooks)
    plugin.wait_for_new_stream(streams)

    assert cluster.wait_for_allocatable(CARDS) == Amount(CARDS, CARDS)
    newcomer = cluster.run_pod("newcomer", devices=CARDS - 2)
    assert_nothing_shared(granted(machine, pod, 2), granted(machine, newcomer, CARDS - 2))
    assert granted(machine, pod, 2) == ids
    assert identities([pod]) == before
    assert plugin.registered_ids() == machine.ids().keys()


def test_a_killed_plugin_resumes_where_it_was(cluster: Cluster, machine: Machine, plugin: Plugin) -> None:
    pod = cluster.run_pod("survivor", devices=2)
    ids, before, offered = granted(machine, pod, 2), identities([pod]), plugin.registered_ids()

    plugin.kill()
    plugin.wait_for_no_process()
    assert cluster.wait_for_allocatable(0) == Amount(CARDS, 0)
    assert identities([pod]) == before
    assert granted(machine, pod, 2) == ids

    plugin.start()
    cluster.wait_for_allocatable(CARDS)
    assert plugin.registered_ids() == offered
    newcomer = cluster.run_pod("newcomer", devices=CARDS - 2)
    assert granted(machine, newcomer, CARDS - 2) == offered - ids
    assert granted(machine, pod, 2) == ids
    assert identities([pod]) == before


def test_a_container_starts_although_the_plugin_that_granted_its_devices_was_killed_before(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    """It starts by the kubelet's checkpoint. The device of its init container is on our record, the others
    are not."""
    pod = cluster.create_pod("slow", devices=3, before="until [ -e /go ]; do sleep 0.1; done")
    pod.wait_until_before_runs()
    plugin.kill()
    plugin.wait_for_no_process()
    plugin.start()
    cluster.wait_for_allocatable(CARDS)
    pod.execute("touch /go", container="before")
    pod.wait_until_running()
    ids = granted(machine, pod, 3)
    assert plugin.refusals_to_start() == []
    pod.restart_container()
    assert granted(machine, pod, 3) == ids


def test_a_plugin_comes_back_to_another_kubelet(
    hooks: Hooks, cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    require_restart(hooks)
    pod = cluster.run_pod("survivor", devices=2)
    ids, before = granted(machine, pod, 2), identities([pod])

    plugin.kill()
    restart_kubelet(hooks)
    cluster.wait_for_allocatable(0)
    plugin.start()

    cluster.wait_for_allocatable(CARDS)
    newcomer = cluster.run_pod("newcomer", devices=CARDS - 2)
    assert granted(machine, newcomer, CARDS - 2) == machine.ids().keys() - ids
    assert granted(machine, pod, 2) == ids
    assert identities([pod]) == before


def test_sigterm_ends_the_plugin_at_once_and_cleanly(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    pod = cluster.run_pod("survivor", devices=1)
    before = identities([pod])
    status, seconds = plugin.terminate()
    assert (status, seconds < EXIT_SECONDS) == (0, True), f"status {status} after {seconds:.2f} s"
    assert plugin.sockets() == []
    plugin.wait_for_no_process()
    cluster.wait_for_allocatable(0)
    assert identities([pod]) == before


def test_a_container_restarts_only_with_the_device_it_was_granted(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    steady, moved = (cluster.run_pod(name, devices=1) for name in ("steady", "moved"))
    of_steady, of_moved = granted(machine, steady, 1), granted(machine, moved, 1)
    steady.restart_container()
    assert granted(machine, steady, 1) == of_steady

    # Now the kubelet's cached answer would give `moved` the device that `steady` holds.
    (device,) = of_moved
    home = machine.ids()[device]
    machine.exchange_nodes(*(machine.card_of(held) for ids in (of_steady, of_moved) for held in ids))
    now = machine.ids()[device]
    assert now != home
    plugin.wait_for_log(rf"device moved .*{device} .*/dev/{now}\b")
    moved.end_container()
    assert {device, f"/dev/{home}", f"/dev/{now}"} <= set(refusal_to_start(plugin, moved).split())

    moved.delete()
    assert granted(machine, cluster.run_pod("anew", devices=1), 1).isdisjoint(of_steady)


def test_a_container_does_not_restart_without_its_device(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    pod = cluster.run_pod("bereft", devices=1)
    (device,) = granted(machine, pod, 1)

    # A card that vanished stays on the list, as long as its container.
    machine.remove_card(machine.card_of(device))
    assert cluster.wait_for_allocatable(CARDS - 1) == Amount(CARDS, CARDS - 1)
    pod.end_container()
    assert f"{device} is unhealthy: lost" in refusal_to_start(plugin, pod)

    plugin.forget_the_lost()
    assert cluster.wait_for_allocatable(CARDS - 1) == Amount(CARDS, CARDS - 1)

    pod.delete()
    anew = cluster.run_pod("anew", devices=CARDS - 1)
    assert granted(machine, anew, CARDS - 1) == machine.ids().keys()
    # Only with the next grant the kubelet's checkpoint forgets a pod that has ended.
    cluster.wait_for_amount(Amount(CARDS - 1, CARDS - 1))


def test_nothing_is_left_behind(hooks: Hooks, cluster: Cluster, machine: Machine, plugin: Plugin) -> None:
    cluster.run_pod("pair", devices=2)
    assert len(plugin.processes()) >= 2, "the plugin and its worker"

    cluster.delete_pods()
    plugin.terminate()
    machine.close()
    plugin.wait_for_no_process()
    assert leftovers(hooks, cluster) == []


def refusal_to_start(plugin: Plugin, pod: Pod, *, after: str = "") -> str:
    """The sentence by which the plugin refuses to let the pod's container start, other than `after`, once
    `kubectl describe pod` shows it whole."""
    sentence = wait_until(
        f"the plugin refuses to let the container of {pod.name} start",
        lambda: (plugin.refusals_to_start() or [after])[-1],
        lambda sentence: sentence != after,
        seconds=REFUSAL_SECONDS,
    )
    wait_until(
        f"`kubectl describe` shows for pod {pod.name}: {sentence}",
        pod.events,
        lambda events: sentence in events,
        seconds=REFUSAL_SECONDS,
    )
    assert not pod.state().running
    return sentence
