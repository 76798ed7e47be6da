"""The codec with the bounds of the wire: values of a peer are limited in size, and their strings are made printable."""

from __future__ import annotations

from typing import Any, TypeVar

from quiesce.codec import Bounds, CodecError, decode, encode
from quiesce.wire.framing import ProtocolError

MAX_STRING = 4096
MAX_ITEMS = 4096

T = TypeVar("T")


def printable(text: str) -> str:
    """`text` with all control, format and separator characters except the space replaced. So a guest's text cannot move the
    cursor of a terminal, change a colour, reverse the direction of writing, or start a new line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


BOUNDS = Bounds(MAX_STRING, MAX_ITEMS, printable)


def to_wire(message: Any) -> dict[str, Any]:
    """The JSON object of a dataclass."""
    return dict(encode(message))


def from_wire(cls: type[T], value: Any) -> T:
    """A `cls` from a JSON object of a peer. Raises ProtocolError, naming the field, if a value does not fit."""
    try:
        return decode(cls, value, BOUNDS)
    except CodecError as error:
        raise ProtocolError(str(error)) from None
