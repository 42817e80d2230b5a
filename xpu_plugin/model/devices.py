# SPDX-License-Identifier: Apache-2.0
"""What a device is: a scan and the host's facts -> devices with an identity.

An identity is the PCI address, never the library's index and never N of /dev/xpuN: both move when a
card is split, lost or not readable.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from enum import StrEnum
from os import makedev
from typing import Any

from xpu_plugin.frozen import frozen
from xpu_plugin.xpuml import Failure, Reading, VxpuMode


CONTROL_NODE = "xpuctrl"
CONTROL_PATH = f"/dev/{CONTROL_NODE}"

Identity = tuple[int, int]
"""Of a device node: st_rdev and st_ino."""


@frozen
class Node:
    """A device node xpuN. The minor is twice the probe order, plus the half on a K200: not N.

    inode: another one when the driver has made the node anew, be it with the same numbers for other
    hardware: N and minor are given again at once, inode numbers of devtmpfs are not
    """

    number: int
    major: int
    minor: int
    inode: int

    @property
    def identity(self) -> Identity:
        return makedev(self.major, self.minor), self.inode


@frozen
class Function:
    """What sysfs says about a PCI function; None where it says nothing. driver: that it is bound to"""

    vendor: int | None = None
    device: int | None = None
    subsystem: int | None = None
    numa: int | None = None
    num_vfs: int | None = None
    total_vfs: int | None = None
    physfn: str | None = None
    driver: str | None = None


@frozen
class Host:
    """The host's side. A scan is due when it differs from that of the last scan.

    control: st_rdev of the control node, None where there is none
    addresses: N -> PCI address, of nodes and of what has none; functions: PCI address -> Function
    """

    nodes: tuple[Node, ...] = ()
    control: int | None = None
    addresses: Mapping[int, str]
    functions: Mapping[str, Function]


@frozen
class Scan:
    """What one worker saw.

    usable: the N that the library could open, ascending, so that index is the rank in it
    refused: of other N, the errno that opening the node ended with
    driver_release: the driver's own version file, of which the library leaves out the third number
    """

    readings: tuple[Reading, ...]
    usable: tuple[int, ...]
    host: Host
    library: str
    library_version: str
    driver_version: str
    driver_release: str | None = None
    refused: Mapping[int, int] = field(default_factory=dict)


@frozen
class Process:
    """A process that computes on a device, as the driver recorded it.

    pid: in the process's own pid namespace, so that it names nobody on the host: two containers may have it
    host_pid: on the host; None from libxpuml 4.0.12.1, which does not tell it
    """

    pid: int
    host_pid: int | None


@frozen
class Usage:
    """Who uses a card, as far as library and sysfs tell. It proves idleness only of what it names.

    processes: by PCI address of the function, what computes there (99 at most, which is as many as the
        library tells); both halves of a K200 together. None where the library could not tell. A device
        whose address the library did not tell is left out: what is missing here is not proven idle. Nor
        is a device that a process merely holds open, which computes nothing and yet keeps a card from
        being split.
    drivers: by PCI address of the card and of each VF in sysfs, the kernel driver that it is bound to, None
        for none. Empty when the card is not in sysfs. A VF of a foreign driver (`vfio-pci`: a virtual
        machine has it) is none of the library's devices, so that `processes` does not tell of it.
    """

    processes: Mapping[str, tuple[Process, ...] | None]
    drivers: Mapping[str, str | None]


@frozen
class Gauges:
    """What a device measures; None where the library did not tell.

    index, pci: the library's rank and PCI address, both of which say which device this is
    utilization_percent: of the cores; power: the driver's number, watts or milliwatts by release
    processes: how many compute there, 99 at most
    impossible: names of fields that are None as what the library told cannot be: see `credible`
    """

    index: int
    pci: str | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power: int | None = None
    clock_mhz: int | None = None
    processes: int | None = None
    impossible: tuple[str, ...] = ()


MOST_MEMORY = 1 << 40  # bytes that a device may have
_TEMPERATURES = range(-40, 151)
_MOST_PERCENT = 100
_MOST_SIGNED = (1 << 31) - 1  # numbers of the library beyond it are negative ones of the driver


def credible(gauges: Gauges) -> Gauges:
    """The same without what cannot be.

    libxpuml 4.0.12.1 passes on whatever a driver answers. Temperatures are the sensor's word for boards that
    it does not know, and wrap below zero. The memory of the PF of a card that was split when the driver came
    up is what was on the stack.
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


