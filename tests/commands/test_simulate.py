# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin simulate` makes, changes, shows and removes machines, and explains its refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xpu_plugin.commands.simulate import main
from xpu_plugin.simulation.machine import Machine


Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command with the test's own machine file and roots."""

    def run(command: str, *arguments: str) -> int:
        places = ["--simulator-file", f"{tmp_path}/machine"]
        if command == "init":
            places += ["--dev-root", f"{tmp_path}/dev", "--sysfs-root", f"{tmp_path}/sys"]
        return main([command, *places, *arguments])

    return run


def test_init_set_show_remove(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "--cards", "3", "--model", "R300") == 0
    capsys.readouterr()
    assert run("set", "card", "1", "state=207", "vfs=2") == 0
    assert run("set", "quirks=off", "driver-version=4.0 commit: 1") == 0
    assert run("set", "fault", "function=xpumlDeviceGetState", "card=1", "action=code:999") == 0
    assert run("set", "process", "pid=1", "card=0") == 0
    assert capsys.readouterr() == ("", "")
    assert run("show") == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert shown == (tmp_path / "machine").read_text()
    for line in (
        "set quirks=off",
        "set driver-version=4.0 commit: 1",
        "card 1 model=R300 pci=0000:3c:00.0 nodes=1 minors=2 state=207 vfs=2 vf-nodes=3,4 vf-minors=6,8",
        "fault function=xpumlDeviceGetState card=1 action=code:999",
        "process pid=1 card=0",
    ):
        assert line in shown.splitlines()
    assert (tmp_path / "dev/xpu4").exists() or (tmp_path / "dev/xpu4").is_char_device()
    assert run("set", "clear", "faults") == 0
    assert run("set", "clear", "processes") == 0
    assert run("set", "remove", "card", "2") == 0
    run("show")
    assert not {"fault", "process", "card 2"} & set(capsys.readouterr().out.split())
    assert run("remove") == 0
    assert list((tmp_path / "dev").iterdir()) == []


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_places_may_stand_before_the_command(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of them, and each goes before its variable."""
    places = [
        f"--{name}={tmp_path / directory}"
        for name, directory in (("simulator-file", "machine"), ("dev-root", "dev"), ("sysfs-root", "sys"))
    ]
    for name in ("SIMULATOR_FILE", "DEV_ROOT", "SYSFS_ROOT"):
        monkeypatch.setenv(f"XPU_PLUGIN_{name}", "/nonexistent")
    first, then = places[:before], places[before:]
    assert main([*first, "init", *then, "--cards=1"]) == 0
    assert (tmp_path / "machine").exists()
    assert (tmp_path / "dev/xpu0").exists()
    assert (tmp_path / "sys").is_dir()
    assert main([*first, "remove", *then]) == 0


def test_the_environment_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XPU_PLUGIN_SIMULATOR_FILE", f"{tmp_path}/machine")
    monkeypatch.setenv("XPU_PLUGIN_DEV_ROOT", f"{tmp_path}/dev")
    monkeypatch.setenv("XPU_PLUGIN_SYSFS_ROOT", f"{tmp_path}/sys")
    assert main(["init", "--cards", "1"]) == 0
    assert (tmp_path / "sys/class/xpu/xpu0/dev").exists()
    assert main(["show"]) == 0
    assert "card 0 model=R200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("init --cards x", "--cards: 'x'; accepted: a whole number 0..8192"),
        ("init --major 512", "--major: '512'; accepted: a whole number 1..511"),
        ("init --model R201", "--model: invalid choice: 'R201' (choose from "),
        ("init --sysfs-root /sys", "sysfs-root '/sys'; accepted: a directory that is not below /sys"),
        ("init --car 3", "unrecognized arguments: --car 3"),
        ("set card 0 state=x", "state of card: 'x'; accepted: numbers, by commas, 0..9999"),
        ("set card 0 state", "'state'; accepted: KEY=VALUE"),
        ("set card one state=207", "'one'; accepted: a whole number 0..8191"),
        ("set card 0", "'card 0'; accepted: KEY=VALUE..., card K KEY=VALUE..., fault "),
        ("set clear all", "'clear all'; accepted: KEY=VALUE..., "),
        ("set quirks=maybe", "quirks of set: 'maybe'; accepted: off, on"),
        ("set fault function=xpumlInit", "fault needs action="),
        ("set remove card 9", "there is no card 9"),
        ("set", "the following arguments are required: WHAT"),
        ("paint", "{init,set,show,remove}: invalid choice: 'paint'"),
    ],
)
def test_bad_input_is_status_2_and_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: str, reason: str
) -> None:
    command, *words = arguments.split()
    if command == "set":
        run("init")
        capsys.readouterr()
    assert run(command, *words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("xpu-device-plugin simulate: ")
    assert reason in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("words", [["init", "--model", "P800"], ["--model=P800"]])
def test_init_prints_the_nodes_by_index(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of `init` imply it."""
    places = [f"--simulator-file={tmp_path}/machine", f"--dev-root={tmp_path}/dev"]
    assert main([*words, "--major=241", *places]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert [line.split() for line in output.splitlines()] == [
        ["INDEX", "NODE", "DEVICE", "PCI", "NUMA", "MODEL"],
        ["0", "xpu0", "241:0", "0000:03:00.0", "0", "P800"],
        ["1", "xpu2", "241:2", "0000:16:00.0", "0", "P800"],
        ["2", "xpu1", "241:1", "0000:29:00.0", "0", "P800"],
        ["3", "xpu3", "241:3", "0000:3c:00.0", "0", "P800"],
        ["-", "xpuctrl", "241:255", "-", "-", "-"],
    ]
    assert main(["set", "driver=gone", *places]) == 0
    assert Machine(tmp_path / "machine").nodes() == []


def test_no_machine_yet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show") == 2
    assert "a file made by 'simulate init'" in capsys.readouterr().err


def test_a_machine_in_the_way(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init") == 0
    assert run("init") == 2
    assert "--force" in capsys.readouterr().err
    assert run("init", "--force", "--cards", "1") == 0


def test_a_host_that_cannot_is_status_1(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/xpu0").write_text("")
    assert run("init") == 1
    assert "was not made by the simulator" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["set", "--help"], ["init", "--help"]])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "usage: xpu-device-plugin simulate" in capsys.readouterr().out
