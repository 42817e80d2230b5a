# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin bundle`: what is in it, what never is, and what it does not overwrite."""

import asyncio
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import ApiServer, write_kubeconfig
from tests.support.daemon import IDS, Node
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS
from xpu_plugin.cli import main
from xpu_plugin.config import BUNDLE_OPTIONS
from xpu_plugin.simulation.kubelet import AdmissionError, Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_process")

SECRET = "s3cr3t-that-nobody-may-see"  # noqa: S105 - it is none
OF_THE_PLUGIN = {"state.json", "list.json", "plan.json", "decisions.json", "top.json", "topo.json"}
OF_THE_NODE = {"configuration.txt", "versions.json", "doctor.json", "doctor.txt", "listings.txt"}


@pytest.fixture
def kubelet(kubelet: Kubelet) -> Kubelet:
    own_pod(kubelet)
    return kubelet


def options(node: Node) -> list[str]:
    known = {option.name for option in BUNDLE_OPTIONS}
    return [f"--{name}={value}" for name, value in node.options().items() if name in known]


async def running(node: Node, kubelet: Kubelet, *arguments: str) -> str:
    option = f"--status-socket={node.place}/run/status.sock"
    node.start(option, "--pod-name=plugin", *arguments)
    await kubelet.until(lambda: kubelet.streams_open and kubelet.capacity(RESOURCE), timeout=SECONDS)
    return option


def contents(archive: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        found = {}
        for member in tar.getmembers():
            stream = tar.extractfile(member)
            assert stream
            assert member.mode == 0o600
            directory, _, name = member.name.partition("/")
            assert directory == "xpu-device-plugin-bundle"
            found[name] = stream.read().decode()
        return found


async def bundled(node: Node, *more: str) -> dict[str, str]:
    path = node.place / f"bundle-{len(list(node.place.glob('bundle-*')))}.tar.gz"
    assert await asyncio.to_thread(main, ["bundle", f"--output={path}", *options(node), *more]) == 0
    return contents(path.read_bytes())


# --- what is in it --------------------------------------------------------------------------------


async def test_configuration_picture_findings_and_versions(node: Node, kubelet: Kubelet) -> None:
    found = await bundled(node, await running(node, kubelet, "--health-flaps=7"))
    assert found.keys() == OF_THE_NODE | OF_THE_PLUGIN
    assert "health-flaps=7" in found["configuration.txt"]
    assert [own["id"] for own in json.loads(found["list.json"])["devices"]] == IDS
    assert json.loads(found["state.json"])["streams"] == 1
    assert json.loads(found["plan.json"])["desired"]["number"] == 0
    versions = json.loads(found["versions.json"])
    assert versions["library_version"].startswith("4.0.12.1")
    assert versions["packages"]["grpcio"]
    names = [check["name"] for check in json.loads(found["doctor.json"])["checks"]]
    assert [line.split()[1] for line in found["doctor.txt"].splitlines() if line[0] != " "][:-1] == names
    assert "xpuctrl" in found["listings.txt"]
    assert "kubelet.sock" in found["listings.txt"]


async def test_without_a_plugin_it_has_what_can_be_seen(node: Node, kubelet: Kubelet) -> None:
    found = await bundled(node)
    assert found.keys() == OF_THE_NODE
    assert json.loads(found["doctor.json"])["checks"]


async def test_decisions_come_with_what_they_rest_on(node: Node, kubelet: Kubelet) -> None:
    option = await running(node, kubelet)
    grant = await kubelet.allocate(RESOURCE, 1)
    node.machine.set_card(3, {"state": "207"})
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
    node.machine.remove_card(0)
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, timeout=SECONDS)
    with pytest.raises(AdmissionError):
        await kubelet.restart_container(grant)
    decisions: list[dict[str, Any]] = json.loads((await bundled(node, option))["decisions.json"])
    kinds = {decision["what"] for decision in decisions}
    assert kinds == {"verdict", "registration", "grant", "refusal", "vfs"}
    (given,) = (decision for decision in decisions if decision["what"] == "grant")
    assert (given["ids"], given["paths"]) == (list(grant.ids), ["/dev/xpu0", "/dev/xpuctrl"])
    (sick,) = (own for own in decisions if own["what"] == "verdict" and own["now"] == "state-error")
    assert (sick["id"], sick["was"], "207" in sick["why"]) == (IDS[3], "Healthy", True)
    (refused,) = (own for own in decisions if own["what"] == "refusal")
    assert refused["granted_as"] == {IDS[0]: "/dev/xpu0"}
    assert refused["why"]
    (registered,) = (own for own in decisions if own["what"] == "registration" and own["trouble"] is None)
    assert registered["resource"] == RESOURCE
    (first, *_) = (own for own in decisions if own["what"] == "vfs")
    assert (first["desired"]["number"], first["action"], first["cards"]) == (0, "wait", [])


