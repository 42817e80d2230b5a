# SPDX-License-Identifier: Apache-2.0
"""Frozen values: classes with named fields that are never assigned after construction."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload


T = TypeVar("T")


@overload
@dataclass_transform(frozen_default=True, kw_only_default=True)
def frozen(cls: type[T]) -> type[T]: ...
@overload
@dataclass_transform(frozen_default=True, kw_only_default=True)
def frozen(*, kw_only: bool = True) -> Callable[[type[T]], type[T]]: ...
def frozen(cls: type[T] | None = None, *, kw_only: bool = True) -> Any:
    """Make a dataclass with slots, equal and hashed by its fields; all functions of `dataclasses` accept it.

    The type checker refuses an assignment to a field. All classes share the six functions that a frozen
    dataclass compiles for itself: for some sixty classes those took a fifth of the plugin's start
    (tests/benchmarks/README.md).

    kw_only: fields are given by name only
    """
    if cls is None:
        return lambda cls: _made(cls, kw_only=kw_only)
    return _made(cls, kw_only=kw_only)


def _made(cls: type[T], *, kw_only: bool) -> type[T]:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass makes one of the signature, which is slow
    made = dataclass(slots=True, kw_only=kw_only, eq=False, repr=False)(cls)
    values = attrgetter(*(field.name for field in fields(made)))  # type: ignore[arg-type]

    def equal(self: T, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def own_hash(self: T) -> int:
        return hash(values(self))

    for name, function in (("__eq__", equal), ("__hash__", own_hash), ("__repr__", _text)):
        setattr(made, name, function)
    return made


def _text(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"
