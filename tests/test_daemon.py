# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process of its own, over the simulator and against a kubelet's sockets: its job, restarts
and what has to survive them. How it ends is in test_shutdown.py."""

import asyncio
import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import (
    EXIT_SECONDS,
    IDS,
    IMPATIENT,
    Daemon,
    Node,
    a_node,
    free_port,
    probed,
    shows,
)
from tests.support.machines import RESOURCE
from tests.support.processes import descriptor
from tests.support.waiting import SECONDS, until
from xpu_plugin.cli import main
from xpu_plugin.model.rivals import YOUNG_SECONDS
from xpu_plugin.model.timings import USUAL
from xpu_plugin.simulation.kubelet import Kubelet, StartError


pytestmark = pytest.mark.usefixtures("leaves_no_process")


CLOSED = (
    "-c",
    """
import os, sys
for number in range(3):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-P", "-m", "xpu_plugin", *sys.argv[1:]])
""",
)


# --- the main job ---------------------------------------------------------------------------------


async def test_closed_standard_descriptors_go_to_nobody_else(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start(program=CLOSED)
    await shows(kubelet, IDS)
    assert [descriptor(daemon.pid, number) for number in range(3)] == ["/dev/null"] * 3


async def test_paths_that_are_not_utf_8_work(place: Path, leaves_no_process: None) -> None:
    class OddNode(Node):
        def __init__(self, place: Path) -> None:
            super().__init__(place)
            self.odd = place / "a%20b,\udcff"
            self.plugins = place / "a%20b-\udcff/plugins"
            self.plugins.mkdir(parents=True)

        def options(self) -> dict[str, str]:
            odd = {"state-dir": f"{self.odd}/state", "status-socket": f"{self.odd}/run/status.sock"}
            return super().options() | {"pod-resources-socket": f"{self.odd}/kubelet.sock"} | odd

    async with a_node(place, OddNode) as node, node.kubelet() as kubelet:
        node.odd.mkdir()
        assert kubelet.pod_resources_socket
        kubelet.pod_resources_socket.rename(node.odd / "kubelet.sock")
        kubelet.hold(["1"], resource=RESOURCE, pod="former")
        node.start()
        await shows(kubelet, ["1", IDS[0], *IDS[2:]])
        await kubelet.allocate(RESOURCE, 1)
        assert (node.odd / "run/status.sock").is_socket()
        await until((node.odd / "state/grants.json").exists, "the record of the grant")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--fail-on-init-error", "no driver"),
        (
            "--deny=02K00Y6218V0003A",
            "--deny names 02K00Y6218V0003A, and this libxpuml reports no serial numbers",
        ),
    ],
)
async def test_a_first_scan_that_must_not_be_offered_ends_it_with_status_1(
    node: Node, kubelet: Kubelet, option: str, reason: str
) -> None:
    if reason == "no driver":
        node.machine.set({"driver": "gone"})
    daemon = node.start(option)
    assert await daemon.ends() == 1
    await daemon.says_exactly("ERROR", times=1)
    await daemon.says(reason)
    assert kubelet.registrations == []
    node.assert_tidy()


async def test_a_node_without_devices_registers_an_empty_list(node: Node, kubelet: Kubelet) -> None:
    for card in range(4):
        node.machine.remove_card(card)
    node.start()
    await kubelet.until(lambda: kubelet.lists(RESOURCE) == 1, timeout=SECONDS)
    assert kubelet.capacity(RESOURCE) == 0


async def test_64_functions_at_10_ms_a_request_are_registered(node: Node, kubelet: Kubelet) -> None:
    """Their scan takes 7 s, which is more than --call-timeout, and each call little."""
    for card in range(4, 16):
        node.machine.set_card(card, {"model": "R200", "pci": f"0000:{0x40 + card:02x}:00.0"})
    for card in range(16):
        node.machine.set_card(card, {"vfs": "3"})
    node.machine.set({"request-delay": "10"})
    daemon = node.start("--call-timeout=5")
    began = time.monotonic()
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 48, timeout=3 * SECONDS)
    assert time.monotonic() - began > 64 * 11 * 0.01
    node.machine.set_card(15, {"vf-states": "201,207,201"})
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 47, timeout=SECONDS)
    assert "no answer" not in daemon.log


async def test_resources_per_profile_have_an_endpoint_each(node: Node, kubelet: Kubelet) -> None:
    node.machine.set_card(0, {"vfs": "2"})
    daemon = node.start("--resource-per-profile")
    await shows(kubelet, IDS[1:], "baidu.com/R200")
    await shows(kubelet, ["0000:3b:01.0-of2", "0000:3b:01.1-of2"], "baidu.com/R200-VF-8G")
    assert set(kubelet.resources()) == {"baidu.com/R200", "baidu.com/R200-VF-8G"}
    assert await daemon.stop() < EXIT_SECONDS
    assert list(node.plugins.glob("xpu-*")) == []


async def test_a_device_that_flaps_stays_out_until_it_is_cleared(node: Node, kubelet: Kubelet) -> None:
    socket = node.place / "run/status.sock"
    options = ("--health-flaps=3", f"--status-socket={socket}")

    async def clear(id: str) -> int:
        return await asyncio.to_thread(main, ["clear", id, f"--status-socket={socket}"])

    daemon = node.start(*options)
    await shows(kubelet, IDS)
    for flap in (1, 2):
        node.machine.set_card(1, {"state": "207"})
        await daemon.says("reason=state-error", flap)
        node.machine.set_card(1, {"state": ""})
        await daemon.says(["device healthy again", "reason=quarantined"][flap - 1])
    record = node.place / "state/quarantine.json"
    await until(record.exists, "a record of it")
    await daemon.kill()

    daemon = node.start(*options)
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
    await daemon.says(
        f"device offered id={IDS[1]} model=R200 path=/dev/xpu1 resource={RESOURCE} health=Unhealthy"
    )
    assert await clear(IDS[0]) == 1, "it is not in quarantine"
    assert await clear(IDS[1]) == 0
    await shows(kubelet, IDS)
    await daemon.stop()
    assert not socket.exists()


async def test_a_status_socket_that_cannot_be_had_costs_no_more_than_that(
    node: Node, kubelet: Kubelet
) -> None:
    daemon = node.start(f"--status-socket={node.machine.path}")
    await daemon.says("cannot listen path=")
    await shows(kubelet, IDS)
    await daemon.stop()
    assert node.machine.path.is_file()


# --- several lives --------------------------------------------------------------------------------


# --- containers of the former plugin --------------------------------------------------------------


async def test_devices_held_under_old_ids_are_listed_so_from_the_first_list_until_they_are_free(
    node: Node, kubelet: Kubelet
) -> None:
    held = kubelet.hold(["0", "1"], resource=RESOURCE)
    daemon = node.start(program=IMPATIENT)
    await shows(kubelet, ["0", "1", *IDS[2:]])
    assert kubelet.lists(RESOURCE) == 1, "no list went out before"
    await kubelet.restart_container(held)
    grant = await kubelet.allocate(RESOURCE, 2)
    assert set(grant.ids) == set(IDS[2:]), "the kubelet counts the old ones as taken"

    await kubelet.restart()
    await shows(kubelet, ["0", "1", *IDS[2:]])
    await daemon.kill()
    await kubelet.until(
        lambda: kubelet.streams_open == 0, timeout=SECONDS
    )  # or what is shown is the last life's
    node.start(program=IMPATIENT)
    await shows(kubelet, ["0", "1", *IDS[2:]])
    await kubelet.restart_container(held)

    kubelet.free(held)
    kubelet.write_checkpoint()
    await shows(kubelet, IDS)
    await kubelet.restart_container(grant)
    await kubelet.allocate(RESOURCE, 2)


async def test_a_pod_may_be_granted_an_old_id_that_just_became_free(node: Node, kubelet: Kubelet) -> None:
    """A pod of four comes while one of them is still listed under its old id."""
    held = kubelet.hold(["3"], resource=RESOURCE)
    node.start()
    await shows(kubelet, [*IDS[:3], "3"])
    kubelet.free(held)
    grant = await kubelet.allocate(RESOURCE, 4)
    assert set(grant.ids) == {*IDS[:3], "3"}
    assert "/dev/xpu3" in {spec.host_path for spec in grant.nodes}


async def test_containers_get_what_the_administrator_adds(node: Node, kubelet: Kubelet) -> None:
    xre, missing = node.place / "xpu-5", node.place / "missing"
    xre.mkdir()
    (node.place / "xpu").symlink_to(xre)
    daemon = node.start(
        "--container-env=xpu",
        "--mount-xre",
        f"--xre-dir={node.place}/xpu",
        f"--mount-file={missing}",
        f"--container-library-path={node.place}/xpu/lib",
    )
    await shows(kubelet, IDS)
    for count, positions in ((2, "0,1"), (1, "0")):
        grant = await kubelet.allocate(RESOURCE, count)
        assert grant.env["XPU_VISIBLE_DEVICES"] == positions
        assert grant.env["LD_LIBRARY_PATH"] == f"{node.place}/xpu/lib"
        assert "CUDA_VISIBLE_DEVICES" not in grant.env
        (mount,) = grant.mounts
        assert mount.host_path == mount.container_path == f"{node.place}/xpu", "a link stays one"
        assert mount.read_only
    missing.touch()
    grant = await kubelet.allocate(RESOURCE, 1)
    assert [mount.host_path for mount in grant.mounts] == [f"{node.place}/xpu", str(missing)]
    await daemon.says("all host files for containers are there")
    assert daemon.log.count(f"the host has no such file; new containers start without it path={missing}") == 1


async def test_a_container_does_not_start_while_a_file_that_it_mounts_is_missing(
    node: Node, kubelet: Kubelet
) -> None:
    """Its runtime would make an empty directory there. It starts once the file is back."""
    xre, file = node.place / "xpu", node.place / "file"
    xre.mkdir()
    daemon = node.start("--mount-xre", f"--xre-dir={xre}", f"--mount-file={file}")
    await shows(kubelet, IDS)
    without = await kubelet.allocate(RESOURCE, 1)
    file.touch()
    both = await kubelet.allocate(RESOURCE, 2)
    file.unlink()
    await kubelet.restart_container(without)  # it was never granted the file
    with pytest.raises(StartError) as refusal:
        await kubelet.restart_container(both)
    assert f"this container mounts {file} (no such file), which the host lacks now" in str(refusal.value)
    xre.rename(node.place / "aside")
    for grant in (without, both):
        with pytest.raises(StartError, match=f"mounts .*{xre} .no such file., which the host lacks now"):
            await kubelet.restart_container(grant)
    await daemon.stop()

    node.start("--mount-xre", f"--xre-dir={xre}", f"--mount-file={file}")  # the kubelet has it on record
    await kubelet.until(lambda: len(kubelet.registrations) == 2, timeout=SECONDS)
    await shows(kubelet, IDS)
    with pytest.raises(StartError, match="which the host lacks now"):
        await kubelet.restart_container(both)
    xre.mkdir()
    file.touch()
    for grant in (without, both):
        await kubelet.restart_container(grant)


async def test_arguments_of_the_former_plugins_manifests_do_not_stop_it(node: Node, kubelet: Kubelet) -> None:
    daemon = node.start(
        "-sriov-num-vfs=99",
        "--rename-dev",
        "--pass-device-specs=true",
        "-use-fake-dev=false",
        "--use-detail-resName=false",
    )
    await shows(kubelet, IDS)
    for name in ("sriov-num-vfs", "rename-dev", "pass-device-specs", "use-fake-dev", "use-detail-resName"):
        assert any(name in line and "WARNING" in line for line in daemon.log.splitlines())


async def test_options_may_come_from_the_environment_and_are_told_once(node: Node, kubelet: Kubelet) -> None:
    options = node.options()
    daemon = Daemon(
        node.place,
        [],
        environment={
            f"XPU_PLUGIN_{name.upper().replace('-', '_')}": value for name, value in options.items()
        },
    )
    node.daemons.append(daemon)
    await shows(kubelet, IDS)
    [starting] = [line for line in daemon.log.splitlines() if " starting " in line]
    for name, value in options.items():
        assert f"{name}={value}" in starting


# --- probes ---------------------------------------------------------------------------------------


async def test_a_kubelet_socket_that_cannot_be_used_shows_in_log_page_and_doctor(node: Node) -> None:
    """With errno and remedy; the kubelet is served when it comes."""
    port = free_port()
    (node.plugins / "kubelet.sock").write_text("")
    daemon = node.start(f"--metrics-address=127.0.0.1:{port}")
    reason = f"{node.plugins / 'kubelet.sock'}: {os.strerror(errno.ENOTSOCK)} (ENOTSOCK)"
    await daemon.says(f"cannot use the kubelet's socket error=\"{reason}; ")

    async def page() -> str:
        with suppress(OSError):
            return (await asyncio.to_thread(probed, port, "/readyz"))[1]
        return ""

    deadline = time.monotonic() + USUAL.shown + SECONDS
    while f"kubelet: {reason}; " not in (text := await page()):
        assert time.monotonic() < deadline, text
        await asyncio.sleep(0.1)
    (node.plugins / "kubelet.sock").unlink()
    async with node.kubelet() as kubelet:
        await shows(kubelet, IDS)
        assert "ENOTSOCK" not in await page()
        assert await daemon.stop() < EXIT_SECONDS


async def test_a_list_waits_while_another_plugin_may_be_about_to_register(
    node: Node, kubelet: Kubelet
) -> None:
    """The socket of another plugin is new: until it is 2 s old no list of ours goes out."""
    daemon = node.start()
    await shows(kubelet, IDS)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(node.plugins / "other.sock"))
        bound = time.time()
        node.machine.set_card(1, {"state": "207"})
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == len(IDS) - 1, timeout=SECONDS)
        assert time.time() - bound >= YOUNG_SECONDS - 0.1
    assert await daemon.stop() < EXIT_SECONDS


async def test_it_is_ready_also_while_it_waits_and_says_what_for(node: Node, kubelet: Kubelet) -> None:
    port = free_port()
    node.machine.set({"driver": "gone"})
    daemon = node.start(f"--metrics-address=127.0.0.1:{port}")
    await daemon.says("no driver")
    assert await asyncio.to_thread(probed, port, "/healthz") == (200, "ok\n")
    status, text = await asyncio.to_thread(probed, port, "/readyz")
    assert status == 200
    assert text.startswith("library: no driver: ")
    assert text.endswith("kubelet: open streams: 0\n")
    node.machine.set({"driver": "loaded"})
    await shows(kubelet, IDS)
    assert await asyncio.to_thread(probed, port, "/readyz") == (
        200,
        "library: ok\nkubelet: open streams: 1\n",
    )
    assert await daemon.stop() < EXIT_SECONDS


async def test_an_address_that_is_taken_ends_it_with_one_line(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        daemon = node.start(f"--metrics-address=127.0.0.1:{server.getsockname()[1]}")
        assert await daemon.ends() == 1
    await daemon.says("--metrics-address: cannot listen at 127.0.0.1:")
