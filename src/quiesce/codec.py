"""Turns frozen dataclasses into plain JSON values and back. Refuses values that do not fit the types of the fields.

It does far less than pydantic, on purpose: guests run it, too, with Python 3.9 and the standard library only. Field types are
str, int, bool, enums of strings, `Optional`, `Tuple[X, ...]`, `Dict[str, X]` and other dataclasses. It has no limits of its
own: the wire passes its bounds (wire/schema.py), the catalog and the manifests pass none."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from typing import Any, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

MAX_INT = 2**63 - 1

_UNIONS = (Union, getattr(types, "UnionType", Union))  # `X | None` is the latter, from 3.10 on

T = TypeVar("T")


class CodecError(ValueError):
    """A value does not encode the dataclass. The message names the field, and never quotes the field's content."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The limits for a value from a party that is not trusted."""

    string: int
    """Longest string, in characters."""
    items: int
    """Most items of a list and most entries of an object."""
    text: Callable[[str], str]
    """Every string passes through this function."""


def encode(value: Any) -> Any:
    """The JSON value of a dataclass, or of anything a field may hold. Fields that are None are left out."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {
            field.name: encode(content)
            for field in dataclasses.fields(value)
            if (content := getattr(value, field.name)) is not None
        }
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(cls: type[T], value: Any, bounds: Bounds | None = None) -> T:
    """A `cls` from a JSON object. Raises CodecError for an unknown field, a missing one, and a value of another type."""
    try:
        return _dataclass(cls, value, bounds)
    except _MisfitError as misfit:
        raise CodecError(f"{cls.__name__}{misfit.where}: {misfit.reason}") from None


class _MisfitError(Exception):
    """A value does not fit. `where` is made while the error passes through the values around it, so that a value that fits
    costs nothing for it."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where

    def below(self, where: str) -> _MisfitError:
        return _MisfitError(self.reason, where + self.where)


_Decoder = Callable[[Any, Optional[Bounds]], Any]


@cache
def _decoder(kind: Any) -> _Decoder:
    """The function that decodes values of this type."""
    if kind is str:
        return _string
    if kind is int:
        return _integer
    if kind is bool:
        return _boolean
    origin = get_origin(kind)
    if origin in _UNIONS:
        return partial(_optional, _decoder(next(argument for argument in get_args(kind) if argument is not type(None))))
    if origin is tuple:
        return partial(_tuple, _decoder(get_args(kind)[0]))
    if origin is dict:
        return partial(_dictionary, _decoder(get_args(kind)[1]))
    return partial(_enum if issubclass(kind, Enum) else _dataclass, kind)


@cache
def _fields(cls: type) -> dict[str, tuple[_Decoder, bool]]:
    """By name, how to decode each field, and whether it must be there."""
    hints = get_type_hints(cls)
    return {
        field.name: (
            _decoder(hints[field.name]),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
    }


def _dataclass(cls: type[T], value: Any, bounds: Bounds | None) -> T:
    if not isinstance(value, dict):
        raise _MisfitError("not an object")
    fields = _fields(cls)  # type: ignore[arg-type]
    if unknown := len(value.keys() - fields.keys()):
        raise _MisfitError(f"{unknown} unknown field(s)")
    arguments = {}
    for name, (decoder, required) in fields.items():
        if name in value:
            try:
                arguments[name] = decoder(value[name], bounds)
            except _MisfitError as misfit:
                raise misfit.below(f".{name}") from None
        elif required:
            raise _MisfitError("missing", f".{name}")
    return cls(**arguments)


def _string(value: Any, bounds: Bounds | None) -> str:
    if not isinstance(value, str):
        raise _MisfitError("not a string")
    if bounds is None:
        return value
    if len(value) > bounds.string:
        raise _MisfitError(f"not a string of at most {bounds.string} characters")
    return bounds.text(value)


def _integer(value: Any, _bounds: Bounds | None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INT:
        raise _MisfitError("not a 64-bit integer")
    return value


def _boolean(value: Any, _bounds: Bounds | None) -> bool:
    if not isinstance(value, bool):
        raise _MisfitError("not true or false")
    return value


def _enum(kind: type[Enum], value: Any, _bounds: Bounds | None) -> Enum:
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise _MisfitError(f"not one of {', '.join(str(item.value) for item in kind)}") from None


def _optional(decoder: _Decoder, value: Any, bounds: Bounds | None) -> Any:
    return None if value is None else decoder(value, bounds)


def _tuple(decoder: _Decoder, value: Any, bounds: Bounds | None) -> tuple[Any, ...]:
    _require(value, list, bounds, "a list", "items")
    found = []
    try:
        for item in value:
            found.append(decoder(item, bounds))
    except _MisfitError as misfit:
        raise misfit.below(f"[{len(found)}]") from None
    return tuple(found)


def _dictionary(decoder: _Decoder, value: Any, bounds: Bounds | None) -> dict[str, Any]:
    _require(value, dict, bounds, "an object", "entries")
    found, part = {}, " key"
    try:
        for key, item in value.items():
            part = " key"
            name = _string(key, bounds)
            part = " value"
            found[name] = decoder(item, bounds)
    except _MisfitError as misfit:
        raise misfit.below(part) from None
    return found


def _require(value: Any, kind: type[Any], bounds: Bounds | None, what: str, unit: str) -> None:
    if not isinstance(value, kind):
        raise _MisfitError(f"not {what}")
    if bounds is not None and len(value) > bounds.items:
        raise _MisfitError(f"not {what} of at most {bounds.items} {unit}")
