# SPDX-License-Identifier: Apache-2.0
"""The whole plugin changes the VFs of cards, by its argument or the node's label, over the simulator and a
model of the kubelet: when it does, when it does not, and what the administrator is told."""

import json
import signal
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.api_server import LIST, ApiServer, Reply, write_kubeconfig
from tests.support.daemon import Daemon, Node, a_node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import NotingKubelet, own_pod
from tests.support.machines import MISSING, P800, R200, RESOURCE, Board, on_both
from tests.support.processes import processes_that_know
from tests.support.waiting import SECONDS, until
from xpu_plugin.cli import main
from xpu_plugin.config import VF_POLICIES
from xpu_plugin.model import vf_reconcile
from xpu_plugin.model.timings import Timings
from xpu_plugin.model.vf_plan import LABEL, STATE_LABEL
from xpu_plugin.proto.deviceplugin_pb2 import AllocateRequest, ContainerAllocateRequest
from xpu_plugin.proto.deviceplugin_pb2_grpc import DevicePluginStub
from xpu_plugin.simulation.kubelet import AdmissionError, Assignment, Kubelet


CARDS, vfs, split = R200.addresses, R200.vfs, R200.split
ASKED = "asking the driver for VFs"
SETTLE = 0.3
LONG = "60000"
"""Milliseconds for a driver that changes VFs until the test lets it go on."""
# The real daemon, but for some pauses.
IMPATIENT = impatient(
    Timings(
        holders=0.1,
        record=0.1,
        vfs=vf_reconcile.VfPace(look=0.1, check=0.05, retry=(0.3, 1.0), drift=(0.3, 1.0)),
    )
)
OPTIONS = (f"--pod-list-delay={SETTLE}", "--vf-timeout=5", "--call-timeout=5", "--pod-name=plugin")

pytestmark = pytest.mark.usefixtures("leaves_no_process")


def registered_again(kubelet: Kubelet, before: int) -> Callable[[], bool]:
    return lambda: len(kubelet.registrations) > before


def asked(daemon: Daemon) -> Callable[[], bool]:
    """Whether a change was begun, or all is as wished."""
    return lambda: ASKED in daemon.log or daemon.log.count("-of3") >= 12


class VfNode(Node):
    """A node with a kubelet that knows the plugin's own pod."""

    def __init__(self, place: Path, board: Board = R200) -> None:
        super().__init__(place, board)
        self.board = board

    def kubelet(self) -> NotingKubelet:
        return NotingKubelet(self.plugins, pod_resources_dir=self.place / "pods")

    def begin(self, *arguments: str) -> Daemon:
        return self.start(*OPTIONS, *arguments, program=IMPATIENT)

    def numbers(self) -> list[int]:
        """What the hardware has."""
        assert self.machine.sysfs_root
        files = [
            self.machine.sysfs_root / f"bus/pci/devices/{card}/sriov_numvfs" for card in self.board.addresses
        ]
        return [int(file.read_text()) for file in files]


@pytest.fixture
async def node(place: Path, board: Board, leaves_no_process: None) -> AsyncIterator[VfNode]:
    async with a_node(place, partial(VfNode, board=board)) as node:
        yield node


@pytest.fixture
async def kubelet(node: VfNode) -> AsyncIterator[NotingKubelet]:
    async with node.kubelet() as kubelet:
        own_pod(kubelet)
        yield kubelet


async def allocate(node: VfNode, id: str) -> list[str]:
    """What a kubelet asks that has admitted a pod before it heard of anything."""
    async with grpc.aio.insecure_channel(f"unix://{node.socket}") as channel:
        stub: Any = DevicePluginStub(channel)  # type: ignore[no-untyped-call] # generated
        request = AllocateRequest(container_requests=[ContainerAllocateRequest(devices_ids=[id])])
        answer = await stub.Allocate(request)
    return [device.host_path for device in answer.container_responses[0].devices]


# --- the change -----------------------------------------------------------------------------------


