# SPDX-License-Identifier: Apache-2.0
"""Places of cards, their matrix, and the link groups of file and xpu-smi."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import device
from xpu_plugin.model.devices import Device
from xpu_plugin.model.topology import (
    NO_LINKS,
    Links,
    LinkSource,
    Place,
    document,
    matrix,
    parse_file,
    parse_matrix,
    places,
    ranked,
)


A, B, C, D, E, F = (f"0000:{bus}:00.0" for bus in ("03", "05", "16", "26", "84", "b6"))
SIX = [
    # Two behind one switch, the next behind another one of the same root port, the next at another port.
    device(A, index=0, number=0, numa=0, bridges="pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0"),
    device(B, index=1, number=2, numa=0, bridges="pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0"),
    device(C, index=2, number=1, numa=0, bridges="pci0000:00/0000:00:01.0/0000:11:00.0"),
    device(D, index=3, number=3, numa=0, bridges="pci0000:00/0000:00:02.0"),
    device(E, index=4, number=4, numa=0, bridges="pci0000:80/0000:80:01.0"),
    device(F, index=5, number=5, numa=1, bridges="pci0000:b0/0000:b0:01.0"),
]
TOLD = Links(source=LinkSource.XPU_SMI, groups=(frozenset({A, B, C}), frozenset({D, E, F})))


def row(devices: list[Device], card: str, links: Links = NO_LINKS) -> list[str]:
    return [str(level) for level in matrix(devices, links)[card].values()]


def test_the_closest_connection_of_two_cards_by_sysfs() -> None:
    assert row(SIX, A) == ["X", "PIX", "PXB", "PHB", "NODE", "SYS"]
    assert row(SIX, F) == ["SYS", "SYS", "SYS", "SYS", "SYS", "X"]


def test_links_are_closer_than_any_pcie_path() -> None:
    assert row(SIX, A, TOLD) == ["X", "XL", "XL", "PHB", "NODE", "SYS"]
    assert row(SIX, F, TOLD) == ["SYS", "SYS", "SYS", "XL", "XL", "X"]


def test_a_matrix_is_symmetric() -> None:
    for links in (NO_LINKS, TOLD):
        found = matrix(SIX, links)
        assert all(found[one][other] == found[other][one] for one in found for other in found)


def test_a_switch_is_the_innermost_bridge_above_another_card_too() -> None:
    found = places(SIX)
    switches = ["0000:01:00.0", "0000:01:00.0", "0000:00:01.0", None, None, None]
    assert [place.switch for place in found.values()] == switches


def test_groups_by_sysfs_are_numa_nodes_and_without_these_root_complexes() -> None:
    assert [place.group for place in places(SIX).values()] == ["numa0"] * 5 + ["numa1"]
    without = [device(own.id, bridges=own.bridges) for own in SIX]
    assert [place.group for place in places(without).values()] == ["pci0000:00"] * 4 + [None] * 2
    assert places([device(A)]) == {A: Place(group=None, numa=None, root=None, switch=None)}
    assert row([device(A), device(B)], A) == ["X", "SYS"]


def test_a_card_that_no_group_has_is_in_a_group_of_its_own() -> None:
    links = Links(source=LinkSource.FILE, groups=(frozenset({A, B}),))
    assert [place.group for place in places(SIX[:4], links).values()] == [A, A, C, D]


def test_vfs_are_at_the_place_of_their_card() -> None:
    vfs = [device(f"0000:03:01.{n}-of2", numa=1, bridges="pci0000:00/0000:00:01.0") for n in range(2)]
    assert places(vfs) == {A: Place(group="numa1", numa=1, root="pci0000:00", switch=None)}


def test_the_answer_has_each_card_with_its_nodes() -> None:
    answer = document(SIX[:2], TOLD)
    assert answer == {
        "source": "xpu-smi",
        "cards": [
            {
                "card": A,
                "paths": ["/dev/xpu0"],
                "group": A,
                "numa": 0,
                "root": "pci0000:00",
                "switch": "0000:01:00.0",
                "links": {A: "X", B: "XL"},
            },
            {
                "card": B,
                "paths": ["/dev/xpu2"],
                "group": A,
                "numa": 0,
                "root": "pci0000:00",
                "switch": "0000:01:00.0",
                "links": {A: "XL", B: "X"},
            },
        ],
    }


# --- the file -----------------------------------------------------------------------------------------


def test_a_file_has_a_group_in_each_line() -> None:
    text = f"# two groups\n\n{D} {C.upper()}  # the upper ones\n\t{B} {A}\n"
    assert parse_file(text) == Links(source=LinkSource.FILE, groups=(frozenset({A, B}), frozenset({C, D})))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no link group; accepted: PCI addresses"),
        ("# none\n", "no link group"),
        (f"{A} 3b:00.0", "line 1: '3b:00.0' is not accepted; accepted: PCI addresses of cards"),
        (f"{A}\n{B},{C}", f"line 2: '{B},{C}' is not accepted"),
        (f"{A} {B}\n\n{C} {A}", f"line 3: {A} is in line 1 already; accepted: each card once"),
        (f"{A} {A}", f"line 1: {A} is in line 1 already"),
        ("\n".join(f"0000:{n:02x}:00.0" for n in range(65)), "65 groups of 65 cards; accepted: up to 64"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_what_is_accepted(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="accepted: ") as refusal:
        parse_file(text)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=200))
def test_any_text_is_a_file_of_groups_or_refused_in_one_line(text: str) -> None:
    refusal = ""
    try:
        assert parse_file(text).groups
    except ValueError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1


# --- xpu-smi ------------------------------------------------------------------------------------------

P800 = """
        XPU0    XPU1    XPU2    XPU3    NIC0    CPU Affinity
