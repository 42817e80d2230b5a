# SPDX-License-Identifier: Apache-2.0
"""A kubelet that restarts admits every pod anew. A pod of which a container with a device has ended, or is
down, needs a plugin with healthy devices at that moment. Else the pod fails, and its running containers are
killed."""

from collections.abc import Callable

import pytest

from .cluster import RESOURCE, Amount, Cluster, Pod
from .hooks import Hooks, require_restart
from .machine import CARDS, Machine, granted
from .outages import restart_kubelet
from .plugin import Plugin
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ADMISSION_SECONDS = 10  # after a kubelet's start; a pod that is refused fails within two
DOWN_SECONDS = 60  # until a container has failed twice, so that the kubelet waits for 20 s
STATUS_SECONDS = 30
KILLS = (1, 37)  # the release on which this was seen; 1.20 does not
SHOWS_HEALTH = (1, 36)  # by default


def after_a_container(cluster: Cluster) -> Pod:
    """A pod that runs, after an init container with a device."""
    pod = cluster.create_pod("after", devices=0, before="exit 0")
    pod.wait_until_running()
    return pod


def beside_a_container(cluster: Cluster) -> Pod:
    """A pod that runs, beside a container with a device that is down."""
    pod = cluster.create_pod("beside", devices=0, beside="exit 1")
    wait_until(
        "the other container is down for a while",
        lambda: [own for own in pod.status().get("containerStatuses", ()) if own["name"] == "other"],
        lambda own: own and own[0]["restartCount"] >= 2 and "running" not in own[0]["state"],
        seconds=DOWN_SECONDS,
    )
    return pod


Make = Callable[[Cluster], Pod]
PODS = pytest.mark.parametrize("make", [after_a_container, beside_a_container])


@PODS
def test_a_pod_with_a_container_that_has_ended_or_is_down_survives(
    hooks: Hooks, cluster: Cluster, plugin: Plugin, make: Make
) -> None:
    require_restart(hooks)
    pod = make(cluster)
    before = pod.state().identity
    restart_kubelet(hooks)
    watch_that(
        "the pod runs, with the same container",
        pod.state,
        lambda state: state.phase == "Running" and state.identity == before,
        seconds=ADMISSION_SECONDS,
    )
    assert pod.state().running
    cluster.wait_for_amount(Amount(CARDS, CARDS))


@PODS
def test_with_a_plugin_that_is_late_it_does_not(
    hooks: Hooks, cluster: Cluster, plugin: Plugin, make: Make
) -> None:
    """The proof of the test above."""
    require_restart(hooks)
    if cluster.version() < KILLS:
        pytest.skip("this kubelet is not known to refuse such pods")
    pod = make(cluster)
    plugin.kill()
    restart_kubelet(hooks)
    over = {"Failed", "Succeeded"}  # the latter if its container has ended well meanwhile
    wait_until("the pod ends", pod.state, lambda state: state.phase in over, seconds=STATUS_SECONDS)
    assert "UnexpectedAdmissionError" in pod.events()
    plugin.start()


def test_a_held_card_that_is_gone_is_sick_in_the_status_of_its_pod(
    cluster: Cluster, machine: Machine, plugin: Plugin
) -> None:
    """Also after the plugin has forgotten lost cards, and in its next process."""
    if cluster.version() < SHOWS_HEALTH:
        pytest.skip("this kubelet shows no health of devices")
    pod = cluster.run_pod("holder", devices=1)
    [id] = granted(machine, pod, 1)

    def health() -> list[str]:
        statuses = pod.status()["containerStatuses"][0].get("allocatedResourcesStatus", [])
        return [
            own["health"] for status in statuses if RESOURCE in status["name"] for own in status["resources"]
        ]

    machine.remove_card(machine.card_of(id))
    wait_until(
        "the card is sick in the pod", health, lambda seen: seen == ["Unhealthy"], seconds=STATUS_SECONDS
    )
    plugin.forget_the_lost()
    cluster.wait_for_amount(Amount(CARDS, CARDS - 1))
    plugin.terminate()
    plugin.start()
    watch_that(
        "the card is sick in the pod", health, lambda seen: seen == ["Unhealthy"], seconds=ADMISSION_SECONDS
    )
    pod.delete()
    cluster.wait_for_amount(Amount(CARDS - 1, CARDS - 1))
