"""Reads PostgreSQL's write-ahead log, as far as is needed to tell what a recovery would replay.

Nil redo, and where the log of a cluster ends that stands still, have to be found inside the window, which is too short for
pg_waldump. Layout: PostgreSQL's access/xlogrecord.h and
access/xlog_internal.h, unchanged since 9.5.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Optional

from quiesce.agent import files
from quiesce.agent.writers.checksums import crc32c

PAGE = 8192
_SHORT_PAGE_HEADER, _LONG_PAGE_HEADER = 24, 40
_PAGE_HEADER = struct.Struct("=HHIQI")
_RECORD_HEADER = struct.Struct("=IIQBB2xI")
_CHECKSUM_AT = 20
"""Offset of a record's checksum, which is not part of what it is computed from."""
MOST = 1024 * 1024
"""Most bytes of log that are gone through within a window."""
_RM_XLOG, _RM_XACT, _RM_STANDBY = 0, 1, 8
_ENDS = (0x00, 0x20)
"""Commit and abort: bits of xl_info."""
_CHECKPOINT_ONLINE, _CHECKPOINT_REDO = 0x10, 0xE0
_RUNNING_XACTS = 0x10

NAMES = {
    (_RM_XLOG, _CHECKPOINT_ONLINE): "CHECKPOINT_ONLINE",
    (_RM_XLOG, _CHECKPOINT_REDO): "CHECKPOINT_REDO",
    (_RM_STANDBY, _RUNNING_XACTS): "RUNNING_XACTS",
}
"""The bookkeeping records: replaying them changes no page and no transaction's fate."""
HARMLESS = {
    (0, 0x40): "a switch of the log's file",
    (0, 0xA0): "hint bits",
    **dict.fromkeys([(_RM_XACT, 0x00), (_RM_XACT, 0x20), (_RM_XACT, 0x50)], "the end of a transaction that wrote to no table"),
    **dict.fromkeys([(3, 0x00), (18, 0x00)], "a new page of transaction status"),
    **dict.fromkeys([(6, 0x00), (6, 0x10), (6, 0x20), (9, 0x60), (10, 0x60)], "row locks"),
    (_RM_STANDBY, 0x00): "a lock",
    **dict.fromkeys([(9, 0x10), (9, 0x20), (9, 0x30), (9, 0x40)], "a page that was cleaned up"),
    (15, 0x00): "values of a sequence",
}
"""By resource manager and kind (access/rmgrlist.h, and the headers named there; PostgreSQL 13 to 17): records that replay what
no client can tell from a restart, if locks keep every transaction from writing to a table. Example: a sequence goes on behind
the values that it may have given out."""
_MANAGERS = (
    *("XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap"),
    *(
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ),
)


class WalError(Exception):
    """The log cannot be read there."""


class _EndError(WalError):
    """The log has no such page yet."""


@dataclass(frozen=True)
class LogRecord:
    """A record of the log, as far as a report needs it."""

    at: int
    """LSN."""
    manager: int
    kind: int
    """Bits of xl_info that the resource manager gives a meaning."""

    @property
    def name(self) -> str:
        """As pg_waldump names the resource manager, with the kind as a number; a bookkeeping record by its own name."""
        named = _MANAGERS[self.manager] if self.manager < len(_MANAGERS) else str(self.manager)
        return NAMES.get((self.manager, self.kind), f"{named}/{self.kind:#04x}")

    @property
    def bookkeeping(self) -> bool:
        return (self.manager, self.kind) in NAMES

    @property
    def harmless(self) -> str:
        """What it replays, if no client can tell that; else the empty string."""
        kind = self.kind & 0x70 if self.manager == _RM_XACT else self.kind
        return HARMLESS.get((self.manager, kind), "")


@dataclass(frozen=True)
class Tail:
    """The last records of a log."""

    end: int
    """LSN of the end of the last whole record."""
    begun: frozenset[int]
    """Numbers of the transactions that wrote one of the records, 32 bits of each."""
    ended: frozenset[int]
    """Those that were committed or aborted."""


def parse_lsn(text: str) -> int:
    """`16/B374D848` as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def format_lsn(value: int) -> str:
    """A number as `16/B374D848`."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def records(
    directory: str, timeline: int, segment_size: int, start: int, end: int, uid: Optional[int] = None
) -> list[LogRecord]:
    """Every record from `start` up to `end`.

    `directory`: pg_wal. `uid`: as whom to read it, as for files.read_bytes. `start`, `end`: LSNs as numbers, `start` that of a
    record. Raises WalError, OSError.
    """
    if end - start > 64 * 1024:
        raise WalError(f"{end - start} bytes of log, far more than a checkpoint's own records")
    found: list[LogRecord] = []
    pages, position = _Pages(directory, timeline, segment_size, uid), start
    while True:
        position = _skip_page_header(position, segment_size)
        if position >= end:
            return found
        header = pages.read(position, _RECORD_HEADER.size)
        length, _xid, _previous, info, manager, _crc = _RECORD_HEADER.unpack(header)
        if length < _RECORD_HEADER.size:
            raise WalError("the log ends early")
        found.append(LogRecord(position, manager, info & 0xF0))
        position = _advance(position, length, segment_size)
        if position > end:
            raise WalError("a record reaches beyond the end")
        position = (position + 7) & ~7


