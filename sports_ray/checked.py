"""Records that check themselves: each field's type, choice and range, with an error that says what was wanted."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from sports_ray.errors import ConfigError

INFINITE = float("inf")
Limits = Mapping[str, tuple[float, float]]


def field_types(cls: Any) -> Mapping[str, Any]:
    """Resolved annotations of a record's fields, by name."""
    return _field_types(cls)


@cache
def _field_types(cls: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return MappingProxyType({item.name: hints[item.name] for item in fields(cls)})


class Checked:
    """Checks each field's type, choice and range when the record is made."""

    __slots__ = ()

    LIMITS: ClassVar[Limits] = {}
    """Allowed range of each number, both ends included."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        kinds = field_types(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            key = f"{section}.{item.name}"
            value = _checked(key, getattr(self, item.name), kinds[item.name])
            object.__setattr__(self, item.name, value)
            limits = self.LIMITS.get(item.name)
            if limits is not None and not isinstance(value, str) and not limits[0] <= value <= limits[1]:
                wanted = (
                    f"from {limits[0]:g} to {limits[1]:g}" if limits[1] < INFINITE else f"of at least {limits[0]:g}"
                )
                raise ConfigError(key, got=value, want=f"a value {wanted}")


def _checked(key: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, with the harmless conversions (int to float, list to tuple), or ConfigError."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(key, got=value, want=" or ".join(map(str, get_args(kind))))
        return value
    if get_origin(kind) is tuple:
        return _checked_tuple(key, value, get_args(kind))
    if get_origin(kind) in (Union, UnionType):  # a word, or a number
        word, number = get_args(kind)
        if value in get_args(word):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(key, got=repr(value), want=f"{' or '.join(get_args(word))} or a number")
        return _checked(key, value, number)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(key, got=value, want="a finite number")  # JSON, which keeps the run's record, knows no other
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, kind.__name__)
        raise ConfigError(key, got=repr(value), want=name)
    return value


def _checked_tuple(key: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ConfigError(key, got=repr(value), want="a list")
    items = tuple(value)
    if kinds[-1] is Ellipsis:
        return tuple(_checked(key, item, kinds[0]) for item in items)
    if len(items) != len(kinds):
        raise ConfigError(key, got=list(items), want=f"{len(kinds)} values")
    return tuple(_checked(key, item, kind) for item, kind in zip(items, kinds, strict=True))
