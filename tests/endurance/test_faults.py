# SPDX-License-Identifier: Apache-2.0
"""Faults of library, driver, host and kubelet under the whole plugin: what the kubelet sees of each, what is
logged, and that nothing is more than before when it is over."""

import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.endurance.watched import CALL_SECONDS, TIMINGS, Scene, Watched, unharmed
from tests.support.daemon import IDS, Daemon, a_node, shows
from tests.support.impatient import impatient
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE, compile_library
from tests.support.processes import MIB, Level, descriptors, settles, tree, unix_sockets
from tests.support.waiting import SECONDS, until
from xpu_plugin.model.timings import USUAL
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc
from xpu_plugin.simulation.kubelet import AdmissionError


STATE = "xpumlDeviceGetState"
ASKED_IN_A_SCAN = (
    "xpumlDeviceGetHandleByIndex",
    "xpumlDeviceGetPciInfo",
    "xpumlDeviceGetAttributes",
    "xpumlDeviceGetMemoryInfo",
    "xpumlDeviceGetHostVxpuMode",
    STATE,
)
SIGNALS = {"crash": signal.SIGSEGV, "fpe": signal.SIGFPE, "abort": signal.SIGABRT}
LIVES = 500
STREAMS = 1000

pytestmark = pytest.mark.usefixtures("leaves_no_process")


@pytest.fixture
async def scene(place: Path, leaves_no_process: None) -> AsyncIterator[Scene]:
    async with a_node(place, Scene) as scene:
        yield scene


@pytest.fixture
async def kubelet(scene: Scene) -> AsyncIterator[Watched]:
    async with scene.watched() as kubelet:
        yield kubelet


def worker_of(daemon: Daemon) -> list[int]:
    return [pid for pid in tree(daemon.pid) if pid != daemon.pid]


# --- the library ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ASKED_IN_A_SCAN)
async def test_a_call_that_hangs_or_crashes_for_one_device_costs_that_device_alone(
    scene: Scene, kubelet: Watched, function: str
) -> None:
    """Each time that it is asked: what hangs never returns, or in a minute, after the end of all waits."""
    daemon = scene.begin()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon, sick=[IDS[1]]):
        for action in ("hang", "delay:60000", *SIGNALS):
            scene.machine.add_fault(function, action, card=1)
            daemon.process.send_signal(signal.SIGHUP)
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
            assert not kubelet.devices(RESOURCE)[IDS[1]].healthy
            kubelet.free(await kubelet.allocate(RESOURCE, 3))
            scene.machine.clear_faults()
            await shows(kubelet, IDS)
    assert (
        f"no answer within {CALL_SECONDS} s in {function} of device index 1 ({IDS[1]}, /dev/xpu1)"
        in daemon.log
    )
    for number in SIGNALS.values():
        await daemon.says(f"(killed by signal {number:d}) in {function} of device index 1")
    await daemon.says_exactly("reason=not-answering", times=5)


@pytest.mark.parametrize("function", ["xpumlInit", "xpumlDeviceGetCount"])
async def test_a_call_that_hangs_or_crashes_for_all_costs_no_more_than_the_grace(
    scene: Scene, kubelet: Watched, function: str
) -> None:
    daemon = scene.begin()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon, sick=IDS):
        for action in ("hang", "abort"):
            scene.machine.add_fault(function, action)
            daemon.process.send_signal(signal.SIGHUP)
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0, timeout=SECONDS)
            with pytest.raises(AdmissionError):
                await kubelet.allocate(RESOURCE, 1)
            scene.machine.clear_faults()
            await shows(kubelet, IDS)
    await daemon.says_exactly("the library answers again", times=2)


@pytest.mark.parametrize("count", ["0", "2", "9", "99", "16384"])
async def test_a_wrong_count_names_no_device_that_there_is_not_and_is_forgotten(
    scene: Scene, kubelet: Watched, count: str
) -> None:
    """Too few, and the others are lost until it is right again; too many, and the indexes beyond crash."""
    daemon = scene.begin()
    await shows(kubelet, IDS)
    asked = daemon.log.count("library opened")
    scene.machine.set({"wrong-count": count})
    daemon.process.send_signal(signal.SIGHUP)
    if int(count) < len(IDS):
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) < len(IDS), timeout=SECONDS)
    else:
        await until(lambda: "GetHandleByIndex" in daemon.log or "not offered" in daemon.log, "word of it")
    assert kubelet.known == set(IDS)
    scene.machine.set({"wrong-count": ""})
    daemon.process.send_signal(signal.SIGHUP)
    await shows(kubelet, IDS)
    await daemon.says_exactly("library opened", times=asked)
    granted = await kubelet.allocate(RESOURCE, 4)
    assert [node.host_path for node in granted.nodes] == [*(f"/dev/xpu{n}" for n in range(4)), "/dev/xpuctrl"]


