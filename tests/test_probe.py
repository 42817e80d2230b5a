# SPDX-License-Identifier: Apache-2.0
"""The whole plugin with a program of the administrator: a card with a driver error is tested once it is idle,
and comes back to the list if it passes."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.api_server import ApiServer, write_kubeconfig
from tests.support.daemon import EXIT_SECONDS, Daemon, Node, free_port, probed, shows
from tests.support.impatient import impatient
from tests.support.kernel_log import KernelLog
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.processes import has_ended, processes_that_know
from tests.support.programs import program
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.cli import main
from xpu_plugin.edges.control_socket import ask
from xpu_plugin.model import vf_reconcile
from xpu_plugin.model.handover import HandoverPace
from xpu_plugin.model.timings import Timings
from xpu_plugin.proto.deviceplugin_pb2 import AllocateRequest, ContainerAllocateRequest
from xpu_plugin.proto.deviceplugin_pb2_grpc import DevicePluginStub
from xpu_plugin.simulation.kernel_log import Trouble
from xpu_plugin.simulation.kubelet import Kubelet


CARDS = [f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")]
CARD = CARDS[0]
RULES = """
facility = 0
together_seconds = 0.1
pods = 2
window_seconds = 3600
idle_seconds = {idle}
address = '\\(PCI:(?P<card>[0-9a-f:]+)\\)'
process = 'pid=\\s*(?P<pid>[0-9]+)'
[[pattern]]
reason = "noc-idle-timeout"
text = 'kl3_wait_for_noc_idle'
sick = ["pods", "idle"]
"""
TIMINGS = Timings(
    holders=0.1,
    listed=0.2,
    probe=(0.3, 0.6),
    vfs=vf_reconcile.VfPace(look=0.1, check=0.05, retry=(0.3, 1.0), drift=(0.3, 1.0)),
    handover=HandoverPace(again=(0.05, 0.2), show=SECONDS, end=SECONDS),
)
IMPATIENT = impatient(TIMINGS)
PASSED = "a probe has passed"
SICK = "a probe finds a device sick"

pytestmark = pytest.mark.usefixtures("leaves_no_process")


@pytest.fixture
def log(node: Node) -> Iterator[KernelLog]:
    assert node.machine.dev_root
    log = KernelLog(node.machine.dev_root / "kmsg")
    yield log
    log.close()


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    kubelet = node.kubelet()
    kubelet.pods_api_dir = node.place / "pods-api"
    async with kubelet:
        own_pod(kubelet)
        yield kubelet


class Probe:
    """The program. Each run notes its variables; then it does what the script says.

    Before that it waits, if `held`, until `let_go`.
    """

    def __init__(self, place: Path, script: str, *, held: bool = False) -> None:
        self._runs, self._gate = place / "runs", place / "gate"
        self._runs.touch()
        if not held:
            self.let_go()
        wait = f"while ! [ -e {self._gate} ]; do sleep 0.05; done"
        self.path = program(place / "probe", f'echo "$$ $XPU_ID $XPU_PATH" >> {self._runs}\n{wait}\n{script}')

    @property
    def runs(self) -> list[list[str]]:
        return [line.split() for line in self._runs.read_text().splitlines()]

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid, *_ in self.runs]

    def let_go(self) -> None:
        self._gate.touch()

    async def ran(self, times: int = 1) -> None:
        await until(lambda: len(self.runs) >= times, f"{times} probes")


def start(
    node: Node, probe: Probe, *arguments: str, timings: tuple[str, ...] = IMPATIENT, idle: int = 1
) -> Daemon:
    rules = node.place / "rules.toml"
    rules.write_text(RULES.replace("{idle}", str(idle)))
    options = ("--pod-name=plugin", "--pod-list-delay=0.3", f"--status-socket={node.place}/status.sock")
    given = ("--kernel-log=act", f"--kernel-log-rules={rules}", f"--probe={probe.path}", *options, *arguments)
    return node.start(*given, program=timings)


async def away(kubelet: Kubelet) -> None:
    """Wait until the card, and no other one, is listed as unhealthy."""
    await kubelet.until(
        lambda: [id for id, own in kubelet.devices(RESOURCE).items() if not own.healthy] == [CARD],
        timeout=SECONDS,
        what="one unhealthy card",
    )


async def sick(daemon: Daemon, log: KernelLog) -> None:
    """Let the kernel tell of the card while nothing uses it, until the plugin believes it."""
    await daemon.says("the kernel's log is followed")

    async with asyncio.timeout(SECONDS):
        while "a device is sick by the kernel's log" not in daemon.log:
            log.says(CARD, Trouble.IDLE)
            await asyncio.sleep(0.3)  # longer than an incident; the card has to be idle for a while before


async def rows(node: Node) -> dict[str, str]:
    """The reason of each device that is not healthy, with its text, as `list` has them."""
    state = await asyncio.to_thread(ask, node.place / "status.sock", "list")
    assert isinstance(state, dict)
    return {row["id"]: f"{row['reason']}: {row['text']}" for row in state["devices"] if row["reason"]}


async def waits_for(node: Node, holder: str) -> None:
    """Wait until the last decision names this user of the card."""

    async with asyncio.timeout(SECONDS):
        while True:
            decisions = await asyncio.to_thread(ask, node.place / "status.sock", "decisions")
            assert isinstance(decisions, list)
            own = [decision for decision in decisions if decision["what"] == "probe"]
            if own and holder in str(own[-1]["proofs"]):
                return
            await asyncio.sleep(0.05)


async def test_a_card_that_passes_comes_back_to_the_list(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "echo first; printf 'all\\007 well\\n'", held=True)
    with ApiServer("here") as api:
        kubeconfig = write_kubeconfig(node.place / "kubeconfig", api.url)
        port = free_port()
        access = (f"--kubeconfig={kubeconfig}", "--node-name=here")
        daemon = start(node, probe, *access, f"--metrics-address=127.0.0.1:{port}")
        await shows(kubelet, CARDS)
        await sick(daemon, log)
        await probe.ran()
        await away(kubelet)
        assert "driver-error: a probe of --probe has its card" in (await rows(node))[CARD]
        probe.let_go()
        await shows(kubelet, CARDS)
        await daemon.says(PASSED)
        assert r"all\\u0007 well" in daemon.log
        await daemon.says('how="probe passed"')
        assert [run[1:] for run in probe.runs] == [[CARD, "/dev/xpu0"]]
        _, page = await asyncio.to_thread(probed, port, "/metrics")
        assert 'xpu_probe_runs_total{result="passed"} 1.0' in page
        assert 'xpu_probe_runs_total{result="sick"} 0.0' in page
        await until(lambda: "XPUProbePassed" in str(api.events), "an Event")
    record = node.place / "state/driver-errors.json"
    await until(lambda: json.loads(record.read_text())["devices"][CARD]["sick"] is None, "the end on record")


async def test_a_line_just_after_a_probe_is_not_that_of_an_idle_card(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0")
    daemon = start(node, probe, idle=int(PROMPT_SECONDS))
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await daemon.says(PASSED)
    state = await asyncio.to_thread(ask, node.place / "status.sock", "state")
    log.says(CARD, Trouble.IDLE)

    async with asyncio.timeout(SECONDS):
        before = now = incidents(state)
        while now == before:
            now = incidents(await asyncio.to_thread(ask, node.place / "status.sock", "state"))
    await asyncio.sleep(0.5)  # longer than an incident
    await daemon.says_exactly("a device is sick by the kernel's log", 1)


def incidents(state: object) -> object:
    assert isinstance(state, dict)
    return state["kernel_log"]["incidents"]


async def test_a_card_that_fails_stays_away_and_is_probed_again_after_a_pause(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "echo broken; exit 1")
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await probe.ran(3)
    await away(kubelet)
    await daemon.says_exactly(SICK, 1)
    assert PASSED not in daemon.log
    assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
    await shows(kubelet, CARDS)


async def test_an_administrator_has_it_probed_again_at_once(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 1")
    daemon = start(node, probe, timings=impatient(Timings(holders=0.1, listed=0.2)))
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await daemon.says(SICK)
    daemon.process.send_signal(signal.SIGHUP)
    await probe.ran(2)


@pytest.mark.parametrize(
    ("script", "result"),
    [
        ("exit 3", "failed"),
        ("kill -9 $$", "killed"),
        ("sleep 600 & sleep 600", "late"),
    ],
)
async def test_a_probe_without_an_answer_changes_nothing(
    node: Node, log: KernelLog, kubelet: Kubelet, script: str, result: str
) -> None:
    probe = Probe(node.place, script)
    daemon = start(node, probe, "--probe-timeout=1")
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await probe.ran(2)
    await away(kubelet)
    await daemon.says_exactly(f"a probe has no answer id={CARD} result={result}", 1)
    await daemon.stop()
    assert processes_that_know(node.place) == []


async def test_a_program_that_cannot_be_executed_changes_nothing(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "")
    probe.path.write_bytes(b"\x7fELF no program")
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await daemon.says("result=not-started")
    await away(kubelet)


async def test_a_probe_waits_for_the_pod_that_has_the_card(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0")
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    await daemon.says("the kernel's log is followed")
    for number, pod in enumerate(("a", "b"), 1):
        grant = await kubelet.allocate(RESOURCE, 1, pod=pod)
        assert grant.ids == (CARD,)
        log.says(CARD, Trouble.HANG)
        await daemon.says("the driver reports an incident")
        if number == 1:
            kubelet.end(grant, code=1)
            kubelet.free(grant)
            await asyncio.sleep(0.2)  # the incident is over
    await daemon.says("a device is sick by the kernel's log")
    await waits_for(node, "default/b/")
    assert probe.runs == []
    kubelet.end(grant, code=1)
    kubelet.free(grant)
    await shows(kubelet, CARDS)
    assert len(probe.runs) == 1


async def test_a_probe_waits_for_a_process_on_the_card_such_as_the_probe_of_a_plugin_that_was_killed(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0", held=True)
    first = start(node, probe)
    await shows(kubelet, CARDS)
    await sick(first, log)
    await probe.ran()
    [pid] = probe.pids
    node.machine.add_process(pid, card=0)
    await first.kill()
    assert not has_ended(pid)

    start(node, probe)
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await away(kubelet)
    await waits_for(node, "a process at /dev/xpu0")
    assert len(probe.runs) == 1
    probe.let_go()
    await until(lambda: has_ended(pid), "the end of the first probe")
    node.machine.clear_processes()
    await shows(kubelet, CARDS)
    assert len(probe.runs) == 2


async def test_no_pod_gets_the_card_meanwhile(node: Node, log: KernelLog, kubelet: Kubelet) -> None:
    probe = Probe(node.place, "exit 1", held=True)
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await probe.ran()
    request = AllocateRequest(container_requests=[ContainerAllocateRequest(devices_ids=[CARD])])
    async with grpc.aio.insecure_channel(f"unix:{node.socket}") as channel:
        stub: Any = DevicePluginStub(channel)  # type: ignore[no-untyped-call] # generated
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Allocate(request)
    assert "driver-error, a probe of --probe has its card" in str(error.value.details())


async def test_a_signal_ends_the_plugin_and_the_probe_in_time(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "sleep 600", held=True)
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    await sick(daemon, log)
    await probe.ran()
    assert await daemon.stop() < EXIT_SECONDS
    assert "left behind" not in daemon.log
    node.assert_tidy()


class Stuck:
    """A program that cannot be ended: its file hangs, as on a mount of which the server is gone."""

    def __init__(self, probe: Probe) -> None:
        self._path = probe.path
        self._path.unlink()
        os.mkfifo(self._path)

    def let_go(self) -> None:
        os.close(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK))


async def test_a_probe_that_cannot_be_ended_leaves_its_card_withheld_until_it_is_gone(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0")
    daemon = start(node, probe, "--probe-timeout=1")
    await shows(kubelet, CARDS)
    stuck = Stuck(probe)
    await sick(daemon, log)
    await daemon.says("a probe cannot be killed")
    await daemon.says("result=stuck")
    assert "probe-stuck: " in (await rows(node))[CARD]
    assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
    assert "probe-stuck: " in (await rows(node))[CARD], "although its driver error has ended"
    await away(kubelet)
    stuck.let_go()
    await shows(kubelet, CARDS)
    await daemon.says("a probe that was killed has ended")
    assert probe.runs == []


async def test_a_plugin_ends_in_time_although_its_probe_cannot_be_ended(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0")
    daemon = start(node, probe)
    await shows(kubelet, CARDS)
    Stuck(probe)
    await sick(daemon, log)
    await daemon.says("a probe begins")
    assert await daemon.stop() < EXIT_SECONDS
    assert "a probe cannot be killed" in daemon.log


async def test_a_probe_is_ended_before_another_instance_takes_over_and_runs_it_again(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    probe = Probe(node.place, "exit 0", held=True)
    old = start(node, probe, "--pod-uid=a")
    await shows(kubelet, CARDS)
    await sick(old, log)
    await probe.ran()
    new = start(node, probe, "--pod-uid=b", f"--status-socket={node.place}/new.sock")
    await new.says("this instance has taken the node over")
    await old.says("a probe was ended for a hand-over")
    assert has_ended(probe.pids[0])
    await probe.ran(2)
    probe.let_go()
    await shows(kubelet, CARDS)
    await new.says(PASSED)
    assert len(probe.runs) == 2


async def test_without_a_verdict_nothing_runs_and_the_log_says_so(node: Node, kubelet: Kubelet) -> None:
    probe = Probe(node.place, "exit 0")
    daemon = start(node, probe, "--kernel-log=report")
    await shows(kubelet, CARDS)
    await daemon.says("--probe has no effect without --kernel-log act")
    assert probe.runs == []


def test_a_program_that_is_not_there_ends_the_start_with_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--probe={place}/absent -x"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"xpu-device-plugin: --probe: '{place}/absent': No such file or directory; accepted: an executable "
        "file, and its arguments"
    )
