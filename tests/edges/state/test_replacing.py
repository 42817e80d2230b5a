# SPDX-License-Identifier: Apache-2.0
"""A file that a child process replaces: as if it were replaced here, and what hangs is not this process."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.processes import tree
from tests.support.waiting import until
from xpu_plugin.edges.state import replacing
from xpu_plugin.edges.state.replacing import replace, replace_apart


pytestmark = pytest.mark.usefixtures("leaves_no_process")


@pytest.mark.parametrize("way", [replace, replace_apart])
def test_a_file_and_its_directory_are_made_for_the_owner_only(way: replacing.Replace, tmp_path: Path) -> None:
    file = tmp_path / "state" / "x.json"
    way(str(file), b"one\0two\n")
    assert file.read_bytes() == b"one\0two\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("way", [replace, replace_apart])
def test_drafts_go_and_a_damaged_file_is_kept_where_that_is_asked_for(
    way: replacing.Replace, tmp_path: Path
) -> None:
    file = tmp_path / "x.json"
    (tmp_path / ".x.json-old").touch()
    file.write_text("damaged")
    way(str(file), b"good", tidy=True, aside=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.json": "good",
        "x.json.damaged": "damaged",
    }


@pytest.mark.parametrize("way", [replace, replace_apart])
def test_what_goes_wrong_is_raised_in_the_words_of_the_system(way: replacing.Replace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as raised:
        way(str(tmp_path / "file/state/x.json"), b"")
    assert raised.value.errno == errno.ENOTDIR
    assert raised.value.strerror == os.strerror(errno.ENOTDIR)


def test_without_processes_it_is_replaced_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    replace_apart(str(tmp_path / "x.json"), b"one")
    assert (tmp_path / "x.json").read_bytes() == b"one"


def test_nothing_is_replaced_for_a_plugin_that_has_ended(tmp_path: Path) -> None:
    """Another one may have written since: a child that a disk has held comes too late."""
    (tmp_path / "x.json").write_text("newer")
    with pytest.raises(ProcessLookupError):
        replace(str(tmp_path / "x.json"), b"older", parent=1 if os.getppid() != 1 else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "newer"


async def test_a_child_that_is_killed_is_an_error(tmp_path: Path) -> None:
    errors: list[OSError] = []

    def work() -> None:
        try:
            replace_apart(str(tmp_path / "x.json"), b"x" * (16 << 20))
        except OSError as error:
            errors.append(error)

    before = set(tree(os.getpid()))
    thread = threading.Thread(target=work)
    thread.start()
    await until(lambda: set(tree(os.getpid())) - before, "the child")
    for child in set(tree(os.getpid())) - before:
        os.kill(child, signal.SIGKILL)
    thread.join(10)
    assert [error.strerror for error in errors] == ["the process that writes it ended with status -9"]
    assert not (tmp_path / "x.json").exists()


def test_a_child_that_hangs_is_killed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "GIVE_UP_SECONDS", 0.2)
    os.mkfifo(tmp_path / "hangs")
    monkeypatch.setattr(sys, "executable", str(hanging(tmp_path)))
    with pytest.raises(TimeoutError):
        replace_apart(str(tmp_path / "x.json"), b"one")
    assert not (tmp_path / "x.json").exists()


def hanging(directory: Path) -> Path:
    """An interpreter that never gets to what it is to run."""
    program = directory / "python"
    program.write_text("#!/bin/sh\nexec cat >/dev/null <>" + str(directory / "hangs") + "\n")
    program.chmod(0o700)
    return program
