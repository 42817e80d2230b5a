# SPDX-License-Identifier: Apache-2.0
"""The whole plugin beside a kernel's log: a card that answers all queries and hangs leaves the list, and a
faulty program takes no card away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.api_server import ApiServer, write_kubeconfig
from tests.support.daemon import IMPATIENT, Daemon, Node, free_port, probed, shows
from tests.support.kernel_log import KernelLog
from tests.support.kubelets import own_pod
from tests.support.machines import R200, RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.control_socket import ask
from xpu_plugin.simulation.kernel_log import Trouble
from xpu_plugin.simulation.kubelet import Assignment, Kubelet


CARDS = [f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")]
CARD = CARDS[0]
TOGETHER = 0.1
RULES = """
facility = {facility}
together_seconds = {together}
pods = 2
window_seconds = 3600
idle_seconds = 1
address = '\\(PCI:(?P<card>[0-9a-f:]+)\\)'
process = 'pid=\\s*(?P<pid>[0-9]+)'
[[pattern]]
reason = "noc-idle-timeout"
text = 'kl3_wait_for_noc_idle'
sick = ["pods", "idle"]
[[pattern]]
reason = "kernel-exception"
text = 'XPUERR_KEXCEPTION'
[[pattern]]
reason = "reset"
text = 'm3 mode1 reset'
reset = true
"""

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


def start(
    node: Node, mode: str = "act", *arguments: str, facility: int = 0, together: float = TOGETHER
) -> Daemon:
    """A plugin for which lines of more than a moment are several incidents."""
    rules = node.place / "rules.toml"
    rules.write_text(RULES.format(facility=facility, together=together))
    options = ("--pod-name=plugin", "--pod-list-delay=0.3", f"--status-socket={node.place}/status.sock")
    given = (f"--kernel-log={mode}", f"--kernel-log-rules={rules}", *options, *arguments)
    return node.start(*given, program=IMPATIENT)


async def hold(kubelet: Kubelet, pod: str, id: str = CARD) -> Assignment:
    """Give a device to a new pod, which is the first one that is free."""
    grant = await kubelet.allocate(RESOURCE, 1, pod=pod)
    assert grant.ids == (id,)
    return grant


async def reported(node: Node, number: int = 1) -> None:
    """Wait until so many incidents of the card were counted."""
    deadline = time.monotonic() + SECONDS
    found = 0
    while found < number:
        assert time.monotonic() < deadline, f"{number} incidents, not {found}"
        state = await asyncio.to_thread(ask, node.place / "status.sock", "state")
        assert isinstance(state, dict)
        found = state["kernel_log"]["incidents"].get(CARD, 0)


async def sick(kubelet: Kubelet, id: str = CARD) -> None:
    """Wait until a device, and no other one, is listed as unhealthy."""
    await kubelet.until(
        lambda: [own for own, device in kubelet.devices(RESOURCE).items() if not device.healthy] == [id],
        timeout=SECONDS,
        what=f"{id} unhealthy, and no other device",
    )


async def fails(
    node: Node, log: KernelLog, kubelet: Kubelet, pod: str, number: int, *, id: str = CARD, pid: int = 4242
) -> None:
    """Let a pod have an incident on a device, the so manieth one of this plugin, and end."""
    grant = await hold(kubelet, pod, id)
    log.says(CARD, Trouble.HANG, pid=pid)
    await reported(node, number)
    kubelet.end(grant, code=1)
    kubelet.free(grant)
    await asyncio.sleep(2 * TOGETHER)  # the incident is over


async def condemned(node: Node, log: KernelLog, kubelet: Kubelet) -> None:
    """Let the incidents of two pods happen."""
    for number, pod in enumerate(("a", "b"), 1):
        await fails(node, log, kubelet, pod, number)


async def test_incidents_of_two_pods_take_the_card_away_until_it_is_cleared(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    first = start(node)
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await sick(kubelet)
    await first.says("reason=driver-error")
    assert "kl3_wait_for_noc_idle() timeout" in first.log
    assert "incidents of 2 pods: default/a, default/b" in first.log
    await until(lambda: '"why": "incidents' in (node.place / "state/driver-errors.json").read_text())
    await first.kill()

    second = start(node)  # nothing is forgotten, and no line is needed
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await sick(kubelet)
    assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
    await shows(kubelet, CARDS)
    await second.says("a driver error has ended")
    await until(lambda: '"sick": null' in (node.place / "state/driver-errors.json").read_text())
    await second.kill()

    third = start(node)
    await kubelet.until(lambda: len(kubelet.registrations) == 3, timeout=SECONDS)
    await shows(kubelet, CARDS)
    log.says(CARD, Trouble.HANG)
    await reported(node)
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())
    assert "unhealthy" not in third.log


async def test_a_faulty_program_that_is_restarted_again_and_again_takes_no_card_away(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    start(node)
    await shows(kubelet, CARDS)
    grant = await hold(kubelet, "faulty")
    for number in range(1, 11):
        log.says(CARD, Trouble.HANG, Trouble.PROGRAM)
        await reported(node, number)
        await asyncio.sleep(2 * TOGETHER)  # the incident is over
        await kubelet.restart_container(grant)
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())


async def test_report_tells_and_takes_nothing_away(node: Node, log: KernelLog, kubelet: Kubelet) -> None:
    port = free_port()
    daemon = start(node, "report", f"--metrics-address=127.0.0.1:{port}")
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await daemon.says("a device is sick by the kernel's log")
    _, page = await asyncio.to_thread(probed, port, "/metrics")
    assert f'xpu_driver_incidents_total{{card="{CARD}",reason="noc-idle-timeout"}} 2.0' in page
    assert f'xpu_device_driver_error{{card="{CARD}"' in page
    assert "xpu_plugin_kernel_log_up 1.0" in page
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())


async def test_a_process_cannot_take_a_card_away_by_lines_of_its_own(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    start(node)
    await shows(kubelet, CARDS)
    await hold(kubelet, "a")
    log.write(f"KLRM: (PCI:{CARD[:-2]}): kl3_wait_for_noc_idle() timeout", facility=1)
    log.says(CARD, Trouble.HANG)
    await reported(node)
    state = await asyncio.to_thread(ask, node.place / "status.sock", "state")
    assert isinstance(state, dict)
    assert state["kernel_log"]["incidents"] == {CARD: 1}


async def test_a_pod_that_ends_well_in_between_shows_that_the_card_works(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    start(node)
    await shows(kubelet, CARDS)
    first = await hold(kubelet, "a")
    log.says(CARD, Trouble.HANG)
    await reported(node)
    await asyncio.sleep(1.1)  # the kubelet tells ends in whole seconds, rounded down
    kubelet.pods[first.uid].restart_policy = "Never"
    kubelet.end(first, code=0)
    await recorded(node, [])
    kubelet.free(first)
    await hold(kubelet, "b")
    log.says(CARD, Trouble.HANG)
    await recorded(node, ["default/b"])
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())


async def recorded(node: Node, pods: list[str], *, id: str = CARD) -> None:
    """Wait until the record has the incidents of these pods, of one device alone."""
    file = node.place / "state/driver-errors.json"

    def found() -> object:
        try:
            devices = json.loads(file.read_text())["devices"]
            return {own: [item["pod"] for item in case["incidents"]] for own, case in devices.items()}
        except (OSError, LookupError, ValueError):
            return None

    await until(lambda: found() == {id: pods}, f"{pods} on record")


async def test_a_line_without_any_user_of_the_card_takes_it_away(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    daemon = start(node)
    await shows(kubelet, CARDS)
    await daemon.says("the kernel's log is followed")
    await asyncio.sleep(1.2)  # longer than idle_seconds
    log.says(CARD, Trouble.IDLE)
    await sick(kubelet)
    assert "while no pod and no process had it" in daemon.log


async def test_a_reset_that_the_log_shows_ends_a_driver_error(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    start(node)
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await sick(kubelet)
    log.says(CARD, Trouble.RESET)
    await shows(kubelet, CARDS)


async def test_a_reset_that_the_driver_shows_ends_a_driver_error(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    daemon = start(node)
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await sick(kubelet)
    node.machine.set_card(0, {"state": "205"})
    await daemon.says(f"a driver error has ended id={CARD} how=reset")
    node.machine.set_card(0, {"state": ""})
    await shows(kubelet, CARDS)


async def test_a_reboot_ends_a_driver_error(node: Node, log: KernelLog, kubelet: Kubelet) -> None:
    first = start(node)
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await sick(kubelet)
    record = node.place / "state/driver-errors.json"
    await until(lambda: '"why": "incidents' in record.read_text(), "the verdict on record")
    await first.kill()
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "boot": "00000000-0000-4000-8000-000000000000"}))

    start(node)
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await shows(kubelet, CARDS)
    await fails(node, log, kubelet, "c", 1)
    await recorded(node, ["default/c"])
    assert json.loads(record.read_text())["boot"] == before["boot"]
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values()), "the count is not carried over"


async def test_verdicts_counts_and_ends_pass_to_the_next_instance(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    """Each instance has one part of the story, as a reader of a FIFO takes its records away from others."""
    asked, instances = node.place / "status.sock", [start(node, "act", "--pod-uid=0")]

    async def hand_over() -> None:
        own = node.place / f"{len(instances)}.sock"
        new = start(node, "act", f"--pod-uid={len(instances)}", f"--status-socket={own}")
        await new.says("this instance has taken the node over")
        await instances[-1].stop()
        asked.unlink(missing_ok=True)
        asked.symlink_to(own)
        instances.append(new)

    await shows(kubelet, CARDS)
    await fails(node, log, kubelet, "a", 1)
    await hand_over()  # the count
    await fails(node, log, kubelet, "b", 1)
    await sick(kubelet)
    await hand_over()  # the verdict
    await sick(kubelet)
    assert await asyncio.to_thread(ask, asked, "clear", id=CARD) is True
    await shows(kubelet, CARDS)
    await hand_over()  # the end
    await shows(kubelet, CARDS)
    await fails(node, log, kubelet, "c", 1)
    await recorded(node, ["default/c"])
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())
    for before in ("0", "2", "3"):
        assert "a device is sick by the kernel's log" not in instances[int(before)].log


async def test_what_happens_while_the_next_instance_waits_is_known_to_it(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    """It does not know the node's label, so it asks for no hand-over."""
    first = start(node)
    await shows(kubelet, CARDS)
    await condemned(node, log, kubelet)
    await sick(kubelet)
    record = node.place / "state/driver-errors.json"
    await until(lambda: '"why": "incidents' in record.read_text(), "the verdict on record")
    write_kubeconfig(node.place / "kubeconfig", f"http://127.0.0.1:{free_port()}")
    access = (f"--kubeconfig={node.place}/kubeconfig", "--node-name=here", "--vf-policy=never")
    waits = ("--vf-decision-wait=600", "--label-timeout=600", f"--status-socket={node.place}/2.sock")
    second = start(node, "act", *access, *waits)
    await second.says("health=Unhealthy reason=driver-error")
    assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
    await first.says("a driver error has ended")
    await first.stop()
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await shows(kubelet, CARDS)


