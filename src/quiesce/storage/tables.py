"""A digest of what an image's file says about where its data is: cheap to take, and met by chance by no other image.

A qcow2 image: its header, its L1 table and its L2 tables (QEMU's docs/interop/qcow2). They say of each cluster whether the
image has it, and where. Whatever allocates, discards, rebases, resizes, commits or converts changes them; they take 1/8192 of
the image's data or, with extended L2 entries and 128 KiB clusters, the same. Refcounts are left out: they follow from these
tables. Any other file: samples of its bytes, at the beginning, at the end and between, because a raw file has no tables. What
is declared raw is raw: in such a file the guest writes the first bytes, and could write the header of a qcow2 image.

Not seen is a write into a cluster that the image has already: only the times of the file, or a digest of all its bytes, tell
that."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from quiesce.storage import qcow2

SAMPLES = 64
SAMPLE = 64 * 1024
MOST = 64 * 1024 * 1024
"""At most so many bytes of L2 tables are read: those of an image with half a terabyte of data. Of more tables, as many are
read as fit, evenly spaced; the L1 table names all."""

Read = Callable[[int, int], bytes]
"""Reads from an offset so many bytes; fewer at the end of the file."""

_OFFSET = 0x00FF_FFFF_FFFF_FE00
"""The bits of an L1 entry that are the offset of an L2 table."""


def digest(read: Read, size: int, format: str) -> str:
    """The digest of a file of `size` bytes, an image of this format. Reads at most MOST bytes and the L1 table, or SAMPLES
    samples."""
    found = hashlib.sha256()
    for offset, length in _parts(read, size, format):
        found.update(struct.pack(">QQ", offset, length))
        found.update(read(offset, length))
    return found.hexdigest()


def _parts(read: Read, size: int, format: str) -> list[tuple[int, int]]:
    """Offsets and lengths of what is read, without what is outside the file."""
    layout = qcow2.layout(read(0, qcow2.HEADER_BYTES)) if format == "qcow2" else None
    if layout is None:
        return _samples(size)
    l1 = layout.l1_offset, min(layout.l1_entries * 8, qcow2.MAX_L1)
    if l1[0] + l1[1] > size:
        return _samples(size)  # a damaged header
    content = read(*l1)
    entries = [entry & _OFFSET for (entry,) in struct.iter_unpack(">Q", content[: len(content) // 8 * 8])]
    tables = [(offset, layout.cluster) for offset in entries if offset and offset + layout.cluster <= size]
    return [(0, min(layout.cluster, size)), l1, *_evenly(tables, max(1, MOST // layout.cluster))]


def _samples(size: int) -> list[tuple[int, int]]:
    pieces = -(-size // SAMPLE)
    chosen = range(pieces) if pieces <= SAMPLES else sorted({n * (pieces - 1) // (SAMPLES - 1) for n in range(SAMPLES)})
    return [(piece * SAMPLE, min(SAMPLE, size - piece * SAMPLE)) for piece in chosen]


def _evenly(found: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    return found if len(found) <= most else [found[place * len(found) // most] for place in range(most)]
