# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process in which a part fails: what only watches ends nothing, what serves ends it."""

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.daemon import EXIT_SECONDS, IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS
from xpu_plugin.config import DOCTOR_OPTIONS
from xpu_plugin.edges.control_socket import ControlError, ask
from xpu_plugin.log import Message
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import AdmissionError, Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_process")

DOCTOR = (sys.executable, "-P", "-m", "xpu_plugin", "doctor", "--json")
F_SETPIPE_SZ, PIPE_BYTES = 1031, 4096
PORT_OPTION = "--metrics-address=127.0.0.1:0"


def flawed(flaw: str, timings: Timings = Timings(part=(0.05, 0.1))) -> tuple[str, ...]:  # noqa: B008
    """The real daemon with a flaw, given as the body of a function `plant`; pauses are short."""
    body = "\n".join(f"    {line}" for line in flaw.strip().splitlines())
    before = f"""
import asyncio, sys, threading
async def fail(*_, **__):
    raise LookupError("planted")
def plant():
{body}
plant()
"""
    return impatient(timings, before=before)


async def state(node: Node) -> dict[str, Any]:
    """What the plugin says about itself; {} while it does not."""
    try:
        return dict(await asyncio.to_thread(ask, node.place / "status.sock", "state"))
    except ControlError:
        return {}


async def down(node: Node, part: str) -> str:
    """Wait until a part is down; the reason."""
    deadline = asyncio.get_running_loop().time() + SECONDS
    while part not in (parts := (await state(node)).get("parts_down", {})):
        assert asyncio.get_running_loop().time() < deadline, parts
        await asyncio.sleep(0.02)
    return str(parts[part])


async def serves(node: Node, kubelet: Kubelet) -> None:
    """Lists, grants, sick devices and kubelet restarts, as if nothing had happened."""
    await shows(kubelet, IDS)
    assert len((await kubelet.allocate(RESOURCE, 1)).nodes) == 2
    node.machine.set_card(3, {"state": "207"})
    await kubelet.until(lambda: not kubelet.devices(RESOURCE)[IDS[3]].healthy, timeout=SECONDS)
    node.machine.set_card(3, {"state": ""})
    await kubelet.restart()
    await shows(kubelet, IDS)


OUTER = {
    "audit": """
from xpu_plugin.loops.audit import Audit
Audit.look = fail
""",
    "measurements": """
from xpu_plugin.loops.telemetry import Telemetry
Telemetry.run = fail
""",
    "virtual functions": """
from xpu_plugin.loops import vf_reconciler
def decide(memory, view, limits, wait=vf_reconciler.Wait(None), was=vf_reconciler.decide):
    if sys._getframe(1).f_code.co_name == "_decide":
        raise LookupError("planted")
    return was(memory, view, limits)
vf_reconciler.decide = decide
""",
}


@pytest.mark.parametrize("part", OUTER)
async def test_a_part_that_only_watches_or_changes_ends_nothing_and_is_shown(
    node: Node, kubelet: Kubelet, part: str
) -> None:
    daemon = node.start(f"--status-socket={node.place}/status.sock", program=flawed(OUTER[part]))
    assert "LookupError: planted" in await down(node, part)
    await serves(node, kubelet)
    await daemon.says_exactly(f'{Message("", part=part)} error="LookupError: planted', times=1)
    await daemon.says_exactly("a part of the plugin failed", times=1)
    found = await doctor(node)
    assert found["plugin-parts"]["verdict"] == "error"
    assert part in found["plugin-parts"]["evidence"]
    assert await daemon.stop() < EXIT_SECONDS


