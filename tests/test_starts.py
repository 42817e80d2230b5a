# SPDX-License-Identifier: Apache-2.0
"""A container that starts by another process of the plugin than the one that granted its devices. Until its
first start, the kubelet's checkpoint alone has the nodes of the grant."""

import base64
import json
from collections.abc import AsyncIterator

import pytest

from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import CHECKPOINT, Assignment, Kubelet, StartError


pytestmark = pytest.mark.usefixtures("leaves_no_process")

# Each list of a plugin writes the checkpoint anew; so the looks at holders come soon after the start.
PROGRAM = impatient(Timings(holders=0.1))


class Spoiling(Kubelet):
    """A kubelet of which each Allocate answer in the checkpoint may be spoilt."""

    spoilt = False

    def write_checkpoint(self) -> None:
        super().write_checkpoint()
        if self.spoilt:
            path = self.directory / CHECKPOINT
            document = json.loads(path.read_text())
            for entry in document["Data"]["PodDeviceEntries"]:
                entry["AllocResp"] = base64.b64encode(b"\xff" * 20).decode()
            path.write_text(json.dumps(document))


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Spoiling]:
    async with Spoiling(node.plugins, pod_resources_dir=node.place / "pods") as kubelet:
        yield kubelet


async def admitted(node: Node, kubelet: Kubelet, count: int = 1) -> Assignment:
    """A pod of which no container has started when the plugin that granted its devices was killed."""
    daemon = node.start(program=PROGRAM)
    await shows(kubelet, IDS)
    grant = await kubelet.admit(RESOURCE, count)
    await daemon.kill()
    await kubelet.until(lambda: kubelet.streams_open == 0, timeout=SECONDS)
    assert not (node.place / "state/grants.json").exists()
    return grant


async def successor(node: Node, kubelet: Kubelet) -> Daemon:
    daemon = node.start(program=PROGRAM)
    await shows(kubelet, IDS)
    return daemon


@pytest.mark.parametrize("count", [1, 3])
async def test_a_container_starts_with_the_nodes_that_the_kubelet_has_for_it(
    node: Node, kubelet: Spoiling, count: int
) -> None:
    grant = await admitted(node, kubelet, count)
    await successor(node, kubelet)
    await kubelet.restart_container(grant)
    record = node.place / "state/grants.json"
    await until(record.exists, "the record of the start")
    assert json.loads(record.read_text())["grants"] == {id: f"/dev/xpu{IDS.index(id)}" for id in grant.ids}
    (kubelet.directory / CHECKPOINT).unlink()
    await kubelet.restart_container(grant)  # by our own record


async def test_a_container_whose_device_has_another_node_now_may_not_start(
    node: Node, kubelet: Spoiling
) -> None:
    grant = await admitted(node, kubelet)
    [number] = (IDS.index(id) for id in grant.ids)
    other = (number + 1) % len(IDS)
    for card, nodes in ((number, "9"), (other, str(number)), (number, str(other))):
        node.machine.set_card(card, {"nodes": nodes})
    daemon = await successor(node, kubelet)
    with pytest.raises(StartError, match=f"has /dev/xpu{number} for /dev/xpu{other}; delete the pod"):
        await kubelet.restart_container(grant)
    await daemon.says('request refused request="container start"')
    kubelet.free(grant)
    await kubelet.allocate(RESOURCE, len(IDS))


async def test_a_container_of_which_two_entries_disagree_may_not_start(node: Node, kubelet: Spoiling) -> None:
    grant = await admitted(node, kubelet)
    other = kubelet.hold(grant.ids, resource=RESOURCE, nodes=["/dev/xpu7"])
    await successor(node, kubelet)
    with pytest.raises(StartError, match="differ in its node; delete the pod"):
        await kubelet.restart_container(grant)
    kubelet.free(other)
    kubelet.write_checkpoint()
    await kubelet.restart_container(grant)


async def test_a_container_with_a_damaged_answer_may_not_start(node: Node, kubelet: Spoiling) -> None:
    kubelet.spoilt = True
    grant = await admitted(node, kubelet)
    await successor(node, kubelet)
    with pytest.raises(StartError, match="the answer in the kubelet's checkpoint cannot be parsed"):
        await kubelet.restart_container(grant)


async def test_a_container_that_another_plugin_has_granted_starts_by_the_same_rule(
    node: Node, kubelet: Spoiling
) -> None:
    moved = kubelet.hold([IDS[0]], resource=RESOURCE, nodes=["/dev/xpu1", "/dev/xpuctrl"])
    grant = kubelet.hold([IDS[2]], resource=RESOURCE, nodes=["/dev/xpu2", "/dev/xpuctrl"])
    await successor(node, kubelet)
    await kubelet.restart_container(grant)
    with pytest.raises(StartError, match="has /dev/xpu1 for /dev/xpu0"):
        await kubelet.restart_container(moved)
