# SPDX-License-Identifier: Apache-2.0
"""The identity of devices: a scan and the host's facts -> devices.

The identity is the PCI address, never the library's index and never N of /dev/xpuN. Both change when a card
is split, is lost or cannot be read.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from enum import StrEnum
from os import makedev
from typing import Any

from xpu_plugin.frozen import frozen
from xpu_plugin.model import boards
from xpu_plugin.model.boards import Board
from xpu_plugin.xpuml import Failure, Reading, VxpuMode


CONTROL_NODE = "xpuctrl"
CONTROL_PATH = f"/dev/{CONTROL_NODE}"

Identity = tuple[int, int]
"""st_rdev and st_ino of a device node."""


@frozen
class Node:
    """A device node xpuN. The minor need not be N: release 4 makes it twice the probe order, plus the half of
    a K200."""

    number: int
    major: int
    minor: int
    # A node that the driver makes anew has another inode number in devtmpfs, even with the same N and minor.
    inode: int

    @property
    def identity(self) -> Identity:
        return makedev(self.major, self.minor), self.inode


NO_NODE = Node(number=-1, major=0, minor=0, inode=0)
"""The node of a device of which no node is known. No present node equals it."""


@frozen
class Function:
    """A PCI function in sysfs; None for each value that sysfs lacks."""

    vendor: int | None = None
    device: int | None = None
    subsystem: int | None = None
    numa: int | None = None
    num_vfs: int | None = None
    total_vfs: int | None = None
    physfn: str | None = None
    driver: str | None = None  # the driver to which it is bound
    bridges: str | None = None  # root complex and bridges above it: `pci0000:3a/0000:3a:01.0`


@frozen
class Host:
    """The host's side. A difference from that of the last scan makes a scan due."""

    nodes: tuple[Node, ...] = ()
    control: int | None = None  # st_rdev of the control node; None if there is none
    addresses: Mapping[int, str]  # N -> PCI address, also for N without a node
    functions: Mapping[str, Function]  # by PCI address


@frozen
class Scan:
    """The result of one worker's scan."""

    readings: tuple[Reading, ...]
    usable: tuple[int, ...]  # each N that the library could open, ascending: the index is the rank here
    host: Host
    library: str
    library_version: str
    driver_version: str
    driver_release: str | None = None  # by the driver's version file; the library omits the third number
    refused: Mapping[int, int] = field(default_factory=dict)  # other N -> errno of open


@frozen
class Process:
    """A process that computes on a device, as the driver recorded it."""

    pid: int  # in the process's own pid namespace, so it is not unique on the host
    host_pid: int | None  # on the host; None from libxpuml 4.0.12.1, which does not report it


@frozen
class Usage:
    """The users of a card by library and sysfs. It proves only the named functions idle."""

    # PCI address of a function -> its computing processes; both halves of a K200 together. The library
    # reports
    # 99 at most. None: the library could not tell. A missing device is not proven idle. A process that only
    # holds a device open is not reported, although it keeps the card from being split.
    processes: Mapping[str, tuple[Process, ...] | None]
    # PCI address of the card and of each VF in sysfs -> its kernel driver, None for none. Empty if the card
    # is
    # not in sysfs. A VF of a foreign driver (`vfio-pci`: a virtual machine has it) is no device of the
    # library.
    drivers: Mapping[str, str | None]


@frozen
class Gauges:
    """A device's measurements; None for each that the library did not report."""

    index: int  # the library's rank
    pci: str | None = None  # the PCI address by the library
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_percent: int | None = None  # of the cores
    temperature_celsius: int | None = None
    power: int | None = None  # the driver's number: watts or milliwatts, by release
    clock_mhz: int | None = None
    processes: int | None = None  # computing processes, 99 at most
    impossible: tuple[str, ...] = ()  # fields that are None as their values are impossible: see `credible`


MOST_MEMORY = 1 << 40  # bytes that a device may have
_TEMPERATURES = range(-40, 151)
_MOST_PERCENT = 100
_MOST_SIGNED = (1 << 31) - 1  # numbers of the library beyond it are negative ones of the driver


