# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin doctor` over the simulated library, a model of the kubelet and a stand-in API server."""

import asyncio
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_server import GATEKEEPER, ApiServer, Reply, write_kubeconfig
from tests.support.daemon import IDS, Node, shows
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE, compile_library
from tests.support.processes import children
from tests.support.waiting import SECONDS, until
from xpu_plugin.cli import main
from xpu_plugin.config import DOCTOR_OPTIONS
from xpu_plugin.doctor.registry import CHECKS
from xpu_plugin.model.vf_plan import LABEL, STATE_LABEL
from xpu_plugin.simulation.kubelet import Kubelet
from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import Machine


pytestmark = pytest.mark.usefixtures("leaves_no_process")

# What a simulated node of this host cannot show.
NOT_HERE = {"char-links", "cgroup-driver"}


@pytest.fixture
def kubelet(kubelet: Kubelet) -> Kubelet:
    own_pod(kubelet)
    return kubelet


@pytest.fixture
def server(place: Path) -> Iterator[ApiServer]:
    with ApiServer("here") as server:
        write_kubeconfig(place / "kubeconfig", server.url)
        yield server


class Doctor:
    """Runs it as one would on that node, and keeps what it said of each check."""

    def __init__(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        self.node = node
        self.capsys = capsys
        self.more: list[str] = ["--pod-name=plugin"]

    async def status(self, *more: str) -> int:
        known = {option.name for option in DOCTOR_OPTIONS}
        own = {name: value for name, value in self.node.options().items() if name in known}
        options = [f"--{name}={value}" for name, value in (own | {"call-timeout": "1"}).items()]
        return await asyncio.to_thread(main, ["doctor", *options, *self.more, *more])

    async def findings(self, *more: str) -> dict[str, dict[str, Any]]:
        status = await self.status("--json", *more)
        document = json.loads(self.capsys.readouterr().out)
        assert document["status"] == status
        return {check["name"]: check for check in document["checks"]}

    async def wrong(self, *more: str) -> dict[str, str]:
        """The verdict of each check that is neither ok nor skipped."""
        found = await self.findings(*more)
        verdicts = {name: check["verdict"] for name, check in found.items()}
        return {name: verdict for name, verdict in verdicts.items() if verdict in ("warning", "error")}


@pytest.fixture
def doctor(node: Node, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(node, capsys)


async def started(node: Node, kubelet: Kubelet, *arguments: str) -> str:
    """A running plugin; the option by which it is found."""
    option = f"--status-socket={node.place}/run/status.sock"
    node.start(option, "--pod-name=plugin", "--call-timeout=5", *arguments)
    await shows(kubelet, IDS)
    return option


# --- a healthy node -------------------------------------------------------------------------------


async def test_a_healthy_node_with_a_running_plugin_passes_every_check(
    node: Node, kubelet: Kubelet, doctor: Doctor, server: ApiServer
) -> None:
    cluster = (f"--kubeconfig={node.place}/kubeconfig", "--node-name=here")
    running = await started(node, kubelet, *cluster, f"--mount-file={node.place}/kubeconfig")
    await until(lambda: server.labels, "the state is written")
    found = await doctor.findings(running, *cluster)
    assert list(found) == [check.name for check in CHECKS]
    verdicts = {name: check["verdict"] for name, check in found.items() if name not in NOT_HERE}
    assert verdicts == dict.fromkeys(verdicts, "ok"), found
    assert await doctor.status(running, *cluster) == 0
    lines = doctor.capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ok", "control-node"]
    assert lines[-1].startswith(f"{len(CHECKS)} checks: ")


async def test_with_a_running_plugin_the_library_is_left_alone(
    node: Node, kubelet: Kubelet, doctor: Doctor
) -> None:
    running = await started(node, kubelet)
    found = await doctor.findings(running, "--xpuml-library=/nonexistent.so", "--dev-root=/dev")
    assert found["library"]["verdict"] == found["devices-answer"]["verdict"] == "ok"


async def test_it_changes_nothing_and_leaves_no_process(node: Node, kubelet: Kubelet, doctor: Doctor) -> None:
    def state() -> list[tuple[str, int, bytes]]:
        return [
            (str(path), path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(node.place.rglob("*"))
            if not path.is_relative_to(node.place / "sys") and path.suffix != ".lock"
        ]

    before, processes = state(), children()
    await doctor.findings()
    assert state() == before
    assert children() <= processes


async def test_without_a_plugin_it_asks_by_a_process_of_its_own(
    node: Node, kubelet: Kubelet, doctor: Doctor
) -> None:
    found = await doctor.findings()
    assert found["devices-answer"]["verdict"] == "ok"
    assert found["registration"]["verdict"] == "skipped"
    assert "--status-socket" in found["registration"]["advice"]
    assert await doctor.wrong() == {}
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{node.place}/dead.sock")
    assert await doctor.wrong(f"--status-socket={node.place}/dead.sock") == {"registration": "warning"}


async def test_a_node_without_xpus_is_no_trouble(node: Node, kubelet: Kubelet, doctor: Doctor) -> None:
    node.machine.set({"driver": "gone"})
    for card in range(4):
        node.machine.remove_card(card)
    assert await doctor.wrong() == {}
    assert await doctor.status() == 0
    option = f"--status-socket={node.place}/run/status.sock"
    daemon = node.start(option, "--pod-name=plugin")
    await daemon.says("no driver")
    doctor.capsys.readouterr()
    found = await doctor.findings(option)
    assert {check["verdict"] for check in found.values()} == {"ok", "skipped"}, found
    assert found["second-plugin"]["verdict"] == "ok"


# --- what is broken is seen -----------------------------------------------------------------------


def other_address(machine: Machine) -> None:
    assert machine.sysfs_root
    entry = machine.sysfs_root / "class/xpu/xpu0/device"
    entry.unlink()
    entry.symlink_to(machine.sysfs_root / "bus/pci/devices" / IDS[1])


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (
            lambda machine: machine.set({"driver": "gone"}),
            {"control-node": "error", "device-nodes": "error", "library": "error"},
        ),
        (lambda machine: machine.set_card(2, {"state": "207"}), {"devices-answer": "error"}),
        (
            lambda machine: machine.set({"library-version": "4.0.9.1", "driver-version": "4.33.third.1"}),
            {"library": "warning", "driver-match": "warning"},
        ),
        (other_address, {"ranking": "error"}),
    ],
    ids=["no driver", "a sick device", "an old library of another release", "sysfs against the library"],
)
async def test_what_is_broken_in_the_machine_and_nothing_else(
    node: Node, kubelet: Kubelet, doctor: Doctor, harm: Callable[[Machine], object], expected: dict[str, str]
) -> None:
    harm(node.machine)
    assert await doctor.wrong() == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--sriov-num-vfs=9", {"vf-capability": "error"}),
        ("--sriov-num-vfs=3", {}),
        ("--pod-name=other", {"pod-resources": "warning"}),
        ("--pod-resources-socket={}/none", {"pod-resources": "warning"}),
        ("--pod-resources-socket={}/broken.sock", {"pod-resources": "error"}),
        ("--pods-api-socket={}/broken.sock", {"pods-api": "warning"}),
        ("--device-plugin-dir={}/none", {"kubelet-directory": "error", "kubelet-socket": "error"}),
    ],
)
async def test_what_is_wrong_with_an_option_and_nothing_else(
    node: Node, kubelet: Kubelet, doctor: Doctor, option: str, expected: dict[str, str]
) -> None:
    (node.place / "broken.sock").write_text("")
    assert await doctor.wrong(option.format(node.place)) == expected