def told(server: ApiServer) -> list[tuple[str, str, str, str]]:
    """Type, reason, name of the object and text of all Events."""
    return [
        (event["type"], event["reason"], event["involvedObject"]["name"], event["message"])
        for event in server.events
    ]


async def test_events_tell_of_incidents_and_of_the_verdict(
    node: Node, log: KernelLog, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    line = log.line(CARD, Trouble.HANG, "kl3_wait_for_noc_idle")
    with ApiServer("here") as server:
        write_kubeconfig(node.place / "kubeconfig", server.url)
        start(node, "act", f"--kubeconfig={node.place}/kubeconfig", "--node-name=here", "--pod-events")
        await shows(kubelet, CARDS)
        await condemned(node, log, kubelet)
        incident, named = "XPUDriverIncident", f"{CARD} at /dev/xpu0"
        text = f"{named}: noc-idle-timeout, {line}"
        verdict = (
            f"{named}: driver-error, the kernel's log has {line!r}, incidents of 2 pods: default/a, "
            "default/b; offered again after a passed probe, a reset, a reboot, or: xpu-device-plugin clear; "
            "held by: no container"
        )
        for kind, reason, of, message in (
            ("Warning", incident, "here", f"{text}; held by: default/a/main"),
            ("Warning", incident, "a", text),
            ("Warning", "XPUUnhealthy", "here", verdict),
        ):
            await until(lambda: (kind, reason, of, message) in told(server), message)  # noqa: B023 - awaited
        assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
        end = ("Normal", "XPURecovered", "here", f"{named}: well again; held by: no container")
        await until(lambda: end in told(server), "the end")


async def test_on_a_card_with_vfs_only_a_process_tells_one(
    node: Node, log: KernelLog, kubelet: Kubelet
) -> None:
    """Any other incident is reported, and counts for no VF."""
    node.machine.set_card(0, {"vfs": "2"})
    for number in (1, 2, 3):
        node.machine.remove_card(number)
    vf, other = R200.vfs(CARD, 2)
    start(node, "act", "--sriov-num-vfs=keep")
    await shows(kubelet, [vf, other])
    for number, pod in enumerate(("a", "b", "c"), 1):
        await fails(node, log, kubelet, pod, number, id=vf)
    node.machine.add_line("process", "pid=1 host-pid=4711 card=0 vf=0")
    node.machine.add_line("process", "pid=4711 host-pid=4712 card=0 vf=1")  # of its own namespace
    await fails(node, log, kubelet, "d", 4, id=vf, pid=4711)
    assert all(own.healthy for own in kubelet.devices(RESOURCE).values())
    await recorded(node, ["default/d"], id=vf)
    await fails(node, log, kubelet, "e", 5, id=vf, pid=4711)
    await sick(kubelet, vf)
