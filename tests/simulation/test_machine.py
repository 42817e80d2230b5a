# SPDX-License-Identifier: Apache-2.0
"""The machine file is edited safely, and the host looks like what it says."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import HostError, Machine, MachineError, cards


UNPRIVILEGED = 65534
HARMLESS = ("/dev/random", "/dev/null")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Two cards, with nodes and sysfs tree in the test's directory."""
    made = Machine(tmp_path / "machine", dev_root=tmp_path / "dev", sysfs_root=tmp_path / "sys")
    made.init(cards(2))
    return made


def tree(root: Path | None) -> dict[str, str]:
    """Path -> contents or target of everything that is not a directory."""
    assert root
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def nodes(machine: Machine) -> set[str]:
    assert machine.dev_root
    return {path.name for path in machine.dev_root.iterdir()}


def line_of(machine: Machine, card: int) -> str:
    return next(line for line in machine.text().splitlines() if line.startswith(f"card {card} "))


# --- making and taking away -----------------------------------------------------------------------


def test_a_new_machine_has_a_file_with_all_numbers_given(machine: Machine, tmp_path: Path) -> None:
    assert machine.text() == (
        f"set dev-root={tmp_path}/dev\n"
        f"set sysfs-root={tmp_path}/sys\n"
        "card 0 model=R200 pci=0000:3b:00.0 nodes=0 minors=0\n"
        "card 1 model=R200 pci=0000:3c:00.0 numa=1 nodes=1 minors=2\n"
    )
    assert nodes(machine) == {"xpu0", "xpu1", "xpuctrl"}


