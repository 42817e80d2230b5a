# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin clear`: what it asks for, prints and returns. With a real plugin: test_daemon.py."""

import asyncio
from pathlib import Path

import pytest

from xpu_plugin.cli import main
from xpu_plugin.edges.control_socket import ControlServer
from xpu_plugin.edges.listeners import listening_at


ID = "0000:3b:00.0"


async def cleared(place: Path, id: str, *, quarantine: set[str]) -> int:
    """Exit status of `clear ID` beside a plugin with these in quarantine."""

    def clear(id: str) -> bool:
        known = id in quarantine
        quarantine.discard(id)
        return known

    server = ControlServer({"clear": clear})
    with listening_at(place / "status.sock") as listener:
        await server.start(listener)
        try:
            return await asyncio.to_thread(main, ["clear", id, f"--status-socket={place / 'status.sock'}"])
        finally:
            server.close()


async def test_a_quarantine_is_lifted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quarantine = {ID}
    assert await cleared(place, ID, quarantine=quarantine) == 0
    assert quarantine == set()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{ID}: cleared\n", "")


async def test_what_is_in_no_quarantine_is_status_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await cleared(place, "two\nlines", quarantine={ID}) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "",
        "xpu-device-plugin: 'two\\nlines' is not in quarantine, and has no driver error\n",
    )


def test_without_a_running_plugin_it_is_status_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clear", ID, f"--status-socket={place / 'status.sock'}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"xpu-device-plugin: cannot ask the running plugin: {place}/status.sock: ")
    assert len(captured.err.splitlines()) == 1


def test_the_socket_is_that_of_the_manifests_unless_given(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xpu_plugin.edges.control_socket.ASK_SECONDS", 1.0)
    assert main(["clear", "no such id"]) == 1
    assert "/run/xpu-device-plugin/status.sock: " in capsys.readouterr().err
    monkeypatch.setenv("XPU_PLUGIN_STATUS_SOCKET", str(place / "other.sock"))
    assert main(["clear", "no such id"]) == 1
    assert f"{place}/other.sock: " in capsys.readouterr().err
