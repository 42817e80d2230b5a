# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin topo`, and grants by link groups: of a file, of xpu-smi, of sysfs."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import IDS, Daemon, Node, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.waiting import until
from tests.support.xpu_smi import fake, printing
from xpu_plugin.cli import main
from xpu_plugin.model.timings import Timings
from xpu_plugin.simulation.kubelet import Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_process")

CROSSED = [0, 1, 0, 1]
"""Groups that are not the NUMA nodes."""


def own(node: Node) -> list[str]:
    names = ("xpuml-library", "simulator-file", "dev-root", "sysfs-root")
    return [f"--{name}={node.options()[name]}" for name in names]


def asking(node: Node) -> list[str]:
    return [f"--status-socket={node.place}/run/status.sock", "--xpuml-library=/nonexistent/libxpuml.so"]


def start(node: Node, *arguments: str, links: tuple[float, float] = (0.05, 0.1)) -> Daemon:
    return node.start(
        f"--status-socket={node.place}/run/status.sock",
        *arguments,
        program=impatient(Timings(links=links)),
    )


async def topo(capsys: pytest.CaptureFixture[str], options: Sequence[str]) -> Any:
    assert await asyncio.to_thread(main, ["topo", "--json", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


async def granted(kubelet: Kubelet, count: int = 2) -> list[str]:
    """The ids of one more pod."""
    return sorted((await kubelet.allocate(RESOURCE, count)).ids)


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
def crossed(node: Node) -> Path:
    """A file of these groups."""
    file = node.place / "topology"
    write(file, f"# crossed\n{IDS[0]} {IDS[2]}\n{IDS[1]} {IDS[3]}\n")
    return file


@pytest.mark.parametrize("plugin", [True, False])
async def test_the_matrix_by_sysfs(plugin: bool, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    port = "0000:30:01.0"
    for card in (0, 1):
        node.machine.set_card(card, {"bridges": f"{port},0000:31:00.0,0000:32:0{card}.0"})
    node.machine.set_card(2, {"bridges": "0000:30:02.0"})
    async with node.kubelet() as kubelet:
        options = own(node)
        if plugin:
            start(node)
            await shows(kubelet, IDS)
            options = asking(node)
        found = await topo(capsys, options)
        assert await asyncio.to_thread(main, ["topo", *options]) == 0
        head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert found["source"] == "sysfs"
    assert [card["card"] for card in found["cards"]] == IDS
    assert found["cards"][1] == {
        "card": IDS[1],
        "paths": ["/dev/xpu1"],
        "group": "numa0",
        "numa": 0,
        "root": "pci0000:30",
        "switch": "0000:31:00.0",
        "links": {IDS[0]: "PIX", IDS[1]: "X", IDS[2]: "PHB", IDS[3]: "SYS"},
    }
    assert head == ["xpu0", "xpu1", "xpu2", "xpu3", "NUMA", "SWITCH", "GROUP", "CARD"]
    assert rows[1] == ["xpu1", "PIX", "X", "PHB", "SYS", "0", "0000:31:00.0", "numa0", IDS[1]]
    legend = [row[0] for row in rows if row][-7:]
    assert legend == ["X", "XL", "PIX", "PXB", "PHB", "NODE", "SYS"]


async def test_pods_get_the_groups_of_the_file_and_topo_shows_them(
    node: Node, crossed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with node.kubelet() as kubelet:
        daemon = start(node, f"--topology-file={crossed}", "--xpu-smi=/nonexistent/xpu-smi")
        await shows(kubelet, IDS)
        found = await topo(capsys, asking(node))
        assert await granted(kubelet) == [IDS[0], IDS[2]]
        assert await granted(kubelet) == [IDS[1], IDS[3]]
    assert found["source"] == "file"
    assert found["cards"][0]["links"] == {IDS[0]: "X", IDS[1]: "NODE", IDS[2]: "XL", IDS[3]: "SYS"}
    assert "xpu-smi reports" not in daemon.log  # it is not asked beside a file
    assert await topo(capsys, [*own(node), f"--topology-file={crossed}"]) == found


async def test_pods_get_the_groups_of_xpu_smi_once_it_has_answered(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    program = fake(node.place, "echo no device; exit 1")
    async with node.kubelet() as kubelet:
        daemon = start(node, f"--xpu-smi={program}")
        await shows(kubelet, IDS)  # it is served meanwhile
        await daemon.says("xpu-smi reports no link groups")
        printing(node.place, CROSSED)
        await daemon.says("link groups source=xpu-smi")
        found = await topo(capsys, asking(node))
        assert await granted(kubelet) == [IDS[0], IDS[2]]
        assert daemon.log.count("xpu-smi reports no link groups") == 1
        own_way = await topo(capsys, [*own(node), f"--xpu-smi={program}"])
    assert found["source"] == "xpu-smi"
    assert own_way == found


async def test_xpu_smi_is_asked_again_for_other_cards(node: Node) -> None:
    program = printing(node.place, CROSSED)
    async with node.kubelet() as kubelet:
        daemon = start(node, f"--xpu-smi={program}", "--rescan-interval=0.05")
        await daemon.says("link groups source=xpu-smi")
        printing(node.place, [*CROSSED, 0])
        node.machine.set_card(4, {"model": "R200", "pci": "0000:3f:00.0"})
        await daemon.says("link groups source=xpu-smi", times=2)
        await until(lambda: len(kubelet.devices(RESOURCE)) == 5)
        assert await granted(kubelet, 3) == [IDS[0], IDS[2], "0000:3f:00.0"]


def test_a_bad_file_ends_plugin_and_command_with_status_2(
    node: Node, crossed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(crossed, f"{IDS[0]} xpu1\n")
    for arguments in (["topo", *own(node)], own(node)):
        assert main([*arguments, f"--topology-file={crossed}"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert f"--topology-file: '{crossed}': line 1: 'xpu1' is not accepted; accepted: " in line


async def test_a_card_of_the_file_that_the_node_lacks_is_reported(node: Node, crossed: Path) -> None:
    write(crossed, f"{IDS[0]} {IDS[1]} 0000:99:00.0\n")
    async with node.kubelet() as kubelet:
        daemon = start(node, f"--topology-file={crossed}")
        await shows(kubelet, IDS)
        await daemon.says("--topology-file names no card of this node card=0000:99:00.0")


async def test_a_command_without_the_links_of_xpu_smi_fails_in_one_line(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    program = printing(node.place, [0, 0])  # of another machine
    assert await asyncio.to_thread(main, ["topo", *own(node), f"--xpu-smi={program}"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{program} topo -m: no matrix of 4 devices XPU0 to XPU3")
