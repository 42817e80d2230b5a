# SPDX-License-Identifier: Apache-2.0
"""Device nodes and sysfs, on trees built for the test. Nodes are links to devices that every host has."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xpu_plugin.edges.host import Watch, identity, list_nodes, read_drivers, read_function, read_host
from xpu_plugin.model.devices import Function, Node


A, B, VF = "0000:3b:00.0", "0000:3c:00.0", "0000:3b:01.0"
NULL = Node(number=0, major=1, minor=3, inode=Path("/dev/null").stat().st_ino)


class Tree:
    """A /dev and a /sys."""

    def __init__(self, root: Path) -> None:
        self.dev = root / "dev"
        self.sys = root / "sys"
        self.dev.mkdir()
        self.sys.mkdir()

    def node(self, name: str, device: str = "null") -> None:
        (self.dev / name).symlink_to(f"/dev/{device}")

    def function(self, address: str, *, below: str = "pci", **files: object) -> Path:
        """A PCI function with so many attribute files."""
        directory = self.sys / "devices" / below / address
        directory.mkdir(parents=True)
        for name, content in files.items():
            (directory / name).write_text(f"{content}\n")
        listed = self.sys / "bus/pci/devices" / address
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.symlink_to(directory)
        return directory

    def belongs(self, number: int, target: Path) -> None:
        """/sys/class/xpu/xpuN/device leads to `target`."""
        directory = self.sys / f"class/xpu/xpu{number}"
        directory.mkdir(parents=True)
        (directory / "device").symlink_to(target)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- nodes --------------------------------------------------------------------------------------------


def test_nodes_are_listed_by_n_with_their_identity(tree: Tree) -> None:
    tree.node("xpu10")
    tree.node("xpu9", "zero")
    tree.node("xpu0")
    assert list_nodes(tree.dev, simulated=True) == (
        NULL,
        Node(number=9, major=1, minor=5, inode=Path("/dev/zero").stat().st_ino),
        Node(number=10, major=1, minor=3, inode=NULL.inode),
    )


@pytest.mark.parametrize(
    "name", ["xpuctrl", "xpu", "xpu-1", "xpu01", "xpu1a", "xpu 1", "axpu1", "xpu1\n", "xpu\u0663"]
)
def test_other_names_are_no_nodes(name: str, tree: Tree) -> None:
    tree.node(name)
    assert list_nodes(tree.dev, simulated=True) == ()


def test_only_character_devices_are_nodes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.dev / "xpu1").touch()
    (tree.dev / "xpu2").mkdir()
    (tree.dev / "xpu3").symlink_to("nowhere")
    os.mkfifo(tree.dev / "xpu4")
    monkeypatch.chdir(tree.dev)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("xpu5")
    tree.node("xpu6")
    assert [node.number for node in list_nodes(tree.dev, simulated=True)] == [6]


def test_the_identity_is_that_of_a_character_device_only(tree: Tree) -> None:
    tree.node("xpu0")
    (tree.dev / "file").touch()
    null = Path("/dev/null").stat()
    assert identity(tree.dev / "xpu0", simulated=True) == (null.st_rdev, null.st_ino) == NULL.identity
    assert identity(tree.dev / "file", simulated=True) is None
    assert identity(tree.dev / "none", simulated=True) is None
    assert identity(tree.dev / "file" / "below", simulated=True) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="making device nodes needs root")
def test_no_node_is_opened(tree: Tree) -> None:
    """A node of a major that has no driver cannot be opened; opening a real one would make it in use."""
    os.mknod(tree.dev / "xpu0", 0o020666, os.makedev(240, 14))
    with pytest.raises(OSError, match="No such device"):
        os.open(tree.dev / "xpu0", os.O_RDWR)
    [node] = list_nodes(tree.dev, simulated=True)
    assert (node.number, node.major, node.minor) == (0, 240, 14)


@pytest.fixture
def devices() -> Iterator[Path]:
    """A directory for real nodes, as devtmpfs has them."""
    if os.geteuid() != 0:
        pytest.skip("making device nodes needs root")
    if not Path("/dev/shm").is_dir():
        pytest.skip("needs a tmpfs, which numbers inodes as devtmpfs does")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


def test_a_node_made_anew_with_the_same_numbers_is_another_one(devices: Path) -> None:
    seen: set[Node] = set()
    for _ in range(20):
        os.mknod(devices / "xpu0", 0o020666, os.makedev(240, 14))
        seen.update(list_nodes(devices, simulated=False))
        (devices / "xpu0").unlink()
    assert len(seen) == 20


# --- sysfs --------------------------------------------------------------------------------------------


def test_a_host_has_nodes_control_node_addresses_and_functions(tree: Tree) -> None:
    tree.node("xpu0")
    tree.node("xpuctrl", "full")
    card = tree.function(
        A, vendor="0x1d22", device="0x3684", subsystem_device="0x0001", numa_node="1", sriov_numvfs="0"
    )
    tree.belongs(0, card)
    host = read_host(tree.dev, tree.sys, simulated=True)
    assert host.nodes == (NULL,)
    assert host.control == os.makedev(1, 7)
    assert host.addresses == {0: A}
    assert host.functions == {
        A: Function(vendor=0x1D22, device=0x3684, subsystem=1, numa=1, num_vfs=0, physfn=None)
    }


@pytest.mark.parametrize(
    ("below", "bridges"),
    [
        ("pci0000:3a", "pci0000:3a"),
        ("pci0000:3a/0000:3a:01.0/0000:3b:00.0", "pci0000:3a/0000:3a:01.0/0000:3b:00.0"),
        ("pci10000:3a/10000:3a:01.0", "pci10000:3a/10000:3a:01.0"),
        ("platform/board/pci0002:00/0002:00:00.0", "pci0002:00/0002:00:00.0"),  # not on x86
        ("platform/vmd", None),
    ],
)
def test_the_bridges_above_a_function_are_those_of_its_path(
    below: str, bridges: str | None, tree: Tree
) -> None:
    tree.function(A, below=below)
    assert read_function(tree.sys, A).bridges == bridges


def test_an_empty_host_is_told_as_such(tmp_path: Path) -> None:
    host = read_host(tmp_path / "none", tmp_path / "none", simulated=True)
    assert (host.nodes, host.control, host.addresses, host.functions) == ((), None, {}, {})


@pytest.mark.parametrize("entry", [True, False])
def test_a_vf_leads_to_its_card_although_the_card_has_no_node(entry: bool, tree: Tree) -> None:
    """Also where the driver makes no class, and the vendor's functions are found on the bus."""
    card = tree.function(A, vendor="0x1d22", device="0x3684", numa_node="0", sriov_numvfs="3")
    virtual = tree.function(VF, vendor="0x1d22", device="0x3685")
    (virtual / "physfn").symlink_to(card)
    for number in (1, 2):
        tree.node(f"xpu{number}")
        if entry:
            tree.belongs(number, virtual)
    host = read_host(tree.dev, tree.sys, simulated=True)
    assert host.addresses == ({1: VF, 2: VF} if entry else {}), "as both nodes of a K200 lead to one function"
    assert host.functions.keys() == {A, VF}
    assert (host.functions[VF].physfn, host.functions[A].num_vfs) == (A, 3)


