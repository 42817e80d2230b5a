# SPDX-License-Identifier: Apache-2.0
"""Aliases against a kubelet's real sockets and files: what a container holds stays listed the way it was
granted, until it is certain that the container has ended."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.devices import device, found
from tests.support.grants import nowhere
from tests.support.kubelets import CountingKubelet
from tests.support.locks import Lock
from tests.support.machines import RESOURCE
from tests.support.pictures import health
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
from xpu_plugin.simulation.kubelet import CHECKPOINT, Kubelet


IDS = [f"0000:{bus:02x}:00.0" for bus in (0x3B, 0x3C, 0x3D, 0x3E)]
PROFILE = "baidu.com/R200"
TERMS = Terms(own_pod="kube-system/plugin", settle=10.0)

pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[CountingKubelet]:
    async with CountingKubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        yield kubelet


def picture_of(policy: Policy) -> Picture:
    """Four whole cards, /dev/xpu0 to /dev/xpu3."""
    picture = Picture(policy)
    cards = [device(id, number=number, index=number) for number, id in enumerate(IDS)]
    picture.submit(lambda facts: after_scan(facts, found(*cards)))
    return picture


@pytest.fixture
def picture() -> Picture:
    return picture_of(Policy(resource=RESOURCE))


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


def offered(picture: Picture, resource: str = RESOURCE) -> dict[str, str]:
    """Node paths by the ids they are offered under."""
    assert picture.current
    return {entry.id: entry.device.path for entry in picture.current.of(resource)}


OWN = {id: f"/dev/xpu{number}" for number, id in enumerate(IDS)}


def with_old(*numbers: int) -> dict[str, str]:
    """All four, these under their old ids."""
    return {str(n) if n in numbers else id: f"/dev/xpu{n}" for n, id in enumerate(IDS)}


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


async def test_a_kubelet_before_1_20_is_asked_by_v1alpha1(place: Path, picture: Picture) -> None:
    async with Kubelet(
        place / "plugins", pod_resources_dir=place / "pods", pod_resources_v1=False
    ) as kubelet:
        kubelet.hold(["1"], resource=RESOURCE)
        (kubelet.directory / CHECKPOINT).unlink()
        await holders_of(kubelet, picture).look()
    assert offered(picture) == with_old(1)


@pytest.mark.parametrize("per_numa", [True, False])
async def test_without_pod_resources_the_checkpoint_names_holders(
    place: Path, picture: Picture, *, per_numa: bool
) -> None:
    async with Kubelet(place / "plugins", checkpoint_per_numa=per_numa) as kubelet:
        kubelet.hold(["3", "1"], resource=RESOURCE)
        await holders_of(kubelet, picture).look()
    assert offered(picture) == with_old(1, 3)


async def test_a_running_init_container_is_seen_in_the_checkpoint_only_and_counts(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["1"], resource=RESOURCE, init_container=True)
    await aliases.look()
    assert offered(picture) == with_old(1)


async def test_a_restarted_kubelet_that_knows_no_pods_releases_nothing(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    """While its API server is away it lists no pods, although containers run."""
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    kubelet.api_server_away = True
    await kubelet.restart()
    assert not kubelet.pod_resources().pod_resources
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)


async def test_what_is_not_an_old_id_of_ours_changes_nothing(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0"], resource="example.com/gpu")
    kubelet.hold(["007", "-1", "", "1.0", "0x2", "٢"], resource=RESOURCE)
    kubelet.hold([IDS[1]], resource=RESOURCE)
    kubelet.hold(["99"], resource=RESOURCE)
    generation = picture.current.generation if picture.current else None
    await aliases.look()
    assert offered(picture) == OWN
    assert picture.current
    assert picture.current.generation == generation


async def test_a_device_granted_under_another_resource_name_stays_listed_there(
    kubelet: Kubelet, clock: Clock
) -> None:
    """As after a change to --resource-per-profile."""
    picture = picture_of(Policy(resource=RESOURCE, per_profile=True))
    aliases = holders_of(kubelet, picture, clock)
    grant = kubelet.hold([IDS[1], "2"], resource=RESOURCE)
    await aliases.look()
    assert offered(picture, RESOURCE) == {IDS[1]: "/dev/xpu1", "2": "/dev/xpu2"}
    assert offered(picture, PROFILE) == {IDS[0]: "/dev/xpu0", IDS[3]: "/dev/xpu3"}
    kubelet.free(grant)
    kubelet.write_checkpoint()
    await aliases.look()
    await aliases.look()
    assert offered(picture, PROFILE) == OWN


# --- releasing ------------------------------------------------------------------------------------


async def test_an_old_id_is_released_by_two_looks_that_find_no_holder(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0", "1"], resource=RESOURCE)
    await aliases.look()
    free_everywhere(kubelet)
    await aliases.look()
    assert offered(picture) == with_old(0, 1)
    await aliases.look()
    assert offered(picture) == OWN


async def test_each_old_id_is_released_by_itself(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    ending = kubelet.hold(["1"], resource=RESOURCE)
    await aliases.look()
    kubelet.free(ending)
    kubelet.write_checkpoint()
    await aliases.look()
    await aliases.look()
    assert offered(picture) == with_old(0)


async def test_the_checkpoint_is_a_veto(kubelet: Kubelet, aliases: Aliases, picture: Picture) -> None:
    """It keeps a dead pod's devices until it is written next time."""
    grant = kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    kubelet.free(grant)
    assert not kubelet.pod_resources().pod_resources
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)
    kubelet.write_checkpoint()
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN


async def test_an_old_id_that_is_granted_again_is_kept_although_nobody_lists_it_yet(
    kubelet: Kubelet, aliases: Aliases, grants: Grants, picture: Picture, clock: Clock
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
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


async def test_an_old_id_whose_container_was_only_started_again_is_released_as_any_other(
    kubelet: Kubelet, aliases: Aliases, grants: Grants, picture: Picture, clock: Clock
) -> None:
    """The kubelet has known of it all the time."""
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    clock.now += 1.0
    await grants.started({"0": "/dev/xpu0"})
    free_everywhere(kubelet)
    clock.now += 1.0
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN


async def test_a_grant_of_an_own_id_holds_nothing_otherwise(
    aliases: Aliases, grants: Grants, picture: Picture
) -> None:
    grants.granted({IDS[0]: "/dev/xpu0"})
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


async def test_pod_resources_that_do_not_answer_release_nothing(
    kubelet: Kubelet, aliases: Aliases, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    free_everywhere(kubelet)
    unblock = block_pod_resources(kubelet)
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)
    complaints = [record for record in caplog.records if "the holders of devices" in record.message]
    assert len(complaints) == 1, "said once, not at each look"
    unblock()
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN


@pytest.mark.parametrize("content", ["", "{", "[]", '{"Data": {"PodDeviceEntries": [7]}}', '{"Data": null}'])
async def test_a_checkpoint_that_cannot_be_understood_releases_nothing(
    kubelet: Kubelet, aliases: Aliases, picture: Picture, content: str
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    free_everywhere(kubelet)
    (kubelet.directory / CHECKPOINT).write_text(content)
    for _ in range(4):
        await aliases.look()
    assert offered(picture) == with_old(0)


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
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    """Released is what two looks *in a row* did not find, with both sources answering."""
    grant = kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    kubelet.free(grant)
    kubelet.write_checkpoint()
    await aliases.look()

    grant = kubelet.hold(["0"], resource=RESOURCE)
    unblock = block_pod_resources(kubelet)
    await aliases.look()
    unblock()
    kubelet.free(grant)
    kubelet.write_checkpoint()

    await aliases.look()
    assert offered(picture) == with_old(0)
    await aliases.look()
    assert offered(picture) == OWN


async def test_an_id_held_again_after_its_release_is_not_released_in_doubt(
    kubelet: Kubelet, aliases: Aliases, picture: Picture
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    free_everywhere(kubelet)
    await aliases.look()
    await aliases.look()
    assert offered(picture) == OWN

    kubelet.hold(["0"], resource=RESOURCE)
    block_pod_resources(kubelet)
    await aliases.look()
    assert offered(picture) == with_old(0)
    (kubelet.directory / CHECKPOINT).write_text("{")
    await aliases.look()
    assert offered(picture) == with_old(0), "neither source answered"


# --- the loop -------------------------------------------------------------------------------------


async def test_the_loop_asks_while_something_is_held_and_then_no_more(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.between = 0.02
    kubelet.hold(["0"], resource=RESOURCE)
    await aliases.look()
    loop = asyncio.create_task(aliases.run())
    await until(lambda: kubelet.questions >= 5)
    free_everywhere(kubelet)
    await until(lambda: offered(picture) == OWN)
    asked = kubelet.questions
    await asyncio.sleep(0.2)  # ten rounds: that nothing happens gives no notice
    assert kubelet.questions == asked
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_the_loop_goes_on_asking_while_nobody_could_tell(
    kubelet: CountingKubelet, aliases: Aliases, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.between = 0.02
    kubelet.hold(["2"], resource=RESOURCE)
    (kubelet.directory / CHECKPOINT).write_text("{")
    unblock = block_pod_resources(kubelet)
    await aliases.look()
    assert offered(picture) == OWN
    loop = asyncio.create_task(aliases.run())
    unblock()
    await until(lambda: offered(picture) == with_old(2))
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


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
    loop = asyncio.create_task(aliases.run())
    kubelet.hold(["3"], resource=RESOURCE)
    await until(lambda: offered(picture) == with_old(3))
    assert kubelet.questions == questions
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


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
    running = asyncio.create_task(aliases.run())
    try:
        await until(lambda: asked >= 3, "looks")
        assert caplog.records == []
        clock.now += holders_module.RESTART_SECONDS
        await until(lambda: "cannot read the holders of devices error=away" in caplog.text, "a warning")
    finally:
        running.cancel()


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

    async def alone() -> None:
        pass

    tasks = [asyncio.create_task(own) for own in (aliases.run(), grants.run(Lock(alone)))]
    try:
        await until(
            lambda: health(picture.current)[IDS[1]] == "forgotten-holder", "a device that is withheld"
        )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