XPU0     X      XL      SYS     SYS     PIX     0-47
XPU1    XL       X      SYS     SYS     PHB     0-47
XPU2    SYS     SYS      X      XL      SYS     48-95
XPU3    SYS     SYS     XL       X      SYS     48-95
NIC0    PIX     PHB     SYS     SYS      X

Legend:
  X    = Self
  XL   = direct link
"""


def test_groups_of_a_matrix_by_the_librarys_index() -> None:
    links = Links(source=LinkSource.XPU_SMI, groups=(frozenset({A, C}), frozenset({B, D})))
    assert parse_matrix(P800, [A, C, B, D]) == links
    assert parse_matrix(P800.replace("XPU0 ", "\x1b[4mXPU0\x1b[0m "), [A, C, B, D]) == links


def test_a_matrix_without_links_leaves_the_groups_to_sysfs() -> None:
    assert parse_matrix(P800.replace("XL ", "PIX"), [A, B, C, D]) == NO_LINKS


CHAIN = """
        XPU0    XPU1    XPU2    XPU3
XPU0     X      XL      SYS     SYS
XPU1    XL       X      XL      SYS
XPU2    SYS     XL       X      SYS
XPU3    SYS     SYS     SYS      X
"""
"""Its ends are not linked."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no matrix of 4 devices XPU0 to XPU3"),
        ("error: no device\n", "no matrix"),
        (P800.replace("\nXPU3 ", "\nGPU3 "), "no matrix"),
        (P800.replace("\nXPU3 ", "\nXPU2 "), "two rows of XPU2"),
        (P800 + "XPU4    SYS     SYS     SYS     SYS     X\n", "no matrix"),
        (P800.replace("XPU1    XL       X      SYS     SYS     PHB     0-47", "XPU1    XL"), "shorter"),
        (P800.replace("XPU1    XL       X ", "XPU1    X        XL"), "XPU1 and XPU0: 'X'"),
        (P800.replace("XPU1    XL       X ", "XPU1    SYS      X "), "make no group"),  # one way only
        (CHAIN, "make no group"),
    ],
)
def test_a_matrix_that_makes_no_groups_of_these_cards_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        parse_matrix(text, [A, B, C, D])
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=400), st.integers(0, 3))
def test_any_output_is_a_matrix_or_refused(text: str, count: int) -> None:
    refusal = ""
    try:
        parse_matrix(text, [A, B, C][:count])
    except ValueError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1


def test_the_cards_by_index_are_known_only_if_no_card_is_split_and_no_index_is_missing() -> None:
    assert ranked(SIX[::-1]) == (A, B, C, D, E, F)
    assert ranked(SIX[1:]) is None
    assert ranked([device("0000:03:01.0-of2", index=0)]) is None
    assert ranked([device(f"{A}-half0", index=0), device(f"{A}-half1", index=1)]) is None