def credible(gauges: Gauges) -> Gauges:
    """Return the gauges without impossible values.

    libxpuml 4.0.12.1 passes on each value of the driver. For unknown boards the temperature is the sensor's
    raw value, and wraps below zero. The memory of a PF is undefined if its card was split when the driver
    was loaded.
    """
    celsius = gauges.temperature_celsius
    if celsius is not None and celsius > _MOST_SIGNED:
        celsius -= 1 << 32
    gauges = replace(gauges, temperature_celsius=celsius)
    total, used = gauges.memory_total_bytes, gauges.memory_used_bytes
    most = MOST_MEMORY if total is None else total
    possible = {
        "memory_total_bytes": most <= MOST_MEMORY,
        "memory_used_bytes": used is None or used <= most <= MOST_MEMORY,
        "utilization_percent": (gauges.utilization_percent or 0) <= _MOST_PERCENT,
        "temperature_celsius": celsius is None or celsius in _TEMPERATURES,
        "power": (gauges.power or 0) <= _MOST_SIGNED,
        "clock_mhz": (gauges.clock_mhz or 0) <= _MOST_SIGNED,
    }
    impossible = tuple(name for name, may_be in possible.items() if not may_be)
    left_out: dict[str, Any] = dict.fromkeys(impossible)  # Any: mypy takes it for every field
    return replace(gauges, **left_out, impossible=impossible)


class DeviceKind(StrEnum):
    """The kinds of devices that can be offered, and the PF of a card with VFs, which cannot."""

    WHOLE = "whole"
    HALF = "half"
    VF = "vf"
    PF = "pf"


@frozen
class Device:
    """One device with a stable identity."""

    id: str  # `0000:3b:00.0`, a K200's half `0000:3b:00.0-half1`, a VF `0000:3b:01.0-of3` (of 3 VFs)
    card: str  # address of the card's PF
    kind: DeviceKind
    split: str  # the division of the card: `whole`, `half`, or `of<number of VFs>` for VFs and their PF
    model: str
    node: Node
    index: int  # the library's rank in the scan that found it
    numa: int | None
    max_vfs: int | None  # the maximum of VFs; 0 if it cannot be split, None if unknown
    memory_bytes: int  # 0 if unknown
    serial: str
    arch: int | None
    state: int | None  # raw; None if the call failed
    failure: Failure | None  # of that call
    bridges: str | None = None  # above its card, as in `Function`; None if unknown
    board: Board = Board(name="XPU")

    @property
    def vf_counts(self) -> tuple[int, ...] | None:
        """The numbers of VFs that the card accepts besides 0, by table, library and sysfs; None if
        unknown."""
        if self.max_vfs is None:
            return None
        known = self.board.vfs
        return tuple(number for number in range(1, self.max_vfs + 1) if known is None or number in known)

    @property
    def address(self) -> str:
        """PCI address of the function."""
        return self.id.partition("-")[0]

    @property
    def path(self) -> str:
        """The node's path, on the host and in a container: the library reads N from the name."""
        return f"/dev/xpu{'?' if self.node.number < 0 else self.node.number}"


@frozen
class Found:
    """The result of identifying the devices of a scan."""

    devices: Mapping[str, Device]  # by id
    control: int | None = None  # st_rdev of the control node
    problems: tuple[str, ...] = ()  # a sentence for each index or node without a device
    unnamed: int = 0  # number of nodes without a device


# --- names --------------------------------------------------------------------------------------

_UNKNOWN = "XPU"  # begin of the name of an unknown board
_LONGEST_NAME = 48  # of the 63 letters of a resource's name; a profile adds to it
_GIB = 1 << 30


def _memory(reading: Reading) -> int | None:
    """Return the bytes of main memory; None if they are unknown or impossible."""
    bytes = reading.memory_bytes
    return bytes if bytes is not None and 0 < bytes <= MOST_MEMORY else None


def _known_board(reading: Reading, function: Function) -> Board | None:
    return boards.known(function.device, function.subsystem, reading.model, reading.name)


