# SPDX-License-Identifier: Apache-2.0
"""What a device is: which node an index is, which identity and which name it has."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.support.devices import (
    CARD_KINDS,
    CONTROL,
    LOST_CALL,
    MIB,
    UNKNOWN,
    Truth,
    device,
    machines,
    node,
    numberings,
    reading,
    scan,
    seats_of,
)
from xpu_plugin.model.devices import (
    MOST_MEMORY,
    DeviceKind,
    Found,
    Function,
    Gauges,
    Scan,
    credible,
    identify,
    matches,
    resource_name,
)
from xpu_plugin.xpuml import Reading, VxpuMode


A, B, C, D = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "5e", "af"))
KL2 = Function(vendor=0x1D22, device=0x3684, subsystem=1, num_vfs=0)


def paths(of: Found) -> dict[str, str]:
    return {id: device.path for id, device in of.devices.items()}


# --- index -> N ---------------------------------------------------------------------------------------


def half(index: int, **told: int) -> Reading:
    return reading(index, A, model=0, mode=0, **told)


FOUR = list(map(node, range(4)))
THREE_OF_FOUR = [reading(0, A), reading(1, C), reading(2, D)]


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        # By rank: two cards were split and the first was put back. N has holes, the library counts 0 to 3.
        (
            scan(map(reading, range(4), (A, B, C, D)), nodes=map(node, (0, 1, 5, 6))),
            {A: 0, B: 1, C: 5, D: 6},
        ),
        # What the library tells as N beats the rank.
        (scan([reading(0, A, number=7), reading(1, B, number=3)], nodes=[node(3), node(7)]), {A: 7, B: 3}),
        # Nodes that the library cannot open take no index.
        (scan([reading(0, A), reading(1, C)], nodes=FOUR, usable=[0, 3]), {A: 0, C: 3}),
        # Sysfs corrects a wrong rank and a wrong N by the address.
        (scan([reading(0, A), reading(1, B)], nodes=FOUR[:2], addresses={0: B, 1: A}), {A: 1, B: 0}),
        (
            scan([reading(0, A, number=1), reading(1, B, number=0)], nodes=FOUR[:2], addresses={0: A, 1: B}),
            {A: 0, B: 1},
        ),
        # More nodes than the library counts are told apart by address only.
        (scan(THREE_OF_FOUR, nodes=FOUR, addresses=dict(enumerate((A, B, C, D)))), {A: 0, C: 2, D: 3}),
        # A device that was not asked is known by its node.
        (scan([reading(0, A), Reading(index=1)], nodes=FOUR[:2], addresses={0: A, 1: B}), {A: 0, B: 1}),
        # The halves of a K200 by the minor, never by rank: here the second half was given the lower N.
        (
            scan([half(0), half(1)], nodes=[node(3, minor=9), node(7, minor=8)], addresses={3: A, 7: A}),
            {f"{A}-half0": 7, f"{A}-half1": 3},
        ),
        # One half keeps its id when the other is gone.
        (scan([half(0)], nodes=[node(4, minor=6)]), {f"{A}-half0": 4}),
        (scan([half(0)], nodes=[node(4, minor=7)]), {f"{A}-half1": 4}),
    ],
)
def test_an_index_is_of_one_node(scan: Scan, expected: dict[str, int]) -> None:
    found = identify(scan)
    assert paths(found) == {id: f"/dev/xpu{number}" for id, number in expected.items()}
    assert found.problems == ()
    assert found.control == CONTROL


@pytest.mark.parametrize(
    ("scan", "left", "said"),
    [
        # Sysfs contradicts.
        (
            scan([reading(0, A), reading(1, B)], nodes=FOUR[:2], addresses={0: A, 1: C}),
            [A],
            [("/dev/xpu1", B, C)],
        ),
        # More nodes than the library counts, and no address.
        (scan(THREE_OF_FOUR, nodes=FOUR), [], [("index 0",), ("index 1",), ("index 2",)]),
        # Two indexes are told as one N.
        (
            scan([reading(0, A, number=0), reading(1, B, number=0), reading(2, C, number=2)], nodes=FOUR[:3]),
            [C],
            [("/dev/xpu0",)],
        ),
        (scan([reading(0, A, number=9)], nodes=FOUR[:1]), [], [("device index 0: no node /dev/xpu9",)]),
        # No address at all.
        (
            scan([Reading(index=0, failures=(LOST_CALL,)), reading(1, B)], nodes=FOUR[:2]),
            [B],
            [("/dev/xpu0", str(LOST_CALL))],
        ),
        # Both would have one id.
        (
            scan([reading(0, A), reading(1, A), reading(2, B)], nodes=FOUR[:3]),
            [B],
            [("/dev/xpu0 and /dev/xpu1",)],
        ),
    ],
)
def test_what_cannot_be_told_apart_is_left_out_with_the_reason(
    scan: Scan, left: list[str], said: list[tuple[str, ...]]
) -> None:
    found = identify(scan)
    assert list(found.devices) == left
    for problem, words in zip(found.problems, said, strict=True):
        assert all(word in problem for word in words)


def test_a_rank_that_sysfs_refutes_somewhere_is_not_trusted_where_sysfs_is_silent() -> None:
    """The library does not rank here, as one node proves; the others could be anybody's."""
    found = identify(scan(map(reading, range(3), (C, A, B)), nodes=map(node, range(3)), addresses={0: A}))
    assert set(paths(found).items()) <= {(A, "/dev/xpu0")}


