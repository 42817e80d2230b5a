# SPDX-License-Identifier: Apache-2.0
"""Which nodes the library does not list, why, and what is said of them."""

from dataclasses import replace
from errno import EACCES, EIO, EPERM

import pytest

from tests.support.devices import node, reading, scan
from xpu_plugin.model.devices import Scan, identify
from xpu_plugin.model.unlisted import Unlisted, sentences, unlisted


def address(number: int) -> str:
    return f"0000:{number:02x}:00.0"


def seen(number: int, *listed: int, refused: dict[int, int] | None = None) -> Scan:
    """A scan of so many nodes, of which the library lists some."""
    readings = [reading(index, address(own)) for index, own in enumerate(listed)]
    refused = refused or {}
    return replace(
        scan(
            readings,
            nodes=map(node, range(number)),
            usable=[own for own in range(number) if own not in refused],
            addresses={own: address(own) for own in range(number)},
        ),
        refused=refused,
    )


def of(scan: Scan) -> tuple[Unlisted, ...]:
    return unlisted(scan, identify(scan))


def test_of_a_list_that_is_complete_there_are_none() -> None:
    assert of(seen(4, 0, 1, 2, 3)) == ()


def test_a_node_that_cannot_be_opened_is_one_with_the_reason() -> None:
    (own,) = of(seen(4, 0, 1, 3, refused={2: EIO}))
    assert own == Unlisted(number=2, errno=EIO)
    assert sentences([own]) == ["/dev/xpu2: it cannot be opened (Input/output error)"]


def test_a_node_that_opens_again_already_is_one_as_well() -> None:
    (own,) = of(seen(4, 0, 1, 3))
    assert own == Unlisted(number=2)
    assert "although it opens now" in sentences([own])[0]


def test_nodes_beyond_those_that_the_library_lists_are_said_in_one_sentence() -> None:
    found = of(seen(120, *range(99)))
    assert found == tuple(Unlisted(number=number, beyond=True) for number in range(99, 120))
    assert sentences(found) == ["/dev/xpu99 to /dev/xpu119: the library lists 99 nodes at most"]
    assert sentences(found[:1]) == ["/dev/xpu99: the library lists 99 nodes at most"]


def test_a_library_that_lists_more_has_no_such_bound() -> None:
    assert of(seen(120, *range(119), refused={119: EIO})) == (Unlisted(number=119, errno=EIO),)


def test_a_node_about_which_there_is_a_contradiction_has_an_index() -> None:
    contradicted = replace(seen(2, 0, 1), readings=(reading(0, address(0)), reading(1, address(7))))
    assert identify(contradicted).problems
    assert of(contradicted) == ()


@pytest.mark.parametrize(("errno", "denied"), [(EACCES, True), (EPERM, True), (EIO, False), (0, False)])
def test_what_is_denied_is_told_from_what_fails(errno: int, denied: bool) -> None:
    assert Unlisted(number=0, errno=errno).denied is denied
