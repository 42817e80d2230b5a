# SPDX-License-Identifier: Apache-2.0
"""Events on pods: at once, with the pod's UID, and never many."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.support import tasks
from tests.support.devices import device, found
from tests.support.events import outbox_into
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.plugins import built
from tests.support.waiting import until
from xpu_plugin.loops import pod_events as module
from xpu_plugin.loops.pod_events import PodEvents
from xpu_plugin.model.events import Event, PodReference
from xpu_plugin.model.health import HEALTHY, Health
from xpu_plugin.model.inventory import after_scan, after_verdicts
from xpu_plugin.plugin import Plugin
from xpu_plugin.simulation.kubelet import Kubelet


IDS = [f"0000:{bus:02x}:00.0" for bus in range(64)]
SICK = Health("state-error", "state 207")

pytestmark = pytest.mark.usefixtures("leaves_no_task")


class Tried:
    """Events on pods that have the 64 devices of a node, and what they have told."""

    def __init__(self, plugin: Plugin, kubelet: Kubelet) -> None:
        self.picture, self.view, self.kubelet = plugin.picture, plugin.view, kubelet
        self.events: list[Event] = []
        devices = (device(id, number=number) for number, id in enumerate(IDS))
        self.picture.submit(lambda facts: after_scan(facts, found(*devices)))
        exchange = replace(plugin.exchange, events=outbox_into(self.events))
        self.loop = PodEvents(replace(plugin, exchange=exchange))

    def judge(self, health: Health, *ids: str) -> None:
        self.picture.submit(partial(after_verdicts, verdicts=dict.fromkeys(ids, health)))

    async def tells(self, number: int) -> list[tuple[str, str]]:
        """The names and reasons of all Events, as soon as there are so many."""
        await until(lambda: len(self.events) >= number, f"{number} events, not {self.events}")
        return [(event.pod.name if event.pod else "", event.reason) for event in self.events]


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[Kubelet]:
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        own_pod(kubelet)
        yield kubelet


@asynccontextmanager
async def running(place: Path, kubelet: Kubelet) -> AsyncIterator[Tried]:
    async with built(place) as plugin:
        tried = Tried(plugin, kubelet)
        async with tasks.running(tried.loop.run()):
            yield tried


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(module, "PAUSE_SECONDS", (0.02, 0.02))


async def test_the_pod_that_has_a_device_is_told_of_its_fault_and_its_end(
    place: Path, kubelet: Kubelet
) -> None:
    kubelet.hold(IDS[:2], resource=RESOURCE, pod="train", namespace="research")
    kubelet.hold(IDS[2:3], resource=RESOURCE, pod="other")
    async with running(place, kubelet) as tried:
        tried.judge(SICK, IDS[0], IDS[1], IDS[3])
        await tried.tells(1)
        tried.judge(HEALTHY, IDS[0], IDS[1])
        await tried.tells(2)
    fault, end = tried.events
    pod = PodReference(namespace="research", name="train", uid="uid-of-research-train")
    assert (fault.pod, fault.kind, fault.reason) == (pod, "Warning", "XPUUnhealthy")
    assert fault.text == " | ".join(
        f"{id} at /dev/xpu{number}: state-error, state 207" for number, id in enumerate(IDS[:2])
    )
    assert (end.pod, end.kind, end.reason) == (pod, "Normal", "XPURecovered")


async def test_a_burst_is_one_event_a_pod(place: Path, kubelet: Kubelet) -> None:
    for number in range(32):
        kubelet.hold(IDS[2 * number : 2 * number + 2], resource=RESOURCE, pod=f"pod-{number}")
    async with running(place, kubelet) as tried:
        for id in IDS:
            tried.judge(SICK, id)
        told = await tried.tells(32)
        tried.judge(HEALTHY, *IDS)
        both = await tried.tells(64)
    assert sorted(told) == sorted((f"pod-{number}", "XPUUnhealthy") for number in range(32))
    assert len(set(both)) == len(both) == 64


async def test_more_events_than_may_wait_come_later(
    place: Path, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 10)
    for number, id in enumerate(IDS):
        kubelet.hold([id], resource=RESOURCE, pod=f"pod-{number}")
    async with running(place, kubelet) as tried:
        tried.judge(SICK, *IDS)
        told = await tried.tells(64)
    assert len(set(told)) == len(told) == 64


async def test_a_pod_that_was_just_told_is_left_alone_for_a_while(
    place: Path, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pod does not wait for that; and a change that ends meanwhile is not told."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", (600.0, 600.0))
    kubelet.hold(IDS[:1], resource=RESOURCE, pod="first")
    kubelet.hold(IDS[1:2], resource=RESOURCE, pod="second")
    async with running(place, kubelet) as tried:
        tried.judge(SICK, IDS[0])
        await tried.tells(1)
        tried.judge(HEALTHY, IDS[0])
        tried.judge(SICK, IDS[1])
        told = await tried.tells(2)
    assert told == [("first", "XPUUnhealthy"), ("second", "XPUUnhealthy")]


async def test_a_kubelet_that_is_away_is_asked_again(place: Path, kubelet: Kubelet) -> None:
    kubelet.hold(IDS[:1], resource=RESOURCE, pod="train")
    await kubelet.stop(remove_sockets=True)
    async with running(place, kubelet) as tried:
        tried.judge(SICK, IDS[0])
        await until(lambda: tried.view._listed is not None, "it was asked")
        await kubelet.start()
        assert await tried.tells(1) == [("train", "XPUUnhealthy")]


async def test_a_list_without_our_own_pod_is_none(place: Path, kubelet: Kubelet) -> None:
    """A kubelet that has just started lists no pod."""
    [own] = kubelet.grants
    kubelet.free(own)
    async with running(place, kubelet) as tried:
        tried.judge(SICK, IDS[0])
        kubelet.hold(IDS[:1], resource=RESOURCE, pod="train")
        own_pod(kubelet)
        assert await tried.tells(1) == [("train", "XPUUnhealthy")]