@pytest.mark.parametrize("sysfs", [{0: B, 1: C, 2: A}, {0: B}, {}], ids=["all", "some", "none"])
def test_a_device_that_was_not_asked_costs_no_other_one_its_node(sysfs: Mapping[int, str]) -> None:
    """A library that tells N need not rank: what it told stands, the silent one has no other's node."""
    found = identify(
        scan(
            [reading(0, A, number=2), reading(1, B, number=0), Reading(index=2)],
            nodes=map(node, range(3)),
            addresses=sysfs,
        )
    )
    assert paths(found) | {C: "/dev/xpu1"} == {A: "/dev/xpu2", B: "/dev/xpu0", C: "/dev/xpu1"}


@pytest.mark.parametrize("minors", [(0, 1), (1, 0)])
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_minor_told_by_the_library_gives_a_half_its_node(minors: tuple[int, int], nodes: int) -> None:
    """Where the library does not rank, or cannot, as it does not count the node of another card."""
    found = identify(
        scan(
            [reading(index, A, model=0, mode=0, minor=minor) for index, minor in enumerate(minors)],
            nodes=[node(number, minor=number) for number in range(nodes)],
            addresses=dict(enumerate((A, A, B)[:nodes])),
        )
    )
    assert paths(found) == {f"{A}-half0": "/dev/xpu0", f"{A}-half1": "/dev/xpu1"}


def test_two_devices_of_one_address_are_halves_whatever_the_library_calls_them() -> None:
    readings = [reading(index, A, model=UNKNOWN) for index in (0, 1)]
    found = identify(scan(readings, nodes=[node(0, minor=8), node(1, minor=9)]))
    assert paths(found) == {f"{A}-half0": "/dev/xpu0", f"{A}-half1": "/dev/xpu1"}
    assert {device.kind for device in found.devices.values()} == {DeviceKind.HALF}


# --- identity -----------------------------------------------------------------------------------------


def split(vfs: int = 3, model: int = 200, **vf: object) -> list[Reading]:
    """A card of `vfs` VFs as the library sees it."""
    return [
        reading(0, A, model=model, mode=VxpuMode.SRIOV_ON),
        *(
            replace(
                reading(n + 1, f"0000:3b:01.{n}", model=UNKNOWN if model == UNKNOWN else model + vfs, mode=0),
                **vf,  # type: ignore[arg-type]  # fields of a Reading
            )
            for n in range(vfs)
        ),
    ]


def split_functions(vfs: int = 3) -> dict[str, Function]:
    virtual = Function(vendor=0x1D22, device=0x3685, physfn=A)
    return {A: replace(KL2, numa=1, num_vfs=vfs), **{f"0000:3b:01.{n}": virtual for n in range(vfs)}}


def only(of: Found, kind: DeviceKind) -> dict[str, str]:
    return {id: device.card for id, device in of.devices.items() if device.kind is kind}


