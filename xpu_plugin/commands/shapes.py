# SPDX-License-Identifier: Apache-2.0
"""The shapes of the running plugin's answers that a sub-command can show.

The plugin may be of another release, and another program may listen at the socket. Further members of an
answer are ignored: later releases add to it.
"""

from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from xpu_plugin.frozen import frozen
from xpu_plugin.log import printable
from xpu_plugin.model import vf_plan
from xpu_plugin.model.device_table import Row
from xpu_plugin.model.devices import Gauges


MOST = 1 << 64  # of any number

Shape = Any
"""A tuple of types or of texts for a value; a dict for an object with these keys; `Each` for one with any
keys;
a list of one shape for a list."""


@frozen(kw_only=False)
class Each:
    """An object with any keys, and values of one shape."""

    shape: Shape


def _fields(kind: type) -> dict[str, Shape]:
    return {name: _field(own) for name, own in get_type_hints(kind).items()}


def _field(hint: Any) -> Shape:
    """Return the shape of a type hint; JSON has lists for tuples."""
    if get_origin(hint) is tuple:
        return [_field(get_args(hint)[0])]
    return get_args(hint) or (hint,)


_TEXT, _TEXT_OR_NONE, _NUMBER = (str,), (str, NoneType), (int,)
_LISTED = {"devices": [_fields(Row)], "problems": [_TEXT], "trouble": _TEXT_OR_NONE}
_DESIRED = {"number": (int, str), "origin": _TEXT_OR_NONE, "problem": _TEXT}
_CARD = {
    "address": _TEXT,
    "desired": (int, str),
    "actual": _NUMBER,
    "action": _TEXT,
    "reason": _TEXT,
}
_PLACED = {
    "card": _TEXT,
    "paths": [_TEXT],
    "group": _TEXT_OR_NONE,
    "numa": (int, NoneType),
    "root": _TEXT_OR_NONE,
    "switch": _TEXT_OR_NONE,
    "links": Each(_TEXT),
}
SHAPES: Mapping[str, Shape] = {
    "list": _LISTED,
    "list wide": {**_LISTED, "holders": Each([_TEXT])},
    "topo": {"source": _TEXT, "cards": [_PLACED], "trouble": _TEXT_OR_NONE},
    "top": {**_LISTED, "readings": Each(_fields(Gauges))},
    "plan": {"desired": _DESIRED, "state": tuple(map(str, vf_plan.VfState)), "cards": [_CARD]},
    "plan trouble": {"trouble": _TEXT},
    "state": {
        "pid": _NUMBER,
        "worker": (int, NoneType),
        "replaced": (bool, NoneType),
        "configuration": _TEXT,
        "library": _TEXT_OR_NONE,
        "library_version": _TEXT_OR_NONE,
        "driver_version": _TEXT_OR_NONE,
        "driver_release": _TEXT_OR_NONE,
        "trouble": _TEXT_OR_NONE,
        "streams": _NUMBER,
        "alone": (bool,),
        "desired": {"number": (int, NoneType)},
    },
    "decisions": [Each((object,))],
}


def misfit(value: Any, shape: Shape, name: str = "the answer") -> str | None:
    """Return the difference of a value from a shape, None if there is none."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{name} is no object"
        if lacking := shape.keys() - value.keys():
            return f"{name} lacks {', '.join(sorted(lacking))}"
        parts = [(value[key], own, key) for key, own in shape.items()]
    elif isinstance(shape, Each):
        if not isinstance(value, dict):
            return f"{name} is no object"
        parts = [(own, shape.shape, f"a value of {name}") for own in value.values()]
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        parts = [(own, shape[0], f"an item of {name}") for own in value]
    else:
        fine = value in shape if isinstance(shape[0], str) else type(value) in shape or object in shape
        fine = fine and not (isinstance(value, int) and abs(value) >= MOST)
        return None if fine else f"{name} is of another kind"
    return next((wrong for part in parts if (wrong := misfit(*part))), None)


def shown(value: Any) -> Any:
    """Return the value with all texts printable."""
    match value:
        case str():
            return printable(value)
        case list():
            return [shown(own) for own in value]
        case dict():
            return {printable(key): shown(own) for key, own in value.items()}
    return value
