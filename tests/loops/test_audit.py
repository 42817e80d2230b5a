# SPDX-License-Identifier: Apache-2.0
"""The auditor over a real worker and a kubelet's real sockets: what it tells, and what it does not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.events import outbox_into
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE, make_machine
from tests.support.plugins import built
from tests.support.tasks import running
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet.pod_resources import read_checkpoint
from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.loops.aliases import Aliases
from xpu_plugin.loops.audit import AGAIN_SECONDS, MOST_LINES, MUTE_SECONDS, Audit
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.model.devices import identify
from xpu_plugin.model.events import Event
from xpu_plugin.model.health import PROBE_STUCK, PROBING
from xpu_plugin.model.inventory import after_scan
from xpu_plugin.model.ownership import Terms
from xpu_plugin.plugin import Plugin
from xpu_plugin.simulation.kubelet import Assignment, Kubelet
from xpu_plugin.simulation.machine import Machine


A, B = "0000:3b:00.0", "0000:3c:00.0"
NONE = {"double-holder": 0, "holder-without-grant": 0, "unknown-grant": 0}
TERMS = Terms(own_pod="kube-system/plugin", settle=10.0)

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_task")


class Tried:
    """An audit of two cards, what it leans on and what it has told."""

    def __init__(self, plugin: Plugin, kubelet: Kubelet, terms: Terms = TERMS) -> None:
        self.kubelet = kubelet
        self.now = 1000.0
        self.terms = terms
        self.listed = asyncio.Event()
        self.listed.set()
        self.events: list[Event] = []
        self.client, self.picture = plugin.worker, plugin.picture
        view = KubeletView(
            device_plugin_dir=plugin.config.device_plugin_dir,
            pod_resources_socket=plugin.config.pod_resources_socket,
            clock=self.clock,
        )
        exchange = replace(plugin.exchange, events=outbox_into(self.events))
        self.plugin = replace(plugin, view=view, exchange=exchange)
        self.begin()

    def begin(self) -> None:
        """Be a plugin that was started anew."""
        self.grants = Grants(
            self.picture,
            self.plugin.view,
            GrantRecord(self.plugin.config.state_dir),
            self.terms,
            listed=self.listed,
            clock=self.clock,
        )
        proof = IdleProof(self.client, self.plugin.view, self.grants)
        aliases = Aliases(self.picture, self.plugin.view, self.grants, proof, clock=self.clock)
        self.plugin = replace(self.plugin, grants=self.grants, proof=proof, aliases=aliases)
        self.audit = Audit(self.plugin, clock=self.clock)

    def clock(self) -> float:
        return self.now

    async def scan(self) -> None:
        scan = await self.client.scan()
        assert scan
        found = identify(scan)
        self.picture.submit(lambda facts: after_scan(facts, found))

    def granted(self, *ids: str) -> None:
        self.grants.granted(self.paths(*ids))

    def paths(self, *ids: str) -> dict[str, str]:
        return {id: self.picture.facts.devices[id].path for id in ids}

    def hold(self, pod: str, *ids: str, init: bool = False) -> Assignment:
        return self.kubelet.hold(ids, resource=RESOURCE, pod=pod, init_container=init)

    async def looks(self, number: int = 1, seconds: float = 60.0) -> None:
        for _ in range(number):
            self.now += seconds
            await self.audit.look()

    def found(self) -> Collection[str]:
        return {kind for kind, number in self.audit.counts.items() if number}


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[Kubelet]:
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        own_pod(kubelet)
        yield kubelet


@pytest.fixture
def machine(place: Path) -> Machine:
    return make_machine(place, number=2)


@pytest.fixture
async def tried(
    place: Path, machine: Machine, kubelet: Kubelet, leaves_no_process: None
) -> AsyncIterator[Tried]:
    """Both cards free, and one look behind us."""
    async with built(place) as plugin:
        tried = Tried(plugin, kubelet)
        await tried.scan()
        await tried.looks()
        yield tried


async def test_where_all_agree_nothing_is_told(tried: Tried, machine: Machine) -> None:
    tried.granted(A)
    tried.hold("train", A)
    machine.add_process(4711, card=0)
    await tried.looks(3)
    assert tried.audit.counts == NONE
    assert tried.events == []
    assert tried.audit.age == 0.0


async def test_the_process_of_a_probe_is_no_finding(tried: Tried, machine: Machine) -> None:
    tried.granted(B)
    tried.hold("train", B)
    machine.add_line("process", "pid=7 host-pid=4711 card=0")
    for probe in (PROBING, PROBE_STUCK):
        tried.picture.submit(lambda facts, probe=probe: replace(facts, probed={A: probe}))  # type: ignore[misc] # one argument
        await tried.looks(3)
        assert tried.audit.counts == NONE
    tried.picture.submit(lambda facts: replace(facts, probed={B: PROBING}))
    await tried.looks(2)
    assert tried.found() == {"holder-without-grant"}


async def test_two_holders_in_one_list_are_told_at_once_and_once(
    tried: Tried, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tried.granted(A)
    tried.hold("one", A)
    other = tried.hold("two", A)
    await tried.looks()
    assert tried.found() == {"double-holder"}
    await tried.looks(5)
    assert tried.found() == {"double-holder"}
    (event,) = tried.events
    assert (event.kind, event.reason) == ("Warning", "XPUDoubleHolder")
    assert "default/one/main" in event.text
    assert "default/two/main" in event.text
    assert [record.message for record in caplog.records] == [
        f'audit finding kind=double-holder detail="{event.text}"'
    ]

    tried.kubelet.free(other)
    await tried.looks()
    assert tried.audit.counts == NONE
    assert caplog.records[-1].message == f'audit finding is over kind=double-holder detail="{event.text}"'


async def test_what_comes_again_and_again_is_told_once_an_hour(tried: Tried) -> None:
    tried.granted(A)
    tried.hold("one", A)
    for _ in range(3):
        other = tried.hold("two", A)
        await tried.looks(2)
        tried.kubelet.free(other)
        await tried.looks(2)
    assert len(tried.events) == 1
    tried.now += AGAIN_SECONDS
    await tried.looks()
    tried.hold("two", A)
    await tried.looks(2)
    assert len(tried.events) == 2


async def test_many_findings_of_a_kind_share_one_line(tried: Tried, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pods = [tried.hold(f"stranger-{number:02}", A) for number in range(MOST_LINES + 3)]
    await tried.looks(2)
    told = [record.message for record in caplog.records if "kind=holder-without-grant" in record.message]
    assert len(told) == 1
    assert told[0].count("stranger-") == MOST_LINES
    assert told[0].endswith('default/stranger-07/main, and this plugin has not granted it | and 3 more"')

    for pod in pods[MOST_LINES:]:
        tried.kubelet.free(pod)
    await tried.looks()
    for pod in pods[:MOST_LINES]:
        tried.kubelet.free(pod)
    await tried.looks()
    over = [
        record for record in caplog.records if "audit finding is over kind=holder-without" in record.message
    ]
    assert len(over) == 3 + MOST_LINES, "few have a line each"


async def test_holders_from_before_our_start_are_none(tried: Tried) -> None:
    """Those of the former plugin, and containers that were admitted and never started."""
    tried.hold("former", A)
    tried.kubelet.write_checkpoint()
    tried.begin()
    tried.grants.adopt(read_checkpoint(tried.kubelet.directory).holdings)
    await tried.looks(3)
    assert tried.audit.counts == NONE


async def test_grants_of_another_plugin_that_hands_over_are_no_finding(tried: Tried) -> None:
    """It went on granting while we waited; our record begins when the kubelet has our list."""
    tried.listed.clear()
    tried.begin()
    await tried.looks(2)
    tried.hold("late", A)
    await tried.looks(2)
    tried.listed.set()
    await tried.looks(3)
    assert tried.audit.counts == NONE
    tried.hold("stranger", B)
    await tried.looks(2)
    assert tried.found() == {"holder-without-grant"}


async def test_a_restarted_plugin_knows_its_grants_by_the_record(tried: Tried) -> None:
    tried.granted(A)
    await tried.grants.started(tried.paths(A))
    tried.begin()
    await tried.looks()
    tried.hold("train", A)
    await tried.looks(3)
    assert tried.audit.counts == NONE


async def test_a_kubelet_that_lists_nobody_after_its_restart_proves_nothing(
    tried: Tried, machine: Machine
) -> None:
    tried.granted(A)
    grant = tried.hold("train", A)
    machine.add_process(4711, card=0)
    await tried.looks()
    tried.kubelet.api_server_away = True
    await tried.kubelet.restart()
    (tried.kubelet.directory / "kubelet_internal_checkpoint").unlink(missing_ok=True)
    await tried.looks(3)
    assert tried.audit.counts == NONE
    assert tried.audit.age == 180.0, "it could not look"
    tried.kubelet.api_server_away = False
    await tried.kubelet.restart()
    await tried.looks(2)
    assert tried.audit.counts == NONE
    assert tried.audit.age == 0.0
    assert grant in tried.kubelet.grants


async def test_a_grant_that_the_kubelet_has_lost_is_told(tried: Tried, machine: Machine) -> None:
    tried.granted(A)
    machine.add_process(4711, card=0)
    await tried.looks(1, seconds=5)
    assert tried.audit.counts == NONE, "the kubelet may be about to list it"
    await tried.looks(2)
    assert tried.found() == {"unknown-grant"}
    assert tried.events[0].reason == "XPUGrantUnknown"


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_driver_that_cannot_be_asked_is_left_alone_for_a_while(
    tried: Tried, machine: Machine, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    machine.add_fault("xpumlDeviceGetComputeRunningProcesses", action, card=1)
    tried.granted(A)
    tried.hold("one", A)
    tried.hold("two", A)
    await tried.looks(1)
    await tried.scan()  # as the sweep does
    await tried.looks(1, seconds=MUTE_SECONDS[0] / 2)
    assert tried.found() == {"double-holder"}, "the rest of it needs no worker"
    assert sum("cannot read the processes at devices" in record.message for record in caplog.records) == 1


async def test_it_looks_soon_after_a_grant_and_again_at_a_suspicion(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpu_plugin.loops.audit.LOOK_SECONDS", SECONDS * 10)
    monkeypatch.setattr("xpu_plugin.loops.audit.CONFIRM_SECONDS", 0.05)
    tried.terms = Terms(own_pod=TERMS.own_pod, settle=0.05)
    tried.begin()
    tried.grants.adopt(())
    async with running(tried.audit.run()):
        await until(lambda: not tried.audit._wake.is_set(), "a look")
        tried.hold("one", A)
        tried.hold("two", A)
        tried.granted(A)
        async with asyncio.timeout(SECONDS):
            while not tried.events:
                tried.now += 1.0
                await asyncio.sleep(0.02)
    assert tried.found() == {"double-holder"}