@on_both
async def test_idle_cards_are_split_one_by_one_and_never_all_at_once(
    node: VfNode, kubelet: Kubelet, board: Board
) -> None:
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0")
    await shows(kubelet, board.split(2, 2, 2, 2))
    assert node.numbers() == [2, 2, 2, 2]
    await daemon.says_exactly(ASKED, times=4)
    await daemon.says_exactly("reason=VFApplied ", times=4)
    await daemon.says_exactly("reason=vf-change-planned", times=4)


@pytest.mark.parametrize(
    ("board", "before", "desired"), [(R200, 2, 3), (R200, 3, 1), (R200, 3, 0), (P800, 4, 2)], ids=str
)
async def test_another_number_goes_by_way_of_none(
    node: VfNode, kubelet: Kubelet, board: Board, before: int, desired: int
) -> None:
    for card in range(4):
        node.machine.set_card(card, {"vfs": str(before)})
    daemon = node.begin(f"--sriov-num-vfs={desired}")
    await shows(kubelet, board.split(*[desired] * 4))
    assert node.numbers() == [desired] * 4
    await daemon.says_exactly(f"{ASKED} vfs=0 ", times=4)
    await daemon.says_exactly(f"{ASKED} vfs={desired} ", times=4)


@on_both
async def test_each_device_has_the_node_of_its_address(node: VfNode, kubelet: Kubelet, board: Board) -> None:
    """Although N, minor and the library's index are different numbers; also without the library's own N."""
    assert node.machine.sysfs_root
    for functions in ("all", "none"):
        node.machine.set({"later-functions": functions})
        for card, number in ((0, board.numbers[1]), (2, board.numbers[0])):
            node.machine.set_card(card, {"vfs": str(number)})
        daemon = node.begin("--sriov-num-vfs=keep")
        ids = board.split(board.numbers[1], 0, board.numbers[0], 0)
        await shows(kubelet, ids)
        for id in ids:
            [name] = {Path(path).name for path in await allocate(node, id)} - {"xpuctrl"}
            function = (node.machine.sysfs_root / "class/xpu" / name / "device").resolve()
            assert function.name == id.partition("-")[0]
        await daemon.stop()


@on_both
async def test_a_library_without_what_whole_devices_do_not_need_offers_them(
    node: VfNode, kubelet: Kubelet, board: Board
) -> None:
    """The functions that a later release keeps are not known."""
    node.machine.set({"missing-functions": MISSING})
    daemon = node.begin("--sriov-num-vfs=2")
    await shows(kubelet, board.split(0, 0, 0, 0))
    assert len(await allocate(node, board.addresses[0])) == 2
    for address in board.addresses:
        await daemon.says(
            f'card={address} detail="the library does not report whether it can be split"',
        )
    assert node.numbers() == [0] * 4


async def test_cards_beyond_the_limit_of_handles_stay_as_they_are(node: VfNode, kubelet: Kubelet) -> None:
    """Of four cards with one VF each, eight nodes, two can have two VFs more."""
    for card in range(4):
        node.machine.set_card(card, {"vfs": "1"})
    daemon = node.begin("--sriov-num-vfs=3", "--vf-handle-limit=12")
    await shows(kubelet, split(3, 3, 1, 1))
    for address in CARDS[2:]:
        await daemon.says(
            f'reason=VFFailed card={address} detail="handle-budget: with 3 VFs of this card the'
        )
    assert node.numbers() == [3, 3, 1, 1]
    await daemon.says_exactly(ASKED, times=4)


async def test_a_card_that_gets_fewer_vfs_keeps_its_place_while_it_has_none(
    node: VfNode, kubelet: Kubelet
) -> None:
    """Its nodes are free for a moment, and others wait for nodes."""
    for card, number in enumerate((1, 1, 1, 3)):
        node.machine.set_card(card, {"vfs": str(number)})
    daemon = node.begin("--sriov-num-vfs=2", "--vf-handle-limit=10")
    await shows(kubelet, split(2, 1, 1, 2))
    assert node.numbers() == [2, 1, 1, 2]
    await daemon.says_exactly(f"reason=VFApplied card={CARDS[3]}", times=1)
    await daemon.says(f'card={CARDS[0]} detail="handle-budget: waits until another card has fewer VFs')
    await daemon.says_exactly(ASKED, times=4)


