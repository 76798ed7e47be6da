"""The framing: one JSON object on each line, of bounded size. The bytes come from a party that is not trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_LINE = 256 * 1024
"""Longest line that either side accepts, in bytes, without the newline. The largest message of a well-behaved peer (a guest
with hundreds of filesystems and databases) is below 64 KiB."""

MAX_DEPTH = 16
"""Deepest nesting that is accepted. It is checked before parsing, because the parser itself recurses."""


class ProtocolError(Exception):
    """The peer sent something that the protocol does not allow. The message quotes at most a few bytes of it."""


def to_line(message: dict[str, Any]) -> bytes:
    """The line of a message. ASCII only, so the only control character is the final newline. Raises ProtocolError above
    MAX_LINE."""
    line = json.dumps(message, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a message of {len(line)} bytes is longer than the limit of {MAX_LINE}")
    return line + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """The object in one line.

    Raises ProtocolError unless the line is one JSON object of bounded depth, without fractions, NaN, Infinity and duplicate
    keys.
    """
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a line of more than {MAX_LINE} bytes")
    if _depth(line) > MAX_DEPTH:
        raise ProtocolError(f"a message nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(
            line.decode("utf-8"), parse_constant=_no_constant, parse_float=_no_constant, object_pairs_hook=_no_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"a message must be an object, not a {type(value).__name__}")
    return value


class LineSplitter:
    """Cuts a byte stream into lines. Keeps at most MAX_LINE bytes in memory.

    Drops a longer line up to its end and reports it once, as None, so that the next line is read correctly.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        start = 0
        while start < len(data):
            end = data.find(b"\n", start)
            piece = data[start:] if end < 0 else data[start:end]
            if not self._dropping:
                self._buffer += piece
                if len(self._buffer) > MAX_LINE:
                    self._buffer.clear()
                    self._dropping = True
            if end < 0:
                return
            start = end + 1
            if self._dropping:
                self._dropping = False
                yield None
            else:
                line = bytes(self._buffer)
                self._buffer.clear()
                if line.strip():
                    yield line

    def reset(self) -> None:
        self._buffer.clear()
        self._dropping = False


def _depth(line: bytes) -> int:
    """The nesting of brackets outside strings."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", line):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?$)')
"""A JSON string. A string that is not closed matches up to the end of the line, so the search takes linear time for any
line."""


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result
