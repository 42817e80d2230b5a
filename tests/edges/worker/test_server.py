# SPDX-License-Identifier: Apache-2.0
"""The worker as a process that is spoken to over its socket, and ends when that is closed.

The driver never lets one end by itself: it kills. What the two make of each other is in test_client.py.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import make_machine, target_of
from tests.support.waiting import SECONDS
from xpu_plugin.edges.worker.client import Target
from xpu_plugin.edges.worker.frames import HEADER, LONGEST_REQUEST
from xpu_plugin.simulation.machine import Machine


STATE = "xpumlDeviceGetState"
NO_LIBRARY = {"error": {"kind": "library", "text": "no library has been opened"}}

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_descriptor")


class Conversation:
    """The server's end of one worker process."""

    def __init__(self, target: Target, progress: Path | None = None) -> None:
        self.target = target
        self.number = 0
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        descriptor = os.open(progress, os.O_RDWR) if progress else os.memfd_create("progress")
        if not progress:
            os.ftruncate(descriptor, 8)
        inherited = (theirs.fileno(), descriptor)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xpu_plugin.edges.worker.server", *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **target.environment},
            )
        finally:
            theirs.close()
            os.close(descriptor)

    def ask(self, call: str, **arguments: object) -> dict[str, Any]:
        """The answer, without its number, which has to be that of the request."""
        self.number += 1
        request = json.dumps({"id": self.number, "call": call, **arguments}).encode()
        self.socket.sendall(HEADER.pack(len(request)) + request)
        (length,) = HEADER.unpack(self.read(HEADER.size))
        answer: dict[str, Any] = json.loads(self.read(length))
        assert answer.pop("id") == self.number
        return answer

    def read(self, length: int) -> bytes:
        return self.socket.recv(length, socket.MSG_WAITALL)

    def open(self) -> dict[str, Any]:
        return self.ask("open", paths=list(self.target.libraries))

    def scan(self, *skip: int) -> dict[str, Any]:
        return self.ask("scan", skip=skip, **self.places())

    def places(self) -> dict[str, object]:
        roots = {"dev_root": str(self.target.dev_root), "sysfs_root": str(self.target.sysfs_root)}
        return {**roots, "simulated": self.target.simulated}

    def ends(self) -> tuple[int, str]:
        """Close our end; the exit status, and what the process said on stderr."""
        self.socket.close()
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors


Converse = Callable[..., Conversation]


@pytest.fixture
def machine(place: Path) -> Machine:
    """Two R200."""
    return make_machine(place, number=2)


@pytest.fixture
def converse(machine: Machine) -> Iterator[Converse]:
    """Start conversations, each of which has to end well but those that a test has ended itself."""
    started: list[Conversation] = []

    def converse(*libraries: str | Path, progress: Path | None = None) -> Conversation:
        started.append(Conversation(target_of(machine, *libraries), progress))
        return started[-1]

    yield converse
    for conversation in started:
        if conversation.process.returncode is None:
            assert conversation.ends() == (0, "")


@pytest.fixture
def opened(converse: Converse) -> Conversation:
    """A conversation with the library open."""
    conversation = converse()
    assert "result" in conversation.open()
    return conversation


def states(scan: dict[str, Any]) -> list[int | None]:
    return [reading.get("state") for reading in scan["result"]["readings"]]


def test_it_is_ready_before_it_knows_a_library(converse: Converse) -> None:
    worker = converse()
    assert worker.ask("ready") == {"result": True}
    assert worker.ask("sweep", skip=[]) == NO_LIBRARY
    assert worker.scan() == NO_LIBRARY


def test_it_reads_the_host_without_a_library(converse: Converse) -> None:
    worker = converse()
    facts = worker.ask("host", **worker.places())["result"]
    assert [node["number"] for node in facts["nodes"]] == [0, 1]
    assert facts["addresses"] == {"0": "0000:3b:00.0", "1": "0000:3c:00.0"}


def test_a_system_error_is_told_as_such(converse: Converse) -> None:
    """As when the progress word cannot be shared."""
    error = converse(progress=Path("/dev/null")).open()["error"]
    assert error["kind"] == "system"
    assert "cannot map the progress word" in error["text"]