@pytest.mark.parametrize("model", [200, UNKNOWN])
@pytest.mark.parametrize("sysfs", [True, False])
@pytest.mark.parametrize("vfs", [1, 2, 3])
def test_vfs_know_their_card_and_how_many_they_are(model: int, sysfs: bool, vfs: int) -> None:
    """By sysfs where it speaks; else by the address rule, and by the model number or the count."""
    functions = split_functions(vfs) if sysfs else {}
    found = identify(scan(split(vfs, model), nodes=map(node, range(vfs + 1)), functions=functions))
    assert only(found, DeviceKind.PF) == {A: A}
    assert only(found, DeviceKind.VF) == {f"0000:3b:01.{n}-of{vfs}": A for n in range(vfs)}
    assert {device.split for device in found.devices.values()} == {f"of{vfs}"}
    assert found.devices[A].node.number == 0


def test_physfn_beats_the_address_rule() -> None:
    functions = {D: replace(KL2, num_vfs=1), "0000:3b:01.0": Function(device=0x3685, physfn=D)}
    readings = [reading(0, A), reading(1, "0000:3b:01.0", model=201, mode=0)]
    found = identify(scan(readings, nodes=map(node, range(2)), functions=functions))
    assert only(found, DeviceKind.VF) == {"0000:3b:01.0-of1": D}


def test_the_count_of_vfs_is_sysfs_then_the_model_then_what_is_in_sight() -> None:
    """One of three VFs cannot be opened."""
    nodes = [node(n) for n in range(3)]
    by_sysfs = identify(scan(split(3, UNKNOWN)[:3], nodes=nodes, functions=split_functions(3)))
    assert set(only(by_sysfs, DeviceKind.VF)) == {"0000:3b:01.0-of3", "0000:3b:01.1-of3"}
    by_model = identify(scan(split(3)[:3], nodes=nodes))
    assert set(only(by_model, DeviceKind.VF)) == {"0000:3b:01.0-of3", "0000:3b:01.1-of3"}
    by_sight = identify(scan(split(3, UNKNOWN)[:3], nodes=nodes))
    assert set(only(by_sight, DeviceKind.VF)) == {"0000:3b:01.0-of2", "0000:3b:01.1-of2"}


def test_a_vf_says_non_sriov_as_k_series_do_and_is_no_whole_card() -> None:
    """By its PCI device number alone, where the library knows neither model nor card."""
    functions = {"0000:3b:01.0": Function(device=0x3685)}
    found = identify(
        scan([reading(0, "0000:3b:01.0", model=UNKNOWN, mode=0)], nodes=[node(0)], functions=functions)
    )
    assert only(found, DeviceKind.VF) == {"0000:3b:01.0-of1": A}


@pytest.mark.parametrize(("known", "mode"), [("sysfs", None), ("model", None), ("sysfs", VxpuMode.SRIOV_OFF)])
def test_a_split_card_is_a_pf_whatever_its_mode_says(known: str, mode: VxpuMode | None) -> None:
    """For a model it does not know, the library answers SRIOV_OFF when its query of the mode fails."""
    readings = split(2, 200 if known == "model" else UNKNOWN)
    readings[0] = replace(readings[0], mode=mode)
    functions = split_functions(2) if known == "sysfs" else {}
    found = identify(scan(readings, nodes=map(node, range(3)), functions=functions))
    assert found.devices[A].kind is DeviceKind.PF


def test_a_card_put_back_together_is_whole_again_under_its_address() -> None:
    """Also when stale attributes still call it 200."""
    found = identify(scan([reading(0, A, model=200, mode=VxpuMode.SRIOV_OFF)], nodes=[node(0)]))
    assert only(found, DeviceKind.WHOLE) == {A: A}
    assert found.devices[A].model == "R200"


def test_the_numa_node_is_the_functions_else_its_cards() -> None:
    functions = split_functions(2)
    functions["0000:3b:01.1"] = replace(functions["0000:3b:01.1"], numa=0)
    found = identify(scan(split(2), nodes=map(node, range(3)), functions=functions))
    assert {id: device.numa for id, device in found.devices.items()} == {
        A: 1,
        "0000:3b:01.0-of2": 1,
        "0000:3b:01.1-of2": 0,
    }


