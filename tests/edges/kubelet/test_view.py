# SPDX-License-Identifier: Apache-2.0
"""The one reader of the kubelet, against its real sockets and files: answers are shared and have an age."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.kubelets import CountingKubelet
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS
from xpu_plugin.edges.kubelet import view as module
from xpu_plugin.edges.kubelet.pod_resources import checkpoint_of, kept_in
from xpu_plugin.edges.kubelet.view import KubeletView, Written, written_by
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.ownership import Checkpoint
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.simulation.kubelet import CHECKPOINT, Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[CountingKubelet]:
    async with CountingKubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        kubelet.hold(["0"], resource=RESOURCE, pod="train")
        yield kubelet


@pytest.fixture
def view(kubelet: Kubelet, clock: Clock) -> KubeletView:
    assert kubelet.pod_resources_socket
    return KubeletView(
        device_plugin_dir=kubelet.directory, pod_resources_socket=kubelet.pod_resources_socket, clock=clock
    )


def ids(written: Written) -> list[tuple[str, ...]]:
    """Of each container in the checkpoint."""
    assert written.checkpoint
    return [holding.ids for holding in written.checkpoint.holdings]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows with each reading of the checkpoint."""
    begun: list[float] = []

    async def read(directory: Path) -> Checkpoint:
        begun.append(0.0)
        return await checkpoint_of(directory)

    monkeypatch.setattr(module, "checkpoint_of", read)
    return begun


async def test_a_list_is_shared_until_it_is_too_old(
    kubelet: CountingKubelet, view: KubeletView, clock: Clock
) -> None:
    first = await view.listing(oldest=5.0)
    assert first.began == 1000.0
    assert first.listing
    assert first.listing.pods == {"default/train"}
    clock.now += 4.9
    assert await view.listing(oldest=5.0) is first
    assert kubelet.questions == 1
    clock.now += 0.2
    assert (await view.listing(oldest=5.0)).began == clock.now
    await view.listing(oldest=0.0)
    assert kubelet.questions == 3


async def test_callers_at_a_time_share_what_is_asked_for_after_they_came(
    kubelet: CountingKubelet, view: KubeletView, reads: list[float]
) -> None:
    lists = await asyncio.gather(*(view.listing(oldest=0.0) for _ in range(5)))
    written = await asyncio.gather(*(view.checkpoint(oldest=0.0) for _ in range(5)))
    assert kubelet.questions == 2, "the first asks at once, the others together after that"
    assert len({id(own) for own in lists[1:]}) == 1
    assert len(reads) == 1
    assert len({id(own) for own in written}) == 1


