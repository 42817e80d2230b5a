# SPDX-License-Identifier: Apache-2.0
"""Another plugin that registers our resource name, at the kubelets of several releases: it is noticed, never
overwritten, and the devices come back when those who hold them are known."""

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import found
from tests.support.endpoint import IDS, NAME, Looks, Plugin
from tests.support.events import outbox_into
from tests.support.machines import RESOURCE
from tests.support.rival import Rival
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet import rivals as rivals_edge
from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError
from xpu_plugin.edges.kubelet.rivals import REASON, RivalWatch
from xpu_plugin.model import registration, rivals
from xpu_plugin.model.events import Event
from xpu_plugin.model.health import HEALTHY, Health
from xpu_plugin.model.inventory import after_scan, after_verdicts
from xpu_plugin.model.ownership import Checkpoint
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.model.rivals import Phase
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.simulation.kubelet import CHECKPOINT, Kubelet, Release


SICK = Health("state-error", "state 207")
OLD_IDS = set(Rival.IDS)
SETTLE_SECONDS = 0.2

pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience for tests."""
    monkeypatch.setattr(registration, "STREAM_POLL_SECONDS", 0.02)
    monkeypatch.setattr(rivals, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(rivals, "CONFIRM_SECONDS", 0.3)
    monkeypatch.setattr(rivals, "RETURN_SECONDS", (0.5, 1.0))
    monkeypatch.setattr(rivals, "YOUNG_SECONDS", 0.1)
    monkeypatch.setattr(rivals, "ANEW_SECONDS", 600.0)


class Node(Kubelet):
    """Keeps what it has shown: at each list whom it asks, and the ids that are healthy."""

    def __init__(self, directory: Path, release: Release) -> None:
        super().__init__(directory, release=release)
        self.shown: list[tuple[str, frozenset[str]]] = []

    def _take(self, resource: str, response: api.ListAndWatchResponse) -> None:
        super()._take(resource, response)
        healthy = {device.id for device in self.devices(resource).values() if device.healthy}
        self.shown.append((self.plugin_of(resource) or "", frozenset(healthy)))

    @property
    def ours(self) -> bool:
        """Whether our devices are offered, and it is our plugin that is asked for them."""
        return self.serves(set(IDS)) and bool(NAME.fullmatch(self.plugin_of(RESOURCE) or ""))

    def endpoints(self) -> list[str]:
        """Our sockets, in the order of their registrations."""
        return [accepted.endpoint for accepted in self.registrations if NAME.fullmatch(accepted.endpoint)]

    def serves(self, ids: set[str]) -> bool:
        listed = {device.id for device in self.devices(RESOURCE).values() if device.healthy}
        return listed == ids and bool(self.streams_open)

    def check(self) -> None:
        """No list has shown our devices while another plugin was asked for them: every pod would fail."""
        for asked, healthy in self.shown:
            assert bool(NAME.fullmatch(asked)) or not healthy & set(IDS), self.shown


@pytest.fixture(params=list(Release))
async def node(place: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with Node(place / "plugins", request.param) as node:
        yield node
        node.check()


@pytest.fixture
async def rival(node: Node) -> AsyncIterator[Rival]:
    rival = Rival(node.directory)
    yield rival
    await rival.stop()


class Directory:
    """The kubelet's, with one checkpoint and no other plugin."""

    def __init__(self, checkpoint: Callable[[], Awaitable[Checkpoint]]) -> None:
        self._checkpoint = checkpoint

    async def checkpoint(self) -> Checkpoint:
        return await self._checkpoint()

    async def neighbours(self) -> frozenset[SocketIdentity]:
        return frozenset()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def plugin(node: Node, events: list[Event]) -> Plugin:
    return Plugin(node.directory, settle=SETTLE_SECONDS, events=outbox_into(events))


async def ours(node: Node) -> None:
    await node.until(lambda: node.ours, timeout=SECONDS, what="our devices, by our plugin")


async def taken(node: Node) -> None:
    await node.until(lambda: node.serves(OLD_IDS), timeout=SECONDS, what="the rival's devices")


async def offered(node: Node, number: int) -> None:
    await node.until(lambda: node.allocatable(RESOURCE) == number, timeout=SECONDS)


def judge(plugin: Plugin, health: Health) -> None:
    plugin.picture.submit(partial(after_verdicts, verdicts={IDS[0]: health}))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "another plugin has registered" in record.getMessage()
    ]


