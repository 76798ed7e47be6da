"""Turns frozen dataclasses into plain JSON values and back. Refuses values that do not fit the types of the fields.

It does far less than pydantic, on purpose: guests run it, too, with Python 3.9 and the standard library only. Field types are
str, int, bool, enums of strings, `Optional`, `Tuple[X, ...]`, `Dict[str, X]` and other dataclasses. It has no limits of its
own: the wire passes its bounds (wire/schema.py), the catalog and the manifests pass none."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

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
    return _Decoder(bounds).dataclass(cls, value, cls.__name__)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class _Decoder:
    def __init__(self, bounds: Bounds | None) -> None:
        self._bounds = bounds

    def dataclass(self, cls: type[T], value: Any, where: str) -> T:
        if not isinstance(value, dict):
            raise CodecError(f"{where}: not an object")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = len(value.keys() - fields.keys())
        if unknown:
            raise CodecError(f"{where}: {unknown} unknown field(s)")
        hints = _hints(cls)  # type: ignore[arg-type]
        arguments = {}
        for name, field in fields.items():
            if name in value:
                arguments[name] = self.decode(hints[name], value[name], f"{where}.{name}")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise CodecError(f"{where}.{name}: missing")
        return cls(**arguments)

    def decode(self, kind: Any, value: Any, where: str) -> Any:
        if kind is str:
            return self._string(value, where)
        if kind is int:
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INT:
                raise CodecError(f"{where}: not a 64-bit integer")
            return value
        if kind is bool:
            if not isinstance(value, bool):
                raise CodecError(f"{where}: not true or false")
            return value
        origin = get_origin(kind)
        if origin in _UNIONS:
            inner = next(argument for argument in get_args(kind) if argument is not type(None))
            return None if value is None else self.decode(inner, value, where)
        if origin is tuple:
            self._require(value, list, where, "a list", "items")
            return tuple(self.decode(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if origin is dict:
            self._require(value, dict, where, "an object", "entries")
            return {
                self.decode(str, key, f"{where} key"): self.decode(get_args(kind)[1], item, f"{where} value")
                for key, item in value.items()
            }
        if isinstance(kind, type) and issubclass(kind, Enum):
            try:
                return kind(value)
            except (ValueError, TypeError):
                raise CodecError(f"{where}: not one of {', '.join(str(item.value) for item in kind)}") from None
        return self.dataclass(kind, value, where)

    def _string(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise CodecError(f"{where}: not a string")
        if self._bounds is None:
            return value
        if len(value) > self._bounds.string:
            raise CodecError(f"{where}: not a string of at most {self._bounds.string} characters")
        return self._bounds.text(value)

    def _require(self, value: Any, kind: type[Any], where: str, what: str, unit: str) -> None:
        if not isinstance(value, kind):
            raise CodecError(f"{where}: not {what}")
        if self._bounds is not None and len(value) > self._bounds.items:
            raise CodecError(f"{where}: not {what} of at most {self._bounds.items} {unit}")
