# SPDX-License-Identifier: Apache-2.0
"""gRPC is started only where there is room for it."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from tests.support.processes import descriptors
from tests.support.waiting import until
from xpu_plugin.edges.kubelet import engine
from xpu_plugin.edges.kubelet.channel import running
from xpu_plugin.edges.kubelet.engine import DESCRIPTORS, GRPC_THREADS, require_room


def test_with_room_nothing_is_left_behind() -> None:
    before = descriptors(), threading.active_count()
    require_room()
    assert (descriptors(), threading.active_count()) == before


async def test_while_grpc_runs_it_needs_no_room_to_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/none"):
        await until(engine._runs, "gRPC's threads")
        monkeypatch.setattr(engine, "GRPC_THREADS", 1 << 20)
        require_room()


async def test_it_runs_on_between_two_servers() -> None:
    """Its end and start would take a busy machine a tenth of a second of a kubelet's restart."""
    with running():
        server = grpc.aio.server()
        await server.start()
        await until(engine._runs, "gRPC's threads")
        await server.stop(None)
        del server
        gc.collect()
        await until(engine._runs, "gRPC's threads")  # a look may miss one while others come and go


@pytest.mark.parametrize("left", [0, 1, GRPC_THREADS - 1])
def test_a_lack_of_threads_is_an_error_before_grpc_is_started(
    monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    start, before = threading.Thread.start, threading.active_count()

    def few_left(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(engine, "_runs", lambda: False)
    monkeypatch.setattr(threading.Thread, "start", few_left)
    with pytest.raises(OSError, match="no thread can be started"):
        require_room()
    assert threading.active_count() == before


# It limits itself, and becomes the plugin: a limit of ours would be ours for good.
LIMITED = """
import os, resource, sys
limit, amount, *plugin = sys.argv[1:]
resource.setrlimit(getattr(resource, limit), (int(amount), int(amount)))
os.execv(plugin[0], plugin)
"""


@pytest.mark.parametrize(
    ("limit", "amount"),
    [
        ("RLIMIT_AS", 150_000_000),
        ("RLIMIT_AS", 300_000_000),
        ("RLIMIT_AS", 600_000_000),
        ("RLIMIT_DATA", 40_000_000),
        ("RLIMIT_DATA", 80_000_000),
        ("RLIMIT_STACK", 1 << 47),
    ],
)
def test_a_limit_that_is_too_low_for_its_threads_ends_the_plugin_with_one_line(
    tmp_path: Path, limit: str, amount: int
) -> None:
    """By 300 MB gRPC ended it by SIGSEGV, by 600 MB by SIGABRT, by less glibc did."""
    plugin = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, limit, str(amount)),
            *(sys.executable, "-Pm"),
            "xpu_plugin",
            f"--device-plugin-dir={tmp_path}/k",
            f"--state-dir={tmp_path}/s",
            f"--status-socket={tmp_path}/s/status.sock",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert plugin.returncode == 1
    [line] = plugin.stderr.splitlines()
    assert line.startswith("xpu-device-plugin: cannot start: the plugin needs room for ")
    assert f" {limit}={amount}" in line


def test_a_lack_of_descriptors_is_an_error_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened, left = descriptors(), os.open, DESCRIPTORS - 1

    def few(path: str, flags: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(24, "Too many open files")
        return opened(path, flags)

    with monkeypatch.context() as lack:
        lack.setattr(os, "open", few)
        with pytest.raises(OSError, match="Too many open files"):
            require_room()
    assert descriptors() == before