async def test_who_comes_while_the_checkpoint_is_read_waits_for_the_next_reading(
    kubelet: Kubelet, view: KubeletView, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow(directory: Path) -> Checkpoint:
        checkpoint = await checkpoint_of(directory)
        begun.set()
        await gate.wait()
        return checkpoint

    monkeypatch.setattr(module, "checkpoint_of", slow)
    early = asyncio.create_task(view.checkpoint(oldest=0.0))
    await begun.wait()
    kubelet.hold(["1"], resource=RESOURCE)
    late = asyncio.create_task(view.checkpoint(oldest=0.0))
    await asyncio.sleep(0)
    gate.set()
    assert ids(await early) == [("0",)]
    assert ids(await late) == [("0",), ("1",)]


async def test_a_deadline_ends_the_wait_and_the_next_caller_gets_the_answer(
    view: KubeletView, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def frozen(directory: Path) -> Checkpoint:
        await gate.wait()
        return await checkpoint_of(directory)

    monkeypatch.setattr(module, "checkpoint_of", frozen)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await view.checkpoint(oldest=0.0)
    gate.set()
    async with asyncio.timeout(SECONDS):
        assert ids(await view.checkpoint(oldest=0.0)) == [("0",)]


async def test_callers_that_come_while_others_are_answered_are_answered(view: KubeletView) -> None:
    """Each of them may begin the next reading before the others have seen the end of the last one."""

    async def ask() -> None:
        for _ in range(20):
            assert ids(await view.checkpoint(oldest=0.0)) == [("0",)]

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask())


async def test_a_disk_that_does_not_answer_is_a_trouble(
    view: KubeletView, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def frozen(directory: Path) -> Checkpoint:
        await gate.wait()
        return await checkpoint_of(directory)

    monkeypatch.setattr(module, "checkpoint_of", frozen)
    monkeypatch.setattr(module, "READ_SECONDS", 0.01)
    written = await view.checkpoint()
    assert written.checkpoint is None
    assert "no answer within" in (written.trouble or "")
    monkeypatch.setattr(module, "READ_SECONDS", SECONDS)
    gate.set()
    assert ids(await view.checkpoint()) == [("0",)]


async def test_a_grant_is_read_from_the_checkpoint_of_now(kubelet: Kubelet, view: KubeletView) -> None:
    assert (await view.kept(RESOURCE, ["1"])).nodes == frozenset()
    kubelet.hold(["1", "2"], resource=RESOURCE, nodes=["/dev/xpu7", "/dev/xpu3", "/dev/xpuctrl"])
    assert (await view.kept(RESOURCE, ["2", "1"])).nodes == {("/dev/xpu3", "/dev/xpu7")}


async def test_a_grant_on_a_disk_that_does_not_answer_is_a_trouble_and_one_search_waits_for_it(
    kubelet: Kubelet, view: KubeletView, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    searches: list[Collection[str]] = []

    async def frozen(directory: Path, resource: str, ids: Collection[str]) -> Kept:
        searches.append(ids)
        await gate.wait()
        return await kept_in(directory, resource, ids)

    kubelet.hold(["1"], resource=RESOURCE, nodes=["/dev/xpu1"])
    monkeypatch.setattr(module, "kept_in", frozen)
    monkeypatch.setattr(module, "READ_SECONDS", 0.01)
    for _ in range(3):
        late = await view.kept(RESOURCE, ["0"])
        assert "no answer within" in (late.trouble or "")
    assert searches == [["0"]]
    monkeypatch.setattr(module, "READ_SECONDS", SECONDS)
    asked = [asyncio.create_task(view.kept(RESOURCE, [id])) for id in ("1", "2")]
    await asyncio.sleep(0)
    gate.set()
    found = await asyncio.gather(*asked)
    assert [kept.nodes for kept in found] == [{("/dev/xpu1",)}, frozenset()]


async def test_what_cannot_be_read_is_a_trouble_and_not_an_empty_answer(
    kubelet: Kubelet, view: KubeletView
) -> None:
    (kubelet.directory / CHECKPOINT).write_text("{")
    assert kubelet.pod_resources_socket
    kubelet.pod_resources_socket.unlink()
    kubelet.pod_resources_socket.touch()
    listed, written = await view.listing(), await view.checkpoint()
    assert listed.listing is None
    assert listed.trouble
    assert written.checkpoint is None
    assert written.trouble


async def test_a_changed_checkpoint_shows_by_its_file(kubelet: Kubelet, view: KubeletView) -> None:
    first = view.checkpoint_state
    await view.checkpoint()
    assert view.checkpoint_state == first
    kubelet.write_checkpoint()
    second = view.checkpoint_state
    assert second not in (None, first)
    (kubelet.directory / CHECKPOINT).unlink()
    assert view.checkpoint_state is None
    assert (await view.checkpoint(oldest=0.0)).checkpoint == Checkpoint()


async def test_a_checkpoint_from_before_the_instance_is_another_instances_word(
    kubelet: Kubelet, view: KubeletView
) -> None:
    assert written_by(view.instance, (await view.checkpoint()).checkpoint)
    long_ago = (kubelet.directory / CHECKPOINT).stat().st_mtime - 60
    os.utime(kubelet.directory / CHECKPOINT, (long_ago, long_ago))
    assert not written_by(view.instance, (await view.checkpoint(oldest=0.0)).checkpoint)
    assert not written_by(None, Checkpoint(written_ns=1))
    assert not written_by(SocketIdentity(1, 2, 3), None)
    await kubelet.stop(remove_sockets=True)
    assert view.instance is None
