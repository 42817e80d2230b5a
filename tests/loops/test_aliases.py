# SPDX-License-Identifier: Apache-2.0
"""Aliases against a kubelet's real sockets and files: what a container holds stays listed the way it was
granted, until it is certain that the container has ended."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import Clock
from tests.support.devices import device, found
from tests.support.grants import nowhere
from tests.support.kubelets import CountingKubelet
from tests.support.locks import Lock
from tests.support.machines import RESOURCE
from tests.support.pictures import health
from tests.support.tasks import running
from tests.support.waiting import PROMPT_SECONDS, until
from xpu_plugin.edges.kubelet import view as view_module
from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError, checkpoint_of
from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.edges.worker.client import WorkerClient
from xpu_plugin.loops import aliases as holders_module
from xpu_plugin.loops import grants as grants_module
from xpu_plugin.loops.aliases import SETTLE_SECONDS, Aliases
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.inventory import Policy, after_scan
from xpu_plugin.model.ownership import Checkpoint, Listing, Terms
from xpu_plugin.model.timings import USUAL
from xpu_plugin.simulation.kubelet import CHECKPOINT, Assignment, Kubelet


IDS = [f"0000:{bus:02x}:00.0" for bus in (0x3B, 0x3C, 0x3D, 0x3E)]
TERMS = Terms(own_pod="kube-system/plugin", settle=10.0)

pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[CountingKubelet]:
    async with CountingKubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        yield kubelet


@pytest.fixture
def picture() -> Picture:
    """Four whole cards, /dev/xpu0 to /dev/xpu3."""
    picture = Picture(Policy(resource=RESOURCE))
    cards = [device(id, number=number, index=number) for number, id in enumerate(IDS)]
    picture.submit(lambda facts: after_scan(facts, found(*cards)))
    return picture


def view_of(kubelet: Kubelet, clock: Callable[[], float]) -> KubeletView:
    pods = kubelet.pod_resources_socket or kubelet.directory / "no-such-socket"
    return KubeletView(device_plugin_dir=kubelet.directory, pod_resources_socket=pods, clock=clock)


def memory_of(kubelet: Kubelet, picture: Picture, clock: Callable[[], float]) -> Grants:
    record = GrantRecord(kubelet.directory.parent / "state")
    return Grants(picture, view_of(kubelet, clock), record, TERMS, clock=clock)


def holders_of(
    kubelet: Kubelet, picture: Picture, clock: Callable[[], float] | None = None, grants: Grants | None = None
) -> Aliases:
    clock = clock or Clock()
    view, grants = view_of(kubelet, clock), grants or memory_of(kubelet, picture, clock)
    client = WorkerClient(nowhere(kubelet.directory), call_timeout=1.0)
    return Aliases(picture, view, grants, IdleProof(client, view, grants, clock=clock), clock=clock)


@pytest.fixture
def grants(kubelet: Kubelet, picture: Picture, clock: Clock) -> Grants:
    return memory_of(kubelet, picture, clock)


@pytest.fixture
def aliases(kubelet: Kubelet, picture: Picture, clock: Clock, grants: Grants) -> Aliases:
    return holders_of(kubelet, picture, clock, grants)


def offered(picture: Picture) -> dict[str, str]:
    """Node paths by the ids they are offered under."""
    assert picture.current
    return {entry.id: entry.device.path for entry in picture.current.of(RESOURCE)}


OWN = {id: f"/dev/xpu{number}" for number, id in enumerate(IDS)}


def with_old(*numbers: int) -> dict[str, str]:
    """All four, these under their old ids."""
    return {str(n) if n in numbers else id: f"/dev/xpu{n}" for n, id in enumerate(IDS)}


@pytest.fixture
async def held(kubelet: Kubelet, aliases: Aliases) -> Assignment:
    """A container that holds "0", and has been seen."""
    assignment = kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    return assignment


def free_everywhere(kubelet: Kubelet) -> None:
    """All containers end, and the kubelet writes that down."""
    for grant in kubelet.grants:
        kubelet.free(grant)
    kubelet.write_checkpoint()


# --- noticing -------------------------------------------------------------------------------------


async def test_old_ids_named_by_pod_resources_are_offered_as_such(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0", "2"], resource=RESOURCE)
    (kubelet.directory / CHECKPOINT).unlink()
    await aliases.look()
    assert offered(picture) == with_old(0, 2)


@pytest.mark.parametrize(
    "sources",
    [
        {"pod_resources": True, "pod_resources_v1": False},  # before 1.20
        {"pod_resources": False, "checkpoint_per_numa": True},
        {"pod_resources": False, "checkpoint_per_numa": False},
    ],
)
async def test_a_kubelet_of_any_release_names_holders(
    place: Path, picture: Picture, sources: dict[str, Any]
) -> None:
    pods = place / "pods" if sources.pop("pod_resources") else None
    async with Kubelet(place / "plugins", pod_resources_dir=pods, **sources) as kubelet:
        kubelet.hold(["3", "1"], resource=RESOURCE)
        if pods:
            (kubelet.directory / CHECKPOINT).unlink()
        await holders_of(kubelet, picture).look()
    assert offered(picture) == with_old(1, 3)


# --- releasing ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
async def test_an_old_id_is_released_by_itself_by_two_looks_that_find_no_holder(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    ending = kubelet.hold(["1"], resource=RESOURCE)
    await aliases.look()
    kubelet.free(ending)
    kubelet.write_checkpoint()
    await aliases.look()
    assert offered(picture) == with_old(0, 1)
    await aliases.look()
    assert offered(picture) == with_old(0)


@pytest.mark.usefixtures("held")
async def test_an_old_id_that_is_granted_again_is_kept_although_nobody_lists_it_yet(
    kubelet: Kubelet, aliases: Aliases, grants: Grants, picture: Picture, clock: Clock
) -> None:
    free_everywhere(kubelet)
    await aliases.look()
    grants.granted({"0": "/dev/xpu0", IDS[1]: "/dev/xpu1"})
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)

    clock.now += SETTLE_SECONDS
    await aliases.look()
    assert offered(picture) == with_old(0)
    await aliases.look()
    assert offered(picture) == OWN


@pytest.mark.usefixtures("held")
async def test_an_old_id_whose_container_was_only_started_again_is_released_as_any_other(
    kubelet: Kubelet, aliases: Aliases, grants: Grants, picture: Picture, clock: Clock
) -> None:
    """The kubelet has known of it all the time."""
    clock.now += 1.0
    await grants.started({"0": "/dev/xpu0"})
    free_everywhere(kubelet)
    clock.now += 1.0
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN


# --- sources that do not answer -------------------------------------------------------------------


def block_pod_resources(kubelet: Kubelet) -> Callable[[], object]:
    """Make a socket without a listener; return a function that undoes it."""
    socket = kubelet.pod_resources_socket
    assert socket
    aside = socket.with_name("aside.sock")
    socket.rename(aside)
    socket.touch()
    return lambda: aside.rename(socket)


def unreadable_checkpoint(kubelet: Kubelet) -> None:
    (kubelet.directory / CHECKPOINT).write_text("{")


def old_checkpoint(kubelet: Kubelet) -> None:
    """It keeps a dead pod's devices until it is written next time."""
    (kubelet.directory / CHECKPOINT).write_text((kubelet.directory / "old").read_text())


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("happens", [block_pod_resources, unreadable_checkpoint, old_checkpoint])
async def test_nothing_is_released_that_one_source_does_not_release(
    kubelet: Kubelet,
    aliases: Aliases,
    picture: Picture,
    caplog: pytest.LogCaptureFixture,
    happens: Callable[[Kubelet], Callable[[], object] | None],
) -> None:
    (kubelet.directory / CHECKPOINT).rename(kubelet.directory / "old")
    free_everywhere(kubelet)
    undo = happens(kubelet) or kubelet.write_checkpoint
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)
    complaints = [record for record in caplog.records if "the holders of devices" in record.message]
    assert len(complaints) == (happens is not old_checkpoint), "said once, not at each look"
    undo()
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN


