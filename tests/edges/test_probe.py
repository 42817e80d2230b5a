# SPDX-License-Identifier: Apache-2.0
"""The administrator's program as a child: its environment, its end, and no process left of it."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import has_ended
from tests.support.programs import program
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.edges.option_file import OptionFileError, check_program
from xpu_plugin.edges.probe import LONGEST_LINE, ProbeProcess, environment


pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_task")

VARIABLES = {"PATH": os.environ["PATH"], "XPU_ID": "0000:3b:00.0"}


async def ran(place: Path, script: str, *arguments: str) -> tuple[int, str]:
    """The exit status and the line of a script that ends by itself."""
    process = ProbeProcess((str(program(place / "probe", script)), *arguments), VARIABLES)
    status = await process.status()
    assert await process.end(SECONDS)
    return status, process.line


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 1", 1), ("exit 77", 77), ("kill -TERM $$", -signal.SIGTERM)]
)
async def test_its_status_is_returned(place: Path, script: str, status: int) -> None:
    assert await ran(place, script) == (status, "")


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo one; echo two", "two"),
        ("echo one; echo; echo '  '", "one"),
        ("printf 'no end'", "no end"),
        ("echo one; echo two >&2", "one"),
        (r"printf 'a\033[31m\tb\n'", r"a\u001b[31m\tb"),
        (r"printf '\377x\n'", "\N{REPLACEMENT CHARACTER}x"),
        ('echo "$1|$2|$*"', "a b||a b"),
        ("cat; echo read", "read"),
        ("pwd", "/"),
    ],
)
async def test_the_last_line_of_its_output_is_kept_and_printable(place: Path, script: str, line: str) -> None:
    assert await ran(place, script, "a b") == (0, line)


async def test_output_without_end_is_bounded(place: Path) -> None:
    process = ProbeProcess((str(program(place / "probe", "yes | head -c 3000000")),), VARIABLES)
    assert await process.status() == 0
    assert await process.end(SECONDS)
    assert process.line == "y"
    _, line = await ran(place, "head -c 100000 /dev/zero | tr '\\0' x")
    assert line == "x" * LONGEST_LINE


async def test_it_has_only_the_documented_variables(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/a/lib")
    monkeypatch.setenv("SECRET", "x")
    own = environment("0000:3b:00.0-half1", "/dev/xpu3", "0000:3b:00.0")
    assert own == {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": "/a/lib",
        "XPU_ID": "0000:3b:00.0-half1",
        "XPU_PATH": "/dev/xpu3",
        "XPU_PCI_ADDRESS": "0000:3b:00.0",
    }


async def test_children_that_it_leaves_are_killed(place: Path) -> None:
    status, child = await ran(place, "sleep 600 & echo $!")
    assert status == 0
    await until(lambda: has_ended(int(child)), "the end of the child")


async def test_it_is_killed_with_its_children(place: Path) -> None:
    process = ProbeProcess((str(program(place / "probe", "sleep 600 & echo $!; wait")),), VARIABLES)
    waiting = asyncio.create_task(process.status())
    file = place / "probe"
    await until(lambda: file.exists() and (process.line or waiting.done()), "a child")
    assert await process.end(SECONDS)
    waiting.cancel()
    await asyncio.wait({waiting})
    await until(lambda: has_ended(int(process.line)), "the end of the child")


async def test_a_file_that_hangs_is_given_up_and_begins_nothing_later(place: Path) -> None:
    file, touched = place / "probe", place / "touched"
    os.mkfifo(file)
    process = ProbeProcess((str(file),), VARIABLES)
    began = time.monotonic()
    assert not await process.end(0.1)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert not process.gone()
    descriptor = os.open(file, os.O_RDWR | os.O_NONBLOCK)
    program(file, f"touch {touched}")
    os.close(descriptor)
    await until(process.gone, "the end of the run")
    assert not touched.exists()


async def test_a_file_that_cannot_be_executed_is_an_error(place: Path) -> None:
    (place / "probe").write_bytes(b"\x7fELF no program")
    (place / "probe").chmod(0o755)
    for path in (place / "probe", place / "absent"):
        process = ProbeProcess((str(path),), VARIABLES)
        with pytest.raises(OSError, match=r"format error|No such file"):
            await process.status()
        assert await process.end(SECONDS)


def test_a_bad_file_is_refused_in_one_line(place: Path) -> None:
    plain = place / "plain"
    plain.touch()
    for path, fault in (
        (place / "absent", "No such file or directory"),
        (place, "not a regular file"),
        (plain, "not executable"),
        (plain / "x", "Not a directory"),
    ):
        with pytest.raises(OptionFileError) as error:
            check_program("--probe", path)
        assert str(error.value) == (
            f"--probe: {str(path)!r}: {fault}; accepted: an executable file, and its arguments"
        )
    plain.chmod(0o755)
    check_program("--probe", plain)
