"""Reads PostgreSQL's write-ahead log, as far as is needed to tell what a recovery would replay.

Nil redo has to be proved inside the window, which is too short for pg_waldump. Layout: PostgreSQL's access/xlogrecord.h and
access/xlog_internal.h, unchanged since 9.5.
"""

from __future__ import annotations

import struct
from typing import Optional

PAGE = 8192
_SHORT_PAGE_HEADER, _LONG_PAGE_HEADER = 24, 40
_PAGE_HEADER = struct.Struct("=HHIQI")
_RECORD_HEADER = struct.Struct("=IIQBB2xI")
_CHECKSUM_AT = 20
"""Offset of a record's checksum, which is not part of what it is computed from."""
MOST = 256 * 1024
"""Most bytes of log that are gone through within a window."""
_RM_XLOG, _RM_STANDBY = 0, 8
_CHECKPOINT_ONLINE, _CHECKPOINT_REDO = 0x10, 0xE0
_RUNNING_XACTS = 0x10

NAMES = {
    (_RM_XLOG, _CHECKPOINT_ONLINE): "CHECKPOINT_ONLINE",
    (_RM_XLOG, _CHECKPOINT_REDO): "CHECKPOINT_REDO",
    (_RM_STANDBY, _RUNNING_XACTS): "RUNNING_XACTS",
}
"""The bookkeeping records: replaying them changes no page and no transaction's fate."""


class WalError(Exception):
    """The log cannot be read there."""


def parse_lsn(text: str) -> int:
    """`16/B374D848` as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(value: int) -> str:
    """A number as `16/B374D848`."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def records(directory: str, timeline: int, segment_size: int, start: int, end: int) -> list[tuple[int, str]]:
    """(LSN, name) of every record from `start` up to `end`; a name outside NAMES is `rmgr/info`.

    `directory`: pg_wal. `start`, `end`: LSNs as numbers, `start` that of a record. Raises WalError, OSError.
    """
    if end - start > 64 * 1024:
        raise WalError(f"{end - start} bytes of log, far more than a checkpoint's own records")
    found: list[tuple[int, str]] = []
    position = start
    while True:
        position = _skip_page_header(position, segment_size)
        if position >= end:
            return found
        header = _read(directory, timeline, segment_size, position, _RECORD_HEADER.size)
        length, _xid, _previous, info, manager, _crc = _RECORD_HEADER.unpack(header)
        if length < _RECORD_HEADER.size:
            raise WalError("the log ends early")
        found.append((position, NAMES.get((manager, info & 0xF0), f"{manager}/{info & 0xF0:#04x}")))
        position = _advance(position, length, segment_size)
        if position > end:
            raise WalError("a record reaches beyond the end")
        position = (position + 7) & ~7


def end(directory: str, timeline: int, segment_size: int, start: int) -> int:
    """Where the log ends that is in the files: after the last record from `start` on that is whole, by its checksum, as a
    recovery sees it. `start`: LSN of a record, or of the end of one. Raises WalError if the log is longer than MOST from there,
    OSError."""
    position, previous = (start + 7) & ~7, None
    while True:
        at = _skip_page_header(position, segment_size)
        try:
            record = _whole_record(directory, timeline, segment_size, at, previous)
        except (WalError, OSError):
            return position
        if record is None:
            return position
        previous, position = at, (_advance(at, record, segment_size) + 7) & ~7
        if position - start > MOST:
            raise WalError(f"more than {MOST} bytes of log")


def _whole_record(directory: str, timeline: int, segment_size: int, at: int, previous: Optional[int]) -> Optional[int]:
    """Length of the record at this LSN; None if there is no whole one. `previous`: LSN of the record before it, if known."""
    header = _read(directory, timeline, segment_size, at, _RECORD_HEADER.size)
    length, _xid, before, _info, _manager, checksum = _RECORD_HEADER.unpack(header)
    if not _RECORD_HEADER.size <= length <= MOST or (previous is not None and before != previous):
        return None
    record = _read(directory, timeline, segment_size, at, length)
    found = _crc32c(record[:_CHECKSUM_AT], _crc32c(record[_RECORD_HEADER.size :]))
    return int(length) if found == checksum else None


def _crc32c(data: bytes, before: int = 0) -> int:
    """Castagnoli's, as PostgreSQL computes it (port/pg_crc32c.h)."""
    value = before ^ 0xFFFFFFFF
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC_TABLE = _crc_table()


def _skip_page_header(position: int, segment_size: int) -> int:
    if position % segment_size == 0:
        return position + _LONG_PAGE_HEADER
    return position + _SHORT_PAGE_HEADER if position % PAGE == 0 else position


def _advance(position: int, length: int, segment_size: int) -> int:
    """Where a record of `length` bytes that starts at `position` ends; page headers in between do not count as bytes of it."""
    while length > 0:
        position = _skip_page_header(position, segment_size)
        here = min(length, PAGE - position % PAGE)
        position += here
        length -= here
    return position


def _read(directory: str, timeline: int, segment_size: int, position: int, length: int) -> bytes:
    result = b""
    while len(result) < length:
        position = _skip_page_header(position, segment_size)
        here = min(length - len(result), PAGE - position % PAGE)
        number = position // segment_size
        per_id = 0x100000000 // segment_size
        name = f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"
        with open(f"{directory}/{name}", "rb") as file:
            page = position - position % PAGE
            file.seek(page % segment_size)
            page_header = file.read(_PAGE_HEADER.size)
            if len(page_header) < _PAGE_HEADER.size or _PAGE_HEADER.unpack(page_header)[3] != page:
                raise WalError("the log ends early")
            file.seek(position % segment_size)
            data = file.read(here)
            if len(data) < here:
                raise WalError("the log ends early")
            result += data
        position += here
    return result