async def test_a_decision_about_vfs_names_cards_and_proofs(node: Node, kubelet: Kubelet) -> None:
    kubelet.hold([IDS[0]], resource=RESOURCE, pod="train")
    option = await running(node, kubelet, "--sriov-num-vfs=2", f"--allow={IDS[0]}", "--pod-list-delay=0.1")

    async def decided() -> list[dict[str, Any]]:
        found = json.loads((await bundled(node, option))["decisions.json"])
        return [own for own in found if own["what"] == "vfs" and own["cards"] and own["cards"][0]["holders"]]

    async with asyncio.timeout(SECONDS):
        while not (decisions := await decided()):
            pass  # each look takes its time
    last = decisions[-1]
    assert last["cards"][0]["holders"] == ["default/train/main"]
    assert last["proofs"][IDS[0]] == {"holders": ["default/train/main"], "doubt": ""}


# --- what never is --------------------------------------------------------------------------------


async def test_no_secret_gets_in(node: Node, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets where they could be: the kubeconfig, a token, the environment of both, other files beside."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("XPU_PLUGIN_SECRET", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for directory in (node.plugins, node.place / "state", node.place / "pods"):
        directory.mkdir(exist_ok=True)
        (directory / "token").write_text(SECRET)
    with ApiServer("here") as server:
        kubeconfig = write_kubeconfig(node.place / "kubeconfig", server.url, token=SECRET)
        cluster = (f"--kubeconfig={kubeconfig}", "--node-name=here")
        option = await running(node, kubelet, *cluster)
        found = await bundled(node, option, *cluster)
        server.tokens = set()  # and the refusal of it
        refused = await bundled(node, option, *cluster)
    assert any(request.token == SECRET for request in server.requests), "it was used"
    assert SECRET not in json.dumps(found)
    assert SECRET not in json.dumps(refused)
    assert "HTTP 401" in refused["doctor.txt"]


# --- where it goes --------------------------------------------------------------------------------


async def test_only_its_owner_may_read_it_and_nothing_is_overwritten(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = node.place / "out.tar.gz"
    before = os.umask(0)
    try:
        assert await asyncio.to_thread(main, ["bundle", f"--output={path}", *options(node)]) == 0
    finally:
        os.umask(before)
    assert capsys.readouterr().out == f"{path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    was = path.read_bytes()
    assert await asyncio.to_thread(main, ["bundle", f"--output={path}", *options(node)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == was
    link = node.place / "link"
    link.symlink_to(node.place / "elsewhere")
    assert await asyncio.to_thread(main, ["bundle", f"--output={link}", *options(node)]) == 2
    assert not (node.place / "elsewhere").exists()


async def test_a_directory_that_is_not_there_is_status_1(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, ["bundle", f"--output={node.place}/none/x", *options(node)]) == 1
    assert "cannot write" in capsys.readouterr().err


async def test_without_a_name_it_is_a_new_one_in_tmpdir(
    node: Node, kubelet: Kubelet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(node.place))
    assert await asyncio.to_thread(main, ["bundle", *options(node)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.parent == node.place
    assert contents(path.read_bytes()).keys() == OF_THE_NODE  # noqa: ASYNC240 - a test may wait


async def test_names_that_are_not_utf_8_are_shown_with_backslashes(node: Node, kubelet: Kubelet) -> None:
    (node.plugins / "odd-\udcff").touch()
    found = await bundled(node, "--allow=\udcfe", f"--state-dir={node.place}/\udcfd")
    assert found["listings.txt"].count("odd-\\udcff") == 1
    assert "allow='\\udcfe'" in found["configuration.txt"]
    assert "\\udcfd" in found["configuration.txt"]


async def test_to_standard_output(node: Node, kubelet: Kubelet) -> None:
    """For `kubectl exec`, where there may be no tar to copy files with."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-P", "-m", "xpu_plugin", "bundle", "--output=-", *options(node)],
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    assert contents(done.stdout).keys() == OF_THE_NODE