@pytest.mark.parametrize("numa", ["-1", "", "none", None])
def test_an_unknown_numa_node_is_none(numa: str | None, tree: Tree) -> None:
    tree.function(A, **({} if numa is None else {"numa_node": numa}))
    assert read_function(tree.sys, A).numa is None


def test_what_sysfs_does_not_tell_is_left_out(tree: Tree) -> None:
    tree.function(A, vendor="junk", device="0xzz", sriov_numvfs="")
    assert read_function(tree.sys, A) == read_function(tree.sys, B) == Function()


@pytest.mark.parametrize(
    "target",
    ["nowhere", "class/xpu/xpu0/device", "devices/platform/kunlun", None],
    ids=["a dangling link", "a loop", "no PCI function", "no class entry"],
)
def test_a_class_entry_that_does_not_lead_to_a_function_is_no_address(target: str | None, tree: Tree) -> None:
    """Else it would contradict the library, and the device would be left out."""
    tree.node("xpu0")
    (tree.sys / "devices/platform/kunlun").mkdir(parents=True)
    if target:
        tree.belongs(0, tree.sys / target)
    assert read_host(tree.dev, tree.sys, simulated=True).addresses == {}


def test_without_class_entries_the_numbers_of_a_node_lead_to_its_function(tree: Tree) -> None:
    """As for a driver with a class of another name."""
    for number, device, numbers, address in ((0, "null", "1:3", B), (1, "zero", "1:5", A)):
        tree.node(f"xpu{number}", device)
        directory = tree.sys / "dev/char" / numbers
        directory.mkdir(parents=True)
        (directory / "device").symlink_to(tree.function(address, vendor="0x1d22"))
    assert read_host(tree.dev, tree.sys, simulated=True).addresses == {0: B, 1: A}
    tree.belongs(0, tree.sys / "bus/pci/devices" / A)
    assert read_host(tree.dev, tree.sys, simulated=True).addresses == {0: A, 1: A}, "the class comes first"


