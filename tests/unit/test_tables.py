"""storage/tables.py and storage/digests.py: what is read of an image, and what is not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.storage import tables
from quiesce.storage.digests import BLOCK, ContentDigest

CLUSTER = 64 * 1024


class File:
    """Bytes that count how many of them were read. The rest is zeros."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[int, bytes] = {}
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        found = bytearray(max(0, min(length, self.size - offset)))
        for at, content in self.parts.items():
            for place, byte in enumerate(content, at - offset):
                if 0 <= place < len(found):
                    found[place] = byte
        return bytes(found)

    def digest(self, format: str = "qcow2") -> str:
        self.reads = []
        return tables.digest(self.read, self.size, format)


def qcow2(entries: list[int], *, size: int = 2**40, l1: int = CLUSTER, bits: int = 16) -> File:
    """An image with these entries in its L1 table."""
    file = File(size)
    file.parts[0] = struct.pack(">4sIQIIQIIQQ", b"QFI\xfb", 3, 0, 0, bits, 2**40, 0, len(entries), l1, 0).ljust(104, b"\0")
    file.parts[l1] = struct.pack(f">{len(entries)}Q", *entries)
    return file


def test_each_table_counts_and_no_data():
    """Broken: what a commit or a program of others allocates would not be seen; or a look would read the whole image."""
    entries = [0, 1 << 63 | 5 * CLUSTER, 0, 9 * CLUSTER]
    file = qcow2(entries)
    before = file.digest()
    assert [offset for offset, length in file.reads if length == CLUSTER] == [0, 5 * CLUSTER, 9 * CLUSTER]
    for offset in (9 * CLUSTER + 8, 6 * CLUSTER - 8, 100, CLUSTER + 1):
        changed = qcow2(entries)
        changed.parts[offset] = b"x"
        assert changed.digest() != before
    file.parts[20 * CLUSTER] = b"data"
    assert file.digest() == before


def test_there_is_a_bound():
    """Broken: a look at an image of many terabytes would take minutes."""
    entries = [(number + 10) * CLUSTER for number in range(5000)]
    file = qcow2(entries)
    before = file.digest()
    assert sum(length for _, length in file.reads) <= tables.MOST + 2 * CLUSTER + 5000 * 8
    assert len(file.reads) < 1100
    entries[4321] += CLUSTER * 10000
    assert qcow2(entries).digest() != before  # each table is named in the L1 table


@pytest.mark.parametrize(
    "file",
    [
        qcow2([2**50], size=10 * CLUSTER),
        qcow2([CLUSTER], l1=2**50, size=10 * CLUSTER),
        qcow2([CLUSTER], bits=60, size=10 * CLUSTER),
        qcow2([CLUSTER], size=110),
        File(0),
        File(1),
    ],
    ids=["table outside", "L1 outside", "clusters", "short", "empty", "a byte"],
)
def test_a_damaged_image_has_a_digest_too(file):
    """Broken: a truncated image would end `tree` with a traceback, or have QEMU's limits no meaning."""
    before = file.digest()
    assert file.digest() == before
    assert sum(length for _, length in file.reads) < 2**22


def test_a_raw_file_is_sampled():
    """Broken: another raw image of the same size would be taken for it, or all of it be read."""
    file = File(100 * 2**30)
    before = file.digest()
    assert sum(length for _, length in file.reads) <= tables.SAMPLES * tables.SAMPLE + 104
    for at in (0, 446, file.size - 1):
        file.parts = {at: b"x"}
        assert file.digest() != before
    file.parts = {}
    file.size += 1
    assert file.digest() != before


def test_a_raw_file_is_sampled_whatever_its_guest_wrote_into_it():
    """Broken: the guest of a raw disk could write the header of a qcow2 image into it, and so choose what is compared."""
    file = qcow2([0, 5 * CLUSTER], size=10 * CLUSTER)
    before = file.digest("raw")
    file.parts[8 * CLUSTER] = b"data"
    assert file.digest("raw") != before


PIECES = st.lists(
    st.one_of(
        st.builds(lambda length: bytes(length), st.integers(1, 3 * BLOCK)),
        st.builds(lambda byte, length: bytes([byte]) * length, st.integers(1, 255), st.integers(1, 3 * BLOCK)),
    ),
    max_size=6,
)


@given(PIECES, PIECES, st.booleans())
def test_holes_are_zeros_and_pieces_do_not_matter(pieces, others, sparse):
    """Broken: a copy that is not sparse, or arrives in other pieces, would have another digest; or other bytes the same."""

    def digest(parts: list[bytes], *, holes: bool) -> str:
        found = ContentDigest()
        for part in parts:
            if holes and not any(part):
                found.hole(len(part))
            else:
                found.data(part)
        assert found.length == sum(map(len, parts))
        return found.hexdigest()

    whole = b"".join(pieces)
    assert digest(pieces, holes=sparse) == digest([whole], holes=False)
    assert (digest(pieces, holes=True) == digest(others, holes=True)) == (whole == b"".join(others))
