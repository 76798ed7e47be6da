"""The header of a qcow2 image, without QEMU. Pure: bytes in. The format is in QEMU's docs/interop/qcow2."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from quiesce.local.headers import BACKING_FORMAT
from quiesce.model.errors import UsageError

MAX_CAPACITY = 64 * 2**40
"""In bytes; the limit of Hyper-V's VHDX, too."""
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_KNOWN_EXTENSIONS = {0x6803F857}
"""The names of features, a text."""
_NAMED_EXTENSIONS = {
    BACKING_FORMAT: "a backing file",
    0x44415441: "an external data file",
    0x0537BE77: "encryption",
    0x23852875: "bitmaps",
}
_NAMED_FEATURES = ("it was not closed", "it is corrupt", "an external data file", "another compression", "extended L2 entries")
MAX_L1 = 32 * 2**20
_MAX_REFCOUNT_TABLE = 8 * 2**20
"""QEMU's limits, in bytes."""


HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Layout:
    """Where the tables of an image are, in bytes of its file."""

    cluster: int
    l1_offset: int
    l1_entries: int


@dataclass(frozen=True)
class _Header:
    """The fields in their order in the file."""

    magic: bytes
    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    refcount_order: int
    header_length: int


def largest_file(capacity: int) -> int:
    """More bytes than the file of an image of this capacity can have, with the smallest clusters."""
    return capacity + capacity // 32 + 16 * 2**20


def capacity(start: bytes) -> int:
    """The virtual size that the header says, in bytes; 0 if there is no header."""
    return int(_HEADER.unpack_from(start)[5]) if len(start) >= _HEADER.size else 0


def has_no_data(start: bytes, size: int) -> bool:
    """Whether the image is as QEMU makes an empty one: nothing follows its L1 table, which QEMU puts last. `start`: its first
    bytes; `size`: its length in bytes."""
    tables = layout(start)
    if tables is None or _Header(*_HEADER.unpack_from(start)).nb_snapshots:
        return False
    end = tables.l1_offset + 8 * tables.l1_entries
    return size <= -(-end // tables.cluster) * tables.cluster


def layout(start: bytes) -> Layout | None:
    """Where the tables are; None: the file is no qcow2 image, or one that QEMU does not open."""
    if len(start) < _HEADER.size or start[:4] != _MAGIC:
        return None
    header = _Header(*_HEADER.unpack_from(start))
    if not 9 <= header.cluster_bits <= 21:
        return None
    return Layout(1 << header.cluster_bits, header.l1_table_offset, header.l1_size)


def check_header(name: str, start: bytes, *, size: int, capacity: int) -> None:
    """Raises UsageError unless the image is one as an export has it: complete in itself, of this capacity, and with no table
    outside the file.

    `name`: of the file, for the message. `start`: its first bytes, 4096 at least, or all. `size`: its length in bytes.
    """
    if problem := _problem(start, size, capacity):
        raise UsageError(f"{name} is not an image as quiesce exports it: {problem}")


def _problem(start: bytes, size: int, capacity: int) -> str | None:
    if len(start) < _HEADER.size or start[:4] != _MAGIC:
        return "it is not a qcow2 image"
    header = _Header(*_HEADER.unpack_from(start))
    if header.version != 3:
        return f"it has version {header.version} of qcow2, not 3"
    if header.backing_file_offset or header.backing_file_size:
        return "it has a backing file"
    if header.crypt_method:
        return "it is encrypted"
    if header.nb_snapshots or header.snapshots_offset:
        return "it has internal snapshots"
    if header.incompatible_features:
        return f"it has features that an export has not: {_features(header.incompatible_features)}"
    if header.compatible_features & ~1 or header.autoclear_features:  # 1: lazy refcounts
        return "it has features that an export has not"
    if header.size != capacity:
        return f"it has a capacity of {header.size} bytes, the manifest says {capacity}"
    return _extensions_problem(header, start) or _tables_problem(header, size)


def _features(bits: int) -> str:
    named = [name for bit, name in enumerate(_NAMED_FEATURES) if bits >> bit & 1]
    return ", ".join([*named, *(["unknown ones"] if bits >> len(_NAMED_FEATURES) else [])])


def _extensions_problem(header: _Header, start: bytes) -> str | None:
    at, length = header.header_length, len(start)
    if at < _HEADER.size or at % 8 or any(start[_HEADER.size : at]):  # further fields: compression, padding
        return "its header has fields of another QEMU"
    while at + 8 <= length:
        kind, size = struct.unpack_from(">II", start, at)
        if kind == 0:
            return None
        if kind not in _KNOWN_EXTENSIONS:
            return f"it has {_NAMED_EXTENSIONS.get(kind, f'an unknown header extension ({kind:#x})')}"
        at += 8 + (size + 7) // 8 * 8
    return "its header has no end"


def _tables_problem(header: _Header, size: int) -> str | None:
    if not 9 <= header.cluster_bits <= 21 or header.refcount_order > 6:
        return "its clusters or refcounts have an impossible size"
    cluster = 1 << header.cluster_bits
    needed = -(-header.size // (cluster * (cluster // 8)))
    l1, refcounts = header.l1_size * 8, header.refcount_table_clusters * cluster
    if not needed <= header.l1_size <= max(2 * needed, 1024) or l1 > MAX_L1:
        return f"its L1 table has {header.l1_size} entries, and needs {needed}"
    if not 0 < refcounts <= _MAX_REFCOUNT_TABLE:
        return f"its refcount table has {header.refcount_table_clusters} clusters"
    for offset, length in ((header.l1_table_offset, l1), (header.refcount_table_offset, refcounts)):
        if length and (offset < cluster or offset % cluster or offset + length > size):
            return "one of its tables is not in the file"
    return None
