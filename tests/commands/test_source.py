# SPDX-License-Identifier: Apache-2.0
"""Sub-commands that ask the running plugin, which is a process of its own here."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import write_kubeconfig
from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS
from xpu_plugin.cli import main
from xpu_plugin.commands.shapes import SHAPES, misfit
from xpu_plugin.edges.control_socket import ControlError, ask
from xpu_plugin.simulation.kubelet import Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_process")

NO_LIBRARY = "--xpuml-library=/nonexistent/libxpuml.so"
"""Who would open the library himself cannot."""


def status_socket(node: Node) -> Path:
    return node.place / "run/status.sock"


def plugin(node: Node, *arguments: str) -> Daemon:
    return node.start(f"--status-socket={status_socket(node)}", *arguments)


def machine(node: Node) -> list[str]:
    """Options for who asks the library himself."""
    names = ("xpuml-library", "simulator-file", "dev-root", "sysfs-root")
    return [f"--{name}={node.options()[name]}" for name in names]


async def command(node: Node, *words: str) -> int:
    name, *more = words
    return await asyncio.to_thread(main, [name, f"--status-socket={status_socket(node)}", *more])


async def says(node: Node, name: str, predicate: Callable[[Any], object]) -> Any:
    """What the plugin answers, once it is the awaited one; there may be no listener yet."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                answer = await asyncio.to_thread(ask, status_socket(node), name)
            except ControlError:
                answer = None
            if answer is not None and predicate(answer):
                return answer
            await asyncio.sleep(0.05)


async def document(capsys: pytest.CaptureFixture[str], node: Node, *words: str) -> Any:
    assert await command(node, *words, "--json") in (0, 3, 4)
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# --- list -----------------------------------------------------------------------------------------


async def test_list_shows_the_picture_and_leaves_the_library_alone(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(node, "--deny=0000:3e:00.0")
    await shows(kubelet, IDS[:3])
    node.machine.set_card(1, {"state": "207"})
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, timeout=SECONDS)
    found = await document(capsys, node, "list", NO_LIBRARY)
    assert [(own["id"], own["reason"]) for own in found["devices"]] == [
        (IDS[0], None),
        (IDS[1], "state-error"),
        (IDS[2], None),
    ]
    assert "207" in found["devices"][1]["text"]
    everything = await document(capsys, node, "list", NO_LIBRARY, "--all")
    assert [own["offered_as"] for own in everything["devices"]] == [*IDS[:3], None]