async def test_a_card_that_a_killed_plugin_has_left_without_vfs_keeps_its_place(
    node: VfNode, kubelet: Kubelet
) -> None:
    """Also if the next plugin is killed before it goes on."""
    for card, number in enumerate((1, 1, 1, 3)):
        node.machine.set_card(card, {"vfs": str(number)})
    options = ("--sriov-num-vfs=2", "--vf-handle-limit=10", "--vf-decision-wait=0")
    node.machine.set({"vf-delay": LONG})
    daemon = node.begin(*options, "--vf-timeout=60")
    await daemon.says(f"{ASKED} vfs=0 card={CARDS[3]}")
    await until(lambda: len(processes_that_know(node.place)) == 4, "a plugin, two workers, and the driver")
    await daemon.kill()
    node.machine.set({"vf-delay": "0"})
    await until(lambda: node.numbers() == [1, 1, 1, 0], "the driver has done its part")
    daemon = node.begin(*options, "--pod-list-delay=60")
    await shows(kubelet, split(1, 1, 1, 0))
    record = node.place / "state/vf-change.json"
    await until(lambda: json.loads(record.read_text())["change"] is None, "the result is known")
    await daemon.says(
        f'card={CARDS[1]} detail="handle-budget: with 2 VFs of this card the host would have 11'
    )
    await daemon.kill()
    node.begin(*options)
    await shows(kubelet, split(2, 1, 1, 2))
    assert node.numbers() == [2, 1, 1, 2]


async def test_a_number_that_no_card_accepts_is_not_asked_of_the_driver(
    node: VfNode, kubelet: Kubelet
) -> None:
    for card in range(4):
        node.machine.set_card(card, {"vfs": "2"})
    daemon = node.begin("--sriov-num-vfs=4")
    await daemon.says_exactly('detail="this card accepts 0 to 3 VFs, not 4"', times=4)
    await shows(kubelet, split(2, 2, 2, 2))
    assert node.numbers() == [2, 2, 2, 2]
    assert ASKED not in daemon.log


async def test_cards_as_desired_are_never_touched(node: VfNode, kubelet: Kubelet) -> None:
    first = node.begin("--sriov-num-vfs=2")
    await shows(kubelet, split(2, 2, 2, 2))
    await first.stop()
    for life in range(6):
        daemon = node.begin("--sriov-num-vfs=2")
        await shows(kubelet, split(2, 2, 2, 2))
        registered = len(kubelet.registrations)
        await kubelet.restart()
        await kubelet.until(registered_again(kubelet, registered), timeout=SECONDS)
        await shows(kubelet, split(2, 2, 2, 2))
        daemon.process.send_signal(signal.SIGHUP)
        await (daemon.kill() if life % 2 else daemon.stop())
        assert ASKED not in daemon.log


async def test_policy_never_only_tells(node: VfNode, kubelet: Kubelet) -> None:
    daemon = node.begin("--sriov-num-vfs=2", "--vf-policy=never")
    await daemon.says("reason=VFBlocked ", times=4)
    await daemon.says("--vf-policy is never")
    await shows(kubelet, CARDS)
    await daemon.stop()
    assert ASKED not in daemon.log


# --- who uses a card ------------------------------------------------------------------------------


async def test_a_held_card_is_blocked_by_name_and_follows_when_it_is_free(
    node: VfNode, kubelet: Kubelet
) -> None:
    before = node.begin("--sriov-num-vfs=0")
    await shows(kubelet, CARDS)
    grant = await kubelet.allocate(RESOURCE, 1, pod="train")
    held = CARDS.index(grant.ids[0])
    await before.stop()
    daemon = node.begin("--sriov-num-vfs=2")
    wanted = [2, 2, 2, 2]
    wanted[held] = 0
    await shows(kubelet, split(*wanted))
    await daemon.says(f'reason=VFBlocked card={grant.ids[0]} detail="held by default/train/main')
    await daemon.says_exactly("reason=VFBlocked ", times=1)
    await daemon.says_exactly("held by default/train/main", times=1)
    kubelet.free(grant)
    await shows(kubelet, split(2, 2, 2, 2))