def test_nodes_can_be_opened_by_everybody_or_are_links(machine: Machine) -> None:
    assert machine.dev_root
    for path in machine.dev_root.iterdir():
        status = path.stat()
        assert stat.S_ISCHR(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o666
        assert path.is_symlink() or os.major(status.st_rdev) == 240


def test_the_sysfs_tree(machine: Machine) -> None:
    address = "devices/pci0000:3c/0000:3c:00.0"
    entries = tree(machine.sysfs_root)
    assert {key: value for key, value in entries.items() if "3b" not in key and "xpu0" not in key} == {
        f"{address}/vendor": "0x1d22\n",
        f"{address}/device": "0x3684\n",
        f"{address}/subsystem_vendor": "0x0002\n",
        f"{address}/subsystem_device": "0x0001\n",
        f"{address}/numa_node": "1\n",
        f"{address}/sriov_totalvfs": "3\n",
        f"{address}/sriov_numvfs": "0\n",
        f"{address}/driver": "../../../bus/pci/drivers/kunlun",
        "bus/pci/devices/0000:3c:00.0": f"../../../{address}",
        "class/xpu/xpu1/dev": "240:2\n",
        "class/xpu/xpu1/device": f"../../../{address}",
    }
    assert machine.sysfs_root
    assert (machine.sysfs_root / "class/xpu/xpu1/device/numa_node").read_text() == "1\n"
    assert (machine.sysfs_root / "bus/pci/devices/0000:3c:00.0/vendor").exists()
    assert (machine.sysfs_root / "bus/pci/devices/0000:3c:00.0/driver").is_dir()


def test_each_function_is_bound_to_the_driver_that_the_file_says(machine: Machine) -> None:
    assert machine.sysfs_root
    bus = machine.sysfs_root / "bus/pci"

    def drivers() -> dict[str, str | None]:
        return {
            path.name: (path / "driver").resolve(strict=True).name if (path / "driver").is_symlink() else None
            for path in (bus / "devices").glob("0000:3c:*")
        }

    machine.set_card(1, {"vfs": "3", "vf-drivers": "kunlun,vfio-pci,none"})
    assert drivers() == {
        "0000:3c:00.0": "kunlun",
        "0000:3c:01.0": "kunlun",
        "0000:3c:01.1": "vfio-pci",
        "0000:3c:01.2": None,
    }
    assert nodes(machine) == {"xpu0", "xpu1", "xpu2", "xpuctrl"}
    machine.set_card(1, {"vf-drivers": ""})
    assert set(drivers().values()) == {"kunlun"}
    assert nodes(machine) == {"xpu0", "xpu1", "xpu2", "xpu3", "xpu4", "xpuctrl"}
    machine.set_card(1, {"vfs": "0"})
    assert drivers() == {"0000:3c:00.0": "kunlun"}
    machine.set({"driver": "gone"})
    assert drivers() == {"0000:3c:00.0": None}


def test_both_halves_of_a_k200_show_the_same_card_without_sriov(machine: Machine) -> None:
    machine.set_card(0, {"model": "K200"})
    assert "nodes=0,2 minors=0,1" in line_of(machine, 0)
    entries = tree(machine.sysfs_root)
    assert entries["class/xpu/xpu0/device"] == entries["class/xpu/xpu2/device"]
    assert (entries["class/xpu/xpu0/dev"], entries["class/xpu/xpu2/dev"]) == ("240:0\n", "240:1\n")
    assert "devices/pci0000:3b/0000:3b:00.0/sriov_totalvfs" not in entries


def test_minors_leave_the_control_nodes_place_free(machine: Machine) -> None:
    for number in range(2, 66):
        machine.set_card(number, {"model": "R200", "pci": f"0000:{0x3B + number:02x}:00.0"})
    assert "minors=126" in line_of(machine, 63)
    assert "minors=130" in line_of(machine, 64)


def test_roots_are_remembered(machine: Machine) -> None:
    Machine(machine.path).set_card(0, {"vfs": "1"})
    assert nodes(machine) == {"xpu0", "xpu1", "xpu2", "xpuctrl"}
    assert "class/xpu/xpu2/dev" in tree(machine.sysfs_root)


def test_a_machine_is_replaced_only_by_force(machine: Machine) -> None:
    with pytest.raises(MachineError, match="exists already"):
        machine.init(cards(1))
    machine.init(cards(1), {"major": "241"}, force=True)
    assert nodes(machine) == {"xpu0", "xpuctrl"}


def test_remove_takes_away_all_that_was_made(machine: Machine) -> None:
    machine.set_card(1, {"vfs": "3"})
    machine.remove()
    assert nodes(machine) == set()
    assert tree(machine.sysfs_root) == {}
    assert not machine.path.exists()


def test_a_failed_init_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "xpu0").write_text("")
    machine = Machine(tmp_path / "machine", dev_root=tmp_path)
    with pytest.raises(HostError):
        machine.init(cards(1))
    assert not machine.path.exists()
    with pytest.raises(MachineError, match="vfs of card: this K100 has no VFs"):
        machine.init([{"model": "K100", "pci": "0000:01:00.0", "vfs": "1"}])
    assert not machine.path.exists()


def test_environment(tmp_path: Path) -> None:
    assert Machine("/m").environment() == {"XPU_SIMULATOR_FILE": "/m"}
    assert Machine("/m", dev_root="/d", sysfs_root="/s").environment() == {
        "XPU_SIMULATOR_FILE": "/m",
        "XPU_SIMULATOR_DEV_ROOT": "/d",
        "XPU_SIMULATOR_SYSFS_ROOT": "/s",
    }


# --- changing -------------------------------------------------------------------------------------


def test_changes_keep_comments_and_order(machine: Machine) -> None:
    text = machine.text().replace("nodes=0 minors=0", "nodes=0 minors=0 # one") + "\n# two\n"
    machine.path.write_text(text)
    machine.set_card(0, {"state": "207", "lost": "yes"})
    assert machine.text() == text.replace("minors=0 #", "minors=0 state=207 lost=yes #")
    machine.set_card(0, {"state": "", "lost": ""})
    assert machine.text() == text


def test_settings(machine: Machine) -> None:
    machine.set({"quirks": "off", "driver-version": "4.0 commit: 1"})
    assert "set quirks=off\n" in machine.text()
    assert "set driver-version=4.0 commit: 1\n" in machine.text()
    machine.set({"quirks": "on"})
    assert machine.text().count("quirks") == 1
    machine.set({"quirks": ""})
    assert "quirks" not in machine.text()


