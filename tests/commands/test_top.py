# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin top`: by a running plugin and by its own worker, once and in place on a terminal."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.daemon import IDS, Node, shows
from tests.support.waiting import SECONDS
from xpu_plugin.cli import main
from xpu_plugin.simulation.kubelet import Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_process")


@pytest.fixture
def node(node: Node) -> Node:
    busy = {"utilization": "37", "temperature": "61", "power": "85", "clock": "900"}
    node.machine.set_card(1, busy)
    node.machine.add_process(4711, card=1, memory=512)
    return node


def own(node: Node) -> list[str]:
    names = ("xpuml-library", "simulator-file", "dev-root", "sysfs-root")
    return [f"--{name}={node.options()[name]}" for name in names]


async def running(node: Node, kubelet: Kubelet) -> list[str]:
    option = f"--status-socket={node.place}/run/status.sock"
    node.start(option)
    await shows(kubelet, IDS)
    return [option, "--xpuml-library=/nonexistent/libxpuml.so"]


@pytest.mark.parametrize("plugin", [True, False])
async def test_what_devices_measure(plugin: bool, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    async with node.kubelet() as kubelet:
        options = await running(node, kubelet) if plugin else own(node)
        assert await asyncio.to_thread(main, ["top", "--json", *options]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        records = {record["id"]: record for record in json.loads(captured.out)["devices"]}
        assert list(records) == IDS
        assert records[IDS[1]] == {
            "id": IDS[1],
            "card": IDS[1],
            "model": "R200",
            "path": "/dev/xpu1",
            "health": "Healthy",
            "reason": None,
            "memory_used_bytes": 512 << 20,
            "memory_total_bytes": 16384 << 20,
            "utilization_percent": 37,
            "temperature_celsius": 61,
            "power": 85,
            "clock_mhz": 900,
            "processes": 1,
        }
        assert await asyncio.to_thread(main, ["top", *options]) == 0
        head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "ID", "PATH", "MEMORY", "USED", "XPU", "TEMP", "POWER", "CLOCK", "PROCESSES", "HEALTH",
    ]  # fmt: skip
    assert lines[1].split() == [
        IDS[1], "/dev/xpu1", "16384Mi", "512Mi", "37%", "61C", "85", "900MHz", "1", "Healthy",
    ]  # fmt: skip


async def test_what_a_device_does_not_tell_is_left_open(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.machine.add_fault("xpumlDeviceGetTemperature", "code:999", card=1)
    node.machine.set_card(1, {"state": "207"})
    assert await asyncio.to_thread(main, ["top", *own(node)]) == 0
    row = capsys.readouterr().out.splitlines()[2].split()
    assert (row[5], row[-1]) == ("-", "state-error")


async def test_without_readings_it_is_status_1(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.machine.set({"driver": "gone"})
    assert await asyncio.to_thread(main, ["top", *own(node)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xpu-device-plugin: no readings: xpumlInit")


def read_until(terminal: int, pattern: str, seen: str = "") -> str:
    """What a terminal shows, until it has shown that."""
    deadline = time.monotonic() + SECONDS
    while not re.search(pattern, seen, re.DOTALL):
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 65536).decode()
    return seen


async def test_on_a_terminal_it_refreshes_in_place_and_ends_cleanly_by_ctrl_c(node: Node) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only starts
            [sys.executable, "-P", "-m", "xpu_plugin", "top", *own(node)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(theirs)
        seen = await asyncio.to_thread(read_until, ours, r"37%")
        assert seen.startswith("\x1b[?1049h"), "on a screen of its own"
        node.machine.set_card(1, {"utilization": "99"})
        seen = await asyncio.to_thread(read_until, ours, r"\x1b\[H.*99%", seen)
        assert "99%" not in seen.partition("37%")[0]
        process.send_signal(signal.SIGINT)
        seen = await asyncio.to_thread(read_until, ours, r"\x1b\[\?1049l.*99%.*Healthy\r?\n$", seen)
        _, errors = await asyncio.to_thread(process.communicate, timeout=SECONDS)
    finally:
        os.close(ours)
    assert (process.returncode, errors) == (0, b"")
