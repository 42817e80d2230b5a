# SPDX-License-Identifier: Apache-2.0
"""The end of the daemon in each phase of its life: soon, with status 0, and no process or socket left."""

import asyncio
import signal
import socket

import pytest

from tests.support.daemon import EXIT_SECONDS, IDS, Daemon, Node, in_flight, shows
from tests.support.kubelets import Unread
from tests.support.machines import RESOURCE
from tests.support.processes import processes_that_know, status
from tests.support.waiting import SECONDS, until
from xpu_plugin.simulation.kubelet import Kubelet


PATIENT = "--call-timeout=600"  # nothing that hangs is given up before the signal

pytestmark = pytest.mark.usefixtures("leaves_no_process")


def workers(node: Node, daemon: Daemon) -> list[int]:
    return [pid for pid in processes_that_know(node.place) if pid != daemon.pid]


async def hangs(node: Node, daemon: Daemon, function: str) -> int:
    """Wait until a worker is in a call of the function; its process id."""

    def those() -> list[int]:
        return [pid for pid in workers(node, daemon) if in_flight(pid) == function]

    await until(those, f"a worker in {function}")
    return those()[0]


async def ends_well(node: Node, daemon: Daemon, number: signal.Signals = signal.SIGTERM) -> None:
    """Signal it; then it is gone in time, and so are its workers and its sockets."""
    assert await daemon.stop(number) < EXIT_SECONDS
    await until(lambda: processes_that_know(node.place) == [], "the end of all workers")
    node.assert_tidy()
    assert "stopping" in daemon.log


# --- while it serves ------------------------------------------------------------------------------


@pytest.mark.parametrize("rescan", [False, True], ids=["", "and a rescan"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_under_a_second_with_nothing_left(
    node: Node, kubelet: Kubelet, number: signal.Signals, rescan: bool
) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    if rescan:  # asked for in the same moment
        daemon.process.send_signal(signal.SIGHUP)
    await ends_well(node, daemon, number)
    await kubelet.until(lambda: kubelet.streams_open == 0, timeout=SECONDS)


async def test_of_many_signals_the_first_counts(node: Node, kubelet: Kubelet) -> None:
    """Impatient people and their scripts send more; all the way to the end."""
    daemon = node.start()
    await shows(kubelet, IDS)
    while daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.001)
    assert await daemon.ends() == 0
    assert daemon.log.count("stopping") == 1
    node.assert_tidy()


class Shut(Unread):
    room = 5  # bytes; no list has so few


async def test_the_end_while_a_stream_waits_to_be_read(node: Node) -> None:
    async with Shut(node.plugins) as kubelet:
        daemon = node.start()
        await kubelet.until(lambda: kubelet.streams_open, timeout=SECONDS)
        await ends_well(node, daemon)


# --- while the library does what it should not ----------------------------------------------------


@pytest.mark.parametrize("function", ["xpumlInit", "xpumlDeviceGetCount", "xpumlDeviceGetMemoryInfo"])
@pytest.mark.parametrize("scan", ["first", "later"])
async def test_the_end_while_a_scan_hangs(node: Node, kubelet: Kubelet, scan: str, function: str) -> None:
    if scan == "first":
        node.machine.add_fault(function, "hang")
    daemon = node.start(PATIENT)
    if scan == "later":
        await shows(kubelet, IDS)
        node.machine.add_fault(function, "hang")
        daemon.process.send_signal(signal.SIGHUP)
    await hangs(node, daemon, function)
    await ends_well(node, daemon)
    assert len(kubelet.registrations) == (scan == "later")


async def test_the_end_of_a_plugin_that_serves_while_the_library_hangs(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start(PATIENT)
    await shows(kubelet, IDS)
    node.machine.add_fault("xpumlDeviceGetState", "hang")
    await hangs(node, daemon, "xpumlDeviceGetState")
    grant = await kubelet.allocate(RESOURCE, 4)
    assert len(grant.nodes) == 5
    await ends_well(node, daemon)


async def test_the_end_while_workers_die_one_after_the_other(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    node.machine.add_fault("xpumlInit", "crash")
    daemon.process.send_signal(signal.SIGHUP)
    await daemon.says("in xpumlInit")
    await ends_well(node, daemon)


# --- before it serves -----------------------------------------------------------------------------


async def test_a_signal_in_the_first_moment_ends_it(node: Node) -> None:
    """While modules are still being imported; as a container's first process it would else be deaf."""
    daemon = node.start()
    await until(lambda: terminates(daemon.pid), "a handler for SIGTERM")
    assert await daemon.stop() < EXIT_SECONDS
    # A worker that was just being started notices by itself that it is alone.
    await until(lambda: not processes_that_know(node.place), "no process left")
    node.assert_tidy()


def terminates(pid: int) -> bool:
    """Whether a process handles SIGTERM."""
    return bool(int(status(pid)["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


async def test_the_end_while_the_first_worker_starts(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await until(lambda: workers(node, daemon), "a worker")  # which comes before most of the server
    assert await daemon.stop() < EXIT_SECONDS
    await until(lambda: processes_that_know(node.place) == [], "the end of the worker")
    node.assert_tidy()
    assert kubelet.registrations == []


LACKS: dict[str, tuple[str, list[str]]] = {
    "driver": ("no driver", []),
    "library": (
        "no usable libxpuml: /nonexistent.so",
        ["--xpuml-library=/nonexistent.so", "--dev-root=/dev"],
    ),
    "kubelet": ("waiting for the kubelet's socket", []),
    "directory": ("waiting for the kubelet's", []),
}


@pytest.mark.parametrize("lack", LACKS)
async def test_the_end_while_it_waits(node: Node, lack: str) -> None:
    if lack == "driver":
        node.machine.set({"driver": "gone"})
    elif lack == "directory":
        node.plugins.rmdir()
    words, options = LACKS[lack]
    daemon = node.start(*options)
    await daemon.says(words)
    await ends_well(node, daemon)
    assert node.plugins.exists() == (lack != "directory"), "only the kubelet makes it"


# --- while the kubelet does what it should not ----------------------------------------------------


async def test_the_end_after_the_kubelet_is_gone(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start()
    await shows(kubelet, IDS)
    await kubelet.stop(remove_sockets=True)
    await daemon.says("the kubelet ended its stream")
    assert node.socket.exists()
    await ends_well(node, daemon)


async def test_the_end_while_nobody_tells_who_holds_devices(node: Node, kubelet: Kubelet) -> None:
    """Before the first list goes out."""
    (node.place / "silent").mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(node.place / "silent/kubelet.sock"))
        silent.listen()
        daemon = node.start(f"--pod-resources-socket={node.place / 'silent/kubelet.sock'}")
        connection, _ = await asyncio.to_thread(silent.accept)
        with connection:
            await ends_well(node, daemon)
    assert kubelet.registrations == []


async def test_the_end_of_one_that_waits_for_another_leaves_that_one_alone(
    node: Node, kubelet: Kubelet
) -> None:
    first = node.start()
    await shows(kubelet, IDS)
    second = node.start()
    await second.says("another plugin works in")
    assert await second.stop() < EXIT_SECONDS
    assert node.socket.is_socket()
    assert kubelet.streams_open == 1
    await ends_well(node, first)
    assert len(kubelet.registrations) == 1