async def doctor(node: Node) -> dict[str, Any]:
    """What `doctor` finds, by the name of the check."""
    known = {option.name for option in DOCTOR_OPTIONS}
    options = [f"--{name}={value}" for name, value in node.options().items() if name in known]
    done = await asyncio.to_thread(
        subprocess.run,
        [*DOCTOR, f"--status-socket={node.place}/status.sock", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


IMPORTS = {
    "observability": "xpu_plugin.observability",
    "pages": "xpu_plugin.edges.http",
}


@pytest.mark.parametrize("part", IMPORTS)
async def test_an_import_that_fails_is_tried_again(node: Node, kubelet: Kubelet, part: str) -> None:
    """As for lack of descriptors or memory."""
    flaw = f"""
import importlib.abc
class Broken(importlib.abc.MetaPathFinder):
    left = 3
    def find_spec(self, name, path, target=None):
        if name == {IMPORTS[part]!r} and Broken.left:
            Broken.left -= 1
            raise OSError(24, "Too many open files")
sys.meta_path.insert(0, Broken())
"""
    daemon = node.start(f"--status-socket={node.place}/status.sock", PORT_OPTION, program=flawed(flaw))
    await daemon.says(f'{Message("", part=part)} error="OSError: [Errno 24] Too many open files')
    await serves(node, kubelet)
    assert (await state(node))["parts_down"].keys() == {part}, "until it has run for a while"
    await daemon.says_exactly("a part of the plugin failed", times=1)
    assert await daemon.stop() < EXIT_SECONDS


async def test_without_threads_pages_wait_and_devices_are_served(node: Node, kubelet: Kubelet) -> None:
    flaw = """
was = threading.Thread.start
def start(self):
    if self.name == "http" or self.name.startswith("nodeapi"):
        raise RuntimeError("can't start new thread")
    was(self)
threading.Thread.start = start
"""
    daemon = node.start(f"--status-socket={node.place}/status.sock", PORT_OPTION, program=flawed(flaw))
    assert "can't start new thread" in await down(node, "pages")
    await serves(node, kubelet)
    assert await daemon.stop() < EXIT_SECONDS


async def test_a_kubelet_that_restarts_while_there_are_no_threads_is_served_when_there_are(
    node: Node, kubelet: Kubelet
) -> None:
    """gRPC breaks for ever when it is started without; so it is not."""
    flaw = """
import os
from xpu_plugin.edges.kubelet import endpoint
endpoint.FRESH_SECONDS = 0.0
was = threading.Thread.start
def start(self):
    if os.path.exists("lack"):
        raise RuntimeError("can't start new thread")
    was(self)
threading.Thread.start = start
"""
    daemon = node.start(program=flawed(flaw))
    await shows(kubelet, IDS)
    (node.place / "lack").touch()
    await kubelet.restart()
    await daemon.says("no thread can be started")
    (node.place / "lack").unlink()
    await serves(node, kubelet)
    assert await daemon.stop() < EXIT_SECONDS


async def test_a_disk_that_does_not_answer_delays_neither_containers_nor_the_end(
    node: Node, kubelet: Kubelet
) -> None:
    flaw = """
import time
from xpu_plugin.edges.state import replacing
def replace_apart(*_, **__):
    time.sleep(3600)
replacing.replace_apart = replace_apart
"""
    daemon = node.start(program=flawed(flaw, Timings(grant=0.1)))
    await serves(node, kubelet)
    await daemon.says("the disk does not answer")
    assert len((await kubelet.allocate(RESOURCE, 1)).nodes) == 2
    assert await daemon.stop() < EXIT_SECONDS


async def test_a_busy_thread_does_not_delay_the_end(node: Node, kubelet: Kubelet) -> None:
    """Be it one that computes, or one that never returns from a call."""
    flaw = """
import time
def compute():
    while True:
        sum(range(1000))
threading.Thread(target=compute, daemon=True).start()
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
"""
    daemon = node.start(program=flawed(flaw))
    await shows(kubelet, IDS)
    assert await daemon.stop() < EXIT_SECONDS


INNER = {
    "monitor": """
from xpu_plugin.loops import monitor
monitor.Monitor._sweep = fail
""",
    "aliases": """
from xpu_plugin.loops import aliases
aliases.Aliases.run = fail
""",
    "endpoints": """
from xpu_plugin.edges.kubelet.endpoint import Endpoint
Endpoint.run = fail
""",
    "start": """
from xpu_plugin.loops.aliases import Aliases
Aliases.first_look = fail
""",
}
BROKEN = """
from xpu_plugin.edges.kubelet import service
def broken(*_, **__):
    raise LookupError("planted")
"""
# gRPC would log a traceback for each call, and serve on for ever.
CALLS = {
    "Allocate": f"{BROKEN}service.allocation.grant = broken",
    "ListAndWatch": f"{BROKEN}service.listing = broken",
}


@pytest.mark.parametrize("flaw", [*INNER, *CALLS])
async def test_an_unforeseen_error_of_what_serves_ends_it_in_one_line(
    node: Node, kubelet: Kubelet, flaw: str
) -> None:
    """The kubelet starts the container again; half of a plugin would look well and serve nothing."""
    daemon = node.start(program=flawed({**INNER, **CALLS}[flaw]))
    if flaw == "Allocate":
        await shows(kubelet, IDS)
        # The process may end before the refusal has been sent.
        with pytest.raises(AdmissionError, match=r"is started again|was closed meanwhile"):
            await kubelet.allocate(RESOURCE, 1)
    assert await daemon.ends() == 1
    (line,) = (line for line in daemon.log.splitlines() if " ERROR " in line)
    part = flaw if flaw in INNER else f"endpoint {RESOURCE}"
    assert f'{Message("", part=part)} error="LookupError: planted' in line
    node.assert_tidy()


async def test_what_hangs_when_a_part_fails_keeps_nothing_alive(node: Node, kubelet: Kubelet) -> None:
    """As gRPC has hung when it could start no thread."""
    flaw = """
from xpu_plugin.edges.kubelet.endpoint import Endpoint
async def stuck(self):
    await asyncio.shield(asyncio.get_running_loop().create_future())
def stop(self, was=Endpoint._stop):
    return stuck(self) if self._server is not None else was(self)
Endpoint._stop = stop
async def uncancelled(self):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
from xpu_plugin.loops.unresponsive import Unresponsive
Unresponsive.run = uncancelled
"""
    daemon = node.start(program=flawed(flaw))
    await shows(kubelet, IDS)
    assert await daemon.stop() < EXIT_SECONDS
    await daemon.says("parts that do not end are left behind")
    assert "unresponsive devices" in daemon.log.partition("left behind")[2]


async def test_a_log_that_nobody_reads_delays_neither_grants_nor_lists_nor_the_end(
    node: Node, kubelet: Kubelet
) -> None:
    reader, writer = os.pipe()

    class Unread(Daemon):
        def start(self, command: Sequence[str], *, stderr: int, **options: Any) -> subprocess.Popen[bytes]:
            return super().start(command, stderr=writer, **options)

    try:
        fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
        os.write(writer, b"x" * PIPE_BYTES)
        node.daemon_type = Unread
        daemon = node.start()
        await serves(node, kubelet)
        for _ in range(50):
            kubelet.free(await kubelet.allocate(RESOURCE, 1))
        assert await daemon.stop() < EXIT_SECONDS
        node.assert_tidy()
    finally:
        os.close(reader)
        os.close(writer)