@pytest.mark.parametrize(
    ("mode", "function", "most"),
    [
        (VxpuMode.SRIOV_OFF, Function(), 3),
        (VxpuMode.SRIOV_OFF, replace(KL2, total_vfs=3), 3),
        (VxpuMode.SRIOV_OFF, KL2, 0),  # sysfs shows no SR-IOV capability
        (VxpuMode.NON_SRIOV, replace(KL2, total_vfs=3), 0),
        (None, Function(), None),
    ],
)
def test_the_most_vfs_of_a_card(mode: int | None, function: Function, most: int | None) -> None:
    found = identify(scan([reading(0, A, mode=mode)], nodes=[node(0)], functions={A: function}))
    assert found.devices[A].max_vfs == most


@pytest.mark.parametrize(
    ("told", "state", "failure"), [({"state": None}, None, LOST_CALL), ({"serial": None}, 201, None)]
)
def test_a_failure_of_the_state_query_and_of_no_other_is_the_devices(
    told: dict[str, Any], state: int | None, failure: object
) -> None:
    found = identify(scan([reading(0, A, failures=(LOST_CALL,), **told)], nodes=[node(0)]))
    assert (found.devices[A].state, found.devices[A].failure) == (state, failure)


# --- names --------------------------------------------------------------------------------------------


def model_of(reading: Reading, function: Function | None = None) -> str:
    pci = reading.pci or ""
    functions = {pci: function} if function else {}
    (found,) = identify(scan([reading], nodes=[node(0)], functions=functions)).devices.values()
    return found.model


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "K200"),
        (1, "K100"),
        (2, "R200"),
        (3, "R300"),
        (4, "R200-8F"),
        (5, "R200-8FS"),
        (6, "R100"),
        (8, "R420"),
        (9, "RG800"),
        (10, "RG800-PRO"),
        (11, "RM80"),
        (300, "KL3"),
        (599, "KL3"),
    ],
)
def test_models_have_the_vendors_names(number: int, name: str) -> None:
    assert model_of(reading(0, A, model=number)) == name


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (200, "R200"),
        (204, "R300"),
        (208, "R200-8F"),
        (212, "R200-8FS"),
        (216, "RG800"),
        (220, "RG800-PRO"),
    ],
)
def test_split_models_have_the_names_of_their_family(first: int, name: str) -> None:
    found = identify(scan(split(3, first, memory_bytes=5456 * MIB), nodes=map(node, range(4))))
    assert found.devices[A].model == name
    assert found.devices["0000:3b:01.2-of3"].model == f"{name}-VF-5G"


# The vendor's table: memory of a VF in MiB where a card has 1, 2 or 3 of them.
SIZES = {
    "16 GB": ((16384, 8192, 5456), ("16G", "8G", "5G")),
    "16 GB with ECC": ((14336, 7168, 4776), ("16G", "8G", "5G")),
    "32 GB": ((32768, 16384, 10920), ("32G", "16G", "10G")),
    "32 GB with ECC": ((28672, 14336, 9552), ("32G", "16G", "10G")),
}