def test_vfs_made_anew_forget_their_numbers_states_and_drivers(machine: Machine) -> None:
    split = {"vfs": "3", "vf-states": "201,207,201", "vf-drivers": "vfio-pci,none,kunlun"}
    for vfs, end in (("1", " minors=0 vfs=1 vf-nodes=2 vf-minors=4"), ("0", " minors=0")):
        machine.set_card(0, split)
        machine.set_card(0, {"state": "207"})
        line = line_of(machine, 0)
        assert "vfs=3 vf-nodes=2,3,4 vf-minors=4,6,8 vf-states=201,207,201" in line
        assert line.count("vf-drivers=vfio-pci,none,kunlun") == 1
        machine.set_card(0, {"vfs": vfs, "state": ""})
        assert line_of(machine, 0).endswith(end)
    machine.set_card(0, split)
    machine.set({"driver": "gone"})
    assert "vf-drivers" not in line_of(machine, 0)


def test_cards_come_and_go_and_the_others_keep_their_numbers(machine: Machine) -> None:
    machine.add_fault("xpumlDeviceGetState", "hang", card=0)
    machine.add_process(7, card=0)
    machine.add_process(8, card=1)
    machine.remove_card(0)
    assert nodes(machine) == {"xpu1", "xpuctrl"}
    assert "0000:3b" not in str(tree(machine.sysfs_root))
    assert "fault" not in machine.text()
    assert "process pid=8 card=1" in machine.text()
    machine.set_card(5, {"model": "R300", "pci": "0000:5e:00.0"})
    assert "nodes=0 minors=0" in line_of(machine, 5)
    with pytest.raises(MachineError, match="there is no card 0"):
        machine.remove_card(0)


def test_faults_and_processes(machine: Machine) -> None:
    text = machine.text()
    machine.add_fault("xpumlDeviceGetState", "code:999", card=1, vf=0, times=2)
    machine.add_process(4711, card=1, memory=512)
    assert machine.text() == text + (
        "fault function=xpumlDeviceGetState card=1 vf=0 times=2 action=code:999\n"
        "process pid=4711 card=1 memory=512\n"
    )
    machine.clear_faults()
    machine.clear_processes()
    assert machine.text() == text


def test_settle_repairs_the_host(machine: Machine) -> None:
    assert machine.dev_root
    assert machine.sysfs_root
    entries = tree(machine.sysfs_root)
    (machine.dev_root / "xpu1").unlink()
    (machine.sysfs_root / "class/xpu/xpu0/dev").write_text("1:1\n")
    machine.settle()
    assert nodes(machine) == {"xpu0", "xpu1", "xpuctrl"}
    assert tree(machine.sysfs_root) == entries


