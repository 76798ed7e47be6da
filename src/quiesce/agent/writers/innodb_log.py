"""Reads InnoDB's redo log of MariaDB 10.8 and later: where the next start begins to recover, and where it ends.

`ib_logfile0` is a ring. After a header of 12288 bytes come mini-transactions, each with the records of one atomic change, an
end byte that alternates with each turn of the ring, and a CRC-32C. Recovery ends at the first one that is not whole. Sources:
MariaDB's log0log.h (log_t: START_OFFSET, get_sequence_bit, calc_lsn_offset) and log0recv.cc (log_parse_start,
recv_sys_t::find_checkpoint).
"""

from __future__ import annotations

import os
import struct

from quiesce.agent import files
from quiesce.agent.writers.checksums import crc32c

HEADER = 12288
_CHECKPOINTS = (4096, 8192)
_FORMAT_10_8 = 0x50687973
_ENCRYPTED = 1 << 31
_CHUNK = 4096
"""Bytes that are read at first: a mini-transaction has some hundred as a rule."""
MAX_WALK = 1024 * 1024
"""Most bytes that are looked through for the end, in some 100 ms. The caller knows a place a few milliseconds before."""
_VARINT_SIZES = ((0x80, 1), (0xC0, 2), (0xE0, 3), (0xF0, 4), (0x100, 5))
_VARINT_BASES = (0, 0x80, 0x4080, 0x204080, 0x10204080)


class InnodbLogError(Exception):
    """The log cannot be read, or is of a format that is not known."""


class InnodbLog:
    """The log of one server. It is opened once, so that nothing has to be opened while filesystems are frozen."""

    def __init__(self, directory: str) -> None:
        """Raises OSError, and InnodbLogError for a format of another release."""
        self._file = files.open_regular(os.path.join(directory, "ib_logfile0"))
        try:
            form, _, self._first = struct.unpack(">IIQ", self._read_at(0, 16))
            if form & ~_ENCRYPTED != _FORMAT_10_8:
                raise InnodbLogError(f"its log is of format {form:#x}")
            self._nonce = 8 if form & _ENCRYPTED else 0
            self._capacity = os.fstat(self._file).st_size - HEADER
            if self._capacity <= 0:
                raise InnodbLogError("its log has no room for records")
        except BaseException:
            self.close()
            raise

    def checkpoint(self) -> int:
        """The LSN from which a start recovers. Raises OSError, InnodbLogError."""
        found = []
        for offset in _CHECKPOINTS:
            block = self._read_at(offset, 64)
            (lsn,) = struct.unpack(">Q", block[:8])
            if lsn >= self._first and crc32c(block[:60]) == int.from_bytes(block[60:], "big"):
                found.append(lsn)
        if not found:
            raise InnodbLogError("its log has no valid checkpoint")
        return max(found)

    def end(self, lsn: int) -> int:
        """The LSN at which a recovery ends. `lsn`: the end of some mini-transaction, at or after the last checkpoint. Raises
        OSError, InnodbLogError."""
        start = lsn
        while lsn - start < MAX_WALK:
            size = self._size(lsn)
            if not size:
                return lsn
            lsn += size
        raise InnodbLogError(f"its log goes on for more than {MAX_WALK} bytes after {start}")

    def close(self) -> None:
        os.close(self._file)

    def _size(self, lsn: int) -> int:
        """Bytes of the mini-transaction at this LSN; 0 if there is no whole one."""
        data = self._read(lsn, _CHUNK)
        at = 0
        while True:
            if len(data) < at + 18 + self._nonce:  # a record's head, or the end
                if len(data) >= min(MAX_WALK, self._capacity):
                    return 0
                data = self._read(lsn, 4 * len(data))
            if data[at] <= 1:
                break
            at += _record_size(data, at)
            if at > len(data) and len(data) < min(MAX_WALK, self._capacity):
                data = self._read(lsn, max(4 * len(data), at + _CHUNK))
            if at > len(data):
                return 0
        if at == 0 or data[at] != self._sequence_bit(lsn + at):
            return 0
        after = at + 1 + self._nonce
        if crc32c(data[:at] + data[at + 1 : after]) != int.from_bytes(data[after : after + 4], "big"):
            return 0
        return after + 4

    def _sequence_bit(self, lsn: int) -> int:
        return 1 - (lsn - self._first) // self._capacity % 2

    def _read(self, lsn: int, size: int) -> bytes:
        """At most one turn of the ring."""
        size = min(size, self._capacity)
        at = (lsn - self._first) % self._capacity
        found = self._read_at(HEADER + at, min(size, self._capacity - at))
        return found + self._read_at(HEADER, size - len(found)) if len(found) < size else found

    def _read_at(self, offset: int, size: int) -> bytes:
        found = os.pread(self._file, size, offset)
        if len(found) != size:
            raise InnodbLogError("its log is shorter than it was")
        return found


def _record_size(data: bytes, at: int) -> int:
    """Bytes of the record that begins at `at`: its type and length byte, and what follows."""
    size = data[at] & 15
    if size:
        return 1 + size
    first = data[at + 1]
    count = next(count for limit, count in _VARINT_SIZES if first < limit)
    value = int.from_bytes(data[at + 1 : at + 1 + count], "big")
    if count == 5:
        value &= 0xFFFFFFFF
    elif count > 1:
        value &= (1 << (7 * count)) - 1
    return 1 + 15 + value + _VARINT_BASES[count - 1]