async def test_a_library_that_writes_on_the_wire_is_never_believed(scene: Scene, kubelet: Watched) -> None:
    """Each worker talks nonsense, for as long as it takes: nothing is offered, and nothing piles up."""
    rogue = compile_library(Path(__file__).parents[1] / "edges/worker/rogue.c", scene.place)
    before = f"from xpu_plugin.simulation import library\nlibrary.shipped = lambda: {str(rogue)!r}"
    os.environ["ROGUE"] = 'frame:{"id": 3, "result": {"stable": true, "readings": 7}}'
    try:
        daemon = scene.begin(program=impatient(TIMINGS, before=before))
    finally:
        del os.environ["ROGUE"]
    await daemon.says("the worker answered malformed data")
    # A worker may be there beside its former.
    most = Level(processes=3, threads=14, descriptors=42, memory=128 * MIB)
    started: set[int] = set()

    def many() -> bool:
        started.update(worker_of(daemon))
        return len(started) > 20  # more than the threads and descriptors that may vary

    await until(many, "some more workers")
    await settles(daemon.pid, most, memory=0)
    assert kubelet.known == set()


# --- the host -------------------------------------------------------------------------------------


async def test_a_driver_that_is_unloaded_and_loaded_again(scene: Scene, kubelet: Watched) -> None:
    daemon = scene.begin()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon, sick=IDS):
        scene.machine.set({"driver": "gone"})
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0, timeout=SECONDS)
        await daemon.says("no driver: ")
        scene.machine.set({"driver": ""})
    await daemon.says_exactly("no driver: ", times=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
async def test_a_node_that_may_not_be_opened(scene: Scene, kubelet: Watched) -> None:
    assert scene.machine.dev_root
    daemon = scene.begin()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon, sick=IDS):
        scene.machine.dev_root.chmod(0)
        daemon.process.send_signal(signal.SIGHUP)
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0, timeout=SECONDS)
        scene.machine.dev_root.chmod(0o700)


async def test_a_worker_that_no_descriptor_is_left_for(scene: Scene, kubelet: Watched) -> None:
    daemon = scene.begin("--health-grace=600")
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        await until(lambda: len(worker_of(daemon)) == 1, "a worker alone")
        [worker] = worker_of(daemon)
        former = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        number = len(descriptors(daemon.pid)) + 1
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (number, former[1]))
        os.kill(worker, signal.SIGKILL)
        await daemon.says("no worker can be started: Too many open files")
        kubelet.free(await kubelet.allocate(RESOURCE, 2))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, former)
        await daemon.says("the library answers again")


@pytest.mark.parametrize("limit", [4 * MIB, 16 * MIB], ids=["to be loaded", "to start"])
async def test_a_worker_that_no_memory_is_left_for(scene: Scene, kubelet: Watched, limit: int) -> None:
    before = f"""
import os, subprocess
start = subprocess.Popen
def little(command, **options):
    if os.path.exists({str(scene.place / "limit")!r}):
        limit = open({str(scene.place / "limit")!r}).read()
        command = ["sh", "-c", f'ulimit -v {{limit}}; exec "$@" 2>/dev/null', "sh", *command]
    return start(command, **options)
subprocess.Popen = little
"""
    daemon = scene.begin("--health-grace=600", program=impatient(TIMINGS, before=before))
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        (scene.place / "limit").write_text(str(limit))
        daemon.process.send_signal(signal.SIGHUP)
        await daemon.says("the worker ended")
        kubelet.free(await kubelet.allocate(RESOURCE, 2))
        (scene.place / "limit").unlink()
        await daemon.says("the library answers again")