class Kind(StrEnum):
    """What the kubelet could be offered, and the PF that it is not while it has VFs."""

    WHOLE = "whole"
    HALF = "half"
    VF = "vf"
    PF = "pf"


@frozen
class Device:
    """One device with a stable identity.

    id: `0000:3b:00.0`, a K200's half `0000:3b:00.0-half1`, a VF `0000:3b:01.0-of3` (of its card's VFs)
    card: address of the card, that is of its PF
    split: how the card is divided: `whole`, `half`, or `of<number of VFs>` for VFs and their PF
    number: N of /dev/xpuN; index: the library's rank in the scan that found it
    max_vfs: VFs that its driver would allow, 0 for one that cannot be split, None where that is not known
    memory_bytes: 0 where unknown; state: raw, None when the call failed (then `failure` says how)
    """

    id: str
    card: str
    kind: Kind
    split: str
    model: str
    node: Node
    index: int
    numa: int | None
    max_vfs: int | None
    memory_bytes: int
    serial: str
    arch: int | None
    state: int | None
    failure: Failure | None

    @property
    def address(self) -> str:
        """PCI address of the function."""
        return self.id.partition("-")[0]

    @property
    def path(self) -> str:
        """The node's path, on the host and in a container: the library takes N from the name."""
        return f"/dev/xpu{self.node.number}"


@frozen
class Found:
    """Outcome of a scan.

    devices: by id; control: st_rdev of the control node
    problems: a sentence for each index or node that became no device
    """

    devices: Mapping[str, Device]
    control: int | None = None
    problems: tuple[str, ...] = ()


# --- names --------------------------------------------------------------------------------------

# Models as numbered by the vendor's headers and driver; 4.0.12.1 itself tells the first five and R200's
# split forms, and answers 9999 for all others.
_FAMILIES = {
    0: "K200",
    1: "K100",
    2: "R200",
    3: "R300",
    4: "R200-8F",
    5: "R200-8FS",
    6: "R100",
    7: "KL2-DEBUG",
    8: "R420",
    9: "RG800",
    10: "RG800-PRO",
    11: "RM80",
}
_K200 = 0
# In SR-IOV a family has four numbers from here on: the PF, and its VFs when there are 1, 2 or 3.
_SRIOV_FAMILIES = {200: "R200", 204: "R300", 208: "R200-8F", 212: "R200-8FS", 216: "RG800", 220: "RG800-PRO"}
_KL3_MODELS = range(300, 600)

# PCI ids of vendor 1d22, for boards that the library does not know.
_PCI_KL2 = 0x3684
_PCI_VF = 0x3685
_PCI_P800 = range(0x3686, 0x368A)
_SUBSYSTEMS = {
    1: "R200",
    2: "R100",
    3: "R300",
    4: "R200-8F",
    5: "R200-8FS",
    6: "R420",
    7: "RG800",
    8: "RG800-PRO",
}

_UNKNOWN = "XPU"  # a board's name begins so when nothing else is known of it
_LONGEST_NAME = 48  # of 63 letters that a resource's name may have; a profile adds to it
_GIB = 1 << 30
# Sizes of boards that can be split. What a VF reports is up to a quarter less than its share: error
# correction takes an eighth, older drivers leave out 768 MiB more. So sizes are classes, not keys.
_SPLITTABLE_BOARDS_GIB = (16, 32, 64, 96, 128)


def _sriov_base(model: int | None) -> int | None:
    """The first of the four numbers that `model` belongs to, None for a model outside SR-IOV."""
    base = None if model is None else model - model % 4
    return base if base in _SRIOV_FAMILIES else None


def _memory(reading: Reading) -> int | None:
    """Bytes of main memory; None where the library did not tell, or what cannot be."""
    bytes = reading.memory_bytes
    return bytes if bytes is not None and 0 < bytes <= MOST_MEMORY else None