async def test_without_pod_resources_it_takes_consent(node: VfNode) -> None:
    async with Kubelet(node.plugins) as kubelet:
        daemon = node.begin("--sriov-num-vfs=2")
        await daemon.says("reason=VFBlocked ", times=4)
        await daemon.says("consent by --vf-without-pod-resources")
        await daemon.stop()
        assert ASKED not in daemon.log
        held = kubelet.hold([CARDS[3]], resource=RESOURCE)
        daemon = node.begin("--sriov-num-vfs=2", "--vf-without-pod-resources")
        await until(lambda: node.numbers() == [2, 2, 2, 0], "three cards")
        assert held.pod
        await daemon.says("reason=VFBlocked ")


# --- in the middle --------------------------------------------------------------------------------


async def test_a_grant_on_its_way_is_given_and_cancels_the_change(node: VfNode, kubelet: Kubelet) -> None:
    daemon = node.begin("--sriov-num-vfs=2", "--pod-list-delay=2", "--vf-decision-wait=0")
    await daemon.says(f"device withheld from new pods id={CARDS[0]} reason=vf-change-planned")
    # The scheduler has not heard yet.
    assert "/dev/xpu0" in await allocate(node, CARDS[0])
    kubelet.hold([CARDS[0]], resource=RESOURCE)
    await daemon.says(f"reason=VFBlocked card={CARDS[0]} ")
    await until(lambda: node.numbers() == [0, 2, 2, 2], "the others")


@pytest.mark.parametrize("action", ["crash", "hang"])
async def test_a_library_that_fails_halfway_leaves_nothing_withheld_and_is_asked_again(
    node: VfNode, kubelet: Kubelet, action: str
) -> None:
    node.machine.set_card(0, {"vfs": "3"})
    node.machine.add_line("fault", f"function=xpumlDeviceSetSriovVfNum card=0 at=halfway action={action}")
    daemon = node.begin("--sriov-num-vfs=1", "--vf-timeout=1")
    await daemon.says(f"reason=VFFailed card={CARDS[0]} ")
    await shows(kubelet, split(0, 1, 1, 1))
    node.machine.clear_faults()
    await shows(kubelet, split(1, 1, 1, 1))


async def test_killed_anywhere_it_goes_on_where_it_was(node: VfNode, kubelet: Kubelet) -> None:
    node.machine.set({"vf-delay": "300"})
    for card in range(4):
        node.machine.set_card(card, {"vfs": "2"})
    for _ in range(8):
        daemon = node.begin("--sriov-num-vfs=3", "--pod-list-delay=0.1")
        await until(asked(daemon), "a change, or that there is none to make")
        await daemon.kill()
    node.machine.set({"vf-delay": "0"})
    node.begin("--sriov-num-vfs=3", "--pod-list-delay=0.1")
    await shows(kubelet, split(3, 3, 3, 3))
    assert node.numbers() == [3, 3, 3, 3]


async def test_while_the_driver_changes_a_card_the_others_are_watched_and_no_node_is_opened(
    node: VfNode, kubelet: NotingKubelet
) -> None:
    """The simulated driver refuses when a node is opened meanwhile."""
    node.machine.set_card(1, {"vfs": "1"})
    node.machine.set_card(2, {"vfs": "2"})
    node.machine.set_card(3, {"vfs": "2"})
    node.machine.set({"vf-delay": LONG})
    daemon = node.begin(
        "--sriov-num-vfs=2", "--vf-decision-wait=0", "--rescan-interval=0.1", "--vf-timeout=60"
    )
    await daemon.says(f"{ASKED} vfs=2 card={CARDS[0]}")
    daemon.process.send_signal(signal.SIGHUP)  # a scan is due
    node.machine.set_card(1, {"vf-states": "207"})
    node.machine.set_card(0, {"state": "207"})
    sick = vfs(CARDS[1], 1)[0]
    await daemon.says(f"device unhealthy id={sick}")
    with pytest.raises(grpc.aio.AioRpcError, match="state-error"):
        await allocate(node, sick)
    assert node.numbers() == [0, 1, 2, 2], "the driver is still at it"
    assert "VFApplied" not in daemon.log
    node.machine.set_card(0, {"state": "201"})
    node.machine.set({"vf-delay": "0"})
    await daemon.says(f'reason=VFApplied card={CARDS[0]} detail="{CARDS[0]} has 2 VFs now')
    assert f"device unhealthy id={CARDS[0]}" not in daemon.log, "it is being changed"
    assert "VFFailed" not in daemon.log