def test_a_change_waits_for_the_lock(machine: Machine) -> None:
    with Path(f"{machine.path}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        change = threading.Thread(target=machine.set_card, args=(0, {"state": "207"}))
        change.start()
        change.join(0.2)
        assert change.is_alive()
        assert "207" not in machine.text()
    change.join()
    assert "state=207" in machine.text()


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cart 0", "line 1: unknown word 'cart'; accepted: set, card, fault, process"),
        ("\n\ncard 0 foo=1", "line 3: unknown key 'foo' of card; accepted: model, pci, numa, "),
        ("card 0 model", "line 1: 'model' of card; accepted: KEY=VALUE"),
        ("card", "line 1: number of card: ''; accepted: 0..8191"),
        ("card 8192 model=R200", "line 1: number of card: '8192'; accepted: 0..8191"),
        ("card 0 model=R200", "line 1: card 0 needs pci="),
        ("card 0 pci=0000:01:00.0", "line 1: card 0 needs model="),
        ("card 0 model=r200", "line 1: model of card: 'r200'; accepted: K100, K200, R200, "),
        ("card 0 pci=01:00.0", "line 1: pci of card: '01:00.0'; accepted: an address dddd:bb:ss.f"),
        ("card 0 pci=0000:01:20.0", "line 1: pci of card: '0000:01:20.0'; accepted: an address"),
        ("card 0 numa=0 numa=1", "line 1: numa of card is given twice"),
        ("card 0 state=1,x", "line 1: state of card: '1,x'; accepted: numbers, by commas, 0..9999"),
        ("card 0 nodes=1,2,3,4,5", "line 1: nodes of card: '1,2,3,4,5'; accepted: numbers, by commas, "),
        ("card 0 vfs=5", "line 1: vfs of card: '5'; accepted: a number 0..4"),
        ("card 0 busy=1", "line 1: busy of card: '1'; accepted: no, yes"),
        ("card 0 serial=12345678901234567", "accepted: a text of at most 16 characters"),
        ("card 0 model=K200 pci=0000:01:00.0 state=201", "line 1: state has 1 values; accepted: 2"),
        ("card 0 model=R200 pci=0000:01:00.0 vf-nodes=3", "vf-nodes has 1 values; accepted: 0"),
        ("card 0 model=R100 pci=0000:01:00.0 vfs=1", "this R100 has no VFs; accepted: 0"),
        ("card 0 model=R200 pci=0000:01:00.0 vfs=4", "this R200 does not have 4 VFs; accepted: 0, 1, 2, 3"),
        ("card 0 model=P800 pci=0000:01:00.0 vfs=1", "this P800 does not have 1 VFs; accepted: 0, 2, 4"),
        ("card 0 model=P800 pci=0000:01:00.0 vfs=4 total-vfs=2", "does not have 4 VFs; accepted: 0, 2"),
        ("card 0 model=P800 pci=0000:01:00.5 vfs=4", "pci of card: the VFs need the functions after it"),
        ("card 0 model=R200 pci=0000:01:1f.0 vfs=1", "the VFs need the slot after it"),
        (
            "card 0 model=R200 pci=0000:01:00.0\ncard 0 model=R200 pci=0000:02:00.0",
            "line 2: card 0 comes twice",
        ),
        (
            "card 0 model=R200 pci=0000:01:00.0\ncard 1 model=R200 pci=0000:01:00.0",
            "two devices have the address 0000:01:00.0",
        ),
        (
            "card 0 model=R200 pci=0000:01:00.0 vfs=2\ncard 1 model=R200 pci=0000:01:01.1",
            "two devices have the address 0000:01:01.1",
        ),
        (
            "card 0 model=R200 pci=0000:01:00.0 nodes=4\ncard 1 model=R200 pci=0000:02:00.0 nodes=4",
            "line 2: node 4 is taken twice",
        ),
        ("card 0 model=R200 pci=0000:01:00.0 minors=128", "line 1: minor 128 is taken twice"),
        ("set quirks=yes", "line 1: quirks of set: 'yes'; accepted: off, on"),
        ("set speed=1", "line 1: unknown key 'speed' of set; accepted: quirks, model, major, "),
        ("set", "line 1: '' of set; accepted: KEY=VALUE"),
        ("card 0 vf-drivers=vfio", "vf-drivers of card: 'vfio'; accepted: for each VF kunlun, vfio-pci or "),
        ("card 0 vf-drivers=none,none,none,none,none", "vf-drivers of card: 'none,none,none,none,none'; "),
        ("set model=P900", "line 1: model of set: 'P900'; accepted: K100, K200, "),
        ("set minors=1", "line 1: minors of set: '1'; accepted: twice, node"),
        ("set order=random", "line 1: order of set: 'random'; accepted: by-node, scattered"),
        ("set vf-functions=1", "line 1: vf-functions of set: '1'; accepted: next-slot, own-slot"),
        ("set later-functions=uuid", "later-functions of set: 'uuid'; accepted: all, none or, by commas, "),
        ("fault action=hang", "line 1: fault needs function="),
        (
            "fault function=xpumlInit action=hang at=halfway",
            "line 1: at=halfway of fault needs function=xpumlDeviceSetSriovVfNum",
        ),
        ("fault function=xpumlInit", "line 1: fault needs action="),
        ("fault function=xpumlStart", "function of fault: 'xpumlStart'; accepted: xpumlInit, "),
        (
            "fault function=xpumlInit action=sleep",
            "action of fault: 'sleep'; accepted: code:N, delay:MS, hang, crash, fpe, abort, garbage-strings",
        ),
        ("fault function=xpumlInit action=code:", "action of fault: 'code:'; accepted: code:N"),
        ("fault function=xpumlInit action=hang times=0", "times of fault: '0'; accepted: a number 1.."),
        ("fault function=xpumlInit action=hang vf=1", "line 1: half and vf need card="),
        ("fault function=xpumlInit action=hang card=3", "line 1: there is no card 3"),
        ("process card=3 pid=1", "line 1: there is no card 3"),
        ("process pid=1", "line 1: process needs card="),
        ("process card=1", "line 1: process needs pid="),
    ],
)
def test_errors_say_line_value_and_what_is_accepted(machine: Machine, text: str, reason: str) -> None:
    before = nodes(machine)
    machine.path.write_text(text)
    with pytest.raises(MachineError) as error:
        machine.settle()
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert nodes(machine) == before