def _family(reading: Reading, function: Function, memory_bytes: int | None) -> str:
    """The board's name, made of whatever is known of it."""
    if (base := _sriov_base(reading.model)) is not None:
        return _SRIOV_FAMILIES[base]
    if reading.model in _FAMILIES:
        return _FAMILIES[reading.model]
    if function.device in (_PCI_KL2, _PCI_VF) and function.subsystem in _SUBSYSTEMS:
        return _SUBSYSTEMS[function.subsystem]
    if function.device in _PCI_P800:
        return "P800"
    if reading.name and (name := re.sub(r"[^A-Za-z0-9]+", "-", reading.name)[:_LONGEST_NAME].strip("-")):
        return name
    if reading.model in _KL3_MODELS:
        return "KL3"
    known = [f"{function.device:04x}"] if function.device is not None else []
    if memory_bytes is not None:
        known.append(f"{-(-memory_bytes // _GIB)}G")
    return "-".join([_UNKNOWN, *known])


def _profile(family: str, memory_bytes: int, vfs: int) -> str:
    """The VF profile's name, `R200-VF-8G`: the board's size divided by its VFs, as the vendor rounds."""
    total = memory_bytes * vfs
    for board in _SPLITTABLE_BOARDS_GIB:
        if 0 < total <= board * _GIB:
            return f"{family}-VF-{board // vfs}G"
    return f"{family}-VF-1OF{vfs}"


def resource_name(device: Device, *, base: str, per_profile: bool) -> str:
    """The resource a device is offered as: `base`, or in base's domain one named by model and profile."""
    return f"{base.partition('/')[0]}/{device.model}" if per_profile else base


_ID = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](-.*)?", re.IGNORECASE)
_MODEL = re.compile(
    rf"({'|'.join(sorted({*_FAMILIES.values(), *_SUBSYSTEMS.values(), 'P800', 'KL3', _UNKNOWN}))})(-.*)?",
    re.IGNORECASE,
)


def may_be_serial(name: str) -> bool:
    """Whether a name is neither an id nor a model, and so a serial number as far as anybody can tell."""
    return not (_ID.fullmatch(name) or _MODEL.fullmatch(name))


def matches(device: Device, names: Iterable[str]) -> bool:
    """Whether one of `names` is this device's id, card, model or serial number; case does not matter."""
    own = {device.id, device.card, device.model.lower(), device.serial.lower()} - {""}
    return any(name.lower() in own for name in names)


# --- index -> N ---------------------------------------------------------------------------------


def _numbers(scan: Scan) -> tuple[dict[int, int], dict[int, str]]:
    """Which N each index is: told by the library, else by rank, else by the address that sysfs gives N.

    Whatever the host contradicts is left out, with a sentence; and one contradicted rank discredits all that
    the host does not prove: a wrong node would give somebody else's card away.
    """
    nodes = {node.number: node for node in scan.host.nodes}
    told = {reading.index: reading.number for reading in scan.readings if reading.number is not None}
    ranks = dict(enumerate(scan.usable)) if len(scan.usable) == len(scan.readings) else {}
    if ranks | told != ranks:  # a library that tells otherwise does not rank
        ranks = {}
    refused = {
        index: text
        for index, number in (ranks | told).items()
        if (text := _contradiction(scan, index, nodes.get(number)))
    }
    if refused:
        ranks = {}
    numbers = ranks | {index: number for index, number in told.items() if index not in refused}
    numbers = _by_address(scan, nodes) | numbers
    refused = {index: text for index, text in refused.items() if index not in numbers}
    for number, times in Counter(numbers.values()).items():
        rivals = [index for index, own in numbers.items() if own == number]
        if times > 1:
            refused |= dict.fromkeys(rivals, f"device indexes {rivals} would all be /dev/xpu{number}")
    return {index: number for index, number in numbers.items() if index not in refused}, refused


