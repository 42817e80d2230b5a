# SPDX-License-Identifier: Apache-2.0
"""What devices measure, read over a real worker and the simulator: seldom, and at no cost to the sweep."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.machines import make_machine, target_of
from tests.support.plugins import built
from tests.support.waiting import SECONDS
from xpu_plugin.edges.worker.client import Target, WorkerClient
from xpu_plugin.loops import telemetry as readings_module
from xpu_plugin.loops.telemetry import FRESH_SECONDS, MUTE_SECONDS, STALE_SECONDS, Readings, Telemetry
from xpu_plugin.model.devices import Gauges, identify
from xpu_plugin.model.inventory import after_scan
from xpu_plugin.plugin import Plugin
from xpu_plugin.simulation.machine import Machine


A, B = "0000:3b:00.0", "0000:3c:00.0"
MIB = 1 << 20
TIMEOUT = 0.4

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_task")


class CountingClient(WorkerClient):
    def __init__(self, target: Target) -> None:
        super().__init__(target, call_timeout=TIMEOUT)
        self.asked: list[frozenset[int]] = []

    async def gauges(self, skip: Collection[int] = ()) -> list[Gauges]:
        self.asked.append(frozenset(skip))
        return await super().gauges(skip)


class Tried:
    """Telemetry that runs, over two cards; the time stands still but for the test."""

    def __init__(self, plugin: Plugin, machine: Machine) -> None:
        self.client = CountingClient(target_of(machine))
        self.picture, self.unresponsive = plugin.picture, plugin.monitor.unresponsive
        self.now = 1000.0
        self.telemetry = Telemetry(replace(plugin, worker=self.client), clock=lambda: self.now)
        self.task = asyncio.create_task(self.telemetry.run())

    async def scan(self) -> None:
        scan = await self.client.scan()
        assert scan
        found = identify(scan)
        self.picture.submit(lambda facts: after_scan(facts, found, forget=True))

    async def read(self) -> Readings:
        readings = await self.telemetry.read()
        assert readings
        return readings


@pytest.fixture
def machine(place: Path) -> Machine:
    return make_machine(place, number=2)


@pytest.fixture
async def tried(
    place: Path, machine: Machine, leaves_no_process: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Tried]:
    monkeypatch.setattr(readings_module, "WAIT_SECONDS", SECONDS)
    async with built(place) as plugin:
        tried = Tried(plugin, machine)
        await tried.scan()
        yield tried
        tried.task.cancel()
        await asyncio.gather(tried.task, return_exceptions=True)
        await tried.client.close()


async def test_they_are_what_the_machine_says(tried: Tried, machine: Machine) -> None:
    machine.set_card(0, {"utilization": "42", "temperature": "71", "power": "95", "clock": "900"})
    machine.add_process(4711, card=0, memory=512)
    readings = await tried.read()
    assert readings.gauges[A] == Gauges(
        index=0,
        pci=A,
        memory_used_bytes=512 * MIB,
        memory_total_bytes=16384 * MIB,
        utilization_percent=42,
        temperature_celsius=71,
        power=95,
        clock_mhz=900,
        processes=1,
    )
    assert readings.gauges[B].processes == 0


async def test_nobody_is_asked_while_nobody_reads_and_seldom_then(tried: Tried) -> None:
    assert tried.client.asked == []
    await asyncio.gather(*(tried.telemetry.read() for _ in range(20)))
    await tried.read()
    tried.now += FRESH_SECONDS
    await tried.read()
    assert len(tried.client.asked) == 1
    tried.now += 0.1
    await tried.read()
    assert len(tried.client.asked) == 2


async def test_a_worker_that_is_busy_delays_nobody_who_reads(
    tried: Tried, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a card is being split. What was read before is given until it is too old."""
    before = await tried.read()
    monkeypatch.setattr(readings_module, "WAIT_SECONDS", 0.01)
    tried.now += FRESH_SECONDS + 1
    async with tried.client._lock:
        assert await tried.telemetry.read() == before
        tried.now += STALE_SECONDS
        assert await tried.telemetry.read() is None
    monkeypatch.setattr(readings_module, "WAIT_SECONDS", SECONDS)
    assert (await tried.read()).at > before.at


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_device_that_costs_a_worker_is_left_alone_for_a_while(
    tried: Tried, machine: Machine, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    machine.add_fault("xpumlDeviceGetPowerUsage", action, card=1)
    with caplog.at_level(logging.WARNING):
        assert await tried.telemetry.read() is None
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("cannot read the measurements of a device")
    assert f"id={B}" in said
    await tried.scan()  # as the sweep does, now that its worker is gone
    assert set((await tried.read()).gauges) == {A}
    assert tried.client.asked[-1] == {1}
    machine.clear_faults()
    tried.now += MUTE_SECONDS[0] + 1
    assert set((await tried.read()).gauges) == {A, B}


async def test_who_is_left_out_by_the_sweep_is_left_out_here(tried: Tried) -> None:
    tried.unresponsive.suspect(0, since=0.0)
    assert set((await tried.read()).gauges) == {B}


async def test_readings_that_cannot_be_are_left_out_and_counted(tried: Tried, machine: Machine) -> None:
    machine.set_card(0, {"power": "-1", "temperature": "-12", "utilization": "300"})
    machine.add_process(7, card=0, memory=20000)
    readings = await tried.read()
    own = readings.gauges[A]
    assert (own.power, own.utilization_percent, own.memory_used_bytes) == (None, None, None)
    assert (own.temperature_celsius, own.memory_total_bytes, own.clock_mhz) == (-12, 16 << 30, 1300)
    assert tried.telemetry.impossible == {
        (A, name): 1 for name in ("power", "utilization_percent", "memory_used_bytes")
    }


async def test_readings_of_a_worker_that_has_another_list_are_nobodys(tried: Tried, machine: Machine) -> None:
    """Its scan was not taken in: index 1 is another device there."""
    machine.remove_card(0)
    await tried.client.scan()
    assert (await tried.read()).gauges == {}


async def test_without_a_worker_there_are_none_and_nothing_is_said(
    tried: Tried, caplog: pytest.LogCaptureFixture
) -> None:
    await tried.client.close()
    assert await tried.telemetry.read() is None
    assert caplog.records == []