@pytest.fixture
def state(scene: Scene) -> Iterator[Path]:
    """A state directory of 16 KiB that can be made full, where we may mount one; else a plain one."""
    directory = scene.place / "state"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(directory)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    yield directory
    if mounted:
        subprocess.run(["umount", "--lazy", directory], check=True)


def protected(directory: Path, *, how: bool) -> None:
    """Make it read-only, or writable again."""
    if directory.is_mount():
        subprocess.run(["mount", "-o", f"remount,{'ro' if how else 'rw'}", directory], check=True)
    else:
        directory.chmod(0o500 if how else 0o700)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_a_disk_that_takes_nothing_costs_no_more_than_the_record(
    state: Path, scene: Scene, kubelet: Watched, trouble: str
) -> None:
    if not state.is_mount() and (trouble == "full" or os.geteuid() == 0):  # noqa: ASYNC240
        pytest.skip("no file system can be mounted here")
    daemon = scene.begin()
    await shows(kubelet, IDS)
    if trouble == "full":
        (state / "all").write_bytes(bytes(16384))
    else:
        protected(state, how=True)
    async with unharmed(kubelet, daemon):
        await daemon.says("cannot write a record")
        grant = await kubelet.allocate(RESOURCE, 1)
        await kubelet.restart_container(grant)
        kubelet.free(grant)
        if trouble == "full":
            (state / "all").unlink()
        else:
            protected(state, how=False)
        kubelet.free(await kubelet.allocate(RESOURCE, 1))
        record = state / "grants.json"
        await until(lambda: record.exists() and IDS[0] in record.read_text(), "the record")
    await daemon.says_exactly("cannot write a record", times=1)
    assert sorted(os.listdir(state)) == ["grants.json", "handover.sock"]  # noqa: PTH208 - which may block as well


