"""The files of a MariaDB or MySQL server: where they are, and which tables of other engines than InnoDB are being written to.

Aria, MyISAM and CSV note in a table's own file that it was changed since it was opened, before the first change, and take the
note back when they close the table. A server that finds the note says "is marked as crashed". Sources: ma_locking.c
(_ma_mark_file_changed_now), mi_locking.c (_mi_mark_file_changed), ha_tina.cc (write_meta_file).
"""

from __future__ import annotations

import errno
import os
import re
import struct
from contextlib import suppress

from quiesce.agent import files, looks, processes

ARIA = (".MAI",)
MYISAM_AND_CSV = (".MYI", ".CSM")
_ENDINGS = ARIA + MYISAM_AND_CSV
_OPEN_COUNT_AT = 24
"""Offset of the note in the index file of an Aria or MyISAM table: how many did not close it, in two bytes."""
_LOG_TABLES = ("mysql.general_log", "mysql.slow_log")
"""Written to by the server itself if log_output has TABLE, also under FLUSH TABLES WITH READ LOCK. It repairs them when it next
opens them."""

_EVENT = struct.Struct("<IBIIIH")
_GTID_EVENT = 162
_QUERY_EVENT = 2
_ENDS_GROUP = (16, 38)  # Xid_log_event, XA_prepare_log_event
_STANDALONE = 1  # Gtid_log_event::FL_STANDALONE: a group of one event, as DDL
_FIRST_EVENT = 4
MAX_LOG_END = 64 << 20
"""Most of the binary log that is gone through within a window, in bytes."""


def elsewhere(directory: str) -> set[str]:
    """Directories outside the data directory that have tables in them.

    Databases and tables can be symbolic links (MyISAM's `DATA DIRECTORY` and `INDEX DIRECTORY`). An InnoDB table with a `DATA
    DIRECTORY` leaves a file `TABLE.isl` in the data directory, with its path.
    """
    found = set()
    for database in (directory, *_directories(directory)):
        try:
            looks.at(database, os.stat, database)
            entries = list(os.scandir(database))
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink():
                target = looks.real(entry.path)
                found.add(target if looks.is_directory(entry.path) else os.path.dirname(target))
            elif entry.name.endswith(".isl"):
                with suppress(OSError):
                    found.add(os.path.dirname(files.read_text(entry.path, 4096).strip()))
    return {path for path in found if path.startswith("/")}


class OtherTables:
    """The tables of Aria, MyISAM and CSV, as their files tell of them."""

    def __init__(self, directory: str, pid: int) -> None:
        """A table that is marked now, and that the server has not open, was left so by a crash long ago: it does not count."""
        self._directory = directory
        self._files: dict[str, tuple[int, list[str]]] = {}
        """By database: time of the last change of its directory, and what is in it."""
        self._stale: dict[str, int] = {}
        marked = self._marked()
        if marked:
            opened = set(processes.open_files(pid))
            self._stale = {path: mark for path, mark in marked.items() if os.path.realpath(path) not in opened}

    def changed(self, endings: tuple[str, ...] = _ENDINGS) -> list[str]:
        """Tables that were changed since they were opened, as `shop.orders`, without the server's own logs. `endings`: of the
        index files that count."""
        marked = self._marked()
        names = {_table_of(path) for path, mark in marked.items() if path.endswith(endings) and self._stale.get(path) != mark}
        return sorted(names.difference(_LOG_TABLES))

    def _marked(self) -> dict[str, int]:
        found = {}
        for database in _directories(self._directory):
            for path in self._index_files(database):
                mark = _mark(path)
                if mark:
                    found[path] = mark
        return found

    def _index_files(self, database: str) -> list[str]:
        """Looks into the directory only if it has changed: with many tables of InnoDB, that takes time in a window."""
        try:
            changed_ns = os.stat(database).st_mtime_ns
            if database not in self._files or self._files[database][0] != changed_ns:
                names = [name for name in os.listdir(database) if name.endswith(_ENDINGS) and not name.startswith("#sql")]
                self._files[database] = changed_ns, [os.path.join(database, name) for name in names]
        except OSError:
            return []  # it was dropped
        return self._files[database][1]


def aria_log(directory: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the last change, in nanoseconds, of the files of Aria's log; empty if there are none."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(directory)):
            if name.startswith("aria_log."):
                status = os.stat(os.path.join(directory, name))
                found.append((name, status.st_size, status.st_mtime_ns))
    return found


def binary_log_end(directory: str, name: str, position: int) -> tuple[str, int, list[str]]:
    """The last file of the binary log, its length in bytes, and the GTIDs of the transactions that are whole in it after this
    position. Raises OSError."""
    gtids = []
    while True:
        log = files.open_regular(os.path.join(directory, name))
        try:
            length = os.fstat(log).st_size
            if length - position > MAX_LOG_END:
                raise OSError(errno.EFBIG, f"more than {MAX_LOG_END} bytes were written to it within milliseconds")
            gtids += _gtids(os.pread(log, max(0, length - position), position))
        finally:
            os.close(log)
        following = _next_name(name)
        if not os.path.exists(os.path.join(directory, following)):
            return name, length, gtids
        name, position = following, _FIRST_EVENT


def _gtids(data: bytes) -> list[str]:
    found, pending, alone, at = [], "", False, 0
    while at + _EVENT.size <= len(data):
        _, kind, server, length, _, _ = _EVENT.unpack_from(data, at)
        if length < _EVENT.size or at + length > len(data):
            break
        event = data[at + _EVENT.size : at + length]
        if kind == _GTID_EVENT:
            number, domain, flags = struct.unpack_from("<QIB", event)
            pending, alone = f"{domain}-{server}-{number}", bool(flags & _STANDALONE)
        elif pending and (alone or kind in _ENDS_GROUP or (kind == _QUERY_EVENT and event[:-4].endswith(b"COMMIT"))):
            found.append(pending)
            pending = ""
        at += length
    return found


def _next_name(name: str) -> str:
    stem, _, number = name.rpartition(".")
    return f"{stem}.{int(number) + 1:0{len(number)}}"


def _directories(directory: str) -> list[str]:
    with suppress(OSError):
        looks.at(directory, os.stat, directory)
        return [entry.path for entry in os.scandir(directory) if _is_directory(entry)]
    return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return looks.is_directory(entry.path) if entry.is_symlink() else entry.is_dir()


def _mark(path: str) -> int:
    """Not 0 if the table was changed since it was opened; also if that cannot be told."""
    try:
        descriptor = files.open_regular(path, links=True)  # MyISAM's INDEX DIRECTORY
    except FileNotFoundError:
        return 0
    except OSError:
        return 1
    try:
        head = os.read(descriptor, 64)
    finally:
        os.close(descriptor)
    if path.endswith(".CSM"):
        return head[34] if len(head) > 34 else 0
    return int.from_bytes(head[_OPEN_COUNT_AT : _OPEN_COUNT_AT + 2], "big")


def _table_of(path: str) -> str:
    """The table of a file, as `shop.orders`. A partition has a name as `orders#P#p0`; odd characters are as `@0024`."""
    table = os.path.basename(path)[:-4].partition("#P#")[0].partition("#p#")[0]
    name = f"{os.path.basename(os.path.dirname(path))}.{table}"
    return re.sub(r"@([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), name)
