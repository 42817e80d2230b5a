# SPDX-License-Identifier: Apache-2.0
"""The table of boards: which facts name a board, and what is known of it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.support.devices import LOST_CALL, MIB, node, reading, scan
from xpu_plugin.model.boards import BOARDS, Board, handle_limit, known, vfs_of
from xpu_plugin.model.devices import DeviceKind, Found, Function, Host, Node, identify
from xpu_plugin.xpuml import Reading, VxpuMode


FIRST, SECOND = "0000:03:00.0", "0000:16:00.0"


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        # PCI ids come before the library's number.
        ((0x3684, 1, 3), "R200"),
        ((0x3685, 7, 9999), "RG800"),
        ((0x3688, 0, 2), "P800"),
        ((0x3686, None, None), "P800"),
        ((0x3689, 0, 300), "P800"),
        # Two boards share these, so the number decides.
        ((0x3684, 3, 11), "RM80"),
        ((0x3684, 3, 205), "R300"),
        ((0x3684, 3, 9999), "R300"),
        ((0x3684, 0, 0), "K200"),
        ((0x3684, 0, 1), "K100"),
        ((None, None, 203), "R200"),
        # An id of its own, or a number of no board.
        ((0x368A, 0, 9999), None),
        ((0x3684, 0, 9999), None),
        ((None, None, 300), None),
        ((None, None, None), None),
    ],
)
def test_facts_name_a_board(facts: tuple[int | None, int | None, int | None], name: str | None) -> None:
    found = known(*facts)
    assert (found and found.name) == name


def test_the_name_of_the_product_counts_last() -> None:
    assert known(0x3684, 0, 9999, "P800 PCIe") == known(0x3687, None, None)
    assert known(0x3684, 1, 2, "P800 PCIe") == known(0x3684, 1, 2)
    assert known(None, None, 9999, "P8000 OAM") is None


@pytest.mark.parametrize(
    ("model", "vfs"), [(200, 0), (203, 3), (221, 1), (224, None), (2, None), (None, None)]
)
def test_a_split_model_states_its_vfs(model: int | None, vfs: int | None) -> None:
    assert vfs_of(model) == vfs


def test_no_two_boards_share_a_name_or_a_number() -> None:
    assert len({board.name for board in BOARDS}) == len(BOARDS)
    numbers = [board.model for board in BOARDS if board.model is not None]
    numbers += [board.sriov + n for board in BOARDS if board.sriov is not None for n in range(4)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("vfs", "mib", "name"),
    [
        (2, 49152, "P800-VF-48G"),
        (4, 24576, "P800-VF-24G"),
        (2, 43008, "P800-VF-48G"),  # an eighth less
        (4, 0, "P800-VF-1OF4"),
    ],
)
def test_a_vf_of_a_p800_is_named_by_its_share(vfs: int, mib: int, name: str) -> None:
    board = known(0x3688, 0, None)
    assert board is not None
    assert board.profile(vfs, mib * MIB) == name


def test_the_smallest_limit_of_handles_counts() -> None:
    unknown, p800 = Board(name="P900"), known(0x3688, 0, None)
    assert p800 is not None
    assert handle_limit([]) is handle_limit([unknown]) is None
    assert handle_limit([unknown, p800]) == 32
    assert handle_limit([replace(p800, handles=16), p800]) == 16


# --- a host of release 5: minor N, another order than N, VFs at the card's own slot ---------------


def p800(index: int, pci: str, **fields: object) -> Reading:
    p800 = reading(index, pci, model=300, arch=3, max_vfs=4, memory_bytes=98304 * MIB)
    return replace(p800, **fields)  # type: ignore[arg-type] # fields of a Reading


def nodes(number: int) -> list[Node]:
    return [Node(number=n, major=195, minor=n, inode=1000 + n) for n in range(number)]


WHOLE = Function(vendor=0x1D22, device=0x3688, subsystem=0, num_vfs=0, total_vfs=4)
FUNCTIONS = {FIRST: WHOLE, SECOND: WHOLE}
READINGS = (p800(0, FIRST), p800(1, SECOND))


def paths(found: Found) -> dict[str, str]:
    return {id: device.path for id, device in found.devices.items()}


@pytest.mark.parametrize(
    ("told", "addresses"),
    [
        ({}, {0: SECOND, 1: FIRST}),
        ({"number": (1, 0)}, {}),
        ({"minor": (1, 0)}, {}),
        ({"minor": (8, 9)}, {0: SECOND, 1: FIRST}),  # numbers of another kind change nothing
    ],
)
def test_a_node_follows_from_any_proof(
    told: Mapping[str, tuple[int, int]], addresses: Mapping[int, str]
) -> None:
    readings = [
        replace(own, **{name: values[own.index] for name, values in told.items()})  # type: ignore[arg-type] # as above
        for own in READINGS
    ]
    found = identify(scan(readings, nodes=nodes(2), addresses=addresses, functions=FUNCTIONS))
    assert paths(found) == {FIRST: "/dev/xpu1", SECOND: "/dev/xpu0"}
    assert {device.model for device in found.devices.values()} == {"P800"}


def test_the_rank_of_a_p800_proves_nothing() -> None:
    found = identify(scan(READINGS, nodes=nodes(2), functions=FUNCTIONS))
    assert found.devices == {}
    assert [problem.rpartition(": ")[2] for problem in found.problems] == ["its /dev/xpuN is unknown"] * 2
    alone = identify(scan(READINGS[:1], nodes=nodes(1), functions=FUNCTIONS))
    assert paths(alone) == {FIRST: "/dev/xpu0"}


def test_a_silent_p800_keeps_its_node_while_the_order_stays() -> None:
    before = identify(scan(READINGS, nodes=nodes(2), addresses={0: SECOND, 1: FIRST}, functions=FUNCTIONS))
    silent = (READINGS[0], Reading(index=1, failures=(LOST_CALL,)))
    now = identify(scan(silent, nodes=nodes(2), functions=FUNCTIONS), before)
    assert paths(now) == paths(before)
    swapped = (p800(0, SECOND), Reading(index=1))
    other = identify(scan(swapped, nodes=nodes(2), addresses={0: SECOND}, functions=FUNCTIONS), before)
    assert paths(other) == {SECOND: "/dev/xpu0"}, "sysfs refutes the order of before"


@pytest.mark.parametrize("sysfs", [True, False])
@pytest.mark.parametrize(("vfs", "profile"), [(2, "P800-VF-48G"), (4, "P800-VF-24G")])
def test_vfs_are_functions_of_the_cards_own_slot(vfs: int, profile: str, sysfs: bool) -> None:
    pf, slot = "0000:5e:02.0", "0000:5e:02"
    readings = [p800(0, pf, mode=VxpuMode.SRIOV_ON, name="P800 OAM", number=0, serial="02K00Y6218V0003A")]
    readings += [
        p800(n, f"{slot}.{n}", mode=VxpuMode.NON_SRIOV, number=n, memory_bytes=98304 // vfs * MIB)
        for n in range(1, vfs + 1)
    ]
    own = replace(WHOLE, num_vfs=None, total_vfs=None, physfn=pf)
    functions = {pf: replace(WHOLE, num_vfs=vfs), **{f"{slot}.{n}": own for n in range(1, vfs + 1)}}
    found = identify(scan(readings, nodes=nodes(vfs + 1), functions=functions if sysfs else {}))
    assert found.devices[pf].kind is DeviceKind.PF
    parts = {id: device for id, device in found.devices.items() if device.kind is DeviceKind.VF}
    assert set(parts) == {f"{slot}.{n}-of{vfs}" for n in range(1, vfs + 1)}
    assert {(own.card, own.model, own.serial) for own in parts.values()} == {
        (pf, profile, "02K00Y6218V0003A")
    }


@pytest.mark.parametrize(
    ("function", "most", "fields", "counts"),
    [
        (WHOLE, 4, {}, (2, 4)),
        (replace(WHOLE, total_vfs=16), 16, {}, (2, 4)),
        (replace(WHOLE, total_vfs=3), 16, {}, (2,)),
        (WHOLE, 3, {}, (2,)),
        (replace(WHOLE, total_vfs=None), 4, {}, ()),  # no SR-IOV capability
        (Function(), 4, {"model": 2}, (1, 2, 3)),
        (Function(), 3, {"model": 6}, ()),  # R100
        (Function(), 6, {"model": 9999}, (1, 2, 3, 4, 5, 6)),  # a board that is not in the table
        (replace(WHOLE, device=0x3690, total_vfs=2), 6, {"model": 9999}, (1, 2)),
        (WHOLE, 4, {"mode": None}, None),
    ],
)
def test_numbers_of_vfs_are_bounded_by_each_known_fact(
    function: Function, most: int, fields: Mapping[str, object], counts: tuple[int, ...] | None
) -> None:
    own = p800(0, FIRST, max_vfs=most, **fields)
    found = identify(scan([own], nodes=[node(0)], functions={FIRST: function}))
    assert found.devices[FIRST].vf_counts == counts


def test_the_host_of_a_scan_needs_no_major_or_minor_of_a_release() -> None:
    host = Host(nodes=tuple(nodes(2)), control=195 << 8 | 255, addresses={0: SECOND, 1: FIRST}, functions={})
    found = identify(replace(scan(READINGS, nodes=nodes(2)), host=host))
    assert found.control == 195 << 8 | 255
    assert {device.node.major for device in found.devices.values()} == {195}
