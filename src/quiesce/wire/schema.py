"""Turns frozen dataclasses into JSON objects and back, refusing whatever does not fit.

Far less than pydantic, and on purpose: it must run in a guest with nothing but the standard library. Field types are str,
int, bool, enums of strings, `Optional`, `Tuple[X, ...]`, `Dict[str, X]` and other dataclasses.
"""

from __future__ import annotations

import dataclasses
import types
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from quiesce.wire.framing import ProtocolError

MAX_STRING = 4096
MAX_ITEMS = 4096
MAX_INT = 2**63 - 1

_UNIONS = (Union, getattr(types, "UnionType", Union))  # `X | None` is the latter, from 3.10 on

T = TypeVar("T")


def to_wire(message: Any) -> dict[str, Any]:
    """The JSON object for a dataclass; None fields are left out."""
    return {
        field.name: _encode(value)
        for field in dataclasses.fields(message)
        if (value := getattr(message, field.name)) is not None
    }


def from_wire(cls: type[T], value: Any, *, own: bool = False) -> T:
    """A `cls` from a JSON object. Raises ProtocolError naming the field that does not fit, never quoting its content.

    `own`: the text is what we wrote ourselves and comes back unchanged. Any other is bounded and made printable.
    """
    return _Decoder(own).dataclass(cls, value, cls.__name__)


def _encode(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return to_wire(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class _Decoder:
    def __init__(self, own: bool) -> None:
        self._own = own

    def dataclass(self, cls: type[T], value: Any, where: str) -> T:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: not an object")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = len(value.keys() - fields.keys())
        if unknown:
            raise ProtocolError(f"{where}: {unknown} unknown field(s)")
        hints = _hints(cls)  # type: ignore[arg-type]
        arguments = {}
        for name, field in fields.items():
            if name in value:
                arguments[name] = self.decode(hints[name], value[name], f"{where}.{name}")
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ProtocolError(f"{where}.{name}: missing")
        return cls(**arguments)

    def decode(self, kind: Any, value: Any, where: str) -> Any:
        if kind is str:
            if not isinstance(value, str) or (len(value) > MAX_STRING and not self._own):
                raise ProtocolError(f"{where}: not a string of at most {MAX_STRING} characters")
            return value if self._own else printable(value)
        if kind is int:
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INT:
                raise ProtocolError(f"{where}: not a 64-bit integer")
            return value
        if kind is bool:
            if not isinstance(value, bool):
                raise ProtocolError(f"{where}: not true or false")
            return value
        origin = get_origin(kind)
        if origin in _UNIONS:
            inner = next(argument for argument in get_args(kind) if argument is not type(None))
            return None if value is None else self.decode(inner, value, where)
        if origin is tuple:
            if not isinstance(value, list) or len(value) > MAX_ITEMS:
                raise ProtocolError(f"{where}: not a list of at most {MAX_ITEMS} items")
            return tuple(self.decode(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        if origin is dict:
            if not isinstance(value, dict) or len(value) > MAX_ITEMS:
                raise ProtocolError(f"{where}: not an object of at most {MAX_ITEMS} entries")
            return {
                self.decode(str, key, f"{where} key"): self.decode(get_args(kind)[1], item, f"{where} value")
                for key, item in value.items()
            }
        if isinstance(kind, type) and issubclass(kind, Enum):
            try:
                return kind(value)
            except (ValueError, TypeError):
                raise ProtocolError(f"{where}: not one of {', '.join(str(item.value) for item in kind)}") from None
        return self.dataclass(kind, value, where)


def printable(text: str) -> str:
    """`text` with every control, format and separator character but the space replaced, so that nothing a guest says can
    move a cursor, change a colour, reverse the direction of writing or start a new line on a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