@pytest.mark.parametrize("older", ["", "768 MiB less a VF", "768 MiB less a card"])
@pytest.mark.parametrize("vfs", [1, 2, 3])
@pytest.mark.parametrize("board", SIZES)
def test_a_vfs_profile_is_told_from_every_size_that_drivers_report(board: str, vfs: int, older: str) -> None:
    sizes, names = SIZES[board]
    less = {"": 0, "768 MiB less a VF": 768, "768 MiB less a card": 768 // vfs}[older]
    readings = split(vfs, memory_bytes=(sizes[vfs - 1] - less) * MIB)
    found = identify(scan(readings, nodes=map(node, range(vfs + 1))))
    assert found.devices[f"0000:3b:01.0-of{vfs}"].model == f"R200-VF-{names[vfs - 1]}"
    sizeless = identify(scan(split(vfs, memory_bytes=None), nodes=map(node, range(vfs + 1))))
    assert sizeless.devices[f"0000:3b:01.0-of{vfs}"].model == f"R200-VF-1OF{vfs}"


@pytest.mark.parametrize(
    ("subsystem", "name"),
    [
        (1, "R200"),
        (2, "R100"),
        (3, "R300"),
        (4, "R200-8F"),
        (5, "R200-8FS"),
        (6, "R420"),
        (7, "RG800"),
        (8, "RG800-PRO"),
    ],
)
def test_a_model_that_the_library_does_not_know_is_named_by_its_pci_subsystem(
    subsystem: int, name: str
) -> None:
    unknown = reading(0, A, model=UNKNOWN, arch=0)
    assert model_of(unknown, replace(KL2, subsystem=subsystem)) == name
    assert model_of(replace(unknown, model=None), replace(KL2, subsystem=subsystem)) == name


def test_vfs_of_an_unknown_model_have_their_cards_name() -> None:
    functions = split_functions(2)
    functions[A] = replace(functions[A], subsystem=3)
    readings = split(2, UNKNOWN, memory_bytes=8192 * MIB)
    found = identify(scan(readings, nodes=map(node, range(3)), functions=functions))
    assert found.devices[A].model == "R300"
    assert found.devices["0000:3b:01.0-of2"].model == "R300-VF-8G"


@pytest.mark.parametrize(
    ("fields", "function", "name"),
    [
        ({}, Function(device=0x3688), "P800"),
        ({"name": "P800 OAM"}, None, "P800"),
        ({"name": "P800 PCIe", "model": 300}, Function(device=0x3684, subsystem=0), "P800"),
        ({"name": "P900 OAM", "model": 301}, Function(device=0x3690), "P900-OAM"),
        ({}, Function(device=0x3684, subsystem=0), "XPU-3684-16G"),
        ({"memory_bytes": 12288 * MIB - 1}, None, "XPU-12G"),
        ({"memory_bytes": 0}, Function(device=0x3999), "XPU-3999"),
        ({"memory_bytes": None}, None, "XPU"),
        ({"memory_bytes": None, "name": "??"}, None, "XPU"),
        ({"model": 3}, Function(device=0x3684, subsystem=1), "R200"),
    ],
)
def test_an_unknown_model_is_named_by_what_is_known(
    fields: Mapping[str, object], function: Function | None, name: str
) -> None:
    unknown = replace(reading(0, A, model=UNKNOWN, arch=0), **fields)  # type: ignore[arg-type]
    assert model_of(unknown, function) == name


@given(name=st.text(max_size=95) | st.text("XPU-OAM 800", max_size=95))
@example("X" * 95)
def test_whatever_a_library_calls_a_board_makes_a_resource_name(name: str) -> None:
    """Kubernetes accepts up to 63 letters, digits, `-`, `_` and `.` after the domain."""
    readings = [replace(vf, name=name) for vf in split(3, UNKNOWN, memory_bytes=5456 * MIB)]
    for own in identify(scan(readings, nodes=map(node, range(4)))).devices.values():
        resource = resource_name(own, base="baidu.com/xpu", per_profile=True)
        assert re.fullmatch(r"baidu\.com/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", resource)


def test_one_name_for_all_or_one_for_each_model_and_profile() -> None:
    vf = device("0000:3b:01.0-of2", model="R200-VF-8G")
    assert resource_name(vf, base="example.com/card", per_profile=False) == "example.com/card"
    assert resource_name(vf, base="example.com/card", per_profile=True) == "example.com/R200-VF-8G"


# --- allow and deny -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("0000:3b:01.0-of2", True),
        ("0000:3B:01.0-OF2", True),
        ("0000:3b:00.0", True),
        ("r200-vf-8g", True),
        ("02K00Y6216V0012K", True),
        ("02k00y6216v0012k", True),
        ("R200", False),
        ("0000:3b:01.0", False),
        ("0000:3b:01.1-of2", False),
        ("", False),
    ],
)
def test_a_device_is_named_by_id_card_model_or_serial(name: str, does: bool) -> None:
    vf = device("0000:3b:01.0-of2", model="R200-VF-8G", serial="02K00Y6216V0012K")
    assert matches(vf, (name,)) is does
    assert matches(vf, ("stranger", name)) is does
    assert not matches(device(), ("",)), "a device without a serial"


# --- devices that do not answer -----------------------------------------------------------------------