async def test_both_ways_print_the_same(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(node)
    await shows(kubelet, IDS)
    asked = await document(capsys, node, "list")
    assert await asyncio.to_thread(main, ["list", "--json", *machine(node)]) == 0
    assert json.loads(capsys.readouterr().out) == asked


async def test_wide_names_the_containers_that_hold_a_device(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    kubelet.hold(["1"], resource=RESOURCE, pod="former")
    plugin(node)
    await shows(kubelet, ["1", IDS[0], *IDS[2:]])
    kubelet.hold([IDS[2]], resource=RESOURCE, pod="train", namespace="lab")
    found = await document(capsys, node, "list", "--wide", NO_LIBRARY)
    held = {own["id"]: own["holders"] for own in found["devices"]}
    assert held == {IDS[0]: [], IDS[1]: ["default/former/main"], IDS[2]: ["lab/train/main"], IDS[3]: []}
    assert await command(node, "list", "--wide", NO_LIBRARY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == "HOLDERS"
    assert lines[2].endswith("baidu.com/xpu as 1  default/former/main")


async def test_a_plugin_that_has_no_library_says_so(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    node.machine.set({"driver": "gone"})
    daemon = plugin(node)
    await daemon.says("no driver")
    assert await command(node, "list", NO_LIBRARY) == 1
    assert "no driver" in capsys.readouterr().err
    assert await command(node, "plan", NO_LIBRARY) == 1
    assert "cannot plan: no driver" in capsys.readouterr().err


async def test_without_a_plugin_the_library_is_asked(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((await document(capsys, node, "list", *machine(node)))["devices"]) == 4
    status_socket(node).parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(status_socket(node)))
    assert await command(node, "list", "--json", *machine(node)) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["devices"]) == 4
    (line,) = captured.err.splitlines()
    assert "no running plugin answers" in line


# --- list --watch ---------------------------------------------------------------------------------


class Watch:
    """`list --watch` as a process, with its output as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: str) -> "Watch":
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "xpu_plugin", "list", "--watch", *arguments),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    async def lines(self, number: int) -> list[str]:
        assert self.process.stdout
        async with asyncio.timeout(SECONDS):
            return [(await self.process.stdout.readline()).decode().rstrip() for _ in range(number)]

    async def ends(self) -> tuple[int, str]:
        assert self.process.stderr
        async with asyncio.timeout(SECONDS):
            errors = (await self.process.stderr.read()).decode()
            return await self.process.wait(), errors


@pytest.mark.parametrize("running", [True, False])
async def test_watch_prints_again_on_a_change_and_ends_cleanly_by_ctrl_c(
    running: bool, node: Node, kubelet: Kubelet
) -> None:
    options = machine(node)
    if running:
        plugin(node)
        await shows(kubelet, IDS)
        options = [f"--status-socket={status_socket(node)}", NO_LIBRARY]
    watch = await Watch.start(*options)
    assert [line.split()[0] for line in await watch.lines(5)] == ["ID", *IDS]
    node.machine.set_card(2, {"state": "207"})
    again = await watch.lines(6)
    assert again[0] == ""
    assert again[4].split()[6:8] == ["Unhealthy", "state-error"]
    watch.process.send_signal(signal.SIGINT)
    assert await watch.ends() == (0, "")


async def test_watch_ends_when_nobody_reads_it_any_more(node: Node, kubelet: Kubelet) -> None:
    plugin(node)
    await shows(kubelet, IDS)
    watch = await Watch.start(f"--status-socket={status_socket(node)}")
    await watch.lines(5)
    transport = watch.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    transport.close()
    assert (await watch.ends())[1] == ""


# --- plan -----------------------------------------------------------------------------------------


async def test_plan_tells_the_desired_count_of_the_running_plugin(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    own_pod(kubelet)
    kubelet.hold([IDS[0]], resource=RESOURCE, pod="train")
    plugin(node, "--sriov-num-vfs=2", "--allow=0000:3b:00.0", "--pod-name=plugin", "--pod-list-delay=0.1")
    held = ["default/train/main"]
    await says(node, "plan", lambda answer: answer.get("cards") and answer["cards"][0]["holders"] == held)
    found = await document(capsys, node, "plan", NO_LIBRARY)
    assert found["desired"] == {"number": 2, "origin": "argument --sriov-num-vfs", "problem": ""}
    assert (found["state"], found["cards"][0]["holders"]) == ("blocked", held)
    other = await document(capsys, node, "plan", NO_LIBRARY, "--sriov-num-vfs=9")
    assert (other["state"], other["desired"]["number"]) == ("failed", 9)
    kept = await document(capsys, node, "plan", NO_LIBRARY, "--sriov-num-vfs=keep")
    assert (kept["state"], kept["desired"]["number"]) == ("success", "keep")
    assert await command(node, "plan", NO_LIBRARY) == 4
    assert capsys.readouterr().out.splitlines()[0] == "desired VF count: 2, by argument --sriov-num-vfs"


async def test_plan_shows_a_plugin_that_knows_no_desired_count_yet(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its API server is away, and no label was ever seen."""
    kubeconfig = write_kubeconfig(node.place / "kubeconfig", "http://127.0.0.1:1")
    plugin(node, f"--kubeconfig={kubeconfig}", "--node-name=here")
    await says(node, "plan", lambda answer: answer.get("cards"))
    found = await document(capsys, node, "plan", NO_LIBRARY)
    assert found["desired"] == {"number": "keep", "origin": None, "problem": ""}


# --- the plugin itself ----------------------------------------------------------------------------


async def test_what_the_plugin_answers_has_the_shape_that_sub_commands_check(
    node: Node, kubelet: Kubelet
) -> None:
    plugin(node)
    await shows(kubelet, IDS)
    kubelet.hold([IDS[2]], resource=RESOURCE, pod="train")
    await says(node, "top", lambda answer: answer["readings"])
    for name, shape in SHAPES.items():
        question, _, more = name.partition(" ")
        if more != "trouble":
            arguments = {more: True} if more else {}
            answer = await asyncio.to_thread(ask, status_socket(node), question, **arguments)
            assert misfit(answer, shape) is None, name


async def test_the_plugin_tells_what_it_works_with(node: Node, kubelet: Kubelet) -> None:
    daemon = plugin(node)
    await shows(kubelet, IDS)
    state = await asyncio.to_thread(ask, status_socket(node), "state")
    assert state["pid"] == daemon.pid
    assert state["worker"] is not None
    assert state["library_version"].startswith("4.0.12.1")
    assert (state["streams"], state["alone"], state["trouble"]) == (1, True, None)
    assert "sriov-num-vfs=0" in state["configuration"]
