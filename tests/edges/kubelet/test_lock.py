# SPDX-License-Identifier: Apache-2.0
"""The lock of the only plugin on a node: it ends with its holder, and it names the cause of a wait."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from xpu_plugin.edges.kubelet import lock as lock_module
from xpu_plugin.edges.kubelet.lock import InstanceLock


pytestmark = pytest.mark.usefixtures("leaves_no_task")


def test_a_directory_that_refuses_is_neither_absent_nor_another_plugins(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by SELinux, which knows a permission to lock."""
    lock = InstanceLock(place)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock.acquire_at_once()
    assert not lock.rival
    monkeypatch.setattr(os, "open", refuse)
    lock.acquire_at_once()
    [warning] = caplog.messages
    assert warning.startswith(
        f"cannot use the kubelet's directory error=\"{place}: Permission denied (EACCES); "
    )


def test_the_lock_ends_with_its_holder_and_leaves_no_file(place: Path) -> None:
    first, second = InstanceLock(place), InstanceLock(place)
    assert not first.held()
    assert first.attempt()
    assert first.attempt()
    assert first.held()
    assert not second.attempt()
    assert second.rival
    first.release()
    assert second.attempt()
    assert second.held()
    assert not first.held()
    assert os.listdir(place) == []  # noqa: PTH208 - a look, no wait
    second.release()


def test_the_lock_waits_for_proc_and_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it no registration would succeed, and gRPC's words would not name the cause."""
    proc = place / "proc"
    monkeypatch.setattr(lock_module, "DESCRIPTORS", proc)
    lock = InstanceLock(place)
    for _ in range(3):
        assert not lock.attempt()
    (said,) = caplog.messages
    assert said == f"waiting: /proc is not mounted, or hides us; mount it to register path={proc}"
    proc.mkdir()
    assert lock.attempt()
    assert not lock.rival
    lock.release()


def test_a_directory_that_is_not_there_is_told_with_the_option_that_names_another(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    InstanceLock(place / "kubelet").acquire_at_once()
    (said,) = caplog.messages
    assert f'path={place}/kubelet error="No such file' in said
    assert "--device-plugin-dir" in said


def test_the_lock_passes_with_the_open_file_and_is_never_free_in_between(place: Path) -> None:
    first, second, third = InstanceLock(place), InstanceLock(place), InstanceLock(place)
    assert first.attempt()
    given = first.part_with()
    assert given is not None
    assert not first.held()
    assert not first.attempt(), "the open file has it"
    assert second.adopt(os.dup(given))
    os.close(given)
    assert second.held()
    assert not third.attempt()
    second.release()
    assert third.attempt()
    third.release()


def test_an_open_file_without_the_lock_is_not_adopted(place: Path) -> None:
    first, second = InstanceLock(place), InstanceLock(place)
    assert first.attempt()
    assert not second.adopt(os.open(place, os.O_RDONLY))
    assert not second.held()
    first.release()
