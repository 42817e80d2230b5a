# SPDX-License-Identifier: Apache-2.0
"""The monitor over real workers and the simulator: the picture follows the devices, with any fault that the
library does, and nothing is published without a change."""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from errno import EIO
from pathlib import Path

import pytest

from tests.support.clock import RunningClock
from tests.support.grants import grants_of
from tests.support.locks import Lock
from tests.support.machines import RESOURCE, make_machine, target_of
from tests.support.pictures import health, shown
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.edges.worker.client import BusyError, Target, WorkerClient
from xpu_plugin.loops import library_trial, openings, scanner
from xpu_plugin.loops import monitor as sweep_module
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.monitor import Cadence, Monitor
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.scanner import InitError
from xpu_plugin.model.devices import Host, Scan
from xpu_plugin.model.health import Rules
from xpu_plugin.model.inventory import Inventory, Policy
from xpu_plugin.model.ownership import Holding, Listing, Word
from xpu_plugin.model.timings import Timings
from xpu_plugin.model.unlisted import Unlisted
from xpu_plugin.simulation.machine import Machine
from xpu_plugin.xpuml import StateAnswer, is_too_old


STATE = "xpumlDeviceGetState"
IDS = ["0000:3b:00.0", "0000:3c:00.0", "0000:3d:00.0", "0000:3e:00.0"]
INTERVAL = 0.03
CALL_TIMEOUT = 0.6
GRACE = 5.0  # seconds, longer than a hang and what follows it
AT_ONCE = Rules(failures=1, recovery=0.0, flaps=1000)

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_descriptor", "leaves_no_task")


class CountingClient(WorkerClient):
    """The client, with a count of its requests and a hook after each scan."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, call_timeout=CALL_TIMEOUT)
        self.scans: list[Scan | str | None] = []
        """Answers, and of errors their names: an error itself keeps its worker's descriptors."""
        self.workers: list[int | None] = []
        self.patience: list[float | None] = []
        """Seconds that each scan was given, None for as many as any request has."""
        self.sweeps = 0
        self.hosts = 0
        self.after_scan: Callable[[Scan | None], None] = lambda _: None

    async def scan(
        self, skip: Collection[int] = (), *, only: int | None = None, seconds: float | None = None
    ) -> Scan | None:
        self.patience.append(seconds)
        try:
            answer = await super().scan(skip, only=only, seconds=seconds)
        except Exception as error:
            self.scans.append(type(error).__name__)
            raise
        self.scans.append(answer)
        self.workers.append(self.pid)
        self.after_scan(answer)
        await asyncio.sleep(0)  # for what that has begun
        return answer

    async def sweep(self, skip: Collection[int] = ()) -> list[StateAnswer | None]:
        answer = await super().sweep(skip)
        self.sweeps += 1
        return answer

    async def host(self) -> Host:
        self.hosts += 1
        return await super().host()


