# SPDX-License-Identifier: Apache-2.0
"""Events about devices and driver: with the pods named, once, and with pauses that grow."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import tasks
from tests.support.devices import device, found
from tests.support.events import outbox_into
from tests.support.machines import RESOURCE
from tests.support.plugins import built
from tests.support.waiting import until
from xpu_plugin.edges.kubelet.lock import InstanceLock
from xpu_plugin.loops import device_events as faults_module
from xpu_plugin.loops.device_events import TOGETHER_SECONDS, DeviceEvents
from xpu_plugin.model.events import Event
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.health import HEALTHY, Health
from xpu_plugin.model.inventory import after_scan, after_verdicts
from xpu_plugin.plugin import Plugin
from xpu_plugin.simulation.kubelet import Kubelet


A, B = "0000:3b:00.0", "0000:3c:00.0"
SICK = Health("state-error", "state 207")

pytestmark = pytest.mark.usefixtures("leaves_no_task")


class Tried:
    """Device events that run, and what they have told."""

    def __init__(self, plugin: Plugin, **options: Any) -> None:
        self.picture, self.driver_gone = plugin.picture, plugin.monitor.driver_gone
        self.events: list[Event] = []
        self.picture.submit(lambda facts: after_scan(facts, found(device(A), device(B, number=1))))
        exchange = replace(plugin.exchange, events=outbox_into(self.events))
        self.loop = DeviceEvents(replace(plugin, exchange=exchange), **options)
        self.task = asyncio.create_task(self.loop.run())

    def judge(self, **verdicts: Health) -> None:
        named = {{"a": A, "b": B}[name]: verdict for name, verdict in verdicts.items()}
        self.picture.submit(partial(after_verdicts, verdicts=named))

    async def tells(self, number: int) -> None:
        await until(lambda: len(self.events) >= number, f"{number} events, not {self.events}")


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[Kubelet]:
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        yield kubelet


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(faults_module, "TOGETHER_SECONDS", 0.1)
    monkeypatch.setattr(faults_module, "PAUSE_SECONDS", (0.02, 0.02))


@pytest.fixture
async def tried(place: Path, kubelet: Kubelet, leaves_no_task: None, quick: None) -> AsyncIterator[Tried]:
    async with built(place) as plugin:
        tried = Tried(plugin)
        yield tried
        tried.task.cancel()
        await asyncio.gather(tried.task, return_exceptions=True)


async def test_a_fault_and_its_end_are_told_with_the_pods(tried: Tried, kubelet: Kubelet) -> None:
    kubelet.hold([A], resource=RESOURCE, pod="train", namespace="research")
    tried.judge(a=SICK)
    tried.judge(b=SICK)  # at the same time: in the same Event
    await tried.tells(1)
    tried.judge(a=HEALTHY)
    await tried.tells(2)
    (fault, end) = tried.events
    assert (fault.kind, fault.reason) == ("Warning", "XPUUnhealthy")
    assert f"{A} at /dev/xpu0: state-error, state 207; held by: research/train/main" in fault.text
    assert f"{B} at /dev/xpu1: state-error, state 207; held by: no container" in fault.text
    assert (end.kind, end.reason) == ("Normal", "XPURecovered")
    assert end.text == f"{A} at /dev/xpu0: well again; held by: research/train/main"


async def test_an_instance_that_stands_by_leaves_events_to_the_other_one(
    place: Path, kubelet: Kubelet, quick: None
) -> None:
    """Once it has the node, it tells of what is new."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    other = InstanceLock(place / "plugins")
    assert other.attempt()
    async with built(place) as plugin:
        tried = Tried(plugin, sleep=sleep)
        tried.judge(a=SICK)
        await until(lambda: len(slept) == 2, "a report and the pause after it")
        other.release()
        plugin.tenures.stage.set(Stage.WORKING)
        tried.judge(b=SICK)
        await tried.tells(1)
        tried.task.cancel()
        await asyncio.gather(tried.task, return_exceptions=True)
    (event,) = tried.events
    assert B in event.text
    assert A not in event.text


async def test_driver_loss_and_return(tried: Tried, kubelet: Kubelet) -> None:
    kubelet.hold([A], resource=RESOURCE, pod="train")
    tried.driver_gone.set("no driver: load it")
    await tried.tells(1)
    tried.driver_gone.set(None)
    await tried.tells(2)
    assert [(event.kind, event.reason) for event in tried.events] == [
        ("Warning", "XPUDriverLost"),
        ("Normal", "XPUDriverBack"),
    ]
    assert tried.events[0].text == "2 devices, held by: default/train/main: no driver: load it"


async def test_a_driver_that_was_never_there_is_no_loss(place: Path, quick: None) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async with built(place) as plugin:
        plugin.monitor.driver_gone.set("no driver: load it")
        async with tasks.running(DeviceEvents(plugin, sleep=sleep).run()):
            for _ in range(10):  # turns of the loop, for its first look
                await asyncio.sleep(0)
            assert waits == []
            plugin.picture.submit(lambda facts: after_scan(facts, found(device(A))))
            event = await plugin.exchange.events.get()
    assert event.text.startswith("1 devices, held by: not known: no driver")


async def test_who_cannot_be_asked_does_not_keep_it_from_telling(tried: Tried, kubelet: Kubelet) -> None:
    await kubelet.stop(remove_sockets=True)
    tried.judge(a=SICK)
    await tried.tells(1)
    assert tried.events[0].text.endswith("held by: not known")


async def test_what_comes_and_goes_is_told_seldom(place: Path) -> None:
    """Each pause is twice the last one, up to ten minutes; after a quiet time they begin anew."""
    pauses: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if seconds > TOGETHER_SECONDS:
            pauses.append(seconds)
            now += 2000 if len(pauses) == 9 else 0
            own.judge(a=HEALTHY if len(pauses) % 2 else SICK)
        await asyncio.sleep(0)

    async with built(place) as plugin:
        own = Tried(plugin, clock=lambda: now, sleep=sleep)
        try:
            own.judge(a=SICK)
            await until(lambda: len(pauses) >= 10, "ten pauses")
        finally:
            own.task.cancel()
            await asyncio.gather(own.task, return_exceptions=True)
    longest = [10, 20, 40, 80, 160, 320, 600, 600, 600, 10]
    assert all(0.75 * most <= pause <= most for pause, most in zip(pauses, longest, strict=False)), pauses