@pytest.mark.parametrize("simulated", [True, False])
def test_when_the_count_differs_a_node_is_usable_only_if_it_opens(
    opened: Conversation, machine: Machine, place: Path, simulated: bool
) -> None:
    """A simulated one has no driver behind it, which is no reason; a symlink stands for a node only there."""
    machine.set({"wrong-count": "1"})
    result = opened.ask("scan", skip=[], **{**opened.places(), "simulated": simulated})["result"]
    real = not (place / "dev/xpu0").is_symlink()
    assert result["usable"] == ([0, 1] if simulated else [])
    assert [node["number"] for node in result["host"]["nodes"]] == ([0, 1] if simulated or real else [])


def test_gauges_and_processes_come_one_a_device(opened: Conversation, machine: Machine) -> None:
    machine.add_process(4711, card=1, memory=512)
    opened.scan()
    gauges = opened.ask("gauges", skip=[])["result"]
    assert [(own["pci"], own["temperature_celsius"], own["processes"]) for own in gauges] == [
        ("0000:3b:00.0", 40, 0),
        ("0000:3c:00.0", 40, 1),
    ]
    assert [own["index"] for own in opened.ask("gauges", skip=[0])["result"]] == [1]
    processes = opened.ask("processes", skip=[0])["result"]
    assert "processes" not in processes[0]
    assert [(entry["pid"], entry["memory_bytes"]) for entry in processes[1]["processes"]] == [
        (4711, 512 << 20)
    ]


def usage(worker: Conversation, *indexes: int, card: str = "0000:3c:00.0") -> dict[str, Any]:
    """The answer to that request."""
    root = str(worker.target.sysfs_root)
    return worker.ask("usage", indexes=list(indexes), card=card, sysfs_root=root)


def test_usage_touches_no_other_device(opened: Conversation, machine: Machine) -> None:
    opened.scan()
    machine.add_fault("xpumlDeviceGetHandleByIndex", "crash", card=0)
    assert [record["index"] for record in usage(opened, 1)["result"]["devices"]] == [1]


@pytest.mark.parametrize("index", [2, 127, -1])
def test_usage_of_an_index_that_is_none_is_an_error_and_no_crash(opened: Conversation, index: int) -> None:
    opened.scan()
    error = {"kind": "device", "text": f"device index {index} is not one of 2"}
    assert usage(opened, 1, index) == {"error": error}
    assert opened.ask("ready") == {"result": True}


def test_usage_before_a_scan_or_without_a_library_is_an_error(converse: Converse) -> None:
    worker = converse()
    assert usage(worker, 0) == NO_LIBRARY
    worker.open()
    assert usage(worker, 0)["error"] == {"kind": "device", "text": "device index 0 is not one of 0"}


def test_it_outlives_the_terminals_ctrl_c(opened: Conversation) -> None:
    """That is for the server, which closes the socket when it is time."""
    opened.process.send_signal(signal.SIGINT)
    assert states(opened.scan()) == [201, 201]


def test_half_a_header_is_the_end(converse: Converse) -> None:
    worker = converse()
    worker.socket.sendall(b"\0\0")
    assert worker.ends() == (0, "")


def test_a_request_of_impossible_length_ends_it_unanswered(converse: Converse) -> None:
    worker = converse()
    worker.socket.sendall(HEADER.pack(LONGEST_REQUEST + 1))
    assert worker.read(1) == b""
    status, errors = worker.ends()
    assert status == 1
    assert f"a request of {LONGEST_REQUEST + 1} bytes" in errors


@pytest.mark.parametrize("call", ["weather", "scan"])
def test_what_is_no_request_ends_it(converse: Converse, call: str) -> None:
    """A call that there is not, or without what it needs, is a mistake in the server."""
    worker = converse()
    request = json.dumps({"id": 1, "call": call}).encode()
    worker.socket.sendall(HEADER.pack(len(request)) + request)
    assert worker.read(1) == b""
    assert worker.ends()[0] == 1
