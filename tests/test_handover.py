# SPDX-License-Identifier: Apache-2.0
"""Two instances on one node, as real processes: the node passes to the new one without a gap.

A process that ends or stops at a certain step is played by hand (`tests.support.successor`).
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.support.daemon import IDS, Daemon, Node, free_port, probed, shows
from tests.support.impatient import impatient
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.successor import Other, Predecessor, gone
from tests.support.waiting import SECONDS, until
from xpu_plugin.model.handover import HandoverPace
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import Kubelet, Release


pytestmark = pytest.mark.usefixtures("leaves_no_process")

QUICK = impatient(Timings(holders=0.1, handover=HandoverPace(again=(0.05, 0.2), show=SECONDS, end=SECONDS)))
SHORT = impatient(Timings(holders=0.1, handover=HandoverPace(again=(0.05, 0.2), show=0.3)))

TAKEN = "this instance has taken the node over"
GIVEN = "the node is handed over; this instance waits"
FAILED = "the hand-over failed; this instance goes on"
WITHDRAWN = "the other instance serves again; this one waits"


class Watched(Kubelet):
    """A kubelet that remembers the smallest number of healthy devices since `begin`, after each change."""

    least: int | None = None

    def begin(self) -> None:
        self.least = self.allocatable(RESOURCE)

    def _changed(self) -> None:
        super()._changed()
        if self.least is not None:
            self.least = min(self.least, self.allocatable(RESOURCE))


@asynccontextmanager
async def watching(node: Node, release: Release) -> AsyncIterator[Watched]:
    async with Watched(node.plugins, pod_resources_dir=node.place / "pods", release=release) as kubelet:
        yield kubelet


@pytest.fixture(params=Release, ids=str)
async def watched(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[Watched]:
    async with watching(node, request.param) as kubelet:
        yield kubelet


@pytest.fixture
async def newest(node: Node) -> AsyncIterator[Watched]:
    async with watching(node, Release.V1_37) as kubelet:
        yield kubelet


def instance(node: Node, pod: str, *arguments: str, program: tuple[str, ...] = QUICK) -> Daemon:
    return node.start(f"--pod-uid={pod}", *arguments, program=program)


async def called(kubelet: Kubelet, *, not_by: str | None) -> None:
    """Wait until the kubelet asks another socket, with an open stream and all devices."""
    await kubelet.until(
        lambda: (
            kubelet.plugin_of(RESOURCE) not in (None, not_by)
            and kubelet.streams_open
            and kubelet.allocatable(RESOURCE) == len(IDS)
        ),
        timeout=SECONDS,
        what="a stream of another socket",
    )


async def answers(port: int, wanted: int) -> str:
    """Wait until the page `/readyz` has this status; return its text."""
    page = 0, ""
    async with asyncio.timeout(SECONDS):
        while page[0] != wanted:
            await asyncio.sleep(0.05)
            with suppress(OSError):
                page = await asyncio.to_thread(probed, port, "/readyz")
    return page[1]


# --- all goes well --------------------------------------------------------------------------------


async def test_the_new_instance_takes_over_and_the_kubelet_misses_no_device(
    node: Node, watched: Watched, request: pytest.FixtureRequest
) -> None:
    old = instance(node, "a")
    await shows(watched, IDS)
    held = await watched.allocate(RESOURCE, 1)
    watched.begin()
    new = instance(node, "b")
    await new.says(TAKEN)
    await old.says(GIVEN)
    record = json.loads((node.place / "state/handover.json").read_text())
    assert (record["from"], record["to"]) == ("a", "b")
    await shows(watched, IDS)
    await watched.restart_container(held)
    more = await watched.allocate(RESOURCE, 1)
    assert set(more.ids) != set(held.ids)
    await old.stop()
    await shows(watched, IDS)
    if request.node.callspec.params["watched"] is not Release.V1_36:
        assert watched.least == len(IDS)
    assert watched.troubles == [] or "1.36" in request.node.name


async def test_a_grant_that_no_record_has_passes_with_the_node(node: Node, newest: Watched) -> None:
    """Granted to a pod of which no container has started: the record has it from the first start on."""

    instance(node, "a")
    await shows(newest, IDS)
    admitted = await newest.admit(RESOURCE, 1)
    new = instance(node, "b")
    await new.says(TAKEN)
    await newest.restart_container(admitted)
    grants = node.place / "state/grants.json"
    await until(lambda: grants.exists() and admitted.ids[0] in grants.read_text(), "the record of the start")


async def test_the_node_returns_when_the_new_instance_ends_and_goes_to_the_next_one(
    node: Node, newest: Watched
) -> None:
    """A rollback; and the restarted container of a new instance has the node again."""
    old = instance(node, "a")
    await shows(newest, IDS)
    new = instance(node, "b")
    await new.says(TAKEN)
    await old.says(GIVEN)
    await new.kill()
    await old.says("registered resource=", 2)  # before that the lock is free for any instance
    await called(newest, not_by=None)
    again = instance(node, "b")
    await again.says(TAKEN)
    await old.says(GIVEN, 2)
    await again.stop()
    await shows(newest, IDS)
    await newest.allocate(RESOURCE, 1)


async def test_a_restarted_container_of_the_pod_that_gave_the_node_away_only_waits(
    node: Node, newest: Watched
) -> None:
    old = instance(node, "a")
    await shows(newest, IDS)
    new = instance(node, "b")
    await old.says(GIVEN)
    await old.kill()
    old = instance(node, "a")
    await old.says("waiting: another plugin works in the kubelet's directory")
    third = instance(node, "c")
    await third.says(TAKEN)
    assert "asks for this node" not in third.log
    await new.says_exactly("asks for this node", times=1)  # that of the third


async def test_an_instance_without_a_driver_never_asks_and_is_ready_only_beside_one_that_serves_nothing(
    node: Node, newest: Watched
) -> None:
    old_port, port = free_port(), free_port()
    old = instance(node, "a", f"--metrics-address=127.0.0.1:{old_port}")
    await shows(newest, IDS)

    node.machine.set({"driver": "gone"})
    new = instance(node, "b", f"--metrics-address=127.0.0.1:{port}")
    text = await answers(port, 503)
    assert "node: another instance" in text
    assert (await asyncio.to_thread(probed, old_port, "/readyz"))[0] == 200
    await newest.stop()
    await answers(port, 200)
    await newest.start()
    await newest.until(lambda: newest.streams_open, timeout=SECONDS)
    await answers(port, 503)
    await old.stop()
    await answers(port, 200)
    assert "asks for this node" not in old.log
    assert TAKEN not in new.log


# --- without a hand-over --------------------------------------------------------------------------


async def test_a_plugin_without_the_socket_is_replaced_when_it_ends(node: Node, newest: Watched) -> None:
    """As 1.0.0 and the former plugin are; and the page is ready, so that no update stands still."""
    port = free_port()
    former = Predecessor(node.plugins, node.place / "state")
    new = instance(node, "b", f"--metrics-address=127.0.0.1:{port}")
    await new.says("waiting: another plugin works in the kubelet's directory")

    await answers(port, 200)
    assert newest.registrations == []
    former.die()
    await shows(newest, IDS)


# --- the new instance ends or stops ---------------------------------------------------------------


@pytest.mark.parametrize("step", ["hello", "quiet", "frozen", "registering"])
async def test_a_new_instance_that_ends_leaves_the_node_to_the_old_one(
    node: Node, newest: Watched, step: str
) -> None:
    old = instance(node, "a")
    await shows(newest, IDS)
    first = newest.plugin_of(RESOURCE)
    other = await Other.ask(node.place / "state")
    if step == "hello":
        await other.hello()
        await other.hear("quiet")
    else:
        await other.until("quiet" if step == "quiet" else "frozen")
    if step == "registering":
        await other.say("registering")
        await other.say("granted", grants={IDS[0]: "/dev/xpu0"}, started=True)
    other.close()
    await old.says(FAILED)
    if step == "registering":
        await called(newest, not_by=first)
        grants = node.place / "state/grants.json"
        await until(lambda: grants.exists() and IDS[0] in grants.read_text(), "the other one's grant")
    node.machine.set_card(1, {"state": "207"})
    await newest.until(lambda: newest.allocatable(RESOURCE) == len(IDS) - 1, timeout=SECONDS)
    await newest.allocate(RESOURCE, 1)


async def test_while_it_is_frozen_the_old_instance_sends_no_list_and_grants(
    node: Node, newest: Watched
) -> None:
    """Each grant is with the other one before the kubelet has the answer."""
    old = instance(node, "a")
    await shows(newest, IDS)
    other = await Other.ask(node.place / "state")
    await other.until("frozen")
    lists = newest.lists(RESOURCE)
    node.machine.set_card(3, {"state": "207"})
    await old.says("reason=state-error")
    grant = await newest.allocate(RESOURCE, 1)
    granted = await other.hear("granted")
    assert set(granted.fields["grants"]) == set(grant.ids)
    assert (await other.hear("granted")).fields["started"]
    assert newest.lists(RESOURCE) == lists
    other.close()
    await newest.until(lambda: newest.allocatable(RESOURCE) == len(IDS) - 1, timeout=SECONDS)
    grants = node.place / "state/grants.json"
    await until(lambda: grants.exists() and grant.ids[0] in grants.read_text(), "the record of the start")


@pytest.mark.parametrize("registering", [False, True])
async def test_a_new_instance_that_stops_is_left_after_its_time(
    node: Node, newest: Watched, registering: bool
) -> None:
    """The old one goes on. When the other one ends, after a while or never, it registers once more."""
    old = instance(node, "a", program=SHORT)
    await shows(newest, IDS)
    first = newest.plugin_of(RESOURCE)
    other = await Other.ask(node.place / "state")
    await other.until("frozen")
    if registering:
        await other.say("registering")
    await old.says(FAILED)
    await gone(other)
    if registering:
        await called(newest, not_by=first)
    busy = await Other.ask(node.place / "state")
    assert (await busy.hear("refused")).fields["serving"]
    busy.close()
    again = newest.plugin_of(RESOURCE)
    other.close()
    if registering:
        await called(newest, not_by=again)
    new = instance(node, "b")
    await new.says(TAKEN)
    await old.says(GIVEN)


async def test_strangers_at_the_socket_change_nothing(node: Node, newest: Watched) -> None:
    old = instance(node, "a")
    await shows(newest, IDS)
    for line in (b"\n", b"[]\n", b"\xff\n", b'{"say": 1}\n', b'{"say": "done"}\n', b'{"say": "hello"}\n'):
        other = await Other.ask(node.place / "state")
        await asyncio.get_running_loop().sock_sendall(other.peer._connection, line)
        async with asyncio.timeout(SECONDS):
            await (other.hear("refused") if b'"done"' in line or b"hello" in line else gone(other))
        other.close()
    other = await Other.ask(node.place / "state")
    await other.hello(protocol=2)
    assert (await other.hear("refused")).fields["why"] == "protocol 1 is accepted"
    other.close()
    assert (node.place / "state/handover.sock").stat().st_mode & 0o777 == 0o600
    assert FAILED not in old.log
    assert newest.allocatable(RESOURCE) == len(IDS)
    await newest.allocate(RESOURCE, 1)


# --- the old instance ends or stops ---------------------------------------------------------------


@asynccontextmanager
async def predecessor(node: Node) -> AsyncIterator[Predecessor]:
    former = Predecessor(node.plugins, node.place / "state")
    await former.door.open()
    try:
        yield former
    finally:
        await former.close()


async def test_an_old_instance_that_dies_after_the_streams_leaves_the_node_at_once(
    node: Node, newest: Watched
) -> None:
    async with predecessor(node) as former:
        new = instance(node, "b")
        other = await former.until_streaming()
        await other.say("granted", grants={IDS[2]: "/dev/xpu2"}, started=True)
        other.close()
        former.die()
        await new.says(TAKEN)
        await shows(newest, IDS)
        grants = node.place / "state/grants.json"
        await until(lambda: grants.exists() and IDS[2] in grants.read_text(), "the other one's grant")


async def test_an_old_instance_that_goes_on_gets_the_node_back(node: Node, newest: Watched) -> None:
    async with predecessor(node) as former:
        new = instance(
            node, "b", program=impatient(Timings(handover=HandoverPace(again=(0.05, 0.2), lock=0.1)))
        )
        other = await former.until_streaming()
        await shows(newest, IDS)
        other.peer.hang_up()
        await new.says(WITHDRAWN)
        await newest.until(lambda: newest.streams_open == 0, timeout=SECONDS)
        await gone(other)
        other.close()
        other = await former.until_streaming()
        await former.done(other)
        await new.says(TAKEN)
        await shows(newest, IDS)


async def test_a_new_instance_that_wakes_up_late_does_not_register(node: Node, newest: Watched) -> None:
    async with predecessor(node) as former:
        new = instance(node, "b")
        other, _ = await former.caller()
        await other.say("quiet", serving=True)
        await other.hear("ready")
        new.process.send_signal(signal.SIGSTOP)
        await other.say("frozen", grants={}, due={})
        other.peer.hang_up()
        new.process.send_signal(signal.SIGCONT)
        await other.hear("registering")
        await gone(other)
        other.close()
        assert newest.registrations == []
        other = await former.until_streaming()
        await former.done(other)
        await new.says(TAKEN)


async def test_beside_an_old_instance_that_has_stopped_the_new_one_grants_and_writes_nothing(
    node: Node, newest: Watched
) -> None:
    grants = node.place / "state/grants.json"
    async with predecessor(node) as former:
        new = instance(node, "b")
        other = await former.until_streaming()
        await shows(newest, IDS)
        held = await newest.allocate(RESOURCE, 1)
        assert (await other.hear("granted")).fields["grants"].keys() == set(held.ids)
        assert (await other.hear("granted")).fields["started"]
        assert not grants.exists()
        await former.done(other)
        await new.says(TAKEN)
        await until(lambda: grants.exists() and held.ids[0] in grants.read_text(), "the record of the start")


async def test_a_card_is_changed_only_with_the_lock(node: Node, newest: Watched) -> None:
    own_pod(newest)
    async with predecessor(node) as former:
        new = instance(node, "b", "--sriov-num-vfs=2", "--pod-name=plugin", "--pod-list-delay=0.1")
        other = await former.until_streaming()
        await former.done(other)
        await new.says("asking the driver for VFs")
        assert new.log.index(TAKEN) < new.log.index("asking the driver for VFs")
