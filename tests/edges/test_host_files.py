# SPDX-License-Identifier: Apache-2.0
"""Host files for containers: only those that the host has, and never a wait for its disk."""

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from tests.support.waiting import SECONDS
from xpu_plugin.edges.host_files import HostFiles, Lack, missing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The mounts of the host's directories, with an XRE and a program of it."""
    (tmp_path / "host/usr/local/xpu-5/bin").mkdir(parents=True)
    (tmp_path / "host/usr/local/xpu-5/bin/xpu-smi").touch()
    (tmp_path / "host/usr/local/xpu").symlink_to("/usr/local/xpu-5")
    (tmp_path / "host/usr/local/xpu-smi").symlink_to("/usr/local/xpu/bin/xpu-smi")
    (tmp_path / "host/usr/local/dangling").symlink_to("/usr/local/xpu-4")
    return tmp_path / "host"


def test_links_lead_where_they_lead_on_the_host(root: Path) -> None:
    there = ("/usr/local/xpu", "/usr/local/xpu-smi", "/usr/local/xpu/bin/xpu-smi")
    gone = ("/usr/local/dangling", "/usr/local/other", "/usr/local/xpu-smi/x")
    assert missing((*there, *gone), root).keys() == set(gone)


def test_a_file_of_the_plugins_own_container_is_not_the_hosts(root: Path) -> None:
    assert missing(("/etc/passwd",), root).keys() == {"/etc/passwd"}


def test_outside_of_a_container_files_are_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    there, gone = str(tmp_path / "file"), str(tmp_path / "gone")
    assert missing((there, gone), tmp_path / "no root") == {gone: Lack(reason="no such file")}


def test_an_endless_chain_of_links_is_missing(root: Path) -> None:
    (root / "usr/local/loop").symlink_to("/usr/local/loop")
    assert missing(("/usr/local/loop",), root) == {"/usr/local/loop": Lack(reason=os.strerror(40))}


async def test_each_look_is_a_new_one_and_the_log_has_each_change_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    xre, late = "/usr/local/xpu", "/usr/local/late"
    files = HostFiles((xre, late), root=root, seconds=SECONDS)
    assert [await files.present() for _ in range(2)] == [(xre,)] * 2
    (root / "usr/local/late").touch()
    assert [await files.present() for _ in range(2)] == [(xre, late)] * 2
    (root / "usr/local/xpu").unlink()
    assert [await files.present() for _ in range(2)] == [(late,)] * 2
    said = [record.getMessage().partition(" error=")[0] for record in caplog.records]
    assert said == [
        f"the host has no such file; new containers start without it path={late}",
        "all host files for containers are there",
        f"the host has no such file; new containers start without it path={xre}",
    ]


async def test_without_files_there_is_no_look(root: Path) -> None:
    assert await HostFiles((), root=root, seconds=0).present() == ()
    assert await HostFiles((), root=root, seconds=0).absent() == {}


async def test_containers_that_start_at_once_share_a_look(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    files = HostFiles((str(tmp_path), gone), root=tmp_path / "no root", seconds=SECONDS)
    *absent, present = await asyncio.gather(files.absent(), files.absent(), files.present())
    assert absent == [{gone: "no such file"}] * 2
    assert present == (str(tmp_path),)


async def test_the_host_may_have_a_file_of_a_directory_that_the_plugin_does_not_see(root: Path) -> None:
    files = HostFiles(("/opt/file",), root=root, seconds=SECONDS)
    assert await files.present() == ()
    assert await files.absent() == {}


async def test_a_disk_that_hangs_delays_no_container_and_the_last_look_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path, answers = str(tmp_path / "file"), threading.Event()
    files, fresh = (HostFiles((path,), root=tmp_path / "no root", seconds=SECONDS) for _ in range(2))
    assert await files.present() == (path,)

    def hanging(paths: object, root: object) -> dict[str, Lack]:
        assert answers.wait(SECONDS)
        return {path: Lack(reason="gone")}

    monkeypatch.setattr("xpu_plugin.edges.host_files.missing", hanging)
    for own in (files, fresh):
        monkeypatch.setattr(own, "_seconds", 0.01)
    assert [await files.present() for _ in range(3)] == [(path,)] * 3
    assert await fresh.present() == (), "nothing is known of it"
    assert await fresh.absent() == {}
    assert caplog.text.count("looking for host files takes too long") == 2, "each says it once"
    answers.set()
    for own in (files, fresh):
        monkeypatch.setattr(own, "_seconds", SECONDS)
        assert await own.present() == ()