def _contradiction(scan: Scan, index: int, node: Node | None) -> str | None:
    """What speaks against an index being a node: another address, or the other half's minor."""
    reading = scan.readings[index]
    if node is None:
        return None
    address = scan.host.addresses.get(node.number, reading.pci)
    if reading.pci is not None and address != reading.pci:
        return (
            f"device index {index}: the library says {reading.pci}, sysfs says that /dev/xpu{node.number} "
            f"is {address}"
        )
    if not _same_half(reading, node):
        return (
            f"device index {index}: its minor is {reading.minor}, that of /dev/xpu{node.number} {node.minor}"
        )
    return None


def _same_half(reading: Reading, node: Node) -> bool:
    return reading.minor is None or (reading.minor ^ node.minor) & 1 == 0


def _by_address(scan: Scan, nodes: Mapping[int, Node]) -> dict[int, int]:
    """What addresses alone prove: as many indexes as nodes have it. Halves in ascending order of both, or
    by their minors where the library tells them."""
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
        if not all(_same_half(reading, node) for reading, node in zip(own, here, strict=True)):
            here = here[::-1]
        if all(_same_half(reading, node) for reading, node in zip(own, here, strict=True)):
            pairs.update({reading.index: node.number for reading, node in zip(own, here, strict=True)})
    return pairs


# --- identity -----------------------------------------------------------------------------------


def parent_by_rule(address: str) -> str:
    """A VF's card where sysfs does not tell: VFs sit at the card's bus and slot + 1, functions 0 to 2."""
    domain, bus, rest = address.split(":")
    return f"{domain}:{bus}:{max(int(rest[:2], 16) - 1, 0):02x}.0"


def identify(scan: Scan, before: Found | None = None) -> Found:
    """Name every device of a scan. Two that would share an id are both left out, with the reason.

    before: what an earlier scan found; a device that does not answer now is what it was then, and one whose
        memory cannot be what the library tells has the memory and the name that it had
    """
    problems: list[str] = []
    numbers, refused = _numbers(scan)
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
    # A card that is silent since it was split: its VFs tell.
    devices = [device for device in devices if device.kind is Kind.PF or device.address not in cards.with_vfs]
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
    return Found(
        devices={id: own[0] for id, own in sorted(by_id.items()) if len(own) == 1},
        control=scan.host.control,
        problems=tuple(dict.fromkeys(problems)),
    )


def _still(device: Device, functions: Mapping[str, Function]) -> bool:
    """Whether a card is split as it was when the device was found, as far as sysfs tells."""
    number = functions.get(device.card, Function()).num_vfs
    return number is None or (device.split == f"of{number}" if number else not device.split.startswith("of"))


def _without_node(index: int, numbers: Mapping[int, int]) -> str:
    if index in numbers:
        return f"device index {index}: no node /dev/xpu{numbers[index]}"
    return f"device index {index}: which /dev/xpuN it is cannot be told"


def _known(reading: Reading, node: Node, scan: Scan, before: Mapping[Node, Device]) -> Device | None:
    """The device that an earlier scan found at this node, for one that does not tell what it is now.

    Not if the library or sysfs says that the node has become another card's.
    """
    device = before.get(node)
    if device is None or reading.arch is not None:
        return None
    address = reading.pci or scan.host.addresses.get(node.number)
    if address not in (None, device.address) or not _still(device, scan.host.functions):
        return None
    if reading.state is None and not reading.failures:  # left out: nothing new is known
        return replace(device, index=reading.index)
    failure = _last_failure(reading) if reading.state is None else None
    return replace(device, index=reading.index, state=reading.state, failure=failure)


def _first_failure(reading: Reading) -> str:
    return str(reading.failures[0]) if reading.failures else "the library was not asked"


def _last_failure(reading: Reading) -> Failure | None:
    return reading.failures[-1] if reading.failures else None


def _most_vfs(kind: Kind, reading: Reading, function: Function) -> int | None:
    """A VF answers NON_SRIOV as K-series do. Boards that refuse every split answer 3 all the same; where
    sysfs knows the function, it has `sriov_totalvfs` only if that has the PCI capability."""
    if kind in (Kind.VF, Kind.HALF) or reading.mode == VxpuMode.NON_SRIOV:
        return 0
    if function.vendor is not None and not function.total_vfs:
        return 0
    return reading.max_vfs if reading.mode is not None else None


