# SPDX-License-Identifier: Apache-2.0
"""Decoding of a worker's answers: JSON to records.

The library can write anything into its process, and so into an answer. Each decoded value has the declared
type and range; otherwise one of NONSENSE is raised.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from xpu_plugin.model.devices import Function, Gauges, Host, Node, Process, Scan, Usage, credible
from xpu_plugin.xpuml import Failure, Reading, StateAnswer


NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What decoding an answer may raise that is not what it should be."""

# Errors of the form. A wrong number by the library concerns one device only.
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2,8}:[0-9a-f]{2,8}\.[0-9a-f]{1,8}")
_BRIDGES = re.compile(rf"pci[0-9a-f]{{4,8}}:[0-9a-f]{{2,8}}(/{_ADDRESS.pattern}){{0,32}}")
_MOST = 1 << 64  # of any integer of C
_MOST_NUMBER = 1 << 20  # of majors and minors, as Linux has them
_ACCEPTED = {int: "an integer", str: "a text", type(None): "null"}

T = TypeVar("T")


def scan_of(answer: dict[str, Any], opened: Mapping[str, str]) -> Scan:
    readings = tuple(_reading(record) for record in answer["readings"])
    if [reading.index for reading in readings] != list(range(len(readings))):
        raise ValueError("indexes of a scan that do not count from 0")
    host = host_of(answer["host"])
    usable = tuple(_of(int, number) for number in answer["usable"])
    if not {node.number for node in host.nodes}.issuperset(usable):
        raise ValueError("usable nodes that there are not")
    refused = {int(number): _of(int, code) for number, code in answer["refused"].items()}
    if refused.keys() & set(usable) or not {node.number for node in host.nodes}.issuperset(refused):
        raise ValueError("refused nodes that are usable, or are none")
    return Scan(
        readings=readings,
        usable=usable,
        refused=refused,
        host=host,
        library=opened["library"],
        library_version=opened["library_version"],
        driver_version=_of(str, answer["driver_version"]),
        driver_release=_of_or_none(str, answer["driver_release"]),
    )


def host_of(facts: dict[str, Any]) -> Host:
    nodes = tuple(_record(Node, node) for node in facts["nodes"])
    for node in nodes:
        in_range = 0 <= node.major < _MOST_NUMBER and 0 <= node.minor < _MOST_NUMBER
        if not in_range or node.number < 0 or node.inode < 0:
            raise ValueError(f"{node} is no device node")
    control = _of_or_none(int, facts["control"])
    return Host(
        nodes=nodes,
        control=control,
        addresses={int(number): _address(address) for number, address in facts["addresses"].items()},
        functions={_address(address): _function(own) for address, own in facts["functions"].items()},
    )


def usage_of(answer: dict[str, Any]) -> Usage:
    drivers = {_address(address): _of_or_none(str, name) for address, name in answer["drivers"].items()}
    return Usage(processes=processes_of(answer["devices"]), drivers=drivers)


def processes_of(records: list[dict[str, Any]]) -> dict[str, tuple[Process, ...] | None]:
    processes: dict[str, tuple[Process, ...] | None] = {}
    for record in records:
        if (pci := record.get("pci")) is None:
            continue
        # Two devices of a K200 have one address; if one of them is unknown, so is the address.
        here, others = _processes(record), processes.get(_address(pci), ())
        processes[pci] = None if here is None or others is None else others + here
    return processes


def gauges_of(answer: list[dict[str, Any]]) -> list[Gauges]:
    return [credible(_record(Gauges, record)) for record in answer]


def states_of(answer: list[list[int] | None]) -> list[StateAnswer | None]:
    return [None if state is None else StateAnswer(*_integers(state)) for state in answer]


def nothing_of(answer: None) -> None:
    if answer is not None:
        raise ValueError(f"{answer!r} where there is nothing to say")


def truth_of(answer: object) -> bool:
    if answer is not True and answer is not False:
        raise ValueError(f"{answer!r} is neither true nor false")
    return answer


def mark_of(answer: object) -> str | None:
    return _of_or_none(str, answer)


# --- parts ----------------------------------------------------------------------------------------


def _reading(record: dict[str, Any]) -> Reading:
    failures = tuple(_record(Failure, failure) for failure in record.pop("failures"))
    reading = _record(Reading, {**record, "failures": failures})
    if reading.pci is not None:
        _address(reading.pci)
    return reading


def _function(own: Mapping[str, Any]) -> Function:
    function = _record(Function, own)
    if function.physfn is not None:
        _address(function.physfn)
    if function.bridges is not None and not _BRIDGES.fullmatch(function.bridges):
        raise ValueError("bridges that are no path of PCI addresses")
    return function


def _processes(record: dict[str, Any]) -> tuple[Process, ...] | None:
    if "processes" not in record:
        return None
    return tuple(
        _record(Process, {"pid": process["pid"], "host_pid": process["root_ns_pid"]})
        for process in record["processes"]
    )


def _record(kind: type[T], given: Mapping[str, Any]) -> T:
    """Make a record of these fields, each with one of its declared types."""
    record = kind(**given)
    for name, accepted in _types(kind):  # type: ignore[arg-type] # a class is hashable
        _check(getattr(record, name), accepted, name)
    return record


@cache
def _types(kind: type[Any]) -> tuple[tuple[str, tuple[type, ...]], ...]:
    hints = get_type_hints(kind)
    named = ((field.name, get_args(hints[field.name]) or (hints[field.name],)) for field in fields(kind))
    return tuple((name, types) for name, types in named if all(one in _ACCEPTED for one in types))


def _of(kind: type[T], value: object) -> T:
    checked: T = _check(value, (kind,))
    return checked


def _of_or_none(kind: type[T], value: object) -> T | None:
    return None if value is None else _of(kind, value)


def _integers(values: Iterable[object]) -> list[int]:
    return [_of(int, value) for value in values]


def _address(value: object) -> str:
    address = _of(str, value)
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is no PCI address")
    return address


def _check(value: Any, accepted: tuple[type, ...], name: str = "a value") -> Any:
    """Return the value if it has one of the types. True is no integer, and an integer fits C's."""
    if type(value) not in accepted:
        raise ValueError(f"{name} is {value!r}, not {' or '.join(_ACCEPTED[one] for one in accepted)}")
    if isinstance(value, int) and not -_MOST < value < _MOST:
        raise ValueError(f"{name} is beyond any number of the library's")
    return value