class Watch:
    """A monitor that runs, what it reads and what it publishes."""

    def __init__(
        self, target: Target, directory: Path, *, fail_on_init_error: bool = False, rules: Rules = AT_ONCE
    ) -> None:
        self.client = CountingClient(target)
        self.prober = CountingClient(target)
        self.picture = Picture(Policy(resource=RESOURCE))
        self.clock = RunningClock()
        self.verdicts = HealthHistory(rules, QuarantineRecord(directory / "state"), clock=self.clock)
        self.grants = grants_of(self.picture, directory / "state", clock=self.clock)
        self.monitor = Monitor(
            self.client,
            self.prober,
            self.picture,
            self.verdicts,
            self.grants,
            cadence=Cadence(
                interval=INTERVAL,
                rescan_interval=1000.0,
                grace=GRACE,
                fail_on_init_error=fail_on_init_error,
                timings=Timings(scan=(0.02, 0.05), unresponsive=(0.1, 0.4)),
            ),
            clock=self.clock,
        )
        self.task = asyncio.create_task(self.monitor.run())
        self._unresponsive = asyncio.create_task(self.monitor.unresponsive.run())
        self._openings = asyncio.create_task(self.monitor.openings.run())
        self._record = asyncio.create_task(self.verdicts.run(Lock()))
        self.inventories: list[Inventory] = []
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        generation = 0
        while True:
            self.inventories.append(await self.picture.beyond(generation))
            generation = self.inventories[-1].generation

    async def close(self) -> None:
        tasks = (self.task, self._unresponsive, self._openings, self._record, self._following)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        del (
            self.task,
            self._unresponsive,
            self._openings,
            tasks,
        )  # how they ended keeps a worker's descriptors
        await self.client.close()
        await self.prober.close()

    def grace(self, seconds: float) -> None:
        """From now on, be that patient."""
        self.monitor._cadence = replace(self.monitor._cadence, grace=seconds)

    def compare_each(self, seconds: float) -> None:
        """From now on, compare the host with the last scan as often as that."""
        self.monitor._cadence = replace(self.monitor._cadence, rescan_interval=seconds)

    def health(self) -> dict[str, str | None]:
        return health(self.picture.current)

    def has_published(self, number: int) -> None:
        """Be sure that there were so many pictures."""
        assert self.picture.current
        assert self.picture.current.generation == number

    async def healths(self, *reasons: str | None) -> None:
        """Wait until the four cards' health is this; a picture of anything else is no reason to give up."""
        await self.shows(dict(zip(IDS, reasons, strict=True)))

    async def shows(self, wanted: dict[str, str | None]) -> None:
        await shown(self.picture, lambda inventory: health(inventory) == wanted)

    async def rescanned(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.monitor.scanner.rescanned()

    async def sweeps(self, number: int) -> None:
        """Wait for so many more rounds."""
        goal = self.client.sweeps + number
        await self.until(lambda: self.client.sweeps >= goal, f"{number} more sweeps")

    async def scans(self, number: int) -> None:
        """Wait for so many more scans, failed ones included."""
        goal = len(self.client.scans) + number
        await self.until(lambda: len(self.client.scans) >= goal, f"{number} more scans")

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        await until(lambda: predicate() or self.task.done(), what)
        assert not self.task.done(), self.task


MakeWatch = Callable[..., Watch]


@pytest.fixture
def machine(place: Path) -> Machine:
    return make_machine(place)


@pytest.fixture
async def make_watch(
    leaves_no_process: None, leaves_no_descriptor: None, leaves_no_task: None, machine: Machine, place: Path
) -> AsyncIterator[MakeWatch]:
    watches: list[Watch] = []

    def make(
        *, fail_on_init_error: bool = False, target: Target | None = None, rules: Rules = AT_ONCE
    ) -> Watch:
        made = Watch(target or target_of(machine), place, fail_on_init_error=fail_on_init_error, rules=rules)
        watches.append(made)
        return made

    yield make
    while watches:  # none is kept: a task's exception keeps its worker's descriptors
        await watches.pop().close()


@pytest.fixture
async def watch(make_watch: MakeWatch) -> Watch:
    """Four healthy cards, watched."""
    watch = make_watch()
    await watch.healths(None, None, None, None)
    return watch


# --- health ---------------------------------------------------------------------------------------


async def test_a_sick_device_becomes_unhealthy_and_healthy_again(watch: Watch, machine: Machine) -> None:
    for change, reason in (
        ({"state": "207"}, "state-error"),
        ({"state": "205"}, "in-reset"),
        ({"state": ""}, None),
        ({"lost": "yes"}, "call-failed"),
        ({"lost": ""}, None),
    ):
        machine.set_card(1, change)
        await watch.healths(None, reason, None, None)
    assert len(watch.client.scans) == 1


async def test_one_failed_answer_has_the_host_looked_at_at_once(watch: Watch, machine: Machine) -> None:
    """It may be the first sign of a change that is not due to be looked for yet."""
    assert watch.client.hosts == 0
    machine.add_fault(STATE, "code:999", card=0)
    await watch.healths("call-failed", None, None, None)
    await watch.sweeps(5)
    assert watch.client.hosts == 1
    assert len(watch.client.scans) == 1


# --- while the driver changes a card ------------------------------------------------------------------


async def test_while_a_card_is_being_changed_the_others_are_watched_and_nothing_else_is_asked(
    watch: Watch, machine: Machine
) -> None:
    watch.compare_each(0.0)
    await watch.sweeps(2)
    scans = len(watch.client.scans)
    async with watch.monitor.changing(IDS[1]):
        hosts, worker = watch.client.hosts, watch.client.pid
        watch.monitor.rescan()
        machine.set_card(0, {"state": "207"})
        machine.set_card(1, {"vfs": "2"})  # what is asked for by its index is another device now
        machine.add_fault(STATE, "code:999", card=2)  # which has the host looked at, else
        await watch.healths("state-error", None, "call-failed", None)
        await watch.sweeps(20)
        assert watch.health()[IDS[1]] is None
        assert (watch.client.hosts, len(watch.client.scans), watch.client.pid) == (hosts, scans, worker)
        for question in (watch.client.scan, watch.client.host, watch.client.gauges, watch.prober.scan):
            with pytest.raises(BusyError, match="the driver changes the VFs of a card"):
                await question()
    await watch.until(lambda: len(watch.client.scans) > scans + 1, "a scan, which was due")
    await shown(watch.picture, lambda inventory: "0000:3c:01.1-of2" in inventory.entries)


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_worker_that_is_lost_while_a_card_is_being_changed_is_replaced_after_that(
    watch: Watch, machine: Machine, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watch.monitor.changing(IDS[1]):
        machine.add_fault(STATE, action, card=2)
        await watch.until(lambda: watch.monitor.unwatched, "that nothing is watched")
        assert set(watch.health().values()) == {None}, "the last known states stay for the grace"
        await watch.shows(
            {IDS[0]: "not-answering", IDS[1]: None, IDS[2]: "not-answering", IDS[3]: "not-answering"}
        )
        assert len(watch.client.scans) == 1
        said = (
            f"the worker has ended while the driver changes the VFs of {IDS[1]}: device states are not asked"
        )
        assert sum(said in record.message for record in caplog.records) == 1
        assert said in str(watch.monitor.library()["trouble"])
        assert watch.picture.current
        assert "the driver changes another card" in watch.picture.current.entries[IDS[0]].health.text
    await watch.healths(None, None, "not-answering", None)
    assert not watch.monitor.unwatched
    machine.clear_faults()
    await watch.healths(None, None, None, None)


# --- devices that hang or kill the library --------------------------------------------------------


def assert_only(watch: Watch, guilty: Collection[str]) -> None:
    """In no picture so far was any other device unhealthy."""
    innocent = [id for id in IDS if id not in guilty]
    for inventory in watch.inventories:
        assert [id for id in innocent if health(inventory)[id]] == []


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_device_at_which_the_library_hangs_or_crashes_is_convicted_alone_and_comes_back(
    watch: Watch, machine: Machine, action: str
) -> None:
    machine.add_fault(STATE, action, card=1)
    await watch.healths(None, "not-answering", None, None)
    await watch.sweeps(3)
    assert_only(watch, [IDS[1]])

    # The others go on being watched, in both directions, while it hangs.
    machine.set_card(2, {"state": "207"})
    await watch.healths(None, "not-answering", "state-error", None)
    machine.set_card(2, {"state": ""})
    await watch.healths(None, "not-answering", None, None)
    assert_only(watch, [IDS[1], IDS[2]])

    machine.clear_faults()
    await watch.healths(None, None, None, None)
    assert_only(watch, [IDS[1], IDS[2]])


async def test_a_device_that_hangs_from_the_start_does_not_keep_the_others_from_being_offered(
    make_watch: MakeWatch, machine: Machine
) -> None:
    machine.add_fault("xpumlDeviceGetAttributes", "hang", card=0)
    watch = make_watch()
    await shown(watch.picture, lambda inventory: [health(inventory).get(id) for id in IDS[1:]] == [None] * 3)
    assert health(watch.picture.current).get(IDS[0], "not-answering") == "not-answering"
    machine.clear_faults()
    await watch.healths(None, None, None, None)


async def test_what_hangs_is_left_out_at_once_and_nobody_hears_of_it_within_the_grace(
    watch: Watch, machine: Machine
) -> None:
    """Every verdict stands while a fresh worker takes over, and the others go on being watched."""
    watch.grace(1000.0)
    machine.add_fault(STATE, "hang", card=1)
    await watch.until(lambda: watch.monitor.unresponsive.skip == {1}, "a hang")
    await watch.until(lambda: watch.client.pid, "another worker")
    machine.set_card(3, {"state": "207"})
    await watch.healths(None, None, None, "state-error")
    assert watch.prober.sweeps == 0
    machine.clear_faults()
    await watch.until(lambda: not watch.monitor.unresponsive.skip, "its release")
    await watch.scans(1)
    await watch.sweeps(2)
    assert_only(watch, [IDS[3]])


async def test_several_that_hang_at_once_are_found_with_less_patience(
    watch: Watch, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last one is watched, and healthy, all the while."""
    monkeypatch.setattr(scanner, "HASTY_SECONDS", CALL_TIMEOUT / 2)
    monkeypatch.setattr(scanner, "HASTY_TIMES", 0.0)
    watch.grace(1000.0)
    scans = len(watch.client.scans)
    machine.add_fault(STATE, "hang", card=0)
    machine.add_fault(STATE, "hang", card=1)
    machine.add_fault(STATE, "hang", card=2)
    await watch.until(lambda: watch.monitor.unresponsive.skip == {0, 1, 2}, "all three convicted")
    assert set(watch.client.patience[scans : scans + 2]) == {CALL_TIMEOUT / 2}
    await watch.sweeps(1)
    machine.set_card(3, {"state": "207"})
    await watch.healths(None, None, None, "state-error")
    machine.set_card(3, {"state": ""})
    await watch.healths(None, None, None, None)

    machine.clear_faults()
    await watch.until(lambda: not watch.monitor.unresponsive.skip, "all three released")
    watch.client.patience.clear()
    watch.monitor.rescan()
    await watch.until(lambda: watch.client.patience, "a scan")
    assert watch.client.patience == [None]
    assert_only(watch, [IDS[3]])


async def test_a_worker_that_ends_between_two_sweeps_is_replaced_at_once(
    watch: Watch, machine: Machine
) -> None:
    watch.monitor._cadence = replace(watch.monitor._cadence, interval=1000.0)
    await watch.sweeps(1)
    assert watch.client.pid
    os.kill(watch.client.pid, signal.SIGKILL)
    await watch.scans(1)
    machine.set_card(0, {"state": "207"})
    os.kill(watch.client.pid, signal.SIGKILL)
    await watch.healths("state-error", None, None, None)
    watch.has_published(2)


# --- slow rounds ----------------------------------------------------------------------------------


async def test_a_slow_round_leaves_no_device_healthy_that_it_has_not_reached_in_time(
    watch: Watch, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is let finish, and as long as the next ones may be no slower."""
    monkeypatch.setattr(sweep_module, "LOOK_SECONDS", 0.05)
    watch.grace(CALL_TIMEOUT)
    watch.monitor.scanner.seconds = 0.0
    before = watch.client.pid
    machine.add_fault(STATE, "delay:300")
    await watch.healths(*["not-answering"] * 4)
    await watch.healths(None, None, None, None)
    generation = watch.picture.current.generation if watch.picture.current else 0
    await watch.sweeps(3)
    assert watch.picture.current
    assert watch.picture.current.generation == generation
    assert watch.client.pid == before
    assert "no round has returned its state" in str(watch.inventories)


async def test_scans_that_prove_nothing_are_no_answers(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that come and go at each scan keep all devices unwatched."""

    async def unstable(*_: object, **__: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(watch.client, "scan", unstable)
    watch.grace(0.1)
    watch.monitor.scanner.seconds = 0.0
    watch.monitor.rescan()
    await watch.healths(*["not-answering"] * 4)
    monkeypatch.undo()
    await watch.healths(None, None, None, None)


# --- 0 devices ------------------------------------------------------------------------------------


async def test_a_sudden_0_devices_is_not_believed_before_a_fresh_worker_repeats_it(
    watch: Watch, machine: Machine
) -> None:
    machine.set({"wrong-count": "0"})
    watch.client.after_scan = lambda _: machine.set({"wrong-count": ""})
    watch.monitor.rescan()
    await watch.scans(2)
    await watch.sweeps(2)
    first, second = (scan for scan in watch.client.scans[1:3] if isinstance(scan, Scan))
    assert (len(first.readings), len(second.readings)) == (0, 4)
    watch.has_published(1)


async def test_0_devices_are_believed_when_a_fresh_worker_says_so_again(
    watch: Watch, machine: Machine
) -> None:
    machine.set({"wrong-count": "0"})
    watch.monitor.rescan()
    await watch.shows({})
    empty = [scan for scan in watch.client.scans if isinstance(scan, Scan) and not scan.readings]
    assert len(empty) >= 2
    assert len(set(watch.client.workers)) == len(watch.client.workers)
    machine.set({"wrong-count": ""})
    watch.monitor.rescan()
    await watch.healths(None, None, None, None)


async def test_a_machine_without_devices_is_an_empty_picture(place: Path, make_watch: MakeWatch) -> None:
    directory = place / "empty"
    directory.mkdir()
    machine = make_machine(directory, number=1)
    machine.remove_card(0)
    watch = make_watch(target=target_of(machine))
    await watch.shows({})
    machine.set_card(0, {"model": "R200", "pci": IDS[0]})
    watch.monitor.rescan()
    await watch.shows({IDS[0]: None})


# --- no library, no driver ------------------------------------------------------------------------


async def test_while_the_library_cannot_be_opened_verdicts_stand_for_a_grace_and_no_longer(
    watch: Watch, machine: Machine
) -> None:
    machine.add_fault("xpumlInit", "code:9")
    watch.monitor.rescan()
    await watch.scans(5)
    assert watch.health() == dict.fromkeys(IDS)
    watch.has_published(1)

    watch.clock.ahead += GRACE
    await watch.healths(*["not-answering"] * 4)
    machine.clear_faults()
    await watch.healths(None, None, None, None)


async def test_being_stopped_ourselves_does_not_count_as_silence(watch: Watch, machine: Machine) -> None:
    """As by SIGSTOP, or with a laptop's lid."""
    machine.add_fault("xpumlInit", "hang")
    watch.monitor.rescan()
    await watch.until(
        lambda: watch.client._process and watch.client._process.in_flight(), "the library being asked"
    )
    watch.clock.ahead += 10 * GRACE
    await watch.scans(1)
    machine.clear_faults()
    await watch.scans(1)
    await watch.sweeps(2)
    watch.has_published(1)


async def test_a_recovery_is_not_taken_for_granted_while_the_library_is_away(
    make_watch: MakeWatch, machine: Machine
) -> None:
    machine.set_card(0, {"state": "207"})
    watch = make_watch(rules=Rules(recovery=100.0))
    await watch.healths("state-error", None, None, None)
    machine.set_card(0, {"state": ""})
    await watch.sweeps(2)
    watch.grace(1000.0)
    machine.add_fault("xpumlInit", "code:9")
    watch.monitor.rescan()
    await watch.scans(2)
    watch.clock.ahead += 100.0
    machine.clear_faults()
    await watch.sweeps(2)
    assert watch.health() == {IDS[0]: "state-error"} | dict.fromkeys(IDS[1:])
    watch.clock.ahead += 100.0
    await watch.healths(None, None, None, None)


async def test_a_missing_driver_is_waited_for(
    make_watch: MakeWatch, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine.set({"driver": "gone"})
    watch = make_watch()
    await watch.scans(4)
    assert watch.picture.current is None
    machine.set({"driver": ""})
    await watch.healths(None, None, None, None)
    complaints = [record.message for record in caplog.records if "no driver" in record.message]
    assert len(complaints) == 1, "said once, not at each attempt"
    assert "/dev/xpuctrl" in complaints[0]


async def test_a_control_node_that_may_not_be_opened_is_not_a_missing_driver(
    make_watch: MakeWatch, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The library says the same of both."""
    monkeypatch.setattr(WorkerClient, "control_denied", True)
    machine.set({"driver": "gone"})
    watch = make_watch()
    await watch.scans(2)
    [complaint] = [record.message for record in caplog.records if "no driver" in record.message]
    assert "/dev/xpuctrl is there and may not be opened: run the pod privileged" in complaint


async def test_a_missing_library_is_waited_for(
    make_watch: MakeWatch, machine: Machine, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = place / "libxpuml.so.1"
    watch = make_watch(target=target_of(machine, late))
    await watch.scans(3)
    [complaint] = [record.message for record in caplog.records if "no usable libxpuml" in record.message]
    assert str(late) in complaint
    late.symlink_to(target_of(machine).libraries[0])
    await watch.healths(None, None, None, None)


async def test_fail_on_init_error_gives_up_at_the_first_scan_only(
    make_watch: MakeWatch, machine: Machine
) -> None:
    watch = make_watch(fail_on_init_error=True)
    await watch.healths(None, None, None, None)
    machine.add_fault("xpumlInit", "code:9")
    watch.monitor.rescan()
    await watch.scans(2)

    late = make_watch(fail_on_init_error=True)
    with pytest.raises(InitError, match="no driver"):
        async with asyncio.timeout(SECONDS):
            await late.task


async def test_too_old_a_library_is_warned_of_and_works(
    make_watch: MakeWatch, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.set({"library-version": "4.0.9.1 commit: 0"})
    watch = make_watch()
    await watch.healths(None, None, None, None)
    assert any("4.0.11" in record.message and record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("4.0.10.1 commit: 0", True),
        ("3.9.99", True),
        ("4.0.11", False),
        ("4.0.12.1 commit: 0", False),
        ("5.0.0", False),
        ("4.0", False),
        ("unknown (xpumlSystemGetXPUMLVersion: Unknown Error (999))", False),
        ("", False),
    ],
)
def test_which_versions_are_too_old(version: str, *, old: bool) -> None:
    assert is_too_old(version) is old


# --- the host changes -----------------------------------------------------------------------------

SPLIT = {f"0000:3b:01.{vf}-of2": None for vf in (0, 1)} | dict.fromkeys(IDS[1:])


async def test_vfs_made_by_somebody_else_are_noticed_in_time(watch: Watch, machine: Machine) -> None:
    watch.compare_each(0.1)
    machine.set_card(0, {"vfs": "2"})
    await watch.shows(SPLIT)
    machine.set_card(0, {"vfs": "3"})
    await shown(watch.picture, lambda inventory: "0000:3b:01.2-of3" in inventory.entries)
    machine.set_card(0, {"vfs": "0"})
    await watch.healths(None, None, None, None)


async def test_a_node_that_goes_and_leaves_its_card_on_the_bus_is_missing(
    watch: Watch, machine: Machine
) -> None:
    for unreadable, reason in (("yes", "node-missing"), ("", None)):
        machine.set_card(1, {"unreadable": unreadable})
        await watch.rescanned()
        await watch.healths(None, reason, None, None)


@pytest.mark.parametrize(
    ("driver", "said"), [("none", "bound to no driver"), ("vfio-pci", "bound to vfio-pci")]
)
async def test_a_card_that_is_unbound_is_missing_and_not_lost(
    watch: Watch, machine: Machine, driver: str, said: str
) -> None:
    watch.compare_each(0.1)
    machine.set_card(1, {"driver": driver})
    await watch.healths(None, "node-missing", None, None)
    await watch.until(lambda: said in str(watch.inventories[-1].entries[IDS[1]].health.text), said)
    machine.set_card(1, {"driver": ""})
    await watch.healths(None, None, None, None)


async def test_a_kl1_card_in_low_power_is_sick_only_while_it_may_be_held(
    place: Path, make_watch: MakeWatch
) -> None:
    directory = place / "kl1"
    directory.mkdir()
    machine = make_machine(directory, {"model": "K200", "pci": IDS[0], "state": "202,201"})
    halves = [f"{IDS[0]}-half{half}" for half in (0, 1)]
    watch = make_watch(target=target_of(machine))
    await watch.shows(dict.fromkeys(halves))
    watch.grants.granted({halves[0]: "/dev/xpu0"})
    await watch.shows({halves[0]: "state-error", halves[1]: None})
    watch.monitor.rescan()
    await watch.scans(1)
    assert watch.health() == {halves[0]: "state-error", halves[1]: None}
    holding = Holding(container="default/train/main", resource=RESOURCE, ids=(halves[0],))
    for holdings in ((holding,), ()):  # the kubelet lists it, and then does so no more
        listing = Listing(pods=frozenset(), holdings=holdings)
        watch.grants.hear(Word(began=watch.clock(), life="a kubelet", listing=listing))
    await watch.shows(dict.fromkeys(halves))
    machine.set_card(0, {"state": "201,203"})
    await watch.shows({halves[0]: None, halves[1]: "state-error"})


async def test_a_node_that_does_not_open_is_said_once_and_scanned_when_it_does(
    make_watch: MakeWatch, machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "PAUSE_SECONDS", (0.05, 0.2))
    machine.set_card(2, {"unreadable": "EIO"})
    watch = make_watch()
    await watch.shows(dict.fromkeys([IDS[0], IDS[1], IDS[3]]))
    assert [*watch.monitor.scanner.unlisted] == [Unlisted(number=2, errno=EIO)]
    await watch.sweeps(10)
    watch.monitor.rescan()
    await watch.scans(1)
    said = [record.message for record in caplog.records if "without an index" in record.message]
    assert said == [
        'device node without an index error="/dev/xpu2: it cannot be opened (Input/output error)"'
    ]
    machine.set_card(2, {"unreadable": ""})
    await watch.healths(None, None, None, None)
    assert not watch.monitor.scanner.unlisted


async def test_a_container_that_may_open_nothing_is_told_to_be_privileged(
    make_watch: MakeWatch, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for card in range(4):
        machine.set_card(card, {"unreadable": "EPERM"})
    watch = make_watch()
    await watch.shows({})
    await watch.sweeps(2)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (sentence,) = said
    assert sentence.startswith("no device node may be opened: ")
    assert "privileged" in sentence
    assert sentence.endswith('nodes=4 error="Operation not permitted"')


async def test_more_nodes_than_the_library_lists_are_no_reason_to_scan(
    place: Path,
    make_watch: MakeWatch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openings, "PAUSE_SECONDS", (0.02, 0.05))
    directory = place / "many"
    directory.mkdir()
    watch = make_watch(target=target_of(make_machine(directory, number=104)))
    await shown(watch.picture, lambda inventory: len(inventory.entries) == 99)
    await watch.sweeps(10)
    assert len(watch.client.scans) == 1
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        'device node without an index error="/dev/xpu99 to /dev/xpu103: the library lists 99 nodes at most"'
    ]


async def test_a_card_that_is_off_the_bus_is_noticed_by_the_first_call_that_fails(
    watch: Watch, machine: Machine
) -> None:
    """Nothing compares the host in time here: the failed call is the hint."""
    machine.remove_card(2)
    await watch.healths(None, None, "lost", None)


async def test_a_driver_that_is_loaded_while_others_wait_for_it(
    make_watch: MakeWatch, machine: Machine
) -> None:
    machine.remove_card(3)
    watch = make_watch()
    await shown(watch.picture, lambda inventory: health(inventory) == dict.fromkeys(IDS[:3]))
    watch.compare_each(0.1)
    machine.set_card(7, {"model": "K200", "pci": "0000:d8:00.0"})
    halves = [f"0000:d8:00.0-half{half}" for half in (0, 1)]
    await watch.shows(dict.fromkeys([*IDS[:3], *halves]))
    assert len(watch.client.scans) == 2, "opened once, for what is new"


async def test_a_reset_of_one_half_is_one_of_both(place: Path, make_watch: MakeWatch) -> None:
    directory = place / "halves"
    directory.mkdir()
    machine = make_machine(directory, {"model": "K200", "pci": IDS[0]})
    watch = make_watch(target=target_of(machine))
    halves = [f"{IDS[0]}-half{half}" for half in (0, 1)]
    await watch.shows(dict.fromkeys(halves))
    machine.set_card(0, {"state": "201,103"})
    await watch.shows(dict.fromkeys(halves, "in-reset"))
    machine.set_card(0, {"state": "205,201"})  # an error of one chip
    await watch.shows(dict(zip(halves, ["state-error", None], strict=True)))


@pytest.fixture
def own(machine: Machine, place: Path) -> Path:
    """The library of a machine; the file `other` beside it may replace it."""
    for name in ("libxpuml.so.1", "other"):
        shutil.copy(target_of(machine).libraries[0], place / name)
    return place / "libxpuml.so.1"


async def test_a_library_that_is_replaced_is_told_of_once_and_taken_up_by_the_next_worker(
    make_watch: MakeWatch, machine: Machine, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = make_watch(target=target_of(machine, own))
    await watch.healths(None, None, None, None)
    watch.compare_each(0.0)
    await watch.sweeps(2)
    assert not watch.monitor.trial.older
    own.with_name("other").replace(own)
    await watch.until(lambda: watch.monitor.trial.older, "noticed")
    await watch.sweeps(3)
    (said,) = (message for message in caplog.messages if "was replaced" in message)
    assert "send SIGHUP" in said
    assert f"path={own}" in said
    assert len(watch.client.scans) == 1, "no reason to open all devices"
    watch.monitor.rescan()
    await watch.until(lambda: not watch.monitor.trial.older, "taken up")
    await watch.sweeps(3)
    assert not watch.monitor.trial.older


async def test_no_advice_would_end_a_worker_that_works_for_a_library_that_does_not(
    make_watch: MakeWatch, machine: Machine, own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As while XRE is being installed: its file goes, comes back in part, and is there whole."""
    other, part = own.with_name("other"), own.with_name("part")
    watch = make_watch(target=target_of(machine, own))
    await watch.healths(None, None, None, None)
    worker = watch.client.pid
    watch.compare_each(0.0)

    def said() -> list[str]:
        return [message for message in caplog.messages if "library's file" in message]

    shutil.move(own, own.with_name("former"))
    await watch.until(lambda: len(said()) == 1, "its absence is told")
    part.write_bytes(other.read_bytes()[:1000])
    part.replace(own)
    await watch.until(lambda: len(said()) == 2, "the part is told")
    for message in said():
        assert "do not restart" in message
        assert "SIGHUP" not in message
    assert f"{own}: no such file" in said()[0]
    assert watch.monitor.library()["its_file_unfit"]
    watch.monitor.rescan()
    machine.set_card(1, {"state": "207"})
    await watch.healths(None, "state-error", None, None)
    machine.set_card(1, {"state": ""})
    await watch.healths(None, None, None, None)
    assert (len(watch.client.scans), watch.client.pid) == (1, worker), "the scan waits, the watch goes on"
    other.replace(own)
    await watch.until(lambda: watch.client.pid != worker, "the scan that waited")
    await watch.until(lambda: not watch.monitor.trial.older, "taken up")
    assert watch.monitor.library()["its_file_unfit"] is None
    await watch.sweeps(3)
    await watch.healths(None, None, None, None)
    assert len(said()) == 2


async def test_a_library_that_could_not_be_used_for_a_passing_reason_is_tried_again(
    make_watch: MakeWatch, machine: Machine, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_trial, "TRIAL_SECONDS", (0.1, 0.1))
    watch = make_watch(target=target_of(machine, own))
    await watch.healths(None, None, None, None)
    watch.compare_each(0.0)
    machine.add_fault("xpumlInit", "code:999")
    own.with_name("other").replace(own)
    await watch.until(lambda: watch.monitor.trial.unfit, "it fails")
    machine.clear_faults()
    await watch.until(lambda: watch.monitor.trial.unfit is None, "it is tried again")
    assert watch.monitor.trial.older


async def test_an_unchanged_host_is_not_scanned_again(watch: Watch) -> None:
    """Opening the library opens every device for an instant, which disturbs a split of one."""
    watch.compare_each(0.0)
    await watch.sweeps(10)
    assert watch.client.hosts >= 9
    assert len(watch.client.scans) == 1


async def test_a_card_that_vanished_stays_unhealthy_until_a_rescan_is_asked_for(
    watch: Watch, machine: Machine
) -> None:
    watch.compare_each(0.1)
    machine.remove_card(1)
    await watch.healths(None, "lost", None, None)
    await watch.sweeps(3)
    watch.monitor.rescan()
    await watch.shows({id: None for id in IDS if id != IDS[1]})


async def test_a_host_that_changes_while_a_device_is_left_out_does_not_convict_another(
    watch: Watch, machine: Machine
) -> None:
    """Indexes move: after the first card is gone, the second one has its index."""
    watch.compare_each(0.1)
    machine.add_fault(STATE, "hang", card=1)
    await watch.healths(None, "not-answering", None, None)
    machine.remove_card(0)
    await watch.healths("lost", "not-answering", None, None)
    assert_only(watch, IDS[:2])
    machine.clear_faults()
    await watch.healths("lost", None, None, None)


async def test_a_device_that_cannot_be_named_is_told_once_and_harms_no_other(
    watch: Watch, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather no device than the wrong node: here two nodes have one address in sysfs."""
    assert machine.sysfs_root
    link = machine.sysfs_root / "class/xpu/xpu2/device"
    link.unlink()
    link.symlink_to(f"../../../bus/pci/devices/{IDS[0]}")
    for _ in range(2):
        watch.monitor.rescan()
        await watch.scans(1)
    await watch.sweeps(1)
    assert watch.health()[IDS[1]] is None
    assert watch.health()[IDS[3]] is None
    problems = [record.message for record in caplog.records if "not offered" in record.message]
    assert problems
    assert len(problems) == len(set(problems))
    machine.settle()


# --- a scan on request ------------------------------------------------------------------------------


async def test_a_scan_under_way_is_not_what_rescanned_waits_for(watch: Watch, machine: Machine) -> None:
    asked: list[asyncio.Task[None]] = []

    def ask(_: Scan | None) -> None:
        """The worker has answered and the answer is not taken in yet: from here on another one is wanted."""
        if not asked:
            asked.append(asyncio.ensure_future(watch.monitor.scanner.rescanned()))
            machine.set_card(0, {"vfs": "2"})

    watch.client.after_scan = ask
    watch.monitor.rescan()
    await watch.until(lambda: asked, "a scan")
    async with asyncio.timeout(SECONDS):
        await asked[0]
    assert "0000:3b:01.1-of2" in watch.health()
    assert len(watch.client.scans) >= 3


async def test_a_rescan_asked_for_during_a_scan_is_not_lost(watch: Watch, machine: Machine) -> None:
    calls: list[Scan | None] = []

    def again(answer: Scan | None) -> None:
        calls.append(answer)
        if len(calls) == 1:
            machine.set_card(3, {"lost": "yes"})
            machine.remove_card(3)
            watch.monitor.rescan()

    watch.client.after_scan = again
    watch.monitor.rescan()
    await watch.shows(dict.fromkeys(IDS[:3]))
    assert len(calls) >= 2


async def test_rescanned_waits_while_the_library_cannot_be_asked(watch: Watch, machine: Machine) -> None:
    machine.set({"driver": "gone"})
    waiting = asyncio.ensure_future(watch.monitor.scanner.rescanned())
    await watch.scans(3)
    assert not waiting.done()
    machine.set({"driver": "loaded"})
    async with asyncio.timeout(SECONDS):
        await waiting