async def test_a_library_that_is_not_there_or_lacks_functions(
    node: Node, kubelet: Kubelet, doctor: Doctor, place: Path
) -> None:
    source = place / "poor.c"
    source.write_text("int xpumlInit(void) { return 0; }\n")
    poor = compile_library(source, place)
    for path, words in ((place / "none.so", "no such file"), (poor, "it lacks")):
        real = ("--dev-root=/dev", f"--xpuml-library={path}")
        found = await doctor.findings(*real)
        if found["library"]["verdict"] == "skipped":  # this machine has no XPU, so that none is missed
            assert words in found["library"]["evidence"]
        else:
            assert words in found["library"]["evidence"]
            assert found["library"]["verdict"] == "error"


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_device_at_which_the_library_hangs_or_crashes_is_named_and_the_others_are_seen(
    action: str, node: Node, kubelet: Kubelet, doctor: Doctor
) -> None:
    node.machine.add_fault("xpumlDeviceGetState", action, card=1)
    found = await doctor.findings()
    assert found["devices-answer"]["verdict"] == "error"
    assert "xpumlDeviceGetState of device index 1" in found["devices-answer"]["evidence"]
    assert found["library"]["verdict"] == "ok"


async def test_vfs_that_sysfs_counts_and_does_not_link(node: Node, kubelet: Kubelet, doctor: Doctor) -> None:
    node.machine.set_card(1, {"vfs": "2"})
    assert await doctor.wrong() == {}
    assert node.machine.sysfs_root
    (node.machine.sysfs_root / "bus/pci/devices" / IDS[1] / "virtfn1").unlink()
    assert (await doctor.wrong())["functions"] == "error"
    node.machine.settle()
    node.machine.set_card(1, {"vf-drivers": "kunlun,vfio-pci"})
    assert (await doctor.wrong())["functions"] == "warning"


async def test_a_kubelet_that_is_away_and_a_plugin_without_a_stream(
    node: Node, kubelet: Kubelet, doctor: Doctor
) -> None:
    running = await started(node, kubelet)
    await kubelet.stop(remove_sockets=True)
    await until(lambda: kubelet.streams_open == 0, "the end of the stream")
    wrong = await doctor.wrong(running)
    assert (wrong["kubelet-socket"], wrong["registration"]) == ("error", "error")