async def test_a_wall_clock_that_jumps_is_seen_in_the_log_only(
    scene: Scene, kubelet: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year ahead, and years back: no device counts as overdue, and nothing waits for a time that has
    gone."""
    clock = scene.place / "clock"
    clock.write_text("0")
    shim = compile_library(Path(__file__).with_name("clock.c"), scene.place)
    with monkeypatch.context() as patch:
        former = os.environ.get("LD_PRELOAD", "")
        patch.setenv("LD_PRELOAD", f"{former} {shim}".strip())
        patch.setenv("WALL_CLOCK", str(clock))
        daemon = scene.begin()
    await shows(kubelet, IDS)
    for years in (1, -3, 0):
        async with unharmed(kubelet, daemon, sick=[IDS[2]]):
            clock.write_text(str(years * 365 * 86400))
            scene.machine.set_card(2, {"state": "207"})
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
            scene.machine.set_card(2, {"state": ""})
    await kubelet.restart()
    await shows(kubelet, IDS)
    assert len({line[:4] for line in daemon.log.splitlines() if line[:2] == "20"}) == 3, "it did jump"


# --- processes ------------------------------------------------------------------------------------


async def test_a_worker_that_is_stopped_is_replaced(scene: Scene, kubelet: Watched) -> None:
    daemon = scene.begin("--health-grace=600")
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        for times in range(1, 4):
            await until(lambda: len(worker_of(daemon)) == 1, "a worker alone")
            [worker] = worker_of(daemon)
            os.kill(worker, signal.SIGSTOP)
            await daemon.says("the library answers again", times)
            await until(lambda worker=worker: worker not in tree(daemon.pid), "its end")  # type: ignore[misc]
    await daemon.says_exactly("no answer within", times=3)


# --- the kubelet ----------------------------------------------------------------------------------


@pytest.mark.timeout(240)
async def test_hundreds_of_kubelet_restarts_are_one_registration_each(scene: Scene, kubelet: Watched) -> None:
    own_pod(kubelet)
    daemon = scene.begin("--pod-list-delay=0.3", "--pod-name=plugin")
    await shows(kubelet, IDS)
    for _ in range(20):  # until all that is made once has been made
        await kubelet.restart()
        await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon, registrations=LIVES + 1):
        # A pod has just ended, as soon as it was admitted. To the plugin it might be one that a kubelet
        # without its checkpoint has forgotten, until no process is seen to use the devices.
        await kubelet.restart()
        with suppress(TimeoutError):  # the plugin may have heard of its end before
            await kubelet.until(
                lambda: {device.healthy for device in kubelet.devices(RESOURCE).values()} == {False},
                timeout=SECONDS / 4,
                what="devices that are withheld",
            )
        await shows(kubelet, IDS, seconds=SECONDS + 2 * USUAL.holders)
        kubelet.sick.clear()
        log = len(daemon.log)
        grant = await kubelet.allocate(RESOURCE, 1)
        for _ in range(LIVES):
            await kubelet.restart()
            await shows(kubelet, IDS)
        await kubelet.restart_container(grant)
        kubelet.free(grant)
    slow = "the disk does not answer"  # as it may be on a busy machine
    assert [line for line in daemon.log[log:].splitlines() if "WARNING" in line and slow not in line] == []
    assert unix_sockets(scene.socket) == 2


async def test_a_thousand_streams_opened_and_cut(scene: Scene, kubelet: Watched) -> None:
    daemon = scene.begin()
    await shows(kubelet, IDS)
    async with unharmed(kubelet, daemon):
        for _ in range(STREAMS // 50):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"unix:{scene.socket}", options=options) as channel:
                stub = api_grpc.DevicePluginStub(channel)  # type: ignore[no-untyped-call]
                calls: list[Any] = [stub.ListAndWatch(api.Empty()) for _ in range(50)]
                for call in calls:
                    assert len((await call.read()).devices) == len(IDS)
                for call in calls[:25]:
                    call.cancel()
                    await call.code()
                del calls, call  # or they would keep their connection
        await until(lambda: unix_sockets(scene.socket) == 2, "the kubelet's connection alone")


async def test_who_takes_over_offers_nothing_that_it_has_not_seen_since(
    scene: Scene, kubelet: Watched
) -> None:
    """While it waited the other plugin may have split a card, or has left a worker that still does."""
    first = scene.begin()
    await shows(kubelet, IDS)
    second = scene.begin("--rescan-interval=3600")
    await second.says("another plugin works in")
    await second.says(f"device offered id={IDS[3]}")
    scene.machine.set_card(2, {"vfs": "2"})
    there = [*IDS[:2], "0000:3d:01.0-of2", "0000:3d:01.1-of2", IDS[3]]
    await shows(kubelet, there)
    kubelet.known.clear()
    await first.stop()
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await shows(kubelet, there)
    assert kubelet.known == set(there)


async def test_who_takes_over_keeps_the_quarantine_of_whoever_was_before(
    scene: Scene, kubelet: Watched
) -> None:
    """Also of devices that it would not have put there itself."""
    record = scene.place / "state/quarantine.json"
    first = scene.begin("--health-flaps=3")
    await shows(kubelet, IDS)
    second = scene.begin("--health-flaps=1000")
    await second.says("another plugin works in")
    sick, well, out = "reason=state-error", "device healthy again", "reason=quarantined"
    for state, flap, word, final in (
        ("207", 1, sick, sick),
        ("", 1, well, well),
        ("207", 2, sick, sick),
        ("", 2, well, out),
    ):
        scene.machine.set_card(1, {"state": state})
        await second.says(word, flap)
        await first.says(final, 1 if final is out else flap)
    await until(record.exists, "a quarantine")
    await first.stop()
    await second.says("registered")
    await kubelet.until(lambda: kubelet.streams_open and kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
    assert not kubelet.devices(RESOURCE)[IDS[1]].healthy
    assert IDS[1] in record.read_text()


async def test_plugins_that_take_turns_lose_nothing(scene: Scene, kubelet: Watched) -> None:
    """Two at once, and one of them killed again and again: the other takes over, with the same grants."""
    daemons = [scene.begin(), scene.begin()]
    await shows(kubelet, IDS)
    grant = await kubelet.allocate(RESOURCE, 2)
    for turn in range(4):
        await until(lambda: any("registered" in daemon.log for daemon in daemons), "one that works")
        [first] = [daemon for daemon in daemons if "registered" in daemon.log]
        times = len(kubelet.registrations)
        await (first.kill() if turn % 2 else first.stop())
        daemons.remove(first)
        daemons.append(scene.begin())
        await until(lambda times=times: len(kubelet.registrations) > times)  # type: ignore[misc]
        await shows(kubelet, IDS)
        await kubelet.restart_container(grant)
        other = await kubelet.allocate(RESOURCE, 2)
        assert set(other.ids).isdisjoint(grant.ids)
        kubelet.free(other)