def test_a_device_that_does_not_answer_is_what_an_earlier_scan_found_at_its_node() -> None:
    """Without sysfs nothing else would tell; its index may have moved, its state is unknown."""
    nodes = [node(0), node(1), node(2)]
    before = identify(scan(map(reading, range(2), (A, B)), nodes=nodes[1:]))
    silent = Reading(index=2, failures=(LOST_CALL,))
    now = identify(scan([reading(0, C), reading(1, A), silent], nodes=nodes), before)
    assert paths(now) == {A: "/dev/xpu1", B: "/dev/xpu2", C: "/dev/xpu0"}
    assert now.devices[B] == replace(before.devices[B], index=2, state=None, failure=LOST_CALL)
    assert now.problems == ()


def test_a_silent_device_whose_node_is_another_one_now_is_not_what_it_was() -> None:
    """By sysfs another card's; or the same N with another minor, which is another probe."""
    before = identify(scan([reading(0, A)], nodes=[node(0, minor=0)]))
    now = identify(scan([Reading(index=0)], nodes=[node(0, minor=0)], addresses={0: B}), before)
    assert paths(now) == {B: "/dev/xpu0"}
    assert identify(scan([Reading(index=0)], nodes=[node(0, minor=2)]), before).devices == {}


@pytest.mark.parametrize("silent", [0, 1, 2])
@pytest.mark.parametrize("model", [200, UNKNOWN])
def test_a_silent_device_of_a_split_card_changes_no_identity(silent: int, model: int) -> None:
    """Nor a name: its siblings are counted, and named after their card, where nothing else tells."""
    nodes = [node(n) for n in range(3)]
    readings = split(2, model, memory_bytes=8192 * MIB)
    before = identify(scan(readings, nodes=nodes))
    readings[silent] = Reading(index=silent)
    now = identify(scan(readings, nodes=nodes), before)
    assert {id: (own.card, own.kind, own.model) for id, own in now.devices.items()} == {
        id: (own.card, own.kind, own.model) for id, own in before.devices.items()
    }


def test_a_device_that_answers_is_what_it_says_now() -> None:
    before = identify(scan([reading(0, A, model=3, serial="old")], nodes=[node(0)]))
    now = identify(scan([reading(0, A, serial="new")], nodes=[node(0)]), before)
    assert now == identify(scan([reading(0, A, serial="new")], nodes=[node(0)]))


# --- any machine --------------------------------------------------------------------------------------


def assert_true(scan: Scan, truth: Truth) -> None:
    """Each found device is the one behind its node."""
    for own in identify(scan).devices.values():
        seat = truth.by_number[own.node.number]
        assert (own.id, own.card, own.kind) == (seat.id, seat.card, seat.kind)
        assert own.node == node(seat.number, seat.minor)


def assert_complete(scan: Scan, truth: Truth) -> None:
    """All is found, and true."""
    result = identify(scan)
    assert result.problems == ()
    assert set(result.devices) == {seat.id for seat in truth.seats}
    assert_true(scan, truth)


@given(data=st.data(), truth=machines())
def test_identities_do_not_depend_on_numbers_and_indexes(data: st.DataObject, truth: Truth) -> None:
    """With a library that ranks and one that tells N in any order, with sysfs and without, renumbered."""
    for numbered in (truth, truth.renumbered(data.draw(numberings(len(truth.seats))))):
        order = data.draw(st.permutations(sorted(numbered.by_number)))
        tells_minor = data.draw(st.booleans())
        assert_complete(numbered.scan(), numbered)
        assert_complete(numbered.scan(sysfs=()), numbered)
        assert_complete(numbered.scan(tells_number=True, order=order, tells_minor=tells_minor), numbered)
        assert_complete(numbered.scan(tells_number=True, order=order, sysfs=()), numbered)
        result = identify(numbered.scan())
        assert {id: device.model for id, device in result.devices.items()} == {
            seat.id: seat.model for seat in numbered.seats
        }


@given(data=st.data(), truth=machines())
def test_identities_do_not_depend_on_which_other_nodes_can_be_opened(
    data: st.DataObject, truth: Truth
) -> None:
    unreadable = data.draw(st.sets(st.sampled_from(sorted(truth.by_number))))
    scan = truth.scan(unreadable=unreadable)
    assert identify(scan).devices.keys() == {seat.id for seat in truth.seats if seat.number not in unreadable}
    assert_true(scan, truth)


