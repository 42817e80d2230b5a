# SPDX-License-Identifier: Apache-2.0
"""The whole plugin on a kubelet with the pods API: how soon a card is free after its last user, and what is
never taken for an end."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Node, a_node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import NotingKubelet, own_pod
from tests.support.machines import RESOURCE
from xpu_plugin.model import vf_reconcile
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import Assignment, Kubelet, StartError


CARDS = [f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")]
SETTLE = 0.3
# Looks are so rare that no test ends by one: only news from the kubelet are quick.
RARE = impatient(
    Timings(vfs=vf_reconcile.VfPace(look=3600.0, check=0.05, retry=(0.3, 1.0), drift=(0.3, 1.0)))
)
# And so frequent that what is not taken for an end is looked at many times.
OFTEN = impatient(
    Timings(holders=0.1, vfs=vf_reconcile.VfPace(look=0.1, check=0.05, retry=(0.3, 1.0), drift=(0.3, 1.0)))
)
OPTIONS = (f"--pod-list-delay={SETTLE}", "--vf-timeout=5", "--call-timeout=5", "--pod-name=plugin")

pytestmark = pytest.mark.usefixtures("leaves_no_process")


def split(card: str, number: int) -> list[str]:
    return [f"{card[:-4]}01.{n}-of{number}" for n in range(number)] if number else [card]


ALL_SPLIT = sorted(id for card in CARDS for id in split(card, 2))


@pytest.fixture
async def node(place: Path, leaves_no_process: None) -> AsyncIterator[Node]:
    async with a_node(place, Node) as node:
        yield node


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    kubelet = NotingKubelet(node.plugins, pod_resources_dir=node.place / "pods")
    kubelet.pods_api_dir = node.place / "pods-api"
    async with kubelet:
        own_pod(kubelet)
        yield kubelet


async def held(
    node: Node, kubelet: Kubelet, program: tuple[str, ...] | list[str], *, init: bool = False
) -> tuple[Daemon, Assignment]:
    """A plugin that wants all cards split, and is blocked by one container only."""
    first = node.start(*OPTIONS, "--sriov-num-vfs=0", program=program)
    await shows(kubelet, CARDS)
    grant = await kubelet.allocate(RESOURCE, 1, pod="train", init_container=init)
    await first.stop()
    second = node.start(*OPTIONS, "--sriov-num-vfs=2", "--vf-decision-wait=0", program=program)
    await second.says("reason=VFBlocked ")
    rest = sorted(id for card in CARDS for id in split(card, 0 if card in grant.ids else 2))
    await shows(kubelet, rest)
    return second, grant


@pytest.mark.parametrize("init", [False, True])
async def test_the_end_of_the_last_user_frees_its_card_without_waiting_for_a_look(
    node: Node, kubelet: Kubelet, init: bool
) -> None:
    _, grant = await held(node, kubelet, RARE, init=init)
    kubelet.free(grant)
    await shows(kubelet, ALL_SPLIT)


@pytest.mark.parametrize(
    ("init", "policy", "code"),
    [(False, "Never", 1), (False, "OnFailure", 0), (True, "Always", 0), (True, "Never", 1)],
)
async def test_a_container_that_is_not_started_again_is_no_user_although_its_pod_goes_on(
    node: Node, kubelet: Kubelet, init: bool, policy: str, code: int
) -> None:
    _, grant = await held(node, kubelet, RARE, init=init)
    kubelet.pods[grant.uid].restart_policy = policy
    kubelet.end(grant, code=code)
    await shows(kubelet, ALL_SPLIT)
    with pytest.raises(StartError, match="does not exist on this node"):  # after the loss of its sandbox
        await kubelet.restart_container(grant)


async def looked(kubelet: Kubelet, times: int = 10) -> None:
    """Wait until the plugin has asked the kubelet for its pods so many times more."""
    before = kubelet.pod_questions
    await kubelet.until(lambda: kubelet.pod_questions >= before + times, timeout=60)


@pytest.mark.parametrize("init", [False, True])
@pytest.mark.parametrize("what", ["restarts", "fails", "is gone"])
async def test_what_may_still_run_keeps_its_card(node: Node, kubelet: Kubelet, init: bool, what: str) -> None:
    _, grant = await held(node, kubelet, OFTEN, init=init)
    match what:
        case "restarts":
            kubelet.end(grant, code=1)
        case "fails":
            kubelet.pods[grant.uid].phase = "Failed"
            kubelet.pods[grant.uid].silent = True
            kubelet.announce(grant)
        case "is gone":
            kubelet.delete_by_force(grant)
    await looked(kubelet)
    assert grant.ids[0] in kubelet.devices(RESOURCE)


async def test_a_container_that_ends_after_its_pod_was_deleted_by_force_frees_its_card_in_the_end(
    node: Node, kubelet: Kubelet
) -> None:
    daemon, grant = await held(node, kubelet, OFTEN)
    kubelet.delete_by_force(grant)
    await looked(kubelet)
    await daemon.stop()
    node.start(*OPTIONS, "--sriov-num-vfs=2", "--vf-decision-wait=0", program=OFTEN)
    await shows(kubelet, ALL_SPLIT)


async def test_while_a_kubelet_has_not_heard_from_the_api_server_nothing_is_free(
    node: Node, kubelet: Kubelet
) -> None:
    _, grant = await held(node, kubelet, OFTEN)
    kubelet.api_server_away = True
    await kubelet.restart()
    await looked(kubelet, 1)
    kubelet.pods[grant.uid].restart_policy = "Never"
    kubelet.end(grant)
    await looked(kubelet)
    assert grant.ids[0] in kubelet.devices(RESOURCE)
    kubelet.api_server_away = False
    await shows(kubelet, ALL_SPLIT)


async def test_pods_are_followed_only_while_a_card_waits(node: Node, kubelet: Kubelet) -> None:
    _, grant = await held(node, kubelet, RARE)
    await kubelet.until(lambda: kubelet.pod_watchers == 1, timeout=60)
    kubelet.free(grant)
    await kubelet.until(lambda: kubelet.pod_watchers == 0, timeout=60)


async def test_an_end_while_the_kubelet_had_ended_the_stream_is_found_by_the_next_stream(
    node: Node, kubelet: Kubelet
) -> None:
    _, grant = await held(node, kubelet, RARE)
    await kubelet.until(lambda: kubelet.pod_watchers == 1, timeout=60)
    for watcher in kubelet._watchers:
        watcher.put_nowait(None)
    await kubelet.until(lambda: kubelet.pod_watchers == 0, timeout=60)
    kubelet.pods[grant.uid].restart_policy = "Never"
    kubelet.end(grant)
    await shows(kubelet, ALL_SPLIT)
