# SPDX-License-Identifier: Apache-2.0
"""Readiness: each obstacle keeps pods away, and is named."""

from dataclasses import replace
from typing import Any

import pytest

from xpu_plugin.model.readiness import Facts, Reason, Status, in_doubt, readiness, shows
from xpu_plugin.model.vf_plan import CardPlan, DesiredVfs, Report, VfAction, VfOutcome


A = "0000:3b:00.0"
XPU, VF = "baidu.com/xpu", "baidu.com/R200-VF-8G"
IDS = frozenset({A, "0000:3c:00.0"})
KEEP = VfOutcome(desired=DesiredVfs(number=0, origin="argument"))
READY = Facts(functions=2, devices=2, offered={XPU: IDS}, listed={XPU: IDS}, outcome=KEEP)


def outcome(action: VfAction, *holders: str) -> VfOutcome:
    step = CardPlan(card=A, desired=2, actual=0, action=action, holders=holders)
    return replace(KEEP, report=Report(steps=(step,)))


def test_cards_are_ready_when_the_kubelet_lists_them() -> None:
    found = readiness(READY)
    assert (found.status, found.reason) == (Status.TRUE, Reason.LISTED)
    assert found.allocatable == {XPU: 2}
    assert found.open


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"devices": None, "trouble": None}, Status.UNKNOWN, Reason.NOT_SCANNED),
        ({"trouble": "no driver: load it"}, Status.FALSE, Reason.NO_LIBRARY),
        ({"devices": None, "trouble": "no driver: load it"}, Status.FALSE, Reason.NO_LIBRARY),
        ({"devices": 0}, Status.FALSE, Reason.NO_DEVICE),
        ({"outcome": VfOutcome()}, Status.UNKNOWN, Reason.VFS_UNKNOWN),
        ({"outcome": outcome(VfAction.APPLY)}, Status.FALSE, Reason.VFS_PENDING),
        ({"outcome": outcome(VfAction.BLOCKED)}, Status.FALSE, Reason.VFS_PENDING),
        ({"listed": {}}, Status.FALSE, Reason.NOT_LISTED),
        ({"listed": {XPU: IDS - {A}}}, Status.FALSE, Reason.NOT_LISTED),
        ({"listed": {XPU: IDS | {"foreign"}}}, Status.FALSE, Reason.NOT_LISTED),
        ({"offered": {XPU: IDS, VF: frozenset()}}, Status.FALSE, Reason.NOT_LISTED),
    ],
)
def test_each_obstacle_keeps_pods_away(change: dict[str, Any], status: Status, reason: Reason) -> None:
    found = readiness(replace(READY, **change))
    assert (found.status, found.reason) == (status, reason)
    assert not found.open


@pytest.mark.parametrize("trouble", [None, "no usable libxpuml"])
@pytest.mark.parametrize("devices", [None, 0])
def test_a_node_without_cards_is_open_and_not_ready(trouble: str | None, devices: int | None) -> None:
    found = readiness(Facts(functions=0, trouble=trouble, devices=devices))
    assert (found.status, found.reason) == (Status.FALSE, Reason.NO_XPU)
    assert found.open


@pytest.mark.parametrize(
    "given_up",
    [
        {"outcome": outcome(VfAction.FAILED)},
        {"outcome": outcome(VfAction.UNSUPPORTED)},
        {"outcome": outcome(VfAction.KEEP)},
        {"outcome": outcome(VfAction.BLOCKED, "default/train/main")},
        {"outcome": outcome(VfAction.BLOCKED), "patient": False},
    ],
)
def test_what_is_given_up_on_keeps_no_pod_away(given_up: dict[str, Any]) -> None:
    assert readiness(replace(READY, **given_up)).open


def test_a_message_names_a_few_cards() -> None:
    steps = tuple(
        CardPlan(card=f"0000:{bus}:00.0", desired=2, actual=0, action=VfAction.APPLY) for bus in range(10, 20)
    )
    found = readiness(replace(READY, outcome=replace(KEEP, report=Report(steps=steps))))
    assert "0000:13:00.0 and 6 more: " in found.message


def test_a_card_without_holder_and_without_proof_is_in_doubt() -> None:
    assert in_doubt(outcome(VfAction.BLOCKED).report)
    assert not in_doubt(outcome(VfAction.BLOCKED, "default/train/main").report)
    assert not in_doubt(outcome(VfAction.FAILED).report)


@pytest.mark.parametrize(
    ("allocatable", "expected", "shown"),
    [
        ({XPU: "2", "cpu": "2"}, {XPU: 2}, True),
        ({XPU: "3"}, {XPU: 2}, False),
        ({}, {XPU: 2}, False),
        ({}, {XPU: 0}, True),
        ({}, {}, True),
    ],
)
def test_a_node_shows_what_the_kubelet_lists(
    allocatable: dict[str, object], expected: dict[str, int], shown: bool
) -> None:
    assert shows(allocatable, expected) == shown
