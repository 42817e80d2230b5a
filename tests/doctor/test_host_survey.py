# SPDX-License-Identifier: Apache-2.0
"""What is seen of host and kubelet's directory, over trees that a test has made."""

import os
import socket
from pathlib import Path

import pytest

from tests.support.machines import make_machine
from tests.support.waiting import SECONDS
from xpu_plugin.doctor import host_survey
from xpu_plugin.doctor.evidence import HostEvidence


def seen(tmp_path: Path, proc_root: Path | None = None, **more: object) -> HostEvidence:
    return host_survey.read_host(
        tmp_path / "dev",
        tmp_path / "sys",
        simulated=True,
        proc_root=proc_root or tmp_path / "proc",
        **more,  # type: ignore[arg-type]
    )


def test_nodes_functions_and_vfs_of_a_machine(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, number=2)
    machine.set_card(1, {"vfs": "2"})
    host = seen(tmp_path)
    assert [node.name for node in host.nodes] == ["xpu0", "xpu1", "xpu2", "xpu3"]
    assert host.control
    assert all(node.character and not node.linked for node in (*host.nodes, host.control))
    assert host.linked_vfs == {"0000:3b:00.0": 0, "0000:3c:00.0": 2, "0000:3c:01.0": 0, "0000:3c:01.1": 0}
    assert host.functions["0000:3c:00.0"].num_vfs == 2
    assert host.addresses == {
        0: "0000:3b:00.0",
        1: "0000:3c:00.0",
        2: "0000:3c:01.0",
        3: "0000:3c:01.1",
    }


def test_an_empty_host(tmp_path: Path) -> None:
    host = seen(tmp_path)
    assert "mount the /dev" in str(host.kernel_log_trouble)
    assert host == HostEvidence(kernel_log_trouble=host.kernel_log_trouble)
    assert host.empty


def test_what_is_no_character_device_is_seen_as_such(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/xpu0").write_text("")
    (tmp_path / "dev/xpu1").mkdir(mode=0o700)
    nodes = seen(tmp_path).nodes
    assert [(node.name, node.character) for node in nodes] == [("xpu0", False), ("xpu1", False)]


def test_a_link_in_dev_char_counts_when_it_leads_to_the_device(tmp_path: Path) -> None:
    (tmp_path / "dev/char").mkdir(parents=True)
    (tmp_path / "dev/xpu0").symlink_to("/dev/null")
    (tmp_path / "dev/char/1:3").symlink_to("/dev/zero")
    assert [node.linked for node in seen(tmp_path).nodes] == [False]
    (tmp_path / "dev/char/1:3").unlink()
    (tmp_path / "dev/char/1:3").symlink_to("../xpu0")
    (node,) = seen(tmp_path).nodes
    assert (node.linked, node.major, node.minor) == (True, 1, 3)


def test_majors_of_character_devices_alone(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/devices").write_text("Character devices:\n  1 mem\n242 xpu\n\nBlock devices:\n  8 sd\n")
    assert seen(tmp_path).majors == {1: "mem", 242: "xpu"}


@pytest.mark.parametrize(
    ("groups", "drivers"),
    [
        (["kubepods.slice"], {"systemd"}),
        (["memory/kubepods"], {"cgroupfs"}),
        (["systemd/kubepods.slice", "memory/kubepods"], {"systemd", "cgroupfs"}),
        (["system.slice"], set()),
    ],
)
def test_cgroup_drivers_by_the_kubelets_groups(groups: list[str], drivers: set[str], tmp_path: Path) -> None:
    for group in groups:
        (tmp_path / "sys/fs/cgroup" / group).mkdir(parents=True)
    assert seen(tmp_path).cgroup_drivers == drivers


def test_who_has_a_node_open_is_seen_but_for_ours(tmp_path: Path) -> None:
    for pid, target in ((7, "/dev/xpu0"), (8, "/dev/xpuctrl"), (9, "/dev/xpu_other")):
        directory = tmp_path / f"proc/{pid}/fd"
        directory.mkdir(parents=True)
        (directory / "3").symlink_to(str(tmp_path) + target)
        (directory.parent / "comm").write_text("xpu_smi\n")
    assert seen(tmp_path, ours={8}).open_elsewhere == (f"xpu_smi (7): {tmp_path}/dev/xpu0",)


def test_the_kubelets_directory(tmp_path: Path, place: Path) -> None:
    assert host_survey.directory_trouble(tmp_path) is None
    assert "not there" in (host_survey.directory_trouble(tmp_path / "none") or "")
    path = place / "kubelet.sock"
    assert "No such file" in str(host_survey.obstacle(path))
    assert host_survey.socket_age(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        assert "refused" in str(host_survey.obstacle(path))
        listener.listen()
        assert host_survey.obstacle(path) is None
    age = host_survey.socket_age(path)
    assert age is not None
    assert abs(age) < SECONDS
    for name in ("xpu-device-plugin.sock", "KunlunShare.sock", "other.sock"):
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(os.fspath(place / name))
    (place / "xpu.txt").write_text("")
    assert host_survey.strangers(place, "xpu-device-plugin") == ("KunlunShare.sock",)


def test_what_is_there_and_cannot_be_used_is_not_absent(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert "ELOOP" in (host_survey.directory_trouble(tmp_path / "circle") or "")
    assert "ELOOP" in str(host_survey.obstacle(tmp_path / "circle"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(tmp_path / "kubelet.sock"))
        assert "EPROTOTYPE" in str(host_survey.obstacle(tmp_path / "kubelet.sock"))


def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert "not writable" in (host_survey.directory_trouble(tmp_path) or "")


def test_listings_show_modes_and_numbers_and_follow_no_links(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/xpu0").symlink_to("/dev/null")
    (tmp_path / "dev/sda").write_text("")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/kubelet.sock").write_text("xyz")
    listed = host_survey.listings(tmp_path / "dev", tmp_path / "plugins")
    (node,) = listed[str(tmp_path / "dev")]
    assert node.startswith("lrwx")
    assert node.endswith(" xpu0")
    (file,) = listed[str(tmp_path / "plugins")]
    assert file.split()[2] == "3"