def test_class_entries_tell_of_devices_whose_nodes_are_gone(tree: Tree) -> None:
    """A device without its node is something else than a card that is off the bus."""
    tree.belongs(5, tree.function(A, vendor="0x1d22"))
    tree.belongs(7, tree.sys / "devices/pci0000:00/off the bus")
    (tree.sys / "class/xpu/xpux").mkdir()
    tree.node("xpu0")
    host = read_host(tree.dev, tree.sys, simulated=True)
    assert host.addresses == {5: A}
    assert host.functions.keys() == {A}


def test_without_class_entries_the_vendors_functions_are_found_on_the_bus(tree: Tree) -> None:
    """So that NUMA node and model are known also of drivers that make no class."""
    tree.node("xpu0")
    tree.function(A, vendor="0x1d22", device="0x3684", numa_node="1")
    tree.function(B, vendor="0x8086", device="0x1234")
    host = read_host(tree.dev, tree.sys, simulated=True)
    assert host.addresses == {}
    assert {address: function.numa for address, function in host.functions.items()} == {A: 1}


# --- drivers --------------------------------------------------------------------------------------------


def bind(tree: Tree, function: Path, name: str) -> None:
    driver = tree.sys / "bus/pci/drivers" / name
    driver.mkdir(parents=True, exist_ok=True)
    (function / "driver").symlink_to(driver)


@pytest.fixture
def split(tree: Tree) -> Path:
    """A card with two VFs; the first is handed to a virtual machine, the second bound to no driver."""
    card = tree.function(A, vendor="0x1d22")
    bind(tree, card, "kunlun")
    for number, address in enumerate((VF, "0000:3b:01.1")):
        virtual = tree.function(address, vendor="0x1d22")
        (card / f"virtfn{number}").symlink_to(f"../{address}")
        if number == 0:
            bind(tree, virtual, "vfio-pci")
    return card


@pytest.mark.usefixtures("split")
def test_the_drivers_of_a_card_and_its_vfs(tree: Tree) -> None:
    bind(tree, tree.function(B), "kunlun")
    assert read_drivers(tree.sys, A) == {A: "kunlun", VF: "vfio-pci", "0000:3b:01.1": None}
    assert read_drivers(tree.sys, VF) == {VF: "vfio-pci"}


def test_a_card_without_driver_is_not_a_card_that_is_not_there(tree: Tree, split: Path) -> None:
    (split / "driver").unlink()
    assert read_drivers(tree.sys, A)[A] is None
    assert read_drivers(tree.sys, B) == {}
    assert read_drivers(tree.sys / "none", A) == {}


def test_a_vf_that_went_meanwhile_is_not_said_to_have_no_driver(tree: Tree, split: Path) -> None:
    (split / "virtfn2").symlink_to("../0000:3b:01.2")
    with pytest.raises(FileNotFoundError, match=r"0000:3b:01\.2"):
        read_drivers(tree.sys, A)


def test_a_driver_that_cannot_be_told_is_an_error(tree: Tree, split: Path) -> None:
    (split / "driver").unlink()
    (split / "driver").write_text("kunlun")
    with pytest.raises(OSError, match="driver"):
        read_drivers(tree.sys, A)


