# SPDX-License-Identifier: Apache-2.0
"""Devices, scans and readings in one line each, and machines with a known truth."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from xpu_plugin.model.devices import Device, DeviceKind, Found, Function, Host, Node, Scan
from xpu_plugin.xpuml import Failure, Reading, VxpuMode


MIB = 1 << 20
MAJOR = 242
CONTROL = (MAJOR << 8) | 128
LOST_CALL = Failure(function="xpumlDeviceGetState", code=999, text="Unknown Error")


def reading(index: int, pci: str | None = None, **fields: Any) -> Reading:
    """A whole R200 that runs, but for what is given."""
    return replace(
        Reading(
            index=index,
            pci=pci,
            model=2,
            arch=2,
            max_vfs=3,
            memory_bytes=16384 * MIB,
            mode=1,
            state=201,
            serial="",
        ),
        **fields,
    )


def node(number: int, minor: int | None = None) -> Node:
    return Node(number=number, major=MAJOR, minor=2 * number if minor is None else minor, inode=1000 + number)


def scan(
    readings: Iterable[Reading],
    *,
    nodes: Iterable[Node],
    usable: Sequence[int] | None = None,
    addresses: Mapping[int, str] | None = None,
    functions: Mapping[str, Function] | None = None,
) -> Scan:
    """What a worker saw; sysfs says nothing unless given, and every node is usable unless some are named."""
    nodes = tuple(nodes)
    host = Host(nodes=nodes, control=CONTROL, addresses=addresses or {}, functions=functions or {})
    return Scan(
        readings=tuple(readings),
        usable=tuple(node.number for node in nodes) if usable is None else tuple(usable),
        host=host,
        library="/lib/libxpuml.so.1",
        library_version="4.0.12.1",
        driver_version="4.0.12",
    )


def device(id: str = "0000:3b:00.0", **fields: Any) -> Device:
    """A whole R200 at /dev/xpu0 that runs, but for what is given; card and kind follow from the id."""
    address, _, part = id.partition("-")
    kind = {"": DeviceKind.WHOLE, "h": DeviceKind.HALF, "o": DeviceKind.VF}[part[:1]]
    whole = Device(
        id=id,
        card=address.replace(":01.", ":00.")[:-1] + "0" if kind is DeviceKind.VF else address,
        kind=kind,
        split={DeviceKind.WHOLE: "whole", DeviceKind.HALF: "half"}.get(kind, part),
        model="R200",
        node=node(0),
        index=0,
        numa=None,
        max_vfs={DeviceKind.WHOLE: 3}.get(kind, 0),
        memory_bytes=16384 * MIB,
        serial="",
        arch=2,
        state=201,
        failure=None,
    )
    if "number" in fields:
        fields["node"] = node(fields.pop("number"))
    return replace(whole, **fields)


def found(*devices: Device, control: int | None = CONTROL) -> Found:
    return Found(devices={device.id: device for device in devices}, control=control)


# --- machines -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The truth about one device: what it is, and what library and sysfs say of it."""

    id: str
    card: str
    kind: DeviceKind
    pci: str
    model: str
    minor: int
    raw_model: int
    mode: int
    memory: int
    function: Function
    number: int = -1


@dataclass(frozen=True, slots=True)
class CardKind:
    """A kind of card, and how the library numbers it: whole, and as PF and VFs with so many VFs."""

    model: str
    raw: int
    device: int
    subsystem: int
    halves: bool = False
    sriov: int | None = None
    memory: int = 16384
    mode: int = VxpuMode.SRIOV_OFF


UNKNOWN = 9999
CARD_KINDS = (
    CardKind("K100", 1, 0x3684, 0, mode=VxpuMode.NON_SRIOV, memory=8192),
    CardKind("K200", 0, 0x3684, 0, halves=True, mode=VxpuMode.NON_SRIOV, memory=8192),
    CardKind("R200", 2, 0x3684, 1, sriov=200),
    CardKind("R300", 3, 0x3684, 3, sriov=UNKNOWN),
    CardKind("RG800", UNKNOWN, 0x3684, 7, sriov=UNKNOWN, memory=32768),
    CardKind("P800", UNKNOWN, 0x3688, 0, memory=98304, mode=VxpuMode.NON_SRIOV),
)
_VF_MEMORY = {16384: (16384, 8192, 5456), 32768: (32768, 16384, 10920)}
_PROFILE = {16384: ("16G", "8G", "5G"), 32768: ("32G", "16G", "10G")}