@given(data=st.data(), truth=machines())
def test_no_wrong_node_is_given_when_the_worker_is_wrong_about_which_nodes_the_library_could_open(
    data: st.DataObject, truth: Truth
) -> None:
    numbers = sorted(truth.by_number)
    real = data.draw(st.sets(st.sampled_from(numbers)))
    believed = data.draw(st.lists(st.sampled_from(numbers), unique=True).map(sorted))
    assert_true(replace(truth.scan(order=sorted(real)), usable=tuple(believed)), truth)


@given(data=st.data(), truth=machines(), tells_minor=st.booleans())
def test_no_wrong_node_is_given_when_the_library_ranks_otherwise(
    data: st.DataObject, truth: Truth, tells_minor: bool
) -> None:
    order = data.draw(st.permutations(sorted(truth.by_number)))
    assert_true(truth.scan(order=order, tells_minor=tells_minor), truth)


@given(data=st.data(), truth=machines([kind for kind in CARD_KINDS if not kind.halves]))
def test_no_wrong_node_is_given_when_the_library_tells_a_wrong_n(data: st.DataObject, truth: Truth) -> None:
    """Sysfs tells cards apart, not the halves of one."""
    scan = truth.scan(order=data.draw(st.permutations(sorted(truth.by_number))))
    told = data.draw(st.lists(st.none() | st.integers(0, 127), min_size=0, max_size=len(scan.readings)))
    told += [None] * (len(scan.readings) - len(told))
    wrong = tuple(replace(own, number=n) for own, n in zip(scan.readings, told, strict=True))
    assert_true(replace(scan, readings=wrong), truth)


@given(data=st.data(), truth=machines([kind for kind in CARD_KINDS if not kind.halves]))
def test_a_rank_that_sysfs_refutes_anywhere_gives_no_wrong_node(data: st.DataObject, truth: Truth) -> None:
    """Sysfs knows some nodes only, and shows by one of them that the library does not rank."""
    numbers = sorted(truth.by_number)
    order = data.draw(st.permutations(numbers))
    known = data.draw(st.sets(st.sampled_from(numbers)))
    assume(any(rank in known and rank != number for rank, number in zip(numbers, order, strict=True)))
    assert_true(truth.scan(order=order, sysfs=known), truth)


@given(data=st.data(), truth=machines())
def test_identities_do_not_depend_on_which_devices_answer_this_time(
    data: st.DataObject, truth: Truth
) -> None:
    """With sysfs and without, once an earlier scan has heard them all."""
    for sysfs in (None, ()):
        first = truth.scan(sysfs=sysfs)
        before = identify(first)
        silent = data.draw(st.sets(st.integers(0, len(first.readings) - 1)))
        readings = tuple(Reading(index=own.index) if own.index in silent else own for own in first.readings)
        now = identify(replace(first, readings=readings), before)
        assert paths(now) == paths(before)
        assert {id: own.model for id, own in now.devices.items()} == {
            id: own.model for id, own in before.devices.items()
        }


def test_the_machines_of_these_tests_have_every_kind() -> None:
    """The properties above would prove little over machines that cannot be split."""
    kinds = {seat.kind for kind in CARD_KINDS for vfs in (0, 3) for seat in seats_of(kind, 1, vfs, 0)}
    assert kinds == set(DeviceKind)


# --- readings that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told", "believed"),
    [
        ("temperature_celsius", 48, 48),
        ("temperature_celsius", 150, 150),
        ("temperature_celsius", 151, None),
        ("temperature_celsius", 1293, None),
        ("temperature_celsius", 4294967284, -12),
        ("temperature_celsius", (1 << 32) - 40, -40),
        ("temperature_celsius", (1 << 32) - 41, None),
        ("temperature_celsius", (1 << 32) - 616, None),
        ("utilization_percent", 100, 100),
        ("utilization_percent", 101, None),
        ("utilization_percent", 42949671, None),
        ("power", 60000, 60000),
        ("power", (1 << 32) - 1, None),
        ("clock_mhz", (1 << 32) - 1, None),
        ("memory_total_bytes", MOST_MEMORY, MOST_MEMORY),
        ("memory_total_bytes", MOST_MEMORY + 1, None),
        ("memory_used_bytes", 0, 0),
        ("memory_used_bytes", MOST_MEMORY + 1, None),
    ],
)
def test_what_cannot_be_is_left_out(name: str, told: int, believed: int | None) -> None:
    fields: dict[str, Any] = {name: told}
    gauges = credible(Gauges(index=0, **fields))
    assert getattr(gauges, name) == believed
    assert gauges.impossible == (() if believed is not None else (name,))