async def test_what_a_killed_plugin_has_asked_for_comes_late_and_finds_its_card_closed(
    node: VfNode, kubelet: NotingKubelet
) -> None:
    node.machine.set({"vf-delay": LONG})
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0")
    await until(lambda: len(processes_that_know(node.place)) == 4, "a plugin, two workers, and the driver")
    await daemon.kill()
    kubelet.seen.clear()
    after = node.begin("--sriov-num-vfs=keep", "--vf-timeout=60")
    await after.says("registered")
    await closed(kubelet, CARDS, held=CARDS[:1])
    with pytest.raises(grpc.aio.AioRpcError, match="change-unknown"):
        await allocate(node, CARDS[0])
    node.machine.set({"vf-delay": "0"})
    await shows(kubelet, split(2, 0, 0, 0))
    assert CARDS[0] not in kubelet.ever()
    record = node.place / "state/vf-change.json"
    await until(lambda: json.loads(record.read_text()) == {"change": None}, "an empty record")
    assert ASKED not in after.log


async def test_while_the_record_cannot_be_read_cards_are_closed_and_that_is_said(
    node: VfNode, kubelet: NotingKubelet
) -> None:
    record = node.place / "state/vf-change.json"
    record.parent.mkdir()
    record.symlink_to(record.name)
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0")
    await closed(kubelet, CARDS, held=CARDS)
    with pytest.raises(grpc.aio.AioRpcError, match="change-unknown"):
        await allocate(node, CARDS[0])
    await daemon.says(
        f'reason=VFBlocked card={CARDS[0]} detail="whether a former process of this plugin has asked'
    )
    await daemon.says(f"id={CARDS[0]} model=R200 path=/dev/xpu0")
    assert "reason=changing" not in daemon.log
    assert ASKED not in daemon.log
    assert not kubelet.ever()
    record.unlink()
    await shows(kubelet, split(2, 2, 2, 2))


async def test_after_a_timeout_the_card_stays_closed_until_the_driver_lets_go_of_the_request(
    node: VfNode, kubelet: NotingKubelet
) -> None:
    node.machine.set({"vf-delay": "8000"})
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0", "--vf-timeout=3")
    await daemon.says(f"{ASKED} vfs=2 card={CARDS[0]}")
    kubelet.seen.clear()
    await daemon.says(f'reason=VFApplied card={CARDS[0]} detail="{CARDS[0]} has 2 VFs now')
    assert CARDS[0] not in kubelet.ever()
    assert f"{ASKED} vfs=2 card={CARDS[1]}" not in daemon.log.partition("VFApplied")[0], "one at a time"


async def test_without_a_record_the_driver_is_not_asked(node: VfNode, kubelet: Kubelet) -> None:
    (node.place / "state").write_text("no directory")
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0")
    await daemon.says(
        f'reason=VFFailed card={CARDS[0]} detail="the driver is not asked, as the request cannot be recorded'
    )
    await daemon.stop()
    assert ASKED not in daemon.log
    assert node.numbers() == [0, 0, 0, 0]


async def test_a_card_that_is_refused_again_and_again_is_left_alone_until_the_administrator_says(
    node: VfNode, kubelet: Kubelet
) -> None:
    node.machine.set_card(0, {"busy": "yes"})
    daemon = node.begin("--sriov-num-vfs=2", "--vf-decision-wait=0", "--pod-list-delay=0.1")
    await daemon.says("5 times, so it is left alone: set another number")
    await daemon.says_exactly(f"{ASKED} vfs=2 card={CARDS[0]}", times=5)
    await shows(kubelet, split(0, 2, 2, 2))
    node.machine.set_card(0, {"busy": "no"})
    daemon.process.send_signal(signal.SIGHUP)
    await shows(kubelet, split(2, 2, 2, 2))


