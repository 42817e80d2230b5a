# SPDX-License-Identifier: Apache-2.0
"""Facts of the kernel without the library: device nodes and sysfs.

Nothing here opens a device node: an open node makes the device "in use". Facts of the host: nodes are
`/dev/xpuN` beside `/dev/xpuctrl`; N is the lowest number that was free, and the minor need not be N;
`/sys/class/xpu/xpuN/device` leads to the PCI function, for both nodes of a K200 to the same one.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from xpu_plugin.model.devices import CONTROL_NODE, Function, Host, Identity, Node


_VENDORS = frozenset({0x1D22, 0x2057})
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_BRIDGES = re.compile(rf"/(pci[0-9a-f]{{4,}}:[0-9a-f]{{2}}(?:/{_ADDRESS.pattern})*)/{_ADDRESS.pattern}$")
_LONGEST_NUMBER = 64  # bytes of a file in sysfs that holds one
_CLASS = "class/xpu"  # below the root of sysfs, as the next
_NUMBERS = "dev/char"
_FUNCTIONS = "bus/pci/devices"
_FOREIGN = "bus/pci/drivers/vfio-pci"  # has an entry for each function that is given to a virtual machine
_NODES = "xpu"  # what their names, and the control node's, begin with
_NODE = re.compile(_NODES + r"(0|[1-9][0-9]{0,8})")


def list_nodes(dev_root: Path, *, simulated: bool) -> tuple[Node, ...]:
    """Return the character devices xpuN below `dev_root` by ascending N; none without such a directory."""
    try:
        names = os.listdir(dev_root)  # noqa: PTH208 - thousands of names, of which few matter
    except FileNotFoundError:
        return ()
    numbers = sorted(int(match[1]) for name in names if (match := _NODE.fullmatch(name)))
    return tuple(
        Node(number=number, major=os.major(own[0]), minor=os.minor(own[0]), inode=own[1])
        for number in numbers
        if (own := identity(f"{dev_root}/xpu{number}", simulated=simulated)) is not None
    )


def identity(path: Path | str, *, simulated: bool) -> Identity | None:
    """Return the identity of a character device and of its node; None if there is none at that path.

    A link counts only when simulated: a simulation without privilege makes links, and the library skips them.
    """
    try:
        status = os.stat(path, follow_symlinks=simulated)  # noqa: PTH116 - on the way of every Allocate
    except OSError:
        return None
    return (status.st_rdev, status.st_ino) if stat.S_ISCHR(status.st_mode) else None


class Watch:
    """The facts of the host, read in full only if they can have changed.

    A card gets or loses VFs only with functions that come or go on the PCI bus, with or without a driver. The
    device of a node changes only with the node. So these entries are compared, by name and inode. The inode
    of
    a node stands for its device, too: mknod sets the numbers, and nothing changes them. Linux
    (`sriov_enable`)
    publishes the number of VFs after the last of them is on the bus. So facts count as settled when two
    readings with the same entries are equal.
    """

    def __init__(self, dev_root: Path, sysfs_root: Path, *, simulated: bool) -> None:
        self._dev_root = dev_root
        self._sysfs_root = sysfs_root
        self._simulated = simulated
        self._entries: object = None  # before the last reading of everything
        self.last: Host | None = None  # that was read
        self._settled = False

    def read(self) -> Host:
        """Return the present facts; the same object while they do not change."""
        entries = (
            _mounts(),
            _making(self._dev_root),
            _entries(self._dev_root, _NODES, links=self._simulated),
            _entries(self._sysfs_root / _CLASS),
            _entries(self._sysfs_root / _FUNCTIONS),
            _entries(self._sysfs_root / _FOREIGN),
        )
        if self.last is not None and self._settled and entries == self._entries:
            return self.last
        host = read_host(self._dev_root, self._sysfs_root, simulated=self._simulated)
        self._settled = (entries, host) == (self._entries, self.last)
        self._entries = entries
        if self.last is None or host != self.last:
            self.last = host
        return self.last


def read_host(dev_root: Path, sysfs_root: Path, *, simulated: bool) -> Host:
    """Read all facts. A fact that sysfs lacks is left out, never guessed."""
    nodes = list_nodes(dev_root, simulated=simulated)
    addresses = {
        number: address
        for number in sorted({node.number for node in nodes} | _class_numbers(sysfs_root))
        if (address := _address(f"{sysfs_root}/{_CLASS}/xpu{number}/device"))
    }
    for node in nodes:  # of a driver without a class `xpu`
        numbers = f"{sysfs_root}/{_NUMBERS}/{node.major}:{node.minor}/device"
        if node.number not in addresses and (address := _address(numbers)):
            addresses[node.number] = address
    own = identity(dev_root / CONTROL_NODE, simulated=simulated)
    return Host(
        nodes=nodes,
        control=own[0] if own else None,
        addresses=addresses,
        # Cards without a class entry, too: unbound ones, or those of a driver without a class `xpu`.
        functions=_functions(sysfs_root, {*addresses.values(), *vendor_functions(sysfs_root)}),
    )


def _mounts() -> object:
    """Return the state of the mounts, as a node can be mounted over. Unequal to any other if unknown."""
    try:
        return Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return object()


def _making(directory: Path) -> tuple[int, ...] | None:
    """Return the time of the last change of entries: some file systems reuse an inode number at once."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - as for `identity`
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _entries(directory: Path, prefix: str = "", *, links: bool = False) -> dict[str, object]:
    """Return the names in a directory with this prefix, and their inodes; none without such a directory.

    links: links are told apart by the device they lead to
    """
    try:
        with os.scandir(directory) as entries:
            return {
                entry.name: identity(entry.path, simulated=True)
                if links and entry.is_symlink()
                else entry.inode()
                for entry in entries
                if entry.name.startswith(prefix)
            }
    except OSError:
        return {}