def test_a_change_that_is_wrong_changes_nothing(machine: Machine) -> None:
    text, entries = machine.text(), tree(machine.sysfs_root)
    with pytest.raises(MachineError, match="line 3: state of card: 'bad'"):
        machine.set_card(0, {"state": "bad", "vfs": "2"})
    assert (machine.text(), tree(machine.sysfs_root)) == (text, entries)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot read .*; accepted: a file made by 'simulate init'"):
        Machine(tmp_path / "none").text()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(MachineError, match="is not a text"):
        Machine(tmp_path / "binary").text()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"somebody's\n", None], ids=["binary", "text", "fifo"])
def test_a_file_that_is_no_machine_stays_as_it_is(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "other"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    before = file.lstat()
    other = Machine(file)
    for change in (other.remove, lambda: other.set({"quirks": "off"}), lambda: other.init([])):
        with pytest.raises(MachineError):
            change()
    if content is None:
        with pytest.raises(MachineError, match="is not a regular file; accepted: another file"):
            other.init([], force=True)
    assert os.path.samestat(file.lstat(), before)
    assert content is None or file.read_bytes() == content


def test_a_file_that_is_larger_than_any_machine_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(MachineError, match=r"cannot read .*: more than .* bytes"):
        Machine(tmp_path / "large").text()


def test_names_have_to_be_utf_8(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="accepted: UTF-8"):
        Machine(tmp_path / "machine", dev_root=tmp_path / "\udcff").init([])
    assert list(tmp_path.iterdir()) == []


def test_no_library(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot load the simulator"):
        Machine(machine.path, library=tmp_path / "none.so").settle()


# --- what is not ours -----------------------------------------------------------------------------


def make_file(path: Path) -> None:
    path.write_text("")


def make_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_node(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(241, 0))
    except PermissionError:
        pytest.skip("making device nodes needs privilege")


def unread(path: Path) -> tuple[int, ...]:
    """All that is known of a file, but for when it was read last."""
    status = path.lstat()
    return (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_rdev, status.st_ctime_ns)


@pytest.mark.parametrize("make", [make_file, make_link, make_node])
@pytest.mark.parametrize("name", ["xpu1", "xpu9", "xpuctrl"])
def test_foreign_nodes_are_never_touched(machine: Machine, make: Callable[[Path], None], name: str) -> None:
    assert machine.dev_root
    foreign = machine.dev_root / name
    foreign.unlink(missing_ok=True)
    make(foreign)
    before, text = unread(foreign), machine.text()
    for change in (machine.settle, machine.remove, lambda: machine.set_card(0, {"vfs": "3"})):
        with pytest.raises(HostError, match=f"{foreign} was not made by the simulator and stays"):
            change()
    assert unread(foreign) == before
    assert machine.text() == text


def test_other_files_beside_the_nodes_do_not_matter(machine: Machine) -> None:
    assert machine.dev_root
    for name in ("xpu", "xpu_smi", "xpu01", "xpu-1", "gpu0"):
        (machine.dev_root / name).write_text("")
    machine.set_card(0, {"vfs": "1"})
    assert "xpu2" in nodes(machine)


@pytest.mark.skipif(os.geteuid() != 0, reason="without root it makes links, for any major")
def test_the_major_of_a_driver_is_refused(machine: Machine) -> None:
    machine.remove()
    with pytest.raises(HostError, match="major 1 belongs to a driver of this kernel; accepted: set major=N"):
        machine.init(cards(1), {"major": "1"})
    assert nodes(machine) == set()


@pytest.mark.parametrize("root", ["/sys", "/sys/", "/sys/class", "/proc/../sys"])
def test_the_real_sysfs_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(MachineError, match="accepted: a directory that is not below /sys"):
        Machine(tmp_path / "machine", sysfs_root=root)


def test_the_real_sysfs_is_left_alone_by_the_simulator(machine: Machine) -> None:
    if not os.path.ismount("/sys"):
        pytest.skip("no sysfs here")
    before = sorted(os.listdir("/sys"))  # noqa: PTH208  # names, not paths
    text = machine.text().replace(f"sysfs-root={machine.sysfs_root}", "sysfs-root=/sys")
    machine.path.write_text(text)
    Machine(machine.path).settle()
    assert sorted(os.listdir("/sys")) == before  # noqa: PTH208


def test_other_pci_devices_in_the_tree_stay(machine: Machine) -> None:
    assert machine.sysfs_root
    other = machine.sysfs_root / "devices/pci0000:01/0000:01:00.0"
    other.mkdir(parents=True)
    (other / "vendor").write_text("0x8086\n")
    link = machine.sysfs_root / "bus/pci/devices/0000:01:00.0"
    link.symlink_to("../../../devices/pci0000:01/0000:01:00.0")
    machine.remove()
    assert tree(machine.sysfs_root) == {
        "bus/pci/devices/0000:01:00.0": str(link.readlink()),
        "devices/pci0000:01/0000:01:00.0/vendor": "0x8086\n",
    }


# --- without privilege ----------------------------------------------------------------------------


def as_nobody(directory: Path, work: str) -> subprocess.CompletedProcess[str]:
    """Do `work` with the `machine` of a directory in a fresh process without privileges.

    It gives them up once everything is imported, as it could not read a checkout in somebody's home. For the
    same reason what it runs is not measured: it could not write down what was.
    """
    program = f"""\
import os, sys
from pathlib import Path
from xpu_plugin.simulation.machine import Machine, cards

directory = Path(sys.argv[1])
os.setgroups([])
os.setgid({UNPRIVILEGED})
os.setuid({UNPRIVILEGED})
library = directory / "libxpuml.so.1"
machine = Machine(directory / "machine", dev_root=directory / "dev", library=library)
{work}
"""
    command = [sys.executable, "-c", program, str(directory)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any user can reach and write, with a library of theirs to open."""
    directory = Path(tempfile.mkdtemp(prefix="xpu-simulator-"))
    directory.chmod(0o777)
    library = directory / "libxpuml.so.1"
    shutil.copy(shipped(), library)
    library.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="elsewhere every test runs without privilege")
def test_who_cannot_make_nodes_gets_links_to_harmless_devices(open_directory: Path) -> None:
    make = 'machine.init([*cards(1), {"model": "K200", "pci": "0000:01:00.0"}])'
    made = as_nobody(open_directory, make + '\nmachine.set_card(0, {"vfs": "1"})')
    assert made.returncode == 0, made.stderr
    dev_root = open_directory / "dev"
    targets = {path.name: str(path.readlink()) for path in dev_root.iterdir()}
    even, odd = HARMLESS
    assert targets == {"xpu0": even, "xpu1": even, "xpu2": odd, "xpu3": even, "xpuctrl": even}
    assert os.minor((dev_root / "xpu1").stat().st_rdev) & 1 == 0
    assert os.minor((dev_root / "xpu2").stat().st_rdev) & 1 == 1
    removed = as_nobody(open_directory, "machine.remove()")
    assert removed.returncode == 0, removed.stderr
    assert list(dev_root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a directory of another user")
def test_a_directory_of_others_is_an_error_of_the_host(open_directory: Path) -> None:
    (open_directory / "dev").mkdir(mode=0o755)
    refused = as_nobody(open_directory, "machine.init(cards(1))")
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert re.search(r"HostError: .*cannot make .*/dev/xpu0: Permission denied", last)
    assert not (open_directory / "machine").exists()