async def test_what_somebody_else_splits_is_put_back_and_reported(node: VfNode, kubelet: Kubelet) -> None:
    daemon = node.begin("--sriov-num-vfs=2")
    await shows(kubelet, split(2, 2, 2, 2))
    node.machine.set_card(1, {"vfs": "0"})
    daemon.process.send_signal(signal.SIGHUP)
    await daemon.says(
        f'reason=VFDrift card={CARDS[1]} detail="another program has split {CARDS[1]}: 2 VFs before, 0 now'
    )
    await shows(kubelet, split(2, 2, 2, 2))
    await daemon.says_exactly("VFDrift", times=1)


async def test_two_plugins_do_not_both_change_cards(node: VfNode, kubelet: Kubelet) -> None:
    first = node.begin("--sriov-num-vfs=2")
    await shows(kubelet, split(2, 2, 2, 2))
    second = node.begin("--sriov-num-vfs=3")
    await second.says("another plugin works in")
    assert ASKED not in second.log
    await first.stop()
    await shows(kubelet, split(3, 3, 3, 3))


async def test_a_label_that_was_seen_goes_before_the_argument_until_it_is_forgotten(
    node: VfNode, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a refusal, an outage, and a Node that was made anew."""
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    access = [f"--kubeconfig={node.place}/kubeconfig", "--node-name=here"]
    options = ["--sriov-num-vfs=0", "--label-timeout=0", *access]
    with ApiServer("here") as server:
        write_kubeconfig(node.place / "kubeconfig", server.url)
        server.labels[LABEL] = "2"
        daemon = node.begin(*options)
        await shows(kubelet, split(2, 2, 2, 2))
        await until(lambda: server.labels.get(STATE_LABEL) == "success", "it is told")
        await daemon.stop()

        server.script(LIST, *[Reply.refusal(403)] * 100)
        daemon = node.begin(*options)
        await daemon.says("the label last seen counts, as the node's label may not be read")
        await shows(kubelet, split(2, 2, 2, 2))
        await daemon.stop()
        assert ASKED not in daemon.log

    daemon = node.begin(*options)
    await daemon.says(f'desired VF count value="2" origin="label {LABEL} as last seen')
    await shows(kubelet, split(2, 2, 2, 2))
    await daemon.stop()
    assert ASKED not in daemon.log

    with ApiServer("here", port=server.port) as server:
        server.uid = "another"
        daemon = node.begin(*options)
        await daemon.says('reason=VFFailed card=null detail="the Node object is new and has no label')
        await until(lambda: server.labels.get(STATE_LABEL) == "failed", "it is told on the node")
        await shows(kubelet, split(2, 2, 2, 2))
        assert ASKED not in daemon.log
        assert main(["cleanup", *access, f"--state-dir={node.place}/state"]) == 0
        await shows(kubelet, split(0, 0, 0, 0))
        assert node.numbers() == [0, 0, 0, 0]


# --- a card that another program splits under its user------------------------------------------------


async def closed(kubelet: Kubelet, ids: list[str], *, held: list[str], gone: Collection[str] = ()) -> None:
    """Wait until exactly these are listed: `ids`, `held` of them as not for new pods, and those that are
    `gone`."""
    wanted = {id: id not in held for id in ids} | dict.fromkeys(gone, False)
    await kubelet.until(
        lambda: {device.id: device.healthy for device in kubelet.devices(RESOURCE).values()} == wanted,
        timeout=SECONDS,
        what=str(wanted),
    )


async def hold_card(kubelet: Kubelet, card: int) -> Assignment:
    """A pod that has this whole card."""
    grants = [await kubelet.allocate(RESOURCE, 1) for _ in CARDS]
    [grant] = [grant for grant in grants if grant.ids == (CARDS[card],)]
    for other in grants:
        if other is not grant:
            kubelet.free(other)
    kubelet.write_checkpoint()
    return grant


@pytest.mark.parametrize("policy", VF_POLICIES)
async def test_vfs_of_a_card_that_is_held_whole_are_given_to_nobody_before_that_ends(
    node: VfNode, kubelet: NotingKubelet, policy: str
) -> None:
    daemon = node.begin("--sriov-num-vfs=keep", f"--vf-policy={policy}")
    await shows(kubelet, CARDS)
    grant = await hold_card(kubelet, 1)
    node.machine.set_card(1, {"vfs": "2"})
    daemon.process.send_signal(signal.SIGHUP)
    own = vfs(CARDS[1], 2)
    await closed(kubelet, split(0, 2, 0, 0), held=own, gone=grant.ids)
    closing = f'reason=card-held detail="a container still holds its card as {CARDS[1]}'
    await daemon.says(closing, times=2)
    await daemon.says_exactly(closing, times=2)
    with pytest.raises(grpc.aio.AioRpcError, match="card-held"):
        await allocate(node, own[0])
    await daemon.kill()  # and the next one knows
    daemon = node.begin("--sriov-num-vfs=keep", f"--vf-policy={policy}")
    await daemon.says("registered")
    await closed(kubelet, split(0, 2, 0, 0), held=own, gone=grant.ids)
    assert not kubelet.ever() & {*own}
    kubelet.free(grant)
    await shows(kubelet, split(0, 2, 0, 0))
    assert (await allocate(node, own[0]))[1:] == ["/dev/xpuctrl"]
    record = node.place / "state/grants.json"
    await until(lambda: grant.ids[0] not in record.read_text(), "an end of the grant on record")
    await daemon.stop()
    daemon = node.begin("--sriov-num-vfs=keep", f"--vf-policy={policy}")
    await daemon.says("registered")
    await shows(kubelet, split(0, 2, 0, 0))
    assert "card-held" not in daemon.log, "it has ended for good"


async def test_a_vf_that_has_the_address_of_a_held_one_is_not_given_away(
    node: VfNode, kubelet: NotingKubelet
) -> None:
    """And when the card is split again as it was, the kubelet itself counts the held one."""
    node.machine.set_card(0, {"vfs": "1"})
    daemon = node.begin("--sriov-num-vfs=keep")
    await shows(kubelet, split(1, 0, 0, 0))
    grant = await kubelet.allocate(RESOURCE, 4)
    for number, held in ((3, vfs(CARDS[0], 3)), (0, [CARDS[0]]), (1, [])):
        node.machine.set_card(0, {"vfs": str(number)})
        daemon.process.send_signal(signal.SIGHUP)
        gone = grant.ids[:1] if number != 1 else ()
        await closed(kubelet, split(number, 0, 0, 0), held=held, gone=gone)
    assert kubelet.ever() == {*split(1, 0, 0, 0)}
    with pytest.raises(AdmissionError, match="Available: 0"):
        await kubelet.allocate(RESOURCE, 1)
    assert grant.ids[0] == vfs(CARDS[0], 1)[0]


@pytest.mark.parametrize("id", [CARDS[1], "1"], ids=["own id", "old id"])
async def test_a_holder_of_whom_there_is_no_record_is_known_by_the_kubelet(
    node: VfNode, kubelet: NotingKubelet, id: str
) -> None:
    node.machine.set_card(1, {"vfs": "2"})
    grant = kubelet.hold([id], resource=RESOURCE, pod="train")
    node.begin("--sriov-num-vfs=keep")
    await closed(kubelet, split(0, 2, 0, 0), held=vfs(CARDS[1], 2), gone=[id])
    kubelet.free(grant)
    kubelet.write_checkpoint()
    await shows(kubelet, split(0, 2, 0, 0))


async def test_without_pod_resources_the_checkpoint_tells_when_a_holder_has_ended(node: VfNode) -> None:
    async with NotingKubelet(node.plugins) as kubelet:
        daemon = node.begin("--sriov-num-vfs=keep")
        await shows(kubelet, CARDS)
        grant = await hold_card(kubelet, 2)
        node.machine.set_card(2, {"vfs": "3"})
        daemon.process.send_signal(signal.SIGHUP)
        await closed(kubelet, split(0, 0, 3, 0), held=vfs(CARDS[2], 3), gone=grant.ids)
        kubelet.free(grant)
        kubelet.write_checkpoint()
        await shows(kubelet, split(0, 0, 3, 0))
        assert not kubelet.ever().isdisjoint(vfs(CARDS[2], 3))
