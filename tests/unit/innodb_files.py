"""Makes redo logs as InnoDB of MariaDB 10.8 and later writes them, and index files of Aria, MyISAM and CSV."""

from __future__ import annotations

import struct
from pathlib import Path

from quiesce.agent.writers.checksums import crc32c
from quiesce.agent.writers.innodb_log import HEADER

FIRST = 12288
FORMAT = 0x50687973


class Ring:
    """`ib_logfile0`, in memory until it is saved."""

    def __init__(self, capacity: int = 64 * 1024, form: int = FORMAT) -> None:
        self.capacity, self.nonce = capacity, b"nonce..." if form & 1 << 31 else b""
        self.data = bytearray(HEADER + capacity)
        self.data[:16] = struct.pack(">IIQ", form, 0, FIRST)
        self.lsn = FIRST

    def checkpoint(self, lsn: int, block: int = 4096) -> None:
        head = struct.pack(">QQ", lsn, lsn).ljust(60, b"\0")
        self.data[block : block + 64] = head + struct.pack(">I", crc32c(head))

    def write(self, *sizes: int) -> int:
        """A mini-transaction of records that have as many bytes after their first. Returns the LSN after it."""
        records = b"".join(map(record, sizes))
        turn = (self.lsn + len(records) - FIRST) // self.capacity
        whole = records + bytes([1 - turn % 2]) + self.nonce + struct.pack(">I", crc32c(records + self.nonce))
        for byte in whole:
            self.data[HEADER + (self.lsn - FIRST) % self.capacity] = byte
            self.lsn += 1
        return self.lsn

    def save(self, directory: Path) -> None:
        (directory / "ib_logfile0").write_bytes(self.data)


def record(size: int) -> bytes:
    """A WRITE record with as many bytes after its first."""
    if size <= 15:
        return bytes([0x30 | size]) + bytes([0x5A]) * size
    for count, first, base, limit in ((1, 0, 0, 0x80), (2, 0x80, 0x80, 0x4080), (3, 0xC0, 0x4080, 0x204080)):
        if size - 15 < limit:
            number = (size - 15 - base) | first << (8 * (count - 1))
            return b"\x30" + number.to_bytes(count, "big") + bytes([0x5A]) * (size - count)
    raise ValueError(size)


def table(directory: Path, name: str, marked: int = 0) -> Path:
    """The index file of a table, `shop.orders.MAI`; marked as one that was changed since it was opened."""
    path = directory / name.replace(".", "/", 1)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".CSM":
        path.write_bytes(b"\xfe" + bytes(33) + bytes([marked]))
    else:
        path.write_bytes(bytes(24) + struct.pack(">H", marked) + bytes(100))
    return path