async def test_a_rival_that_stays_is_noticed_and_gives_way(
    node: Node,
    plugin: Plugin,
    rival: Rival,
    events: list[Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It loses the name to us; the devices that it may have granted are withheld until holders are known."""
    async with plugin.run():
        await ours(node)
        await rival.start()
        await taken(node)
        looked = plugin.looks
        await until(lambda: plugin.watch.rivalry.phase is Phase.DISPLACED or plugin.watch.rivalry.withheld)
        assert plugin.watch.displacements == 1
        assert plugin.watch.trouble
        await ours(node)
        await until(lambda: not plugin.watch.away, "no rival any more")
        assert plugin.watch.trouble is None
        healthy = [ids for _, ids in node.shown]
        assert healthy[:2] == [set(IDS), OLD_IDS]
        assert healthy[2] == set(), "all devices are withheld at first"
        assert healthy[-1] == set(IDS)
        assert plugin.looks >= looked + 2, "at the registration, and after the settle time"
    [warning] = warnings(caplog)
    assert f'resource={RESOURCE} ids=["0", "1"] ' in warning
    [event] = events
    kind, reason, text = event.kind, event.reason, event.text
    assert (kind, reason) == ("Warning", REASON)
    assert RESOURCE in text


async def test_a_rival_that_came_and_went_unseen_takes_the_name_for_minutes_only(
    node: Node, plugin: Plugin, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of ours that goes out meanwhile hides it: the checkpoint shows our ids, and the kubelet asks a
    plugin that has ended. The kubelet drops the resource then, and that is seen."""

    async def fail() -> Checkpoint:
        raise UnknownHoldersError("damaged")

    async with plugin.run():
        await ours(node)
        await until(lambda: plugin.watch._named, "a look at the checkpoint")
        with monkeypatch.context() as damaged:
            damaged.setattr(plugin.watch._plugins, "checkpoint", fail)
            await rival.start()
            await taken(node)
            await rival.stop()
            await node.until(
                lambda: not node.serves(OLD_IDS) or NAME.fullmatch(node.plugin_of(RESOURCE) or ""),
                timeout=SECONDS,
            )
            judge(plugin, SICK)
            await offered(node, 1)
            judge(plugin, HEALTHY)
            await offered(node, 2)
            node.shown.clear()  # a checkpoint that cannot be read shows no rival
        node.expire()
        await ours(node)
        await until(lambda: not plugin.watch.away, "no rival any more")
        await node.allocate(RESOURCE, 2)


@pytest.mark.parametrize("ends", [False, True], ids=["it stays", "it ends"])
async def test_a_rival_that_our_list_hides_is_found_by_its_socket(
    node: Node, plugin: Plugin, rival: Rival, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It registers between our look and our list. The checkpoint shows our ids, and no pod would get one."""
    monkeypatch.setattr(rivals_edge, "READ_SECONDS", SECONDS)
    monkeypatch.setattr(rivals, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(rivals, "ANEW_SECONDS", 0.5)
    plugins = plugin.watch._plugins
    assert plugins is not None
    read = plugins.checkpoint

    async def late() -> Checkpoint:
        checkpoint = await read()
        monkeypatch.setattr(plugins, "checkpoint", read)
        await rival.start()
        await taken(node)
        await (rival.kill() if ends else asyncio.sleep(0))
        return checkpoint

    async with plugin.run():
        await ours(node)
        await until(lambda: plugin.watch._company.before is not None, "a look that shows our list")
        monkeypatch.setattr(plugins, "checkpoint", late)
        judge(plugin, SICK)
        await until(lambda: plugin.watch.rivalry.doubted, "a doubt")
        await until(lambda: not plugin.watch.rivalry.doubted, "a registration for it")
        await node.until(
            lambda: (
                len(node.endpoints()) == 2 and node.shown[-1] == (node.endpoints()[1], frozenset({IDS[1]}))
            ),
            timeout=SECONDS,
        )
        await node.allocate(RESOURCE, 1)
        assert plugin.watch.displacements == 0
        node.shown.clear()  # our list was shown while the rival was asked: that cannot be helped


async def test_a_list_waits_until_a_plugin_that_has_just_come_has_registered(
    node: Node, plugin: Plugin, rival: Rival, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hide that plugin."""
    monkeypatch.setattr(rivals, "YOUNG_SECONDS", 1.0)
    monkeypatch.setattr(rivals, "CONFIRM_SECONDS", SECONDS)
    async with plugin.run():
        await ours(node)
        await rival.bind()
        judge(plugin, SICK)
        await looks.more(5)
        await rival.register()
        await until(lambda: plugin.watch.rivalry.silent, "a suspicion")
        assert [ids for _, ids in node.shown] == [set(IDS), OLD_IDS]


@pytest.mark.parametrize("node", [Release.V1_20], indirect=True)
async def test_plugins_of_other_resources_come_and_go(node: Node, plugin: Plugin, looks: Looks) -> None:
    """No registration, as it would take the devices away for an instant. A list goes out a little later."""
    other = node.directory / "other.sock"
    async with plugin.run():
        await ours(node)
        for health, allocatable in ((SICK, 1), (HEALTHY, 2)):
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(other))
                judge(plugin, health)
                await offered(node, allocatable)
                await until(lambda: not plugin.watch._company.listed, "a look at our list")
            other.unlink()
            await looks.more(3)
        assert not plugin.watch.rivalry.doubted
        assert len(node.registrations) == 1


async def test_a_rival_that_came_and_went_leaves_no_node_without_devices(
    node: Node, plugin: Plugin, rival: Rival
) -> None:
    """It has granted a device meanwhile; its list stays in the checkpoint."""
    async with plugin.run():
        await ours(node)
        await rival.start()
        await taken(node)
        node.hold(["0"], resource=RESOURCE)
        await rival.stop()
        await ours(node)
        await until(lambda: not plugin.watch.away, "no rival any more")
        await node.allocate(RESOURCE, 2)


async def test_no_list_is_sent_while_a_rival_has_the_name(
    node: Node, plugin: Plugin, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it before the rival is noticed: a change of health is when it is looked for."""
    monkeypatch.setattr(rivals, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(rivals, "CONFIRM_SECONDS", 1.0)
    async with plugin.run():
        await ours(node)
        await rival.start()
        await taken(node)
        judge(plugin, SICK)
        await until(lambda: plugin.watch.rivalry.silent, "a suspicion")
        judge(plugin, HEALTHY)
        judge(plugin, SICK)
        await node.until(lambda: node.serves({IDS[1]}), timeout=SECONDS)
        assert [ids for _, ids in node.shown] == [set(IDS), OLD_IDS, set(), {IDS[1]}]
        assert plugin.service.streams == 1


async def test_a_rival_that_never_gives_up_is_answered_ever_more_slowly(
    node: Node,
    plugin: Plugin,
    rival: Rival,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rivals, "CONFIRM_SECONDS", 0.1)
    monkeypatch.setattr(rivals, "RETURN_SECONDS", (0.4, 0.8))
    async with plugin.run():
        await ours(node)
        await rival.start()
        for turn in range(1, 4):
            await until(lambda turn=turn: plugin.watch.displacements == turn)  # type: ignore[misc]
            await ours(node)
            if node._release is Release.V1_37:  # that refuses its path from now on
                await rival.stop()
                await rival.start()
            else:
                await rival.register()
        await until(lambda: plugin.watch.displacements == 4)
    waits = [float(warning.rpartition("=")[2]) for warning in warnings(caplog)]
    assert len(waits) == 4
    assert waits[0] == 0
    times = [accepted.time for accepted in node.registrations if NAME.fullmatch(accepted.endpoint)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[1] > 0.1 + 0.75 * 0.4
    assert gaps[2] > 0.1 + 0.75 * 0.8


async def test_a_kubelet_that_restarts_meanwhile_has_our_devices_at_once(
    node: Node, plugin: Plugin, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plugins register anew, and pods are lost if none has devices within a second."""
    monkeypatch.setattr(rivals, "RETURN_SECONDS", (600.0, 600.0))
    async with plugin.run():
        await ours(node)
        await rival.start()
        await until(lambda: plugin.watch.displacements == 1)
        await ours(node)
        await until(lambda: not plugin.watch.away)
        await rival.stop()
        await rival.start()
        await until(lambda: plugin.watch.displacements == 2)
        assert plugin.watch.rivalry.phase is Phase.DISPLACED
        await rival.stop()
        shown = len(node.shown)
        await node.restart()
        await ours(node)
        assert node.shown[shown][1] == set(IDS), "the first list is whole"


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoiled(file: Path) -> None:
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return spoiled


@pytest.mark.parametrize(
    "harm",
    [
        Path.unlink,
        lambda file: file.write_text("{"),
        lambda file: file.write_bytes(b"\xff" * 9),
        spoil(lambda document: document["Data"].pop("RegisteredDevices")),
        spoil(lambda document: document["Data"].update(RegisteredDevices=None)),
        spoil(lambda document: document["Data"].update(RegisteredDevices=7)),
    ],
    ids=["no file", "cut off", "no text", "no registered devices", "null", "a number"],
)
@pytest.mark.parametrize("node", [Release.V1_20], indirect=True)
async def test_a_checkpoint_that_does_not_tell_is_no_rival(
    node: Node, plugin: Plugin, looks: Looks, harm: Callable[[Path], object]
) -> None:
    async with plugin.run():
        await ours(node)
        harm(node.directory / CHECKPOINT)
        await looks.more(40)
        assert not plugin.watch.rivalry.silent
        assert plugin.watch.displacements == 0
        judge(plugin, SICK)
        await offered(node, 1)
        assert len(node.registrations) == 1


@pytest.mark.parametrize("node", [Release.V1_20], indirect=True)
async def test_a_kubelet_that_has_dropped_our_resource_is_told_of_it_again(
    node: Node, plugin: Plugin, looks: Looks
) -> None:
    """As it does 5 min after the end of a rival; a list of ours may have replaced the rival's in between."""
    async with plugin.run():
        await ours(node)
        await looks.more(10)
        spoil(lambda document: document["Data"].update(RegisteredDevices={}))(node.directory / CHECKPOINT)
        await until(lambda: plugin.watch.displacements == 1)
        await ours(node)
        await until(lambda: not plugin.watch.away)


async def test_a_kubelet_that_never_names_resources_has_no_rivals() -> None:
    async def read() -> Checkpoint:
        return Checkpoint(written_ns=1 << 62)

    watch = RivalWatch(RESOURCE, plugins=Directory(read))
    watch.announce(IDS, IDS)
    await watch.look()
    assert not watch.rivalry.silent


@pytest.mark.parametrize("node", [Release.V1_20], indirect=True)
async def test_the_lists_of_a_long_life_are_no_rivals(node: Node, plugin: Plugin) -> None:
    """Devices become sick and well, are lost and come."""
    async with plugin.run():
        await ours(node)
        for number in range(40):
            health = (SICK, HEALTHY)[number % 2]
            judge(plugin, health)
            await offered(node, 1 + health.healthy)
        plugin.picture.submit(lambda facts: after_scan(facts, found(), forget=True))
        await node.until(lambda: node.devices(RESOURCE) == {}, timeout=SECONDS)
        await until(lambda: plugin.service.lists == 42)
        assert plugin.watch.displacements == 0
        assert len(node.registrations) == 1


@pytest.mark.parametrize("node", [Release.V1_20], indirect=True)
async def test_a_checkpoint_that_cannot_be_read_in_time_holds_up_no_list(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that hangs: one read waits, and no other is begun."""
    monkeypatch.setattr(rivals_edge, "READ_SECONDS", 0.05)
    reads, forever = 0, asyncio.Event()

    async def read() -> Checkpoint:
        nonlocal reads
        reads += 1
        await forever.wait()
        return Checkpoint()

    plugin = Plugin(node.directory, plugins=Directory(read))
    async with plugin.run():
        await ours(node)
        for health, allocatable in ((SICK, 1), (HEALTHY, 2), (SICK, 1)):
            judge(plugin, health)
            await offered(node, allocatable)
        assert reads == 1
        forever.set()


async def test_ids_of_a_rival_are_shown_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    """Its ids are not ours to trust: too many, too long, not printable."""
    said: list[Event] = []
    ids = frozenset({f"card\n{number:03}" + "x" * 500 for number in range(300)})

    async def read() -> Checkpoint:
        return Checkpoint(registered={RESOURCE: ids}, written_ns=1 << 62)

    watch = RivalWatch(RESOURCE, plugins=Directory(read), events=outbox_into(said))
    watch.announce(IDS, IDS)
    while not watch.displacements:
        await watch.look()
        assert watch.rivalry.silent
        await asyncio.sleep(0.01)
    [warning] = warnings(caplog)
    assert len(warning) < 1000
    assert len(said[0].text) < 1000
    assert "\n" not in warning + said[0].text
    assert "and 292 more" in said[0].text
