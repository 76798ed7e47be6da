"""What a guest would read from an image: read by ourselves, because a campaign looks at all images after each step. The format
is in QEMU's docs/interop/qcow2; `qemu-img convert` reads whatever is not known here."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from lab.forest import read

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQ")
_EXTENDED_L2 = 1 << 4
_HARMLESS = 1 << 0 | 1 << 1 | _EXTENDED_L2
"""Incompatible features that do not matter to a reader: not closed, said to be corrupt."""
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
SUBCLUSTERS = 32
LONGEST = 64


class UnreadableError(Exception):
    """The image, or a backing file of it, is gone or damaged."""


class _UnknownError(Exception):
    """Something that only QEMU reads."""


def digest(path: str) -> str:
    """Of the content. Raises UnreadableError."""
    return hashlib.sha1(content(path), usedforsecurity=False).hexdigest()


def content(path: str) -> bytes:
    """Raises UnreadableError."""
    try:
        try:
            return bytes(_layered(path, 0))
        except _UnknownError:
            return read(path)
    except Exception as error:  # noqa: BLE001 - a damaged image can be wrong anywhere
        raise UnreadableError(f"{path}: {error}") from None


def chain(path: str) -> list[str]:
    """The image and its backing files, as far as they are there; the last one may be gone."""
    found: list[str] = []
    below: str | None = path
    while below and below not in found:
        found.append(below)
        try:
            below = _table(below, Path(below).read_bytes()).backing
        except (OSError, struct.error, _UnknownError, ValueError):
            below = None
    return found


@dataclass(frozen=True)
class _Table:
    file: bytes
    cluster: int
    extended: bool
    size: int
    backing: str | None
    l1: tuple[int, ...]


def _layered(path: str, depth: int) -> bytearray:
    if depth > LONGEST:
        raise ValueError("a chain without an end")
    file = Path(path).read_bytes()
    if not file.startswith(MAGIC):
        return bytearray(file)
    table = _table(path, file)
    below = _layered(table.backing, depth + 1) if table.backing else bytearray()
    content = below[: table.size].ljust(table.size, b"\0")
    for start in range(0, table.size, table.cluster):
        _put_cluster(table, content, start)
    return content[: table.size]


def _table(path: str, file: bytes) -> _Table:
    _, version, name_at, name_length, bits, size, encrypted, l1_length, l1_at = _HEADER.unpack_from(file)
    features = struct.unpack_from(">Q", file, 72)[0] if version >= 3 else 0
    if encrypted or features & ~_HARMLESS:
        raise _UnknownError
    backing = file[name_at : name_at + name_length].decode() if name_at else None
    if backing and ":" in backing.partition("/")[0]:
        raise _UnknownError
    l1 = struct.unpack_from(f">{l1_length}Q", file, l1_at)
    extended = bool(features & _EXTENDED_L2)
    return _Table(file, 1 << bits, extended, size, str(Path(path).resolve().parent / backing) if backing else None, l1)


def _put_cluster(table: _Table, content: bytearray, start: int) -> None:
    width = 16 if table.extended else 8
    per_table = table.cluster // width
    number = start // table.cluster
    l2_at = table.l1[number // per_table] & _OFFSET if number // per_table < len(table.l1) else 0
    if not l2_at:
        return
    at = l2_at + number % per_table * width
    (entry,) = struct.unpack_from(">Q", table.file, at)
    if entry & _COMPRESSED:
        raise _UnknownError
    offset = entry & _OFFSET
    if table.extended:
        (bitmap,) = struct.unpack_from(">Q", table.file, at + 8)
        length = table.cluster // SUBCLUSTERS
        for place in range(SUBCLUSTERS):
            allocated, zero = bitmap >> place & 1, bitmap >> (SUBCLUSTERS + place) & 1
            _put(table, content, start + place * length, offset + place * length, length, allocated, zero)
    else:
        _put(table, content, start, offset, table.cluster, int(bool(offset)), entry & 1)


def _put(table: _Table, content: bytearray, to: int, offset: int, length: int, allocated: int, zero: int) -> None:
    length = min(length, table.size - to)
    if length <= 0:
        return
    if zero:
        content[to : to + length] = bytes(length)
    elif allocated:
        content[to : to + length] = table.file[offset : offset + length].ljust(length, b"\0")