def _unknown_board(reading: Reading, function: Function, memory_bytes: int | None) -> Board:
    """Return a board that is not in the table, named by its facts."""
    if reading.name and (name := re.sub(r"[^A-Za-z0-9]+", "-", reading.name)[:_LONGEST_NAME].strip("-")):
        return Board(name=name, ranked=reading.model not in boards.KL3_MODELS)
    if reading.model in boards.KL3_MODELS:
        return boards.KL3
    facts = [f"{function.device:04x}"] if function.device is not None else []
    if memory_bytes is not None:
        facts.append(f"{-(-memory_bytes // _GIB)}G")
    return Board(name="-".join([_UNKNOWN, *facts]))


def _is_unknown(board: Board) -> bool:
    """Return whether nothing names the board itself."""
    return board == boards.KL3 or board.name.startswith(_UNKNOWN)


def resource_name(device: Device, *, base: str, per_profile: bool) -> str:
    """Return the resource of a device: `base`, or in base's domain one named by model and profile."""
    return f"{base.partition('/')[0]}/{device.model}" if per_profile else base


_ID = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](-.*)?", re.IGNORECASE)
_MODEL = re.compile(
    rf"({'|'.join(sorted({*boards.NAMES, _UNKNOWN}))})(-.*)?",
    re.IGNORECASE,
)


def may_be_serial(name: str) -> bool:
    """Return whether a name is neither an id nor a model, and so may be a serial number."""
    return not (_ID.fullmatch(name) or _MODEL.fullmatch(name))


def matches(device: Device, names: Iterable[str]) -> bool:
    """Return whether one of `names` is this device's id, card, model or serial number, in any case."""
    own = {device.id, device.card, device.model.lower(), device.serial.lower()} - {""}
    return any(name.lower() in own for name in names)


# --- index -> N ---------------------------------------------------------------------------------


def _numbers(scan: Scan, before: Iterable[Device]) -> tuple[dict[int, int], dict[int, str]]:
    """Return index -> N, and index -> a sentence for each index without an N.

    The sources are the address that sysfs gives N, else the library's own number, the minor that it reports,
    and its rank; for boards that the library does not rank, the order of an earlier scan. An index that the
    host contradicts is left out. One contradicted rank discredits all ranks that the host does not prove: a
    wrong node would give a container another one's card.
    """
    nodes = {node.number: node for node in scan.host.nodes}
    told = _by_minor(scan, nodes)
    told |= {reading.index: reading.number for reading in scan.readings if reading.number is not None}
    ranks = dict(enumerate(scan.usable))
    if len(ranks) > 1 and not _ranked(scan):
        ranks = {device.index: device.node.number for device in before if device.node in nodes.values()}
    proven = _by_address(scan, nodes)
    # A library with other numbers of its own does not rank.
    if not len(ranks) == len(scan.usable) == len(scan.readings) or ranks | told | proven != ranks:
        ranks = {}
    refused = {
        index: text
        for index, number in (ranks | told).items()
        if (text := _contradiction(scan, index, nodes.get(number)))
    }
    if refused:
        ranks = {}
    numbers = ranks | {index: number for index, number in told.items() if index not in refused} | proven
    refused = {index: text for index, text in refused.items() if index not in numbers}
    for number, times in Counter(numbers.values()).items():
        rivals = [index for index, own in numbers.items() if own == number]
        if times > 1:
            refused |= dict.fromkeys(rivals, f"device indexes {rivals} would all be /dev/xpu{number}")
    return {index: number for index, number in numbers.items() if index not in refused}, refused


def _ranked(scan: Scan) -> bool:
    """Return whether the library's index is the rank of N, by all boards of the scan and of the host."""
    own = {reading.pci: reading for reading in scan.readings}
    facts = [(reading, scan.host.functions.get(reading.pci or "", Function())) for reading in scan.readings]
    facts += [(Reading(index=-1), f) for address, f in scan.host.functions.items() if address not in own]
    return all((_known_board(*both) or _unknown_board(*both, None)).ranked for both in facts)


