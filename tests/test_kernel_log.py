# SPDX-License-Identifier: Apache-2.0
"""The whole plugin beside a kernel's log: a card that answers all queries and hangs leaves the list, and a
faulty program takes no card away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.daemon import IMPATIENT, Daemon, Node, free_port, probed, shows
from tests.support.kernel_log import KernelLog
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
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


async def hold(kubelet: Kubelet, pod: str) -> Assignment:
    """Give the card to a new pod."""
    grant = await kubelet.allocate(RESOURCE, 1, pod=pod)
    assert grant.ids == (CARD,)
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


async def sick(kubelet: Kubelet) -> None:
    """Wait until the card, and no other one, is listed as unhealthy."""
    await kubelet.until(
        lambda: [id for id, own in kubelet.devices(RESOURCE).items() if not own.healthy] == [CARD],
        timeout=SECONDS,
        what="one unhealthy card",
    )


async def condemned(node: Node, log: KernelLog, kubelet: Kubelet) -> None:
    """Let the incidents of two pods happen."""
    for number, pod in enumerate(("a", "b"), 1):
        grant = await hold(kubelet, pod)
        log.says(CARD, Trouble.HANG)
        await reported(node, number)
        kubelet.end(grant, code=1)
        kubelet.free(grant)
        await asyncio.sleep(2 * TOGETHER)  # the incident is over


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


async def recorded(node: Node, pods: list[str]) -> None:
    """Wait until the record has the incidents of these pods."""
    file = node.place / "state/driver-errors.json"

    def found() -> object:
        try:
            return [own["pod"] for own in json.loads(file.read_text())["devices"][CARD]["incidents"]]
        except (OSError, LookupError, ValueError):
            return None

    await until(lambda: found() == pods, f"{pods} on record")


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