async def test_with_one_source_away_the_other_is_still_believed_when_it_names_a_holder(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    block_pod_resources(kubelet)
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    assert offered(picture) == with_old(0)
    await kubelet.restart()
    (kubelet.directory / CHECKPOINT).write_text("{")
    await aliases.look()
    assert offered(picture) == with_old(0)


async def test_a_holder_named_in_between_starts_the_two_looks_anew(
    kubelet: Kubelet, aliases: Aliases, picture: Picture, held: Assignment
) -> None:
    """Released is what two looks *in a row* did not find, with both sources answering."""
    free_everywhere(kubelet)
    await aliases.look()

    kubelet.hold(["0"], resource=RESOURCE)
    unblock = block_pod_resources(kubelet)
    await aliases.look()
    unblock()
    free_everywhere(kubelet)

    await aliases.look()
    assert offered(picture) == with_old(0)
    await aliases.look()
    assert offered(picture) == OWN


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
async def test_the_loop_asks_while_something_is_held_and_then_no_more(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture
) -> None:
    aliases.between = 0.02
    async with running(aliases.run()):
        await until(lambda: kubelet.questions >= 5)
        free_everywhere(kubelet)
        await until(lambda: offered(picture) == OWN)
        asked = kubelet.questions
        await asyncio.sleep(0.2)  # ten rounds: that nothing happens gives no notice
        assert kubelet.questions == asked


async def test_a_change_that_another_part_has_read_is_noticed_all_the_same(
    kubelet: CountingKubelet, grants: Grants, picture: Picture, clock: Clock
) -> None:
    """All parts share one reader of the kubelet."""
    view = view_of(kubelet, clock)
    client = WorkerClient(nowhere(kubelet.directory), call_timeout=1.0)
    aliases = Aliases(picture, view, grants, IdleProof(client, view, grants, clock=clock), clock=clock)
    kubelet.hold([], resource=RESOURCE)
    await aliases.look()
    aliases.between = 0.02
    kubelet.hold(["0"], resource=RESOURCE)
    await view.answers(oldest=0.0)
    async with running(aliases.run()):
        await until(lambda: offered(picture) == with_old(0), "a device that is held as 0")


async def test_the_loop_goes_on_asking_while_nobody_could_tell(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture
) -> None:
    aliases.between = 0.02
    kubelet.hold(["2"], resource=RESOURCE)
    (kubelet.directory / CHECKPOINT).write_text("{")
    unblock = block_pod_resources(kubelet)
    await aliases.look()
    assert offered(picture) == OWN
    async with running(aliases.run()):
        unblock()
        await until(lambda: offered(picture) == with_old(2))


async def test_what_is_held_and_released_is_told(
    kubelet: Kubelet, aliases: Aliases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=holders_module.__name__)
    kubelet.hold(["0"], resource=RESOURCE)
    for _ in range(3):
        await aliases.look()
    free_everywhere(kubelet)
    for _ in range(4):
        await aliases.look()
    messages = [record.message for record in caplog.records if record.name == holders_module.__name__]
    assert len(messages) == 2
    assert all('id="0"' in message for message in messages)


# --- before a registration, and when the checkpoint changes ---------------------------------------


async def test_before_a_registration_the_checkpoint_alone_is_asked(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.before_registration()
    assert offered(picture) == with_old(0)
    assert kubelet.questions == 0


async def test_the_look_before_a_registration_is_bounded(
    kubelet: CountingKubelet,
    aliases: Aliases,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A kubelet that waits for a second kills pods."""
    gate = asyncio.Event()

    async def frozen(directory: Path) -> Checkpoint:
        await gate.wait()
        return await checkpoint_of(directory)

    monkeypatch.setattr(view_module, "checkpoint_of", frozen)
    kubelet.hold(["0"], resource=RESOURCE)
    began = time.monotonic()
    await aliases.before_registration()
    assert USUAL.before <= time.monotonic() - began < PROMPT_SECONDS
    assert offered(picture) == OWN
    assert caplog.records == [], "it is looked at again at once"
    monkeypatch.setattr(view_module, "READ_SECONDS", 0.01)
    await aliases.look()
    assert (
        f'cannot read the holders of devices error="{kubelet.directory / CHECKPOINT}: no answer within'
        in caplog.text
    )
    gate.set()
    await aliases.look()
    assert offered(picture) == with_old(0)


async def test_the_loop_reads_a_checkpoint_that_has_changed_and_asks_nothing_else(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders_module, "WATCH_SECONDS", 0.01)
    await aliases.look()
    questions = kubelet.questions
    async with running(aliases.run()):
        kubelet.hold(["3"], resource=RESOURCE)
        await until(lambda: offered(picture) == with_old(3))
        assert kubelet.questions == questions


async def test_a_kubelet_that_restarts_is_no_warning_and_one_that_does_not_answer_for_long_is(
    aliases: Aliases, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def away(socket: Path) -> Listing:
        nonlocal asked
        asked += 1
        raise UnknownHoldersError("away")

    monkeypatch.setattr(view_module, "list_pods", away)
    aliases.between = 0.01
    async with running(aliases.run()):
        await until(lambda: asked >= 3, "looks")
        assert caplog.records == []
        clock.now += holders_module.RESTART_SECONDS
        await until(lambda: "cannot read the holders of devices error=away" in caplog.text, "a warning")


# --- a record of grants that could not be read --------------------------------------------------------


@pytest.mark.parametrize("while_looking", [False, True])
async def test_a_forgotten_holder_is_found_once_the_record_that_names_it_can_be_read(
    kubelet: CountingKubelet,
    picture: Picture,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    while_looking: bool,
) -> None:
    """Although neither the checkpoint nor the kubelet changes any more, and a look is under way."""
    monkeypatch.setattr(grants_module, "READ_SECONDS", (0.02, 0.05))
    file = place / "state/grants.json"
    file.parent.mkdir()
    file.symlink_to(file.name)
    kubelet.hold([], resource="none", pod="train")
    kubelet.write_checkpoint()
    grants = memory_of(kubelet, picture, time.monotonic)
    aliases = holders_of(kubelet, picture, time.monotonic, grants)
    aliases.between = 0.05
    await aliases.first_look()

    assert set(health(picture.current).values()) == {None}
    draft = file.with_name("draft")
    held = {IDS[1]: ["default/train/main", "another kubelet"]}
    draft.write_text(json.dumps({"grants": {IDS[1]: "/dev/xpu1"}, "listed": [IDS[1]], "holders": held}))

    async def readable_meanwhile(directory: Path) -> Checkpoint:
        draft.replace(file)
        assert await grants.catch_up()
        monkeypatch.undo()
        return await checkpoint_of(directory)

    if while_looking:
        monkeypatch.setattr(view_module, "checkpoint_of", readable_meanwhile)
        await aliases.look()
    else:
        draft.replace(file)

    async with running(aliases.run(), grants.run(Lock())):
        await until(
            lambda: health(picture.current)[IDS[1]] == "forgotten-holder", "a device that is withheld"
        )
