"""storage/qcow2.py: which images an import takes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import within
from quiesce.model.errors import UsageError
from quiesce.storage import qcow2
from tests.strategies import examples

CAPACITY = 2**30
SIZE = 196624
CREATED = struct.pack(
    ">4sIQIIQIIQQIIQQQQIIQ", b"QFI\xfb", 3, 0, 0, 16, CAPACITY, 0, 2, 3 << 16, 1 << 16, 1, 0, 0, 0, 0, 0, 4, 112, 0
)  # fmt: skip
NAMES = struct.pack(">II", 0x6803F857, 48) + bytes(48)
REAL = CREATED + NAMES + bytes(8)
"""As `qemu-img create` writes it (QEMU 10)."""
FIELDS = {
    "backing file": (8, "Q", 4096), "backing file's name": (16, "I", 10), "encrypt": (32, "I", 2), "snapshots": (60, "I", 1),
    "capacity": (24, "Q", 2 * CAPACITY), "version": (4, "I", 2), "future": (4, "I", 4), "clusters": (20, "I", 40),
    "L1 too short": (36, "I", 1), "L1 too long": (36, "I", 2**31), "L1 outside": (40, "Q", 2**62),
    "L1 unaligned": (40, "Q", 65537),
    "L1 on the header": (40, "Q", 0), "refcounts outside": (48, "Q", 2**63), "refcounts too long": (56, "I", 2**32 - 1),
    "no refcounts": (56, "I", 0), "data file": (72, "Q", 4), "not closed": (72, "Q", 1), "future feature": (72, "Q", 2**60),
    "bitmaps": (88, "Q", 1), "refcount order": (96, "I", 7), "short header": (100, "I", 72),
    "long header": (100, "I", 2**32 - 8),
    "compression": (104, "B", 1),
}  # fmt: skip


def check(content: bytes, *, size: int = SIZE, capacity: int = CAPACITY) -> None:
    qcow2.check_header("vda.qcow2", content, size=size, capacity=capacity)


def test_what_quiesce_exports() -> None:
    """Broken: no export could be imported."""
    check(REAL)
    check(REAL.ljust(65536, b"\0"))


@pytest.mark.parametrize("what", FIELDS)
def test_one_field_that_an_export_has_not(what: str) -> None:
    """Broken: QEMU would open another file, or fill the memory, for what a stranger wrote into the header."""
    offset, kind, value = FIELDS[what]
    content = bytearray(REAL)
    struct.pack_into(f">{kind}", content, offset, value)
    with pytest.raises(UsageError, match=r"^vda\.qcow2 is not an image as quiesce exports it: "):
        check(bytes(content))


@pytest.mark.parametrize("kind", [0xE2792ACA, 0x44415441, 0x0537BE77, 0x23852875, 1])
def test_a_header_extension_that_an_export_has_not(kind: int) -> None:
    """Broken: an external data file would be opened."""
    extension = struct.pack(">II", kind, 8) + b"/secret\0"
    with pytest.raises(UsageError):
        check(CREATED + NAMES + extension + bytes(8))


def test_a_header_without_end() -> None:
    """Broken: an extension could hide behind what was looked at."""
    for content in (CREATED, CREATED + NAMES, CREATED + struct.pack(">II", 0x6803F857, 2**32 - 1)):
        with pytest.raises(UsageError):
            check(content)


@examples(400)
@given(st.data())
def test_whatever_a_stranger_writes(data: st.DataObject) -> None:
    """Broken: an import would hang, or end with a traceback; or take an image with a field that it should refuse."""
    content = bytearray(data.draw(st.just(REAL) | st.binary(max_size=200).map(lambda tail: CREATED + tail)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + 8] = data.draw(st.binary(max_size=12))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    size = data.draw(st.just(SIZE) | st.integers(0, 2**63))
    try:
        with within(1):
            check(bytes(content), size=size)
    except UsageError:
        return
    assert content[:8] == REAL[:8]
    assert content[8:20] == bytes(12)
    assert struct.unpack_from(">Q", content, 24)[0] == CAPACITY
    assert content[32:36] + content[60:80] + content[88:96] == bytes(32)