def _by_minor(scan: Scan, nodes: Mapping[int, Node]) -> dict[int, int]:
    """Return the pairs of an index and the only usable node with the minor that the library reports."""
    reported = Counter(reading.minor for reading in scan.readings)
    present = defaultdict(list)
    for number in scan.usable:
        present[nodes[number].minor].append(number)
    return {
        reading.index: present[reading.minor][0]
        for reading in scan.readings
        if reading.minor is not None and reported[reading.minor] == len(present[reading.minor]) == 1
    }


def _contradiction(scan: Scan, index: int, node: Node | None) -> str | None:
    """Return the contradiction between an index and a node: another address, or the other half's minor."""
    reading = scan.readings[index]
    if node is None:
        return None
    address = scan.host.addresses.get(node.number, reading.pci)
    if reading.pci is not None and address != reading.pci:
        return (
            f"device index {index}: the library reports {reading.pci}, sysfs shows {address} for "
            f"/dev/xpu{node.number}"
        )
    shared = sum(other.pci == reading.pci for other in scan.readings) > 1
    if shared and not _same_half(reading, node):
        return (
            f"device index {index}: its minor is {reading.minor}, that of /dev/xpu{node.number} {node.minor}"
        )
    return None


def _same_half(reading: Reading, node: Node) -> bool:
    return reading.minor is None or (reading.minor ^ node.minor) & 1 == 0


def _by_address(scan: Scan, nodes: Mapping[int, Node]) -> dict[int, int]:
    """Return the pairs that addresses alone prove: an address with as many indexes as nodes.

    Halves are paired in ascending order of both, or by their minors if the library reports them.
    """
    indexes = defaultdict(list)
    for reading in scan.readings:
        if reading.pci is not None:
            indexes[reading.pci].append(reading)
    numbers = defaultdict(list)
    for number in scan.usable:
        if number in scan.host.addresses:
            numbers[scan.host.addresses[number]].append(nodes[number])
    pairs = {}
    for pci, own in indexes.items():
        here = numbers[pci]
        if len(own) != len(here):
            continue
        if len(own) == 1:
            pairs[own[0].index] = here[0].number
            continue
        if not all(_same_half(reading, node) for reading, node in zip(own, here, strict=True)):
            here = here[::-1]
        if all(_same_half(reading, node) for reading, node in zip(own, here, strict=True)):
            pairs.update({reading.index: node.number for reading, node in zip(own, here, strict=True)})
    return pairs


# --- identity -----------------------------------------------------------------------------------


def parent_by_rule(address: str) -> str:
    """Return a VF's card without sysfs: KL2 VFs have the card's bus and its slot + 1, functions 0 to 2."""
    domain, bus, rest = address.split(":")
    return f"{domain}:{bus}:{max(int(rest[:2], 16) - 1, 0):02x}.0"


def parents_by_rules(address: str) -> tuple[str, str]:
    """Return the cards that a VF can have without sysfs: P800 VFs are functions of the card's own slot."""
    return f"{address.rpartition('.')[0]}.0", parent_by_rule(address)


def identify(scan: Scan, before: Found | None = None) -> Found:
    """Name every device of a scan. Two devices with the same id are both left out, with the reason.

    before: the result of an earlier scan. A device that does not answer keeps its identity. A device with an
        impossible memory keeps its memory and name.
    """
    problems: list[str] = []
    numbers, refused = _numbers(scan, before.devices.values() if before else ())
    nodes = {node.number: node for node in scan.host.nodes}
    known = {device.node: device for device in before.devices.values()} if before else {}
    devices: list[Device] = []
    located: dict[str, list[tuple[Reading, Node]]] = defaultdict(list)
    for reading in scan.readings:
        node = nodes.get(numbers.get(reading.index, -1))
        if node is None:
            problems.append(refused.get(reading.index) or _without_node(reading.index, numbers))
            continue
        if (device := _known(reading, node, scan, known)) is not None:
            devices.append(device)
            continue
        address = reading.pci or scan.host.addresses.get(node.number)
        if address is None:
            problems.append(f"/dev/xpu{node.number}: no PCI address ({_first_failure(reading)})")
            continue
        located[address].append((reading, node))

    cards = _Cards(
        scan.host.functions,
        {address: own[0][0] for address, own in located.items()},
        devices,
        before.devices if before else {},
    )
    # A card that is silent since it was split is known by its VFs.
    devices = [
        device for device in devices if device.kind is DeviceKind.PF or device.address not in cards.with_vfs
    ]
    devices += [
        cards.device(address, reading, node, shared=len(own) > 1)
        for address, own in located.items()
        for reading, node in own
    ]
    by_id: dict[str, list[Device]] = defaultdict(list)
    for device in devices:
        by_id[device.id].append(device)
    for id, own in by_id.items():
        if len(own) > 1:
            problems.append(f"{' and '.join(device.path for device in own)} would all be {id}")
    named = {id: own[0] for id, own in sorted(by_id.items()) if len(own) == 1}
    return Found(
        devices=named,
        control=scan.host.control,
        problems=tuple(dict.fromkeys(problems)),
        unnamed=len(scan.host.nodes) - len(named),
    )


