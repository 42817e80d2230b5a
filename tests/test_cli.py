# SPDX-License-Identifier: Apache-2.0
"""The command line as a user or a manifest meets it: exit statuses and what is said on standard error."""

import importlib.metadata
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.machines import make_machine, settings_of
from xpu_plugin.cli import COMMANDS, GRPC_ENVIRONMENT, main
from xpu_plugin.simulation.machine import Machine


SECONDS = 30
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("XPU_")}


def run(
    *arguments: str, environment: dict[str, str] | None = None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "xpu_plugin", *arguments],
        env={**CLEAN, **(environment or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("xpu-device-plugin")
    return line


# --- usage is 2 everywhere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--bogus"], "--bogus"),
        (["--bogus"], "--help"),
        (["lists"], "lists"),
        (["--sriov-num-vfs=64"], "--sriov-num-vfs: '64'"),
        (["--health-interval=0"], "--health-interval: '0'"),
        (["--xpuml-library=simulator"], "--simulator-file"),
        (["list", "--state-dir=/x"], "--state-dir"),
        (["list", "--call-timeout=never"], "--call-timeout: 'never'"),
        (["list", "extra"], "extra"),
        (["clear"], "ID"),
        (["clear", "0000:3b:00.0", "--status-socket=here"], "--status-socket: 'here'"),
        (["simulate"], "init"),
        (["simulate", "bogus"], "bogus"),
        (["simulate", "init"], "--simulator-file"),
        (["simulate", "init", "--simulator-file=/x", "--cards=many"], "many"),
        (["demo", "extra"], "extra"),
    ],
)
def test_bad_usage_is_status_2_and_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refusal(capsys, *arguments)


@pytest.mark.parametrize("command", [[], ["list"]])
def test_a_bad_variable_is_status_2_and_named(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPU_PLUGIN_CALL_TIMEOUT", "soon")
    assert "XPU_PLUGIN_CALL_TIMEOUT: 'soon'" in refusal(capsys, *command)


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_usage_is_status_2_in_every_sub_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    refusal(capsys, command, "--no-such-option")


def test_ctrl_c_ends_a_sub_command_as_shells_have_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("xpu_plugin.commands.doctor.main", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_is_status_0_on_standard_output(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code in (None, 0)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(" ".join(["usage: xpu-device-plugin", *command]))


# --- as processes -------------------------------------------------------------------------------------


def test_an_argument_that_is_no_text_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [os.fsencode(sys.executable), b"-P", b"-m", b"xpu_plugin", b"--log-level=\xff"],
        env=CLEAN,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_installed_command_is_the_module() -> None:
    command = Path(sys.executable).with_name("xpu-device-plugin")
    done = subprocess.run([command, "--bogus"], env=CLEAN, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, run("--bogus").stderr)


def test_usage_is_told_without_loading_grpc() -> None:
    """It takes a moment and needs what may be what is broken."""
    code = "import sys; from xpu_plugin.cli import main; main(['--bogus']); sys.exit('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=CLEAN, capture_output=True, check=False)
    assert done.returncode == 0


def test_grpc_understands_what_it_is_told_by_its_environment() -> None:
    """It would complain of an experiment that it does not know, or not any more."""
    code = "import grpc; server = grpc.server(None); server.add_insecure_port('unix:@xpu-no'); server.start()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; server.stop(None).wait()"],
        env={**CLEAN, **GRPC_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("argument", "number", "status"),
    [
        ("", signal.SIGHUP, 7),
        ("--log-level=info", signal.SIGHUP, 7),
        ("", signal.SIGTERM, 0),
        ("", signal.SIGINT, 0),
        ("list", signal.SIGHUP, -signal.SIGHUP),
        ("list", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_signals_are_taken_before_the_command_line_is_loaded(
    argument: str, number: signal.Signals, status: int
) -> None:
    """By the plugin; a sub-command ends with its terminal. Loading is what a stand-in takes the place of."""
    code = f"""
import os, signal, sys, types
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # the parent may ignore it, as nohup does
from xpu_plugin import __main__
import xpu_plugin
sys.modules["xpu_plugin.cli"] = xpu_plugin.cli = cli = types.ModuleType("xpu_plugin.cli")
cli.take_streams = lambda: os.kill(os.getpid(), {int(number)})  # a signal comes while it is loaded
cli.main = lambda _: 7
sys.exit(__main__.main())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, *argument.split()], env=CLEAN, check=False)
    assert done.returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_the_parent_has_blocked_are_let_in(number: signal.Signals) -> None:
    code = f"""
import signal, sys
from xpu_plugin import __main__
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
__main__._take_signals()
sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""
    assert subprocess.run([sys.executable, "-P", "-c", code], env=CLEAN, check=False).returncode == 0


def test_the_installed_command_begins_with_the_signals() -> None:
    (entry,) = importlib.metadata.entry_points(name="xpu-device-plugin")
    assert entry.value == "xpu_plugin.__main__:main"


# --- odd standard streams -----------------------------------------------------------------------------

PRINTING = [
    "--help",
    "list",
    "list --json",
    "top --once",
    "topo",
    "plan",
    "doctor",
    "bundle --output=-",
    "simulate show",
]


@pytest.fixture
def machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that sub-commands find by their environment, and no plugin."""
    machine = make_machine(place)
    for name, value in settings_of(machine, place).items():
        monkeypatch.setitem(CLEAN, name, value)
    return machine


@pytest.mark.parametrize("command", ["doctor", "plan --state-dir=/tmp/é"])
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {}],
)
def test_what_an_output_cannot_encode_is_shown_with_backslashes(
    command: str, environment: dict[str, str], machine: Machine
) -> None:
    done = run(*command.split(), "--device-plugin-dir=/tmp/é-\udcff", environment=environment)
    assert "Traceback" not in done.stderr
    assert done.stdout
    assert ("\\udcff" in done.stdout) == (command == "doctor")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("output", "trouble"), [(">/dev/full", "No space left on device"), ("<&- >&-", "Bad file descriptor")]
)
@pytest.mark.parametrize("command", PRINTING)
def test_an_output_that_takes_nothing_is_one_line_and_status_1(
    command: str, output: str, trouble: str, unbuffered: str, machine: Machine
) -> None:
    program = shlex.join([sys.executable, "-P", "-m", "xpu_plugin", *command.split()])
    done = shell(f"PYTHONUNBUFFERED={unbuffered} {program} {output}")
    line = f"xpu-device-plugin: cannot write standard output: {trouble}\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", PRINTING)
def test_a_closed_pipe_ends_a_sub_command_without_a_word(
    command: str, unbuffered: str, machine: Machine
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(*command.split(), environment={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["", *PRINTING])
def test_closed_errors_go_nowhere_else(command: str, machine: Machine, place: Path) -> None:
    """Not to standard output either, nor into what is opened first and gets the number."""
    program = shlex.join([sys.executable, "-P", "-m", "xpu_plugin", *command.split()])
    stderr_is_open = run(*command.split(), "--bogus")
    done = shell(f"{program} --bogus 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (
        stderr_is_open.returncode,
        stderr_is_open.stdout,
        "",
    )


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", script], env=CLEAN, capture_output=True, text=True, timeout=SECONDS, check=False
    )
