# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin plan` over the simulated library and a model of the kubelet."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE, make_machine
from xpu_plugin.cli import main
from xpu_plugin.simulation.kubelet import Kubelet
from xpu_plugin.simulation.machine import Machine


A, B = "0000:3b:00.0", "0000:3c:00.0"
CARDS = ({"model": "R200", "pci": A}, {"model": "R200", "pci": B})


@pytest.fixture
def machine(place: Path) -> Machine:
    return make_machine(place, *CARDS)


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[Kubelet]:
    (place / "plugins").mkdir()
    async with Kubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        own_pod(kubelet)
        yield kubelet


def options(machine: Machine, place: Path) -> list[str]:
    return [
        "--xpuml-library=simulator",
        f"--simulator-file={machine.path}",
        f"--dev-root={machine.dev_root}",
        f"--sysfs-root={machine.sysfs_root}",
        f"--device-plugin-dir={place / 'plugins'}",
        f"--pod-resources-socket={place / 'pods/kubelet.sock'}",
        f"--pods-api-socket={place / 'pods-api/pods-api.sock'}",
        f"--state-dir={place / 'state'}",
        "--pod-name=plugin",
    ]


class Planner:
    """Runs `plan` over the machine and its kubelet."""

    def __init__(self, machine: Machine, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.machine = machine
        self._place = place
        self._capsys = capsys

    async def text(self, *more: str) -> tuple[int, str]:
        status = await asyncio.to_thread(main, ["plan", *options(self.machine, self._place), *more])
        captured = self._capsys.readouterr()
        assert captured.err == ""
        return status, captured.out

    async def document(self, *more: str) -> tuple[int, dict[str, Any]]:
        status, text = await self.text("--json", *more)
        return status, json.loads(text)


@pytest.fixture
def plan(kubelet: Kubelet, machine: Machine, place: Path, capsys: pytest.CaptureFixture[str]) -> Planner:
    return Planner(machine, place, capsys)


def numbers(machine: Machine) -> list[str]:
    assert machine.sysfs_root
    return [
        (machine.sysfs_root / f"bus/pci/devices/{card}/sriov_numvfs").read_text().strip() for card in (A, B)
    ]


async def test_nothing_to_do(plan: Planner) -> None:
    status, document = await plan.document()
    assert (status, document["state"]) == (0, "success")
    assert document["desired"] == {"number": 0, "origin": "argument --sriov-num-vfs", "problem": ""}
    status, document = await plan.document("--sriov-num-vfs=keep")
    assert (status, document["desired"]["number"]) == (0, "keep")


async def test_what_would_change_is_told_and_not_done(plan: Planner) -> None:
    plan.machine.set_card(1, {"vfs": "2"})
    status, document = await plan.document("--sriov-num-vfs=2")
    assert (status, document["state"]) == (3, "pending")
    assert [(card["address"], card["actual"], card["action"]) for card in document["cards"]] == [
        (A, 0, "apply"),
        (B, 2, "keep"),
    ]
    assert numbers(plan.machine) == ["0", "2"]


async def test_a_held_card_goes_before_one_that_would_change(plan: Planner, kubelet: Kubelet) -> None:
    kubelet.hold([A], resource=RESOURCE, pod="train")
    status, document = await plan.document("--sriov-num-vfs=2")
    assert (status, document["state"]) == (4, "blocked")
    assert document["cards"][0]["holders"] == ["default/train/main"]
    assert document["cards"][1]["action"] == "apply"


async def test_more_than_a_card_can_have(plan: Planner) -> None:
    status, document = await plan.document("--sriov-num-vfs=9")
    assert (status, document["state"]) == (4, "failed")
    assert "accepts 0 to 3 VFs, not 9" in document["cards"][0]["reason"]


async def test_more_nodes_than_the_host_can_have(plan: Planner) -> None:
    status, document = await plan.document("--sriov-num-vfs=2", "--vf-handle-limit=4")
    assert (status, document["state"]) == (4, "failed")
    assert [card["action"] for card in document["cards"]] == ["apply", "failed"]
    assert document["cards"][1]["reason"].startswith("handle-budget: ")
    status, document = await plan.document("--sriov-num-vfs=2", "--vf-handle-limit=off")
    assert (status, document["state"]) == (3, "pending")


async def test_as_a_table(plan: Planner) -> None:
    status, text = await plan.text("--sriov-num-vfs=2")
    lines = text.splitlines()
    assert status == 3
    assert lines[0] == "desired VF count: 2, by argument --sriov-num-vfs"
    assert lines[1].split() == ["CARD", "DESIRED", "ACTUAL", "ACTION", "REASON"]
    assert lines[2].split() == [A, "2", "0", "apply", "-"]
    assert lines[-1] == "kubelet: pod resources answers; checkpoint answers; pods API is not there"


async def test_the_sources_of_the_kubelet_are_named_with_their_answers(
    plan: Planner, kubelet: Kubelet, place: Path
) -> None:
    kubelet.pods_api_dir = place / "pods-api"
    await kubelet.restart()
    _, document = await plan.document("--sriov-num-vfs=2")
    assert set(document["witnesses"].values()) == {"answers"}
    kubelet.api_server_away = True
    await kubelet.restart()
    _, document = await plan.document("--sriov-num-vfs=2")
    assert document["witnesses"]["pods API"].endswith("Kubelet is initializing")


def test_a_library_that_cannot_tell(
    capsys: pytest.CaptureFixture[str], machine: Machine, place: Path
) -> None:
    machine.set({"driver": "gone"})
    assert main(["plan", *options(machine, place)]) == 1
    assert capsys.readouterr().err.startswith("xpu-device-plugin: cannot plan: xpumlInit: ")


def test_an_api_server_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], machine: Machine, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpu_plugin.commands.source.LABEL_SECONDS", 0.1)
    kubeconfig = place / "kubeconfig"
    kubeconfig.write_text("nothing")
    more = (f"--kubeconfig={kubeconfig}", "--node-name=here", "--label-timeout=0")
    assert main(["plan", *options(machine, place), *more]) == 1
    assert "give --sriov-num-vfs to plan without" in capsys.readouterr().err
    assert main(["plan", *options(machine, place), *more, "--sriov-num-vfs=0"]) == 0