def tail(directory: str, timeline: int, segment_size: int, start: int, uid: Optional[int] = None) -> Tail:
    """The log from `start` to the end that a recovery would find. `start`: LSN of a record, or of the end of one, up to which
    the log is on disk. Raises WalError if the rest is longer than MOST bytes; OSError."""
    pages = _Pages(directory, timeline, segment_size, uid)
    position, previous = (start + 7) & ~7, None
    found: list[tuple[int, int, bytes]] = []
    while True:
        at = _skip_page_header(position, segment_size)
        record = _next_record(pages, at, previous)
        if record is None:
            break
        previous, position = at, (_advance(at, len(record), segment_size) + 7) & ~7
        found.append((at, position, record))
        if position - start > MOST:
            raise WalError(f"more than {MOST} bytes of log")
    # The server writes whole pages, so only in the last page can a record be that its process had not finished.
    last_page = position - position % PAGE - PAGE
    for index, (_, ends, record) in enumerate(found):
        if ends >= last_page and not _intact(record):
            del found[index:]
            break
    begun, ended = set(), set()
    for _, _, record in found:
        begun |= {_RECORD_HEADER.unpack_from(record)[1]} - {0}
        ended |= _ended(record)
    return Tail(found[-1][1] if found else (start + 7) & ~7, frozenset(begun), frozenset(ended))


def after(directory: str, timeline: int, segment_size: int, record: int, uid: Optional[int] = None) -> int:
    """LSN at which the record after this one begins, or would begin. Raises WalError, OSError."""
    header = _Pages(directory, timeline, segment_size, uid).read(record, _RECORD_HEADER.size)
    length = _RECORD_HEADER.unpack(header)[0]
    if length < _RECORD_HEADER.size:
        raise WalError("the log ends early")
    return _skip_page_header((_advance(record, length, segment_size) + 7) & ~7, segment_size)


def _next_record(pages: _Pages, at: int, previous: Optional[int]) -> Optional[bytes]:
    """The record at this LSN, if the log goes on there. `previous`: LSN of the record before it, if known. A segment that is
    used again has old records, which name other records before them."""
    try:
        length, _xid, before, _info, _manager, _checksum = _RECORD_HEADER.unpack(pages.read(at, _RECORD_HEADER.size))
        if length < _RECORD_HEADER.size or (before >= at if previous is None else before != previous):
            return None
        if length <= MOST:
            return pages.read(at, length)
    except (_EndError, FileNotFoundError):
        return None
    raise WalError(f"more than {MOST} bytes of log")


def _intact(record: bytes) -> bool:
    return bool(_RECORD_HEADER.unpack_from(record)[5] == crc32c(record[:_CHECKSUM_AT], crc32c(record[_RECORD_HEADER.size :])))


def _ended(record: bytes) -> set[int]:
    """The transactions that this record commits or aborts, subtransactions among them; access/xact.h, xl_xact_commit and
    xl_xact_abort, this part unchanged since 9.5."""
    _length, xid, _previous, info, manager, _checksum = _RECORD_HEADER.unpack_from(record)
    if manager != _RM_XACT or info & 0x70 not in _ENDS:
        return set()
    data = _main_data(record)
    at = 8  # after the time
    if not info & 0x80:
        return {xid}
    (what,) = struct.unpack_from("=I", data, at)
    at += 4
    if what & 1:  # XACT_XINFO_HAS_DBINFO
        at += 8
    ended = {xid}
    if what & 2:  # XACT_XINFO_HAS_SUBXACTS
        (count,) = struct.unpack_from("=i", data, at)
        ended |= set(struct.unpack_from(f"={count}I", data, at + 4))
    return ended - {0}


def _main_data(record: bytes) -> bytes:
    """What a record has besides pages; access/xlogrecord.h. Of a record with pages: nothing, as no commit has them."""
    at = _RECORD_HEADER.size
    while at < len(record):
        kind = record[at]
        if kind == 255:  # XLR_BLOCK_ID_DATA_SHORT
            return record[at + 2 :][-record[at + 1] :]
        if kind == 254:  # XLR_BLOCK_ID_DATA_LONG
            return record[at + 5 :]
        if kind == 253:  # XLR_BLOCK_ID_ORIGIN
            at += 3
        elif kind == 252:  # XLR_BLOCK_ID_TOPLEVEL_XID
            at += 5
        else:
            return b""
    return b""


class _Pages:
    """Reads the log's files, each page once."""

    def __init__(self, directory: str, timeline: int, segment_size: int, uid: Optional[int]) -> None:
        self._directory = directory
        self._timeline = timeline
        self._segment_size = segment_size
        self._uid = uid
        self._page = (-1, b"")

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from the LSN `position` on, without page headers. Raises WalError, OSError."""
        result = bytearray()
        while len(result) < length:
            position = _skip_page_header(position, self._segment_size)
            within = position % PAGE
            result += self._at(position - within)[within : within + length - len(result)]
            position += PAGE - within
        return bytes(result)

    def _at(self, address: int) -> bytes:
        if self._page[0] != address:
            page = self._load(address)
            if len(page) < PAGE or _PAGE_HEADER.unpack_from(page)[3] != address:
                raise _EndError("the log ends early")
            self._page = (address, page)
        return self._page[1]

    def _load(self, address: int) -> bytes:
        number = address // self._segment_size
        per_id = 0x100000000 // self._segment_size
        name = f"{self._timeline:08X}{number // per_id:08X}{number % per_id:08X}"
        segment = files.open_regular(f"{self._directory}/{name}", self._uid)
        try:
            return os.pread(segment, PAGE, address % self._segment_size)
        finally:
            os.close(segment)


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
