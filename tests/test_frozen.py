# SPDX-License-Identifier: Apache-2.0
"""Frozen values are as frozen dataclasses, but the type checker guards them against assignment."""

import copy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from pathlib import Path

import pytest

from xpu_plugin.frozen import frozen


@frozen
class Point:
    """A place."""

    x: int
    y: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)


@frozen(kw_only=False)
class Pair:
    left: int
    right: int


@frozen
class One:
    value: int


@frozen
class Same:
    value: int


@frozen
class Table:
    rows: Mapping[str, int]


def test_equality_and_hash_are_those_of_the_fields() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert Point(x=1) != Point(x=1, y=2)
    assert len({Point(x=1), Point(x=1), Point(x=1, names=("a",)), Point(x=2)}) == 3
    others: tuple[object, ...] = (Same(value=1), 1, None)
    assert One(value=1) not in others
    assert {One(value=1): "found"}[One(value=1)] == "found"


def test_what_cannot_be_hashed_is_not() -> None:
    assert Table(rows={"a": 1}) == Table(rows={"a": 1})
    with pytest.raises(TypeError, match="unhashable"):
        hash(Table(rows={}))


def test_it_is_shown_as_the_standard_ones_are() -> None:
    assert repr(Point(x=1, names=("a",))) == "Point(x=1, y=0)"
    assert repr(Pair(1, 2)) == "Pair(left=1, right=2)"


def test_fields_are_given_by_name_unless_said_otherwise() -> None:
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]
    assert Pair(1, 2) == Pair(left=1, right=2)


def test_there_are_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(x=1).z = 1  # type: ignore[attr-defined]


def test_the_functions_of_dataclasses_take_it() -> None:
    point = Point(x=1, names=("a",))
    assert replace(point, y=3) == Point(x=1, y=3, names=("a",))
    assert asdict(point) == {"x": 1, "y": 0, "names": ("a",)}
    assert [one.name for one in fields(Point)] == ["x", "y", "names"]
    assert copy.deepcopy(point) == point
    assert Point.__doc__ == "A place."


def test_the_type_checker_refuses_assignment_and_positions(tmp_path: Path) -> None:
    module = tmp_path / "uses.py"
    module.write_text(
        "from xpu_plugin.frozen import frozen\n\n\n"
        "@frozen\nclass Point:\n    x: int\n\n\n"
        "Point(x=1).x = 2\n"
        "Point(1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--no-error-summary", str(module)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    first, second = run.stdout.splitlines()
    assert 'Property "x" defined in "Point" is read-only' in first
    assert "Too many positional arguments" in second