def test_no_more_memory_is_used_than_there_is() -> None:
    gauges = credible(Gauges(index=0, memory_total_bytes=100, memory_used_bytes=101))
    assert (gauges.memory_total_bytes, gauges.memory_used_bytes) == (100, None)
    gauges = credible(Gauges(index=0, memory_total_bytes=133873775 * MIB, memory_used_bytes=7))
    assert (gauges.memory_total_bytes, gauges.memory_used_bytes) == (None, None)
    assert credible(Gauges(index=3)) == Gauges(index=3)


SENSELESS = (0, 133873775 * MIB, MOST_MEMORY + 1)
"""Bytes of memory that no device has."""


@pytest.mark.parametrize("memory", SENSELESS)
def test_a_name_does_not_follow_memory_that_cannot_be(memory: int) -> None:
    """An unknown board is named by its memory, where that is known."""
    odd = reading(0, A, model=9999)
    before = identify(scan([odd], nodes=[node(0)]))
    assert before.devices[A].model == "XPU-16G"
    now = identify(scan([replace(odd, memory_bytes=memory)], nodes=[node(0)]), before)
    assert (now.devices[A].model, now.devices[A].memory_bytes) == ("XPU-16G", 16384 * MIB)
    alone = identify(scan([replace(odd, memory_bytes=memory)], nodes=[node(0)]))
    assert (alone.devices[A].model, alone.devices[A].memory_bytes) == ("XPU", 0)


@pytest.mark.parametrize("memory", SENSELESS)
def test_a_profile_does_not_follow_memory_that_cannot_be(memory: int) -> None:
    pf = reading(0, A, mode=2, model=200)
    vfs = [
        reading(1 + n, f"0000:3b:01.{n}", model=202, mode=0, memory_bytes=8192 * MIB, max_vfs=0)
        for n in range(2)
    ]
    nodes = [node(number) for number in range(3)]
    before = identify(scan([pf, *vfs], nodes=nodes))
    ids = [f"0000:3b:01.{n}-of2" for n in range(2)]
    assert [before.devices[id].model for id in ids] == ["R200-VF-8G"] * 2
    now = identify(scan([pf, replace(vfs[0], memory_bytes=memory), vfs[1]], nodes=nodes), before)
    assert [now.devices[id].model for id in ids] == ["R200-VF-8G"] * 2
    assert now.devices[ids[0]].memory_bytes == 8192 * MIB


@pytest.mark.parametrize("memory", SENSELESS)
def test_the_memory_of_a_half_does_not_follow_what_cannot_be(memory: int) -> None:
    half = reading(0, A, model=0, mode=0)
    before = identify(scan([half], nodes=[node(0)]))
    odd = scan([replace(half, memory_bytes=memory)], nodes=[node(0)])
    assert [own.memory_bytes for own in identify(odd, before).devices.values()] == [16384 * MIB]
    assert [own.memory_bytes for own in identify(odd).devices.values()] == [0]


@pytest.mark.parametrize("memory", [500 << 30, 3 << 30])
def test_vfs_of_an_unknown_board_are_not_named_by_memory_that_its_pf_cannot_have(memory: int) -> None:
    """Their PF may tell what was on the stack: as much as a card can have, and not what its VFs have."""
    pf = reading(0, A, mode=2, model=9999)
    vfs = [
        reading(1 + n, f"0000:3b:01.{n}", model=9999, mode=0, memory_bytes=8192 * MIB, max_vfs=0)
        for n in range(2)
    ]
    nodes = [node(number) for number in range(3)]
    id = "0000:3b:01.0-of2"
    before = identify(scan([pf, *vfs], nodes=nodes))
    assert before.devices[id].model == "XPU-16G-VF-8G"
    now = identify(scan([replace(pf, memory_bytes=memory), *vfs], nodes=nodes), before)
    assert {own: device.model for own, device in now.devices.items()} == {
        own: device.model for own, device in before.devices.items()
    }
    assert now.devices[A].memory_bytes == 16384 * MIB
