# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin list` over the simulated library."""

import json
import os
import re
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import make_machine
from xpu_plugin.cli import main
from xpu_plugin.simulation.machine import Machine


A, B = "0000:3b:00.0", "0000:3c:00.0"
R200 = {"model": "R200", "pci": A, "numa": "0"}
K200 = {"model": "K200", "pci": B, "numa": "1"}
VFS = [f"0000:3b:01.{n}-of3" for n in range(3)]
HALVES = [f"{B}-half{half}" for half in (0, 1)]
GIB = 1 << 30


def options(machine: Machine) -> list[str]:
    return [
        "--xpuml-library=simulator",
        f"--simulator-file={machine.path}",
        f"--dev-root={machine.dev_root}",
        f"--sysfs-root={machine.sysfs_root}",
    ]


class Show:
    """Runs `list` over a machine with an R200 and a K200."""

    def __init__(self, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
        self.machine = machine
        self._capsys = capsys

    def text(self, *more: str) -> str:
        status = main(["list", *options(self.machine), *more])
        captured = self._capsys.readouterr()
        assert (status, captured.err) == (0, "")
        return captured.out

    def records(self, *more: str) -> dict[str, dict[str, Any]]:
        document = json.loads(self.text("--json", *more))
        assert document.keys() == {"devices"}
        return {record["id"]: record for record in document["devices"]}

    def table(self, *more: str) -> list[list[str]]:
        return [line.split() for line in self.text(*more).splitlines()]

    def refusal(self, *arguments: str) -> str:
        """The one line on standard error of a list that ends with status 1."""
        assert main(["list", *arguments]) == 1
        captured = self._capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    return Show(make_machine(tmp_path, R200, K200), capsys)


def test_json_has_the_promised_keys_and_values(show: Show) -> None:
    show.machine.set_card(0, {"vfs": "3"})
    found = show.records()
    assert list(found) == [*VFS, *HALVES]
    memory = found[VFS[1]].pop("memory_bytes")
    assert memory == 5456 << 20
    assert found[VFS[1]] == {
        "id": VFS[1],
        "card": A,
        "kind": "vf",
        "model": "R200-VF-5G",
        "path": "/dev/xpu4",
        "index": 4,
        "numa": 0,
        "state": 201,
        "health": "Healthy",
        "reason": None,
        "resource": "baidu.com/xpu",
        "text": "",
        "offered_as": VFS[1],
        "max_vfs": 0,
        "vf_counts": [],
        "serial": "",
    }
    half = found[HALVES[1]]
    assert (half["card"], half["kind"], half["model"], half["path"], half["numa"]) == (
        B,
        "half",
        "K200",
        "/dev/xpu2",
        1,
    )


def test_all_shows_pfs_and_denied_devices_too(show: Show) -> None:
    show.machine.set_card(0, {"vfs": "3"})
    deny = f"--deny=K200,{VFS[0]}"
    assert list(show.records(deny)) == VFS[1:]
    found = show.records("--all", deny)
    assert list(found) == [A, *VFS, *HALVES]
    assert (found[A]["kind"], found[A]["card"], found[A]["path"]) == ("pf", A, "/dev/xpu0")
    assert list(show.records(f"--allow={A}")) == VFS


def test_a_node_that_the_library_does_not_list_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make_machine(tmp_path, R200, R200 | {"pci": "0000:44:00.0"})
    machine.set_card(1, {"unreadable": "EIO"})
    assert main(["list", *options(machine)]) == 0
    captured = capsys.readouterr()
    assert "/dev/xpu1" not in captured.out
    assert "not listed: /dev/xpu1: it cannot be opened (Input/output error)" in captured.err
    assert main(["list", *options(machine), "--all"]) == 0
    assert re.search(r"^- .* /dev/xpu1 .* not-listed +-$", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", *options(machine), "--all", "--json"]) == 0
    (node,) = json.loads(capsys.readouterr().out)["unlisted"]
    assert (node["path"], node["errno"]) == ("/dev/xpu1", EIO)


def test_an_error_state_is_unhealthy_with_its_reason(show: Show) -> None:
    show.machine.set_card(0, {"state": "207"})
    show.machine.add_fault("xpumlDeviceGetState", "code:999", card=1, half=1)
    found = show.records()
    shown = {id: (own["state"], own["health"], own["reason"]) for id, own in found.items()}
    assert shown == {
        A: (207, "Unhealthy", "state-error"),
        HALVES[0]: (201, "Healthy", None),
        HALVES[1]: (None, "Unhealthy", "call-failed"),
    }


def test_the_table_has_a_line_for_each_device(show: Show) -> None:
    show.machine.set_card(0, {"state": "207"})
    assert show.table() == [
        ["ID", "KIND", "MODEL", "PATH", "NUMA", "MEMORY", "HEALTH", "REASON", "RESOURCE"],
        [A, "whole", "R200", "/dev/xpu0", "0", "16.0Gi", "Unhealthy", "state-error", "baidu.com/xpu"],
        [HALVES[0], "half", "K200", "/dev/xpu1", "1", "8.0Gi", "Healthy", "-", "baidu.com/xpu"],
        [HALVES[1], "half", "K200", "/dev/xpu2", "1", "8.0Gi", "Healthy", "-", "baidu.com/xpu"],
    ]


def test_the_columns_of_the_table_are_aligned(show: Show) -> None:
    lines = show.text().splitlines()
    column = lines[0].index("HEALTH")
    assert {line[column:].split()[0] for line in lines} == {"HEALTH", "Healthy"}
    assert all(line == line.rstrip() for line in lines)


def test_what_is_not_offered_has_no_resource_in_the_table(show: Show) -> None:
    show.machine.set_card(0, {"vfs": "1"})
    shown = {row[0]: row[-1] for row in show.table("--all", "--deny=K200")[1:]}
    assert shown == {A: "-", "0000:3b:01.0-of1": "baidu.com/xpu", HALVES[0]: "-", HALVES[1]: "-"}


def test_resources_are_those_that_the_plugin_would_offer(show: Show) -> None:
    show.machine.set_card(0, {"vfs": "2"})
    found = show.records("--resource-per-profile", "--resource-name=example.com/card")
    assert {own["resource"] for own in found.values()} == {"example.com/R200-VF-8G", "example.com/K200"}


def test_no_devices_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(make_machine(tmp_path, number=0), capsys)
    assert show.text() == "no devices\n"
    assert show.records() == {}


def test_without_a_library_it_is_refused(tmp_path: Path, show: Show) -> None:
    library = tmp_path / "none.so"
    assert f"{library}: no such file" in show.refusal(f"--xpuml-library={library}")
    library.write_text("no library")
    assert f"{library}: " in show.refusal(f"--xpuml-library={library}")


def test_without_a_driver_it_is_refused(show: Show) -> None:
    show.machine.set({"driver": "gone"})
    assert "Driver Not Loaded (9)" in show.refusal("--json", *options(show.machine))


@pytest.mark.parametrize("action", ["crash", "hang"])
def test_a_library_that_crashes_or_hangs_is_refused_with_the_call(action: str, show: Show) -> None:
    show.machine.add_fault("xpumlDeviceGetState", action, card=0)
    said = show.refusal(*options(show.machine), "--call-timeout=1")
    assert "xpumlDeviceGetState of device index 0" in said


@pytest.mark.usefixtures("leaves_no_process", "leaves_no_descriptor")
def test_it_leaves_no_process_behind(show: Show) -> None:
    show.text()


def test_old_options_warn_on_standard_error_and_leave_the_json_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make_machine(tmp_path, R200)
    assert main(["list", "--json", "-rename-dev", *options(machine)]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["devices"]) == 1
    (line,) = captured.err.splitlines()
    assert "rename-dev" in line


def test_a_library_that_is_no_file_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert main(["list", f"--xpuml-library={tmp_path}/fifo", f"--status-socket={tmp_path}/none"]) == 1
    assert f"{tmp_path}/fifo: not a regular file" in capsys.readouterr().err