async def test_a_second_plugin_and_strange_sockets(node: Node, kubelet: Kubelet, doctor: Doctor) -> None:
    await started(node, kubelet)
    second = node.start(f"--status-socket={node.place}/second.sock")
    await second.says("another plugin works")
    await until((node.place / "second.sock").is_socket, "its status socket")
    wrong = await doctor.wrong(f"--status-socket={node.place}/second.sock")
    assert wrong["second-plugin"] == "error"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(f"{node.plugins}/vxpu.sock")
        running = f"--status-socket={node.place}/run/status.sock"
        assert (await doctor.wrong(running))["second-plugin"] == "warning"


async def test_containers_with_former_ids_and_those_that_could_split_idle_cards(
    node: Node, kubelet: Kubelet, doctor: Doctor
) -> None:
    kubelet.hold(["0"], resource=RESOURCE, pod="former")
    found = await doctor.findings()
    assert "default/former/main (device 0)" in found["former-ids"]["evidence"]
    assert found["xpuctrl-exposure"]["verdict"] == "warning"
    assert IDS[0] not in found["xpuctrl-exposure"]["evidence"], "it is the one that is held"
    assert IDS[1] in found["xpuctrl-exposure"]["evidence"]


async def test_what_the_running_plugin_could_not_write_on_the_node_is_told_in_the_servers_words(
    node: Node, kubelet: Kubelet, doctor: Doctor, server: ApiServer
) -> None:
    server.admission = lambda changes: Reply.refusal(403, GATEKEEPER) if STATE_LABEL in changes else None
    cluster = (f"--kubeconfig={node.place}/kubeconfig", "--node-name=here")
    running = await started(node, kubelet, *cluster)
    await until(lambda: server.annotations, "the detail is written")
    async with asyncio.timeout(SECONDS):
        while (found := (await doctor.findings(running, *cluster))["node-writes"])["verdict"] == "ok":
            pass  # until the last answer is there
    assert found["verdict"] == "warning"
    assert f"label {STATE_LABEL}: " in found["evidence"]
    assert GATEKEEPER in found["evidence"]


async def test_the_label_the_rights_and_the_clock(
    node: Node, kubelet: Kubelet, doctor: Doctor, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.more += [f"--kubeconfig={node.place}/kubeconfig", "--node-name=here"]
    server.labels = {LABEL: "2"}
    assert await doctor.wrong() == {}
    server.labels = {LABEL: "many"}
    server.denied = {"patch nodes", "create events"}
    assert await doctor.wrong() == {"node-label": "error", "rbac": "warning"}
    server.denied = {"list nodes", "watch nodes", "patch nodes", "create events"}
    assert await doctor.wrong() == {}, "as the manifest alone has it"
    server.labels = {LABEL: "9"}
    server.denied = set()
    assert await doctor.wrong() == {"vf-capability": "error"}
    server.labels = {}
    server.exists = False
    assert await doctor.wrong() == {"node-label": "warning"}
    server.exists = True
    then = "Tue, 01 Jan 2030 00:00:00 GMT"
    monkeypatch.setattr("tests.support.api_server._Handler.date_time_string", lambda *_: then)
    assert await doctor.wrong() == {"clock": "warning"}


async def test_a_token_that_is_not_accepted(
    node: Node, kubelet: Kubelet, doctor: Doctor, server: ApiServer
) -> None:
    doctor.more += [f"--kubeconfig={node.place}/kubeconfig", "--node-name=here"]
    server.tokens = set()
    found = await doctor.findings()
    assert (found["node-label"]["verdict"], found["rbac"]["verdict"]) == ("warning", "skipped")
    assert "401" in found["node-label"]["evidence"]


async def test_a_library_that_was_replaced_since_the_worker_opened_it(
    node: Node, kubelet: Kubelet, doctor: Doctor, place: Path
) -> None:
    """The simulator as it would be installed: a file behind a link, that an upgrade leads elsewhere."""
    old, new, link = place / "libxpuml.so.4.0", place / "libxpuml.so.4.1", place / "libxpuml.so.1"
    shutil.copy(shipped(), old)
    shutil.copy(shipped(), new)
    link.symlink_to(old.name)
    program = (
        "-c",
        f"""
import sys
from pathlib import Path
from xpu_plugin import cli
from xpu_plugin.simulation import library
library.shipped = lambda: Path({str(link)!r})
sys.exit(cli.main(sys.argv[1:]))
""",
    )
    option = f"--status-socket={place}/run/status.sock"
    daemon = node.start(option, "--pod-name=plugin", "--rescan-interval=0.1", program=program)
    await shows(kubelet, IDS)
    assert (await doctor.findings(option))["worker-library"]["verdict"] == "ok"
    link.unlink()
    link.symlink_to(new.name)
    await daemon.says("the library's file was replaced, and a trial has opened the present one")
    assert await doctor.wrong(option) == {"worker-library": "warning"}
