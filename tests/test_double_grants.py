# SPDX-License-Identifier: Apache-2.0
"""No card is given to two containers, also after the kubelet forgot and another plugin granted: the
whole plugin against a kubelet's sockets."""

import pytest

from tests.support.daemon import IDS, Node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import NotingKubelet, own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import AdmissionError, Assignment, Kubelet


# On a busy machine the usual look before a registration may end too early.
CAREFUL = impatient(Timings(holders=0.1, before=SECONDS))
OWN_POD = ("--pod-namespace=kube-system", "--pod-name=plugin")
FOREIGN = "example.com/accelerator"

pytestmark = pytest.mark.usefixtures("leaves_no_process")


def kubelet_of(node: Node, *, asks_again: bool = False) -> NotingKubelet:
    kubelet = NotingKubelet(node.plugins, pod_resources_dir=node.place / "pods", asks_again=asks_again)
    own_pod(kubelet)
    return kubelet


def healthy(kubelet: Kubelet) -> set[str]:
    return {device.id for device in kubelet.devices(RESOURCE).values() if device.healthy}


async def offers(kubelet: Kubelet, *ids: str) -> None:
    await kubelet.until(lambda: healthy(kubelet) == set(ids), timeout=SECONDS, what=f"offered: {ids}")


async def all_the_rest(kubelet: Kubelet) -> list[Assignment]:
    """Grant one device after the other until there is none left."""
    grants = []
    while True:
        try:
            grants.append(await kubelet.allocate(RESOURCE, 1))
        except AdmissionError:
            return grants


def paths(*grants: Assignment) -> list[str]:
    return sorted(
        node.host_path for grant in grants for node in grant.nodes if node.host_path != "/dev/xpuctrl"
    )


# --- another plugin -------------------------------------------------------------------------------


async def test_what_another_plugin_grants_while_ours_runs_is_given_to_no_second_pod(node: Node) -> None:
    async with kubelet_of(node) as kubelet:
        daemon = node.start(*OWN_POD, program=CAREFUL)
        await shows(kubelet, IDS)
        former = kubelet.hold(["0"], resource=RESOURCE)
        await offers(kubelet, "0", *IDS[1:])
        grants = await all_the_rest(kubelet)
        assert sorted(id for grant in grants for id in grant.ids) == IDS[1:]
        await daemon.says(
            'device held from before; it is offered so while the kubelet counts it as held id="0"'
        )
        for grant in (former, *grants):
            kubelet.free(grant)
        kubelet.write_checkpoint()
        await shows(kubelet, IDS)


@pytest.mark.parametrize(("id", "resource"), [("1", RESOURCE), (IDS[1], FOREIGN)])
async def test_a_card_that_another_plugin_grants_a_second_time_is_closed_and_told_at_once(
    node: Node, id: str, resource: str
) -> None:
    async with kubelet_of(node) as kubelet:
        daemon = node.start(*OWN_POD, "--pod-list-delay=0.2", program=CAREFUL)
        await shows(kubelet, IDS)
        own = await kubelet.allocate(RESOURCE, 1)
        while own.ids != (IDS[1],):
            own = await kubelet.allocate(RESOURCE, 1)
        other = kubelet.hold([id], resource=resource, pod="other")
        await daemon.says(f"device withheld from new pods id={IDS[1]} reason=held-otherwise")
        await daemon.says(f'audit finding kind=double-holder detail="{IDS[1]} is held by default/')
        kubelet.free(own)
        assert IDS[1] not in {id for grant in await all_the_rest(kubelet) for id in grant.ids}
        kubelet.free(other)
        kubelet.write_checkpoint()
        await kubelet.until(lambda: IDS[1] in healthy(kubelet), timeout=SECONDS)