# --- what a change is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [1, 2, 3])  # before each change: facts are new, read again, settled
def test_an_unchanged_host_is_the_same_and_every_change_that_needs_a_scan_shows(
    looks: int, tree: Tree
) -> None:
    card = tree.function(A, vendor="0x1d22", sriov_numvfs="0")
    tree.node("xpu0")
    tree.node("xpuctrl")
    tree.belongs(0, card)
    watch = Watch(tree.dev, tree.sys, simulated=True)
    seen = [watch.read()]

    def changed(change: Callable[[], object]) -> None:
        for _ in range(looks):
            assert watch.read() is seen[-1]
        change()
        host = read_host(tree.dev, tree.sys, simulated=True)
        assert host not in seen
        seen.append(watch.read())
        assert seen[-1] == host

    def other_device() -> None:
        (tree.dev / "xpu1").unlink()
        tree.node("xpu1", "zero")  # the same name

    def split(card: Path, *addresses: str) -> None:
        for number, address in enumerate(addresses):
            virtual = tree.function(address, vendor="0x1d22")
            (card / f"virtfn{number}").symlink_to(virtual)
        (card / "sriov_numvfs").write_text(f"{len(addresses)}\n")

    def hot_plug() -> None:
        tree.belongs(1, tree.function(B, vendor="0x1d22", sriov_numvfs="0"))

    for change in (
        lambda: tree.node("xpu1"),
        other_device,
        lambda: split(card, "0000:3b:01.0", "0000:3b:01.1"),
        hot_plug,
        lambda: split(tree.sys / "devices/pci" / B, "0000:3c:01.0"),
        (tree.dev / "xpuctrl").unlink,
        (tree.dev / "xpu0").unlink,
    ):
        changed(change)


def test_a_number_of_vfs_that_is_told_late_is_seen(tree: Tree) -> None:
    """Linux tells it after the last VF is on the bus, so that a look can come between the two."""
    card = tree.function(A, vendor="0x1d22", sriov_numvfs="0")
    tree.node("xpu0")
    tree.belongs(0, card)
    watch = Watch(tree.dev, tree.sys, simulated=True)
    for _ in range(3):
        assert watch.read().functions[A].num_vfs == 0
    tree.function(VF, vendor="0x1d22")
    assert watch.read().functions[A].num_vfs == 0
    (card / "sriov_numvfs").write_text("1\n")
    assert watch.read().functions[A].num_vfs == 1


def test_what_has_settled_is_not_read_again(tree: Tree) -> None:
    """Thousands of files each few seconds; here, one changes as none does without entries that come or go."""
    card = tree.function(A, vendor="0x1d22", sriov_numvfs="0")
    tree.node("xpu0")
    tree.belongs(0, card)
    mounts, former = Path("/proc/self/mountinfo"), b""
    while mounts.read_bytes() != former:  # a mount on the machine, too, has all read again
        former = mounts.read_bytes()
        (card / "sriov_numvfs").write_text("0\n")
        watch = Watch(tree.dev, tree.sys, simulated=True)
        settled = [watch.read() for _ in range(2)][-1]
        (card / "sriov_numvfs").write_text("1\n")
        last = watch.read()
    assert last is settled


def test_a_node_that_takes_the_name_of_another_is_seen(devices: Path, tree: Tree) -> None:
    os.mknod(devices / "xpu0", 0o020666, os.makedev(240, 0))
    watch = Watch(devices, tree.sys, simulated=False)
    for minor in (2, 4, 2, 2):
        before = [watch.read() for _ in range(3)]
        assert before[0] is before[2]
        os.mknod(devices / "other", 0o020666, os.makedev(240, minor))
        (devices / "other").rename(devices / "xpu0")
        assert watch.read().nodes == list_nodes(devices, simulated=False) != before[0].nodes


def test_a_node_that_is_mounted_over_is_seen(devices: Path, tree: Tree) -> None:
    os.mknod(devices / "xpu0", 0o020666, os.makedev(240, 0))
    watch = Watch(devices, tree.sys, simulated=False)
    before = [watch.read() for _ in range(3)][-1]
    if subprocess.run(["mount", "--bind", "/dev/null", devices / "xpu0"], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        assert watch.read().nodes == (NULL,)
    finally:
        subprocess.run(["umount", devices / "xpu0"], check=True)
    assert watch.read() == before


def test_a_link_is_a_node_only_when_simulated(tree: Tree) -> None:
    """The library passes over links, and an index is a rank among what it lists."""
    (tree.dev / "xpu7").symlink_to("/dev/null")
    assert 7 in {node.number for node in list_nodes(tree.dev, simulated=True)}
    assert 7 not in {node.number for node in list_nodes(tree.dev, simulated=False)}
    assert identity(tree.dev / "xpu7", simulated=False) is None
