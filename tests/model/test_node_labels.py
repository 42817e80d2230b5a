# SPDX-License-Identifier: Apache-2.0
"""What a node is labelled with."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.devices import MIB, Truth, device, machines
from xpu_plugin.model.devices import DeviceKind, identify
from xpu_plugin.model.node_labels import COUNT, DRIVER, LABELS, MEMORY, MODEL, VFS, node_labels, sanitised


VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
A, B = "0000:3b:00.0", "0000:3c:00.0"


def test_a_node_of_equal_cards() -> None:
    assert node_labels([device(A), device(B)], "4.0.12.1 commit: 1234") == {
        MODEL: "R200",
        COUNT: "2",
        MEMORY: "16384",
        DRIVER: "4.0.12.1",
        VFS: "true",
    }


def test_a_split_changes_nothing() -> None:
    pf = device(A, kind=DeviceKind.PF, split="of2")
    vfs = [device(f"0000:3b:01.{n}-of2", model="R200-VF-8G", memory_bytes=8192 * MIB) for n in (0, 1)]
    assert node_labels([pf, *vfs], "4.0.12") == node_labels([device(A)], "4.0.12")


def test_a_card_of_which_only_vfs_are_in_sight_is_named_by_them_and_its_memory_is_not_known() -> None:
    labels = node_labels([device("0000:3b:01.0-of2", model="R200-VF-8G")], "4.0.12")
    assert (labels[MODEL], labels[COUNT], labels[MEMORY]) == ("R200", "1", None)


def test_halves_are_one_card_with_the_memory_of_both() -> None:
    halves = [device(f"{A}-half{half}", model="K200", memory_bytes=8192 * MIB, max_vfs=0) for half in (0, 1)]
    labels = node_labels(halves, "4.0.12")
    assert labels == {MODEL: "K200", COUNT: "1", MEMORY: "16384", DRIVER: "4.0.12", VFS: "false"}


def test_different_cards_are_mixed_and_the_smallest_memory_counts() -> None:
    labels = node_labels([device(A), device(B, model="R300", memory_bytes=32768 * MIB)], "4.0.12")
    assert (labels[MODEL], labels[MEMORY]) == ("mixed", "16384")


def test_a_node_without_cards_has_none_and_no_more_to_say() -> None:
    assert node_labels([], "4.0.12") == {MODEL: None, COUNT: "0", MEMORY: None, DRIVER: None, VFS: None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("R200-8F", "R200-8F"),
        ("4.0 (beta)", "4.0-beta"),
        ("-x_.", "x"),
        ("昆仑", None),
        ("", None),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_values_are_made_what_kubernetes_takes(text: str, value: str | None) -> None:
    assert sanitised(text) == value


@given(st.text(max_size=100))
def test_any_text_becomes_a_value_or_none(text: str) -> None:
    value = sanitised(text)
    assert value is None or VALUE.fullmatch(value)


@given(machines(), st.text(max_size=80))
def test_any_machine_has_labels_that_kubernetes_takes(truth: Truth, version: str) -> None:
    labels = node_labels(identify(truth.scan()).devices.values(), version)
    assert tuple(labels) == LABELS
    assert all(value is None or VALUE.fullmatch(value) for value in labels.values())