# --- a kubelet that has lost its checkpoint -------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True], ids=["the same plugin", "the next plugin"])
async def test_what_a_kubelet_has_forgotten_is_withheld_until_its_pod_is_gone(
    node: Node, killed: bool
) -> None:
    async with kubelet_of(node) as kubelet:
        daemon = node.start(*OWN_POD, "--pod-list-delay=0.2", program=CAREFUL)
        await shows(kubelet, IDS)
        held = await kubelet.allocate(RESOURCE, 2, pod="train")
        await recorded(node, "default/train/main")

        if killed:
            await daemon.kill()
        await kubelet.restart_without_checkpoint()
        if killed:
            daemon = node.start(*OWN_POD, "--pod-list-delay=0.2", program=CAREFUL)
        await kubelet.until(lambda: kubelet.devices(RESOURCE), timeout=SECONDS)
        free = set(IDS) - set(held.ids)
        assert kubelet.first_list() == free, "not even for a moment"
        await daemon.says("audit finding kind=unknown-grant ")
        await daemon.says(f"{held.ids[0]} was held by default/train/main before the kubelet was restarted")
        grants = await all_the_rest(kubelet)
        assert set(paths(*grants)).isdisjoint(paths(held))
        assert len(grants) == 2

        kubelet.free(held)
        await kubelet.until(lambda: healthy(kubelet) == set(IDS), timeout=SECONDS)


async def test_a_kubelet_that_asks_again_and_whose_version_is_not_known_gives_no_card_twice(
    node: Node,
) -> None:
    async with kubelet_of(node, asks_again=True) as kubelet:
        node.start(*OWN_POD, "--pod-list-delay=0.2", program=CAREFUL)
        await shows(kubelet, IDS)
        held = await kubelet.allocate(RESOURCE, 1, pod="train")
        # Its card would soon count as free without a user.
        node.machine.add_process(4711, card=IDS.index(held.ids[0]))
        await recorded(node, "default/train/main")
        await kubelet.restart_without_checkpoint()
        await kubelet.until(
            lambda: any(grant.pod == "train" for grant in kubelet.grants), timeout=SECONDS, what="asked again"
        )
        (again,) = (grant for grant in kubelet.grants if grant.pod == "train")
        assert set(paths(again)).isdisjoint(paths(held)), "the kubelet counts another one for it"
        rest = await all_the_rest(kubelet)
        assert set(paths(*rest)).isdisjoint(paths(held))
        assert len(rest) == 2


async def test_a_plain_restart_of_the_kubelet_withholds_nothing(node: Node) -> None:
    async with kubelet_of(node) as kubelet:
        daemon = node.start(*OWN_POD, "--pod-list-delay=0.2", program=CAREFUL)
        await shows(kubelet, IDS)
        ended = await kubelet.allocate(RESOURCE, 1, pod="ended")
        await kubelet.allocate(RESOURCE, 1, pod="train")
        await recorded(node, "default/train/main")
        await recorded(node, "default/ended/main")
        kubelet.free(ended)
        await kubelet.restart()
        await kubelet.until(lambda: kubelet.devices(RESOURCE), timeout=SECONDS)
        assert kubelet.first_list() == set(IDS)
        await recorded(node, "default/ended/main", there=False)
        await offers(kubelet, *IDS)

        kubelet.api_server_away = True
        said = daemon.log.count("reason=forgotten-holder")
        await kubelet.restart()
        await kubelet.until(lambda: kubelet.devices(RESOURCE), timeout=SECONDS)
        assert kubelet.first_list() == set(IDS)
        node.machine.set_card(3, {"state": "207"})  # the next thing to be seen
        await kubelet.until(lambda: IDS[3] not in healthy(kubelet), timeout=SECONDS)
        assert healthy(kubelet) == set(IDS[:3])
        await daemon.says_exactly("reason=forgotten-holder", times=said)


async def recorded(node: Node, container: str, *, there: bool = True) -> None:
    """Wait until the plugin has written down that the kubelet lists this container with a device, or not."""
    file = node.place / "state/grants.json"
    await until(
        lambda: file.exists() and (container in file.read_text()) is there, f"{container} on record: {there}"
    )