class _Cards:
    """Which functions of a scan belong to which card."""

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
        self._models = {device.address: device.model for device in known}
        self._split = {address for address in readings if self._is_pf(address)}
        self._split |= {device.address for device in known if device.kind is Kind.PF}
        self._parents = {address: card for address in readings if (card := self._parent(address))}
        self.with_vfs = frozenset(self._parents.values())
        self._vfs = Counter(self._parents.values())
        self._vfs.update(device.card for device in known if device.kind is Kind.VF)

    def _function(self, address: str) -> Function:
        return self._functions.get(address, Function())

    def _is_pf(self, address: str) -> bool:
        """A card that has VFs: by its mode, else by sysfs, else by its model number."""
        reading, function = self._readings[address], self._function(address)
        if function.physfn is not None:
            return False
        guess = reading.mode is None and reading.model in _SRIOV_FAMILIES
        return reading.mode == VxpuMode.SRIOV_ON or bool(function.num_vfs) or guess

    def _parent(self, address: str) -> str | None:
        """The card of a VF, None for anything else. A VF itself only says NON_SRIOV, as K-series do."""
        if address in self._split:
            return None
        reading, function = self._readings[address], self._function(address)
        if function.physfn is not None:
            return function.physfn
        rule = parent_by_rule(address)
        base = _sriov_base(reading.model)
        is_vf = (
            function.device == _PCI_VF
            or (base is not None and reading.model != base)
            or (rule in self._split and reading.mode == VxpuMode.NON_SRIOV)
        )
        return rule if is_vf else None

    def _vf_count(self, card: str, model: int | None) -> int:
        """How many VFs a card has: sysfs, else what a VF's model number says, else those in sight."""
        base = _sriov_base(model)
        by_model = 0 if base is None or model is None else model - base
        return self._function(card).num_vfs or by_model or self._vfs[card]

    def _board(self, address: str, reading: Reading) -> tuple[str, int]:
        """A board's name and bytes of memory, by its own reading. While that does not tell its memory, both
        are what they were; the name of a board that is known needs no memory."""
        memory, last = _memory(reading), self._before.get(address)
        if memory is not None and address in self._split and not self._holds_vfs(address, memory):
            memory = None
        model = _family(reading, self._function(address), memory)
        if memory is None and last is not None:
            return (last.model if model.startswith(_UNKNOWN) else model), last.memory_bytes
        return model, memory or 0

    def _holds_vfs(self, card: str, memory: int) -> bool:
        """Whether so much can be the memory of a PF: what its VFs have, and at most twice that."""
        known = (
            _memory(reading)
            for address, reading in self._readings.items()
            if self._parents.get(address) == card
        )
        vfs = sum(own for own in known if own is not None)
        return not vfs or vfs <= memory <= 2 * vfs or self._vfs[card] < (self._function(card).num_vfs or 0)

    def _family(self, card: str) -> str | None:
        if card in self._readings:
            return self._board(card, self._readings[card])[0]
        return self._models.get(card)

    def device(self, address: str, reading: Reading, node: Node, *, shared: bool) -> Device:
        function = self._function(address)
        card, kind, split, id = address, Kind.WHOLE, "whole", address
        model, memory = self._board(address, reading)
        if (parent := self._parents.get(address)) is not None:
            vfs = self._vf_count(parent, reading.model)
            card, kind, split, id = parent, Kind.VF, f"of{vfs}", f"{address}-of{vfs}"
            last = self._before.get(id)
            if _memory(reading) is None and last is not None:
                model, memory = last.model, last.memory_bytes
            else:
                if model.startswith(_UNKNOWN):
                    model = self._family(parent) or model
                model = _profile(model, memory, vfs)
        elif address in self._split:
            kind, split = Kind.PF, f"of{self._vf_count(address, None)}"
        elif shared or reading.model == _K200:
            kind, split, id = Kind.HALF, "half", f"{address}-half{node.minor & 1}"
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
            max_vfs=_most_vfs(kind, reading, function),
            memory_bytes=memory,
            serial=reading.serial or "",
            arch=reading.arch,
            state=reading.state,
            failure=_last_failure(reading) if reading.state is None else None,
        )
