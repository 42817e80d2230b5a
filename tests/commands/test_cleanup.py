# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin cleanup`: what it takes from the node, prints and returns."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import PATCH, ApiServer, Reply, write_kubeconfig
from xpu_plugin.cli import main
from xpu_plugin.model.node_labels import LABELS
from xpu_plugin.model.vf_plan import DETAIL_ANNOTATION, LABEL, STATE_LABEL


NODE = "node-1"


@pytest.fixture(autouse=True)
def no_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XPU_PLUGIN_STATE_DIR", str(tmp_path / "none"))


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
def server(kubeconfig: Path) -> Iterator[ApiServer]:
    with ApiServer(NODE) as server:
        write_kubeconfig(kubeconfig, server.url)
        server.labels.update(dict.fromkeys([*LABELS, STATE_LABEL], "x"))
        server.labels.update({LABEL: "2", "kubernetes.io/hostname": NODE})
        server.annotations.update({DETAIL_ANNOTATION: "{}", "another": "x"})
        yield server


def test_all_that_was_written_is_removed_and_the_desired_count_stays(
    server: ApiServer, kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}"]) == 0
    assert server.labels == {LABEL: "2", "kubernetes.io/hostname": NODE}
    assert server.annotations == {"another": "x"}
    captured = capsys.readouterr()
    expected = f"{NODE}: labels, annotation and condition of xpu-device-plugin are removed\n"
    assert (captured.out, captured.err) == (expected, "")


def test_the_condition_is_removed_and_no_other(server: ApiServer, kubeconfig: Path) -> None:
    ready = {"type": "Ready", "status": "True"}
    server.conditions = [{"type": "XPUReady", "status": "True"}, ready]
    assert main(["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}"]) == 0
    assert server.conditions == [ready]


def test_the_label_last_seen_is_forgotten_whatever_the_api_server_does(
    server: ApiServer, kubeconfig: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}", f"--state-dir={tmp_path}"]
    record = tmp_path / "label.json"
    for replies, status in (([], 0), ([Reply.refusal(500)], 1)):
        server.script(PATCH, *replies)
        record.write_text("{}")
        assert main(command) == status
        assert not record.exists()
        assert capsys.readouterr().out.startswith(f"{NODE}: the label last seen is forgotten\n")


def test_a_record_that_cannot_be_removed_is_status_1_and_one_line(
    server: ApiServer, kubeconfig: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "label.json").mkdir()
    command = ["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}", f"--state-dir={tmp_path}"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"xpu-device-plugin: cannot forget the label of node {NODE}: ")
    assert server.of(PATCH) == []


def test_a_refusal_is_status_1_and_one_line(
    server: ApiServer, kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(PATCH, Reply.refusal(403))
    assert main(["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"xpu-device-plugin: cannot clean up node {NODE}: the API server does not let")


def test_without_any_credentials_it_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cleanup", f"--node-name={NODE}"]) == 2
    assert capsys.readouterr().err == (
        "xpu-device-plugin: cleanup: outside of a pod it needs --kubeconfig FILE\n"
    )


@pytest.mark.parametrize("kind", ["fifo", "directory", "none"])
def test_a_kubeconfig_that_cannot_be_read_is_usage(
    kind: str, kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind != "none":
        (os.mkfifo if kind == "fifo" else os.mkdir)(kubeconfig)
    assert main(["cleanup", f"--kubeconfig={kubeconfig}", f"--node-name={NODE}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xpu-device-plugin: --kubeconfig: ")
    assert line.endswith("; accepted: a readable file")