def _still(device: Device, functions: Mapping[str, Function]) -> bool:
    """Return whether sysfs shows the card split as it was when the device was found."""
    number = functions.get(device.card, Function()).num_vfs
    return number is None or (device.split == f"of{number}" if number else not device.split.startswith("of"))


def _without_node(index: int, numbers: Mapping[int, int]) -> str:
    if index in numbers:
        return f"device index {index}: no node /dev/xpu{numbers[index]}"
    return f"device index {index}: its /dev/xpuN is unknown"


def _known(reading: Reading, node: Node, scan: Scan, before: Mapping[Node, Device]) -> Device | None:
    """Return the device that an earlier scan found at this node, for one that does not answer now.

    None if the library or sysfs shows that the node belongs to another card now.
    """
    device = before.get(node)
    if device is None or reading.arch is not None:
        return None
    address = reading.pci or scan.host.addresses.get(node.number)
    if address not in (None, device.address) or not _still(device, scan.host.functions):
        return None
    if reading.state is None and not reading.failures:  # left out: no news
        return replace(device, index=reading.index)
    failure = _last_failure(reading) if reading.state is None else None
    return replace(device, index=reading.index, state=reading.state, failure=failure)


def _first_failure(reading: Reading) -> str:
    return str(reading.failures[0]) if reading.failures else "the library was not asked"


def _last_failure(reading: Reading) -> Failure | None:
    return reading.failures[-1] if reading.failures else None


def _most_vfs(kind: DeviceKind, reading: Reading, function: Function, board: Board) -> int | None:
    """Return the maximum of VFs, None if unknown. VFs and K-series report NON_SRIOV.

    Boards that refuse every split report 3 all the same. If sysfs knows the function, `sriov_totalvfs` is
    present only with the PCI capability.
    """
    if kind in (DeviceKind.VF, DeviceKind.HALF) or reading.mode == VxpuMode.NON_SRIOV or board.vfs == ():
        return 0
    if function.vendor is not None and not function.total_vfs:
        return 0
    if reading.mode is None or reading.max_vfs is None:
        return None
    bounds = (reading.max_vfs, function.total_vfs, max(board.vfs) if board.vfs else None)
    return min(bound for bound in bounds if bound is not None)


