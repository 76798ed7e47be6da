"""What the first bytes of a file say: which image it is, and which backing file it has. Pure: bytes in. The formats are in
QEMU's docs/interop/qcow2 and block/{qcow,qed,vmdk,vdi,vpc}.c. In a raw image, a guest can write these bytes: see
model.chains.as_declared."""

from __future__ import annotations

import struct
from collections.abc import Callable

START = 4096
"""Bytes at the beginning of an image that have its header and, as QEMU writes it, the name of its backing file."""
GLANCE = 1024
"""Bytes at the beginning of a qcow2 image that have all this, nearly always: see `names_backing`."""
BACKING_FORMAT = 0xE2792ACA
"""The header extension of qcow2 that has the format of the backing file."""
_QCOW2_V2 = 72
"""Length of the header in version 2 of qcow2, in bytes; that of later versions is written at the byte _LENGTH."""
_LENGTH = 100
_CAPACITIES = (
    (0, b"KDMV", "<Q", 12, "vmdk", 512),
    (64, b"\x7f\x10\xda\xbe", "<Q", 368, "vdi", 1),
    (0, b"conectix", ">Q", 40, "vpc", 1),
)
"""Where the magic is, the magic, where the capacity is, the format, and the bytes that the capacity counts in."""

Header = tuple[str, int | None, str | None, str | None, bool]
"""(format, capacity in bytes, backing file, its format, whether it is encrypted). None: the capacity is the file's length;
there is no backing file; its format is not recorded."""
RAW: Header = ("raw", None, None, None, False)


def header(start: bytes, read: Callable[[int, int], bytes]) -> Header:
    """`start`: the first START bytes of the file, or all. `read`: reads from an offset so many bytes.

    If the name of the backing file is not UTF-8, no QEMU of ours wrote the header: it is a raw image in which a guest wrote it,
    or a file that is no concern of quiesce's."""
    if start[:4] == b"QFI\xfb" and len(start) >= 48:
        version, offset, length = struct.unpack_from(">IQI", start, 4)
        (capacity,) = struct.unpack_from(">Q", start, 24)
        (encryption,) = struct.unpack_from(">I", start, 32 if version > 1 else 36)
        known, backing = _name(start, read, offset, length)
        kind = "qcow2" if version > 1 else "qcow"
        return (kind, capacity, backing, backing_format(start), bool(encryption)) if known else RAW
    if start[:4] == b"QED\0" and len(start) >= 64:
        (features,) = struct.unpack_from("<Q", start, 16)
        capacity, offset, length = struct.unpack_from("<QII", start, 48)
        known, backing = _name(start, read, offset, length) if features & 1 else (True, None)
        return ("qed", capacity, backing, "raw" if features & 4 else None, False) if known else RAW
    for at, magic, form, place, kind, unit in _CAPACITIES:
        if start[at : at + len(magic)] == magic and len(start) >= place + 8:
            return kind, struct.unpack_from(form, start, place)[0] * unit, None, None, False
    return ("raw", None, None, None, True) if start[:6] == b"LUKS\xba\xbe" else RAW


def names_backing(start: bytes) -> bool:
    """Whether these first bytes are of a qcow2 image and have the name of its backing file, if it has one. The header's
    extensions are before the name."""
    if start[:4] != b"QFI\xfb" or len(start) < 20:
        return False
    offset, length = struct.unpack_from(">QI", start, 8)
    return bool(offset + length <= len(start))


def backing_format(start: bytes) -> str | None:
    """The format of the backing file that the header of a qcow2 image records, if it does. `start`: the first bytes of the
    file."""
    if start[:4] != b"QFI\xfb" or len(start) < _LENGTH + 4:
        return None
    (version,) = struct.unpack_from(">I", start, 4)
    at = struct.unpack_from(">I", start, _LENGTH)[0] if version >= 3 else _QCOW2_V2
    while at + 8 <= len(start):
        kind, size = struct.unpack_from(">II", start, at)
        if kind == 0:
            return None
        if kind == BACKING_FORMAT:
            return start[at + 8 : at + 8 + size].decode(errors="replace")
        at += 8 + (size + 7) // 8 * 8
    return None


def _name(start: bytes, read: Callable[[int, int], bytes], offset: int, length: int) -> tuple[bool, str | None]:
    """Whether it is one that we can read, and the name of the backing file."""
    if not offset or not 0 < length <= 1023 or offset > 1 << 32:
        return True, None
    found = start[offset : offset + length]
    found = found if len(found) == length else read(offset, length)
    try:
        return b"\0" not in found, found.decode() or None
    except UnicodeDecodeError:
        return False, None
