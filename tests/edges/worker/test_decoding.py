# SPDX-License-Identifier: Apache-2.0
"""A worker's answers: what is not of the types and ranges that it is said to be of is nonsense."""

import copy
from typing import Any

import pytest

from tests.fuzz.targets import SCAN, STATES, USAGE
from xpu_plugin.edges.worker.decoding import (
    NONSENSE,
    gauges_of,
    host_of,
    mark_of,
    nothing_of,
    scan_of,
    states_of,
    usage_of,
)
from xpu_plugin.model.devices import Gauges
from xpu_plugin.xpuml import StateAnswer


OPENED = {"library": "/lib/libxpuml.so.1", "library_version": "4.0"}


def test_good_answers_are_records() -> None:
    scan = scan_of(copy.deepcopy(SCAN), OPENED)
    assert [reading.pci for reading in scan.readings] == ["0000:3b:00.0", "0000:3b:01.0"]
    assert scan.host == host_of(copy.deepcopy(SCAN["host"]))
    assert states_of(STATES) == [StateAnswer(0, 201), None, StateAnswer(999, 0)]
    assert set(usage_of(copy.deepcopy(USAGE)).processes) == {"0000:3b:00.0"}
    nothing_of(None)
    assert [mark_of(answer) for answer in (None, "", "a file")] == [None, "", "a file"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("readings.0.state", "201"),
        ("readings.0.state", True),
        ("readings.0.state", [201]),
        ("readings.0.memory_bytes", 1 << 70),
        ("readings.0.memory_bytes", 1.5),
        ("readings.0.pci", "3b:00.0"),
        ("readings.0.pci", {}),
        ("readings.0.serial", 7),
        ("readings.0.failures", [{"function": 1, "code": 1, "text": ""}]),
        ("readings.0.failures", [1]),
        ("readings", [7]),
        ("readings.1.index", 0),
        ("readings.1.spare", 0),
        ("usable.0", "0"),
        ("usable.0", 7),
        ("driver_version", None),
        ("driver_release", 4),
        ("host.nodes.0.minor", {}),
        ("host.nodes.0.minor", 1 << 40),
        ("host.nodes.0.inode", "7"),
        ("host.nodes.0.inode", -1),
        ("host.nodes.0.major", -1),
        ("host.nodes.0.number", -1),
        ("host.control", "xpuctrl"),
        ("host.addresses", []),
        ("host.addresses.0", "../../etc"),
        ("host.addresses.x", "0000:3b:00.0"),
        ("host.functions.card", {}),
        ("host.functions.0000:3b:00~0.physfn", "card"),
        ("host.functions.0000:3b:00~0.bridges", "card"),
        ("host.functions.0000:3b:00~0.bridges", 7),
        ("host.functions.0000:3b:00~0.bridges", "pci0000:3a/../0000:3a:01.0"),
    ],
)
def test_a_scan_with_one_thing_wrong_is_nonsense(path: str, value: object) -> None:
    answer: Any = copy.deepcopy(SCAN)
    place = answer
    *way, last = (step.replace("~", ".") for step in path.split("."))
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    with pytest.raises(NONSENSE):
        scan_of(answer, OPENED)


@pytest.mark.parametrize(
    "states", [[["0", 201]], [[0]], [[0, 201, 1]], [[False, 201]], [201], 7, [[0, 1 << 65]]]
)
def test_states_that_are_none_are_nonsense(states: Any) -> None:
    with pytest.raises(NONSENSE):
        states_of(states)


@pytest.mark.parametrize("answer", [0, True, ["a file"], {}])
def test_a_mark_that_is_no_text_is_nonsense(answer: object) -> None:
    with pytest.raises(NONSENSE):
        mark_of(answer)


@pytest.mark.parametrize(
    "usage",
    [
        {"devices": [{"pci": "card", "processes": []}], "drivers": {}},
        {
            "devices": [{"pci": "0000:3b:00.0", "processes": [{"pid": "7", "root_ns_pid": None}]}],
            "drivers": {},
        },
        {"devices": [], "drivers": {"0000:3b:00.0": 1}},
        {"devices": [], "drivers": []},
    ],
)
def test_usage_with_something_wrong_is_nonsense_and_not_idle(usage: Any) -> None:
    with pytest.raises(NONSENSE):
        usage_of(usage)


def test_gauges_are_numbers_of_a_device_with_an_address_or_without() -> None:
    known, unknown = {"index": 0, "pci": "0000:3b:00.0", "power": 60}, {"index": 1, "pci": None}
    assert gauges_of([known, unknown]) == [Gauges(index=0, pci="0000:3b:00.0", power=60), Gauges(index=1)]
    for wrong in (
        {"index": "0"},
        {"index": 0, "pci": 7},
        {"index": 0, "temperature_celsius": 40.5},
        {"index": 0, "processes": True},
        {"index": 0, "memory_used_bytes": 1 << 70},
        {"index": 0, "spare": 1},
        {},
        7,
    ):
        with pytest.raises(NONSENSE):
            gauges_of([wrong])  # type: ignore[list-item]