def seats_of(kind: CardKind, bus: int, vfs: int, minor: int) -> list[Seat]:
    """The devices of one card at `bus`, the first with that minor; `vfs` 0 for a card that is not split."""
    card = f"0000:{bus:02x}:00.0"
    function = Function(
        vendor=0x1D22,
        device=kind.device,
        subsystem=kind.subsystem,
        numa=bus & 1,
        num_vfs=0,
        total_vfs=3 if kind.sriov else None,
    )
    whole = Seat(
        id=card,
        card=card,
        kind=DeviceKind.WHOLE,
        pci=card,
        model=kind.model,
        minor=minor,
        raw_model=kind.raw,
        mode=kind.mode,
        memory=kind.memory * MIB,
        function=function,
    )
    if kind.halves:
        return [
            replace(whole, id=f"{card}-half{half}", kind=DeviceKind.HALF, minor=minor + half)
            for half in (0, 1)
        ]
    if kind.sriov is None or not vfs:
        return [whole]
    known = kind.sriov != UNKNOWN
    pf = replace(
        whole,
        kind=DeviceKind.PF,
        raw_model=kind.sriov,
        mode=VxpuMode.SRIOV_ON,
        function=replace(function, num_vfs=vfs),
    )
    return [pf] + [
        replace(
            whole,
            id=f"0000:{bus:02x}:01.{n}-of{vfs}",
            kind=DeviceKind.VF,
            pci=f"0000:{bus:02x}:01.{n}",
            model=f"{kind.model}-VF-{_PROFILE[kind.memory][vfs - 1]}",
            minor=minor + 2 + 2 * n,
            raw_model=kind.sriov + vfs if known else UNKNOWN,
            mode=VxpuMode.NON_SRIOV,
            memory=_VF_MEMORY[kind.memory][vfs - 1] * MIB,
            function=replace(function, device=0x3685, num_vfs=None, total_vfs=None, physfn=card),
        )
        for n in range(vfs)
    ]


@dataclass(frozen=True, slots=True)
class Truth:
    """A machine: its devices, each with its N."""

    seats: tuple[Seat, ...]
    by_number: Mapping[int, Seat] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_number", {seat.number: seat for seat in self.seats})

    def renumbered(self, numbers: Sequence[int]) -> "Truth":
        return Truth(
            tuple(replace(seat, number=number) for seat, number in zip(self.seats, numbers, strict=True))
        )

    def scan(
        self,
        *,
        order: Sequence[int] | None = None,
        tells_number: bool = False,
        tells_minor: bool = False,
        unreadable: Collection[int] = (),
        sysfs: Collection[int] | None = None,
    ) -> Scan:
        """What a worker sees.

        order: the N by index, for a library that does not rank them; sysfs: the N that it knows, None for all
        """
        nodes = [node(seat.number, seat.minor) for seat in self.seats]
        nodes.sort(key=lambda node: node.number)
        usable = [node.number for node in nodes if node.number not in unreadable]
        readings = []
        for index, number in enumerate(usable if order is None else order):
            seat = self.by_number[number]
            readings.append(
                Reading(
                    index=index,
                    pci=seat.pci,
                    model=seat.raw_model,
                    memory_bytes=seat.memory,
                    mode=seat.mode,
                    state=201,
                    number=number if tells_number else None,
                    minor=seat.minor if tells_minor else None,
                )
            )
        known = [seat for seat in self.seats if sysfs is None or seat.number in sysfs]
        functions = {seat.pci: seat.function for seat in known}
        functions |= {
            seat.pci: seat.function
            for seat in self.seats
            if any(own.physfn == seat.pci for own in functions.values())
        }
        return scan(
            readings,
            nodes=nodes,
            usable=usable,
            addresses={seat.number: seat.pci for seat in known},
            functions=functions,
        )


@st.composite
def machines(draw: st.DrawFn, kinds: Sequence[CardKind] = CARD_KINDS, most: int = 5) -> Truth:
    """Cards of several kinds, some split, with any N, in any order and with holes."""
    minor, seats = 0, []
    buses = draw(st.lists(st.integers(0, 255), min_size=1, max_size=most, unique=True))
    for bus in buses:
        kind = draw(st.sampled_from(list(kinds)))
        seats += seats_of(kind, bus, draw(st.integers(0, 3)), minor)
        minor = max(seat.minor for seat in seats) // 2 * 2 + 2
    return Truth(tuple(seats)).renumbered(draw(numberings(len(seats))))


def numberings(count: int) -> st.SearchStrategy[list[int]]:
    """N for so many nodes, in any order and with holes."""
    return st.lists(st.integers(0, 127), min_size=count, max_size=count, unique=True)