def _class_numbers(sysfs_root: Path) -> set[int]:
    """Return each N of the driver's class entries. A device without a node has such an entry, too."""
    try:
        names = os.listdir(sysfs_root / _CLASS)  # noqa: PTH208 - names only
    except OSError:
        return set()
    return {int(match[1]) for name in names if (match := _NODE.fullmatch(name))}


def _address(link: str) -> str | None:
    """Return the PCI address to which a device's link leads; None without one."""
    try:
        target = os.readlink(link).rpartition("/")[2]  # noqa: PTH115 - sysfs has no links to links here
        return target if _ADDRESS.fullmatch(target) and os.path.exists(link) else None  # noqa: PTH110
    except OSError:
        return None


def _functions(sysfs_root: Path, addresses: Iterable[str]) -> dict[str, Function]:
    """Return the functions at `addresses`, and the cards of VFs among them."""
    functions = {address: read_function(sysfs_root, address) for address in addresses}
    parents = {function.physfn for function in functions.values()} - functions.keys() - {None}
    return functions | {card: read_function(sysfs_root, card) for card in parents if card}


def vendor_functions(sysfs_root: Path) -> set[str]:
    """Return the addresses of the vendor's PCI functions."""
    try:
        functions = list((sysfs_root / _FUNCTIONS).iterdir())
    except OSError:
        return set()
    return {function.name for function in functions if _number(function / "vendor") in _VENDORS}


def read_function(sysfs_root: Path, address: str) -> Function:
    """Read the facts of one PCI function from sysfs."""
    # Texts, not Paths: seven for each function every few seconds.
    directory = f"{sysfs_root}/{_FUNCTIONS}/{address}"
    numa = _number(f"{directory}/numa_node")
    parent = _link(f"{directory}/physfn")
    return Function(
        vendor=_number(f"{directory}/vendor"),
        device=_number(f"{directory}/device"),
        subsystem=_number(f"{directory}/subsystem_device"),
        numa=None if numa is None or numa < 0 else numa,
        num_vfs=_vfs(sysfs_root, address),
        total_vfs=_number(f"{directory}/sriov_totalvfs"),
        physfn=parent,
        driver=_link(f"{directory}/driver"),
        bridges=_bridges(directory),
    )


def _bridges(function: str) -> str | None:
    """Return the root complex of a function and the bridges above it, as sysfs's path of devices has them."""
    try:
        path = os.readlink(function)  # noqa: PTH115 - as for `directory` above
    except OSError:
        return None
    match = _BRIDGES.search(path)
    return match[1] if match else None


def _link(path: str) -> str | None:
    """Return the last part of a link's target; None without a link."""
    try:
        return os.readlink(path).rpartition("/")[2]  # noqa: PTH115 - as for `directory` above
    except OSError:
        return None


def _vfs(sysfs_root: Path, address: str) -> int | None:
    """Return the number of VFs of a function; None if it can have none, or is absent."""
    return _number(f"{sysfs_root}/{_FUNCTIONS}/{address}/sriov_numvfs")


def read_drivers(sysfs_root: Path, card: str) -> dict[str, str | None]:
    """Return the kernel driver of each function of a card; None for an unbound function.

    card: its PCI address. The result has the card and each VF that sysfs links to it (`virtfnK`), also those
    that the library does not know: a VF of a virtual machine has another driver and no node. Empty if the
    card is not in sysfs. Raises OSError if sysfs cannot be read, or functions disappear meanwhile.
    """
    functions = sysfs_root / _FUNCTIONS
    try:
        links = [entry for entry in (functions / card).iterdir() if entry.name.startswith("virtfn")]
    except FileNotFoundError:
        return {}
    addresses = (card, *(link.readlink().name for link in links))
    return {address: _driver(functions / address) for address in addresses}


def _driver(function: Path) -> str | None:
    try:
        return (function / "driver").readlink().name
    except FileNotFoundError:
        function.stat()  # "no driver" is a fact only of a function that exists
        return None


def _number(path: Path | str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, _LONGEST_NUMBER).decode("ascii"), 0)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def driver_release() -> str | None:
    """Return the driver's full version; None if unknown. The library leaves out the third part."""
    try:
        return Path("/proc/xpu/version").read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
