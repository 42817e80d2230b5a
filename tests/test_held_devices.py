# SPDX-License-Identifier: Apache-2.0
"""A device that a container holds stays in the list until that container has ended, and is sick there if it
is gone or not offered: in the status of its pod, a device that the list lacks is healthy. The whole plugin
against a kubelet's sockets."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import NotingKubelet, own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.model.timings import Timings
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc
from xpu_plugin.simulation.kubelet import AdmissionError, Assignment, Kubelet, StartError


PROGRAM = impatient(Timings(holders=0.1, before=SECONDS))
OWN_POD = ("--pod-namespace=kube-system", "--pod-name=plugin", "--pod-list-delay=0.2")
STATUS = "status.sock"

pytestmark = pytest.mark.usefixtures("leaves_no_process")


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[NotingKubelet]:
    async with NotingKubelet(node.plugins, pod_resources_dir=node.place / "pods") as kubelet:
        own_pod(kubelet)
        yield kubelet


def begin(node: Node, *arguments: str) -> Daemon:
    return node.start(*OWN_POD, f"--status-socket={node.place / STATUS}", *arguments, program=PROGRAM)


async def lists(kubelet: Kubelet, *healthy: str, sick: Sequence[str] = ()) -> None:
    """Wait until exactly these are listed."""
    wanted = dict.fromkeys(healthy, True) | dict.fromkeys(sick, False)
    await kubelet.until(
        lambda: (
            kubelet.streams_open
            and {device.id: device.healthy for device in kubelet.devices(RESOURCE).values()} == wanted
        ),
        timeout=SECONDS,
        what=str(wanted),
    )


async def holds(node: Node, kubelet: NotingKubelet, number: int) -> Assignment:
    """A pod that has this card; the plugin has written that down."""
    grants = [await kubelet.allocate(RESOURCE, 1, pod=f"pod{number}") for number in range(len(IDS))]
    [held] = [grant for grant in grants if grant.ids == (IDS[number],)]
    for grant in grants:
        if grant is not held:
            kubelet.free(grant)
    kubelet.write_checkpoint()
    file = node.place / "state/grants.json"
    await until(
        lambda: file.exists() and list(json.loads(file.read_text())["holders"]) == [*held.ids],
        "the holder on record",
    )
    return held


async def told(node: Node, id: str) -> dict[str, object]:
    """What `list` tells of a device."""
    await until((node.place / STATUS).exists, "the status socket")
    arguments = ("list", "--json", f"--status-socket={node.place / STATUS}")
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "xpu_plugin", *arguments, stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await command.communicate()
    [row] = [row for row in json.loads(answer)["devices"] if row["id"] == id]
    return dict(row)


async def is_refused(node: Node, kubelet: Kubelet, grant: Assignment, why: str) -> None:
    """No container gets the device."""
    async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        stub = api_grpc.DevicePluginStub(channel)  # type: ignore[no-untyped-call]  # generated
        asked = api.ContainerAllocateRequest(devices_ids=grant.ids)
        with pytest.raises(grpc.aio.AioRpcError, match=why):
            await stub.Allocate(api.AllocateRequest(container_requests=[asked]))
    with pytest.raises(AdmissionError):
        await kubelet.allocate(RESOURCE, len(IDS))


async def test_a_card_that_is_gone_stays_listed_over_sighup_and_restarts_until_its_pod_has_ended(
    node: Node, kubelet: NotingKubelet
) -> None:
    here = [*IDS[:2], IDS[3]]
    daemon = begin(node)
    await shows(kubelet, IDS)
    grant = await holds(node, kubelet, 2)
    node.machine.remove_card(2)
    daemon.process.send_signal(signal.SIGHUP)
    await lists(kubelet, *here, sick=[IDS[2]])
    daemon.process.send_signal(signal.SIGHUP)
    node.machine.set_card(0, {"state": "207"})  # the next thing to be seen
    await lists(kubelet, *here[1:], sick=[IDS[0], IDS[2]])
    node.machine.set_card(0, {"state": ""})
    await lists(kubelet, *here, sick=[IDS[2]])

    await daemon.kill()
    daemon = begin(node)
    await daemon.says("registered")
    await lists(kubelet, *here, sick=[IDS[2]])
    row = await told(node, IDS[2])
    assert (row["health"], row["reason"], row["path"]) == ("Unhealthy", "lost", "/dev/xpu2")
    await is_refused(node, kubelet, grant, "is unhealthy: lost")
    with pytest.raises(StartError, match="is unhealthy: lost"):
        await kubelet.restart_container(grant)

    kubelet.free(grant)  # the checkpoint still names it
    await lists(kubelet, *here)


async def test_a_card_that_was_gone_and_is_back_is_offered_as_before(
    node: Node, kubelet: NotingKubelet
) -> None:
    daemon = begin(node)
    await shows(kubelet, IDS)
    await holds(node, kubelet, 3)
    await daemon.kill()
    node.machine.remove_card(3)
    daemon = begin(node)
    await lists(kubelet, *IDS[:3], sick=[IDS[3]])
    node.machine.set_card(3, {"model": "R200", "pci": IDS[3]})
    daemon.process.send_signal(signal.SIGHUP)
    await lists(kubelet, *IDS)


async def test_a_held_card_that_is_excluded_is_listed_and_not_granted_until_its_pod_has_ended(
    node: Node, kubelet: NotingKubelet
) -> None:
    daemon = begin(node)
    await shows(kubelet, IDS)
    grant = await holds(node, kubelet, 1)
    await daemon.stop()
    daemon = begin(node, f"--deny={IDS[1]}")
    rest = [IDS[0], *IDS[2:]]
    await lists(kubelet, *rest, sick=[IDS[1]])
    assert (await told(node, IDS[1]))["reason"] == "excluded"
    await is_refused(node, kubelet, grant, "is unhealthy: excluded")
    await kubelet.restart_container(grant)  # it keeps the card
    node.machine.set_card(1, {"state": "207"})
    await daemon.says(f"device unhealthy id={IDS[1]} path=/dev/xpu1 reason=state-error")
    kubelet.free(grant)
    kubelet.write_checkpoint()
    await lists(kubelet, *rest)


async def test_a_card_that_no_pod_holds_is_forgotten(node: Node, kubelet: NotingKubelet) -> None:
    daemon = begin(node)
    await shows(kubelet, IDS)
    kubelet.free(await holds(node, kubelet, 3))
    node.machine.remove_card(3)
    await lists(kubelet, *IDS[:3], sick=[IDS[3]])
    daemon.process.send_signal(signal.SIGHUP)
    await lists(kubelet, *IDS[:3])