class _Cards:
    """The assignment of a scan's functions to cards."""

    def __init__(
        self,
        functions: Mapping[str, Function],
        readings: Mapping[str, Reading],
        known: Iterable[Device],
        before: Mapping[str, Device],
    ) -> None:
        self._functions = functions
        self._readings = readings
        self._before = before
        self._boards = {device.address: device.board for device in known}
        self._split = {address for address in readings if self._is_pf(address)}
        self._split |= {device.address for device in known if device.kind is DeviceKind.PF}
        self._parents = {address: card for address in readings if (card := self._parent(address))}
        self.with_vfs = frozenset(self._parents.values())
        self._vfs = Counter(self._parents.values())
        self._vfs.update(device.card for device in known if device.kind is DeviceKind.VF)

    def _function(self, address: str) -> Function:
        return self._functions.get(address, Function())

    def _is_pf(self, address: str) -> bool:
        """Return whether a function is a card that has VFs: by its mode, else by sysfs, else by its model
        number."""
        reading, function = self._readings[address], self._function(address)
        if function.physfn is not None:
            return False
        guess = reading.mode is None and boards.vfs_of(reading.model) == 0
        return reading.mode == VxpuMode.SRIOV_ON or bool(function.num_vfs) or guess

    def _parent(self, address: str) -> str | None:
        """Return the card of a VF, None for others. A VF itself reports only NON_SRIOV, as K-series do."""
        if address in self._split:
            return None
        reading, function = self._readings[address], self._function(address)
        if function.physfn is not None:
            return function.physfn
        split = next((card for card in parents_by_rules(address) if card in self._split), None)
        is_vf = (
            function.device == boards.PCI_KL2_VF
            or boards.vfs_of(reading.model)
            or (split is not None and reading.mode == VxpuMode.NON_SRIOV)
        )
        return (split or parent_by_rule(address)) if is_vf else None

    def _vf_count(self, card: str, model: int | None) -> int:
        """Return a card's number of VFs: by sysfs, else by a VF's model number, else those in sight."""
        return self._function(card).num_vfs or boards.vfs_of(model) or self._vfs[card]

    def _board(self, address: str, reading: Reading) -> tuple[Board, int]:
        """Return a board and its bytes of memory by its own reading.

        Without a memory in the reading, both keep their values. A known board's name needs no memory.
        """
        memory, last = _memory(reading), self._before.get(address)
        if memory is not None and address in self._split and not self._holds_vfs(address, memory):
            memory = None
        function = self._function(address)
        board = _known_board(reading, function) or _unknown_board(reading, function, memory)
        if memory is None and last is not None:
            return (last.board if _is_unknown(board) else board), last.memory_bytes
        return board, memory or 0

    def _holds_vfs(self, card: str, memory: int) -> bool:
        """Return whether a PF can have so much memory: at least that of its VFs, at most twice that."""
        known = (
            _memory(reading)
            for address, reading in self._readings.items()
            if self._parents.get(address) == card
        )
        vfs = sum(own for own in known if own is not None)
        return not vfs or vfs <= memory <= 2 * vfs or self._vfs[card] < (self._function(card).num_vfs or 0)

    def _board_of(self, card: str) -> Board | None:
        if card in self._readings:
            return self._board(card, self._readings[card])[0]
        return self._boards.get(card)

    def device(self, address: str, reading: Reading, node: Node, *, shared: bool) -> Device:
        function, serial = self._function(address), reading.serial
        card, kind, split, id = address, DeviceKind.WHOLE, "whole", address
        board, memory = self._board(address, reading)
        model = board.name
        if (parent := self._parents.get(address)) is not None:
            vfs = self._vf_count(parent, reading.model)
            card, kind, split, id = parent, DeviceKind.VF, f"of{vfs}", f"{address}-of{vfs}"
            if not serial and parent in self._readings:
                serial = self._readings[parent].serial
            last = self._before.get(id)
            if _memory(reading) is None and last is not None:
                board, model, memory = last.board, last.model, last.memory_bytes
            else:
                if _is_unknown(board):
                    board = self._board_of(parent) or board
                model = board.profile(vfs, memory)
        elif address in self._split:
            kind, split = DeviceKind.PF, f"of{self._vf_count(address, None)}"
        elif shared or board.halves:
            kind, split, id = DeviceKind.HALF, "half", f"{address}-half{node.minor & 1}"
            last = self._before.get(id)
            memory = memory or (last.memory_bytes if last is not None else 0)
        return Device(
            id=id,
            card=card,
            kind=kind,
            split=split,
            model=model,
            node=node,
            index=reading.index,
            numa=function.numa if function.numa is not None else self._function(card).numa,
            max_vfs=_most_vfs(kind, reading, function, board),
            memory_bytes=memory,
            serial=serial or "",
            arch=reading.arch,
            state=reading.state,
            failure=_last_failure(reading) if reading.state is None else None,
            bridges=self._function(card).bridges,
            board=board,
        )
