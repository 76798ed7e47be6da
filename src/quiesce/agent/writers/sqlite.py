"""SQLite files that system services have open: no transaction is open, and the log is empty.

How: the write-ahead log is written back to the file and emptied, then the file's write lock is taken (BEGIN IMMEDIATE), so that
the file is at a commit. SQLite would answer the service's writers SQLITE_BUSY after their own busy_timeout. To spare them that
error the service is frozen first; if it stands in a transaction, it is thawed for a moment and frozen again, until it does not.
A service with a watchdog cannot be frozen, so its writers may get SQLITE_BUSY. A lock dies with this process.
Sources: sqlite.org/pragma.html (wal_checkpoint), lockingv3.html, fileformat2.html.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Optional
from urllib.parse import quote

from quiesce.agent import files, identity, linux, looks, processes, systemd
from quiesce.agent.cgroups import Cgroup, CgroupError
from quiesce.agent.undos import Undo
from quiesce.agent.writers.account import Account
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.unsupported import Unanswered
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

MAGIC = b"SQLite format 3\0"
MAX_TRIES = 12
MAX_FILES = 1000
"""Most files of one service."""
BUSY_TIMEOUT_MS = 500
"""Longest wait for a transaction of the service's in one try, in milliseconds."""
HOLD_LIMIT_MS = 4000


def discover() -> list[ApplicationWriter]:
    """One writer for each service that has SQLite files open."""
    databases: dict[str, dict[str, int]] = {}
    unread: dict[str, str] = {}
    taken: set[str] = set()
    for process in processes.running():
        group = processes.cgroup(process.pid)
        unit = processes.unit(process.pid)
        if not unit or process.container or identity.why_users(process.uid, group):
            continue
        for path in processes.open_files(process.pid):
            try:
                if path not in taken and len(databases.get(unit, ())) < MAX_FILES and is_database(path, process.uid):
                    taken.add(path)
                    databases.setdefault(unit, {})[path] = process.uid
            except looks.NotAnsweringError as error:
                if processes.writes_to(process.pid, path):
                    unread[unit] = f"{path}: {error}"
    found: list[ApplicationWriter] = [Sqlite(unit, sorted(users), users) for unit, users in sorted(databases.items())]
    return found + [Unanswered(f"files:{unit}", "files", problem) for unit, problem in sorted(unread.items())]


def is_database(path: str, uid: Optional[int] = None) -> bool:
    """Looked at as this user. Must not be called while a lock is held: closing a file gives up all of this process's locks on
    it (fcntl(2)). Raises NotAnsweringError."""
    if not path.startswith("/") or path.startswith(("/dev/", "/proc/", "/sys/")):
        return False
    try:
        return files.read_bytes(path, len(MAGIC), uid) == MAGIC
    except looks.NotAnsweringError:
        raise
    except OSError:
        return False


@dataclass
class _File:
    path: str
    descriptor: int
    """Stays open for as long as the connection: closing it would give up the connection's locks (fcntl(2))."""
    connection: sqlite3.Connection
    uid: int
    state: tuple[bytes, int] = (b"", 0)

    def look(self) -> tuple[bytes, int]:
        """Values that change with every commit: the header's change counter and size, and the size of the log."""
        return os.pread(self.descriptor, 8, 24), self.wal_size()

    def lock(self, busy_timeout_ms: int) -> str:
        """Empties the log, unless a reader still uses it, and takes the write lock. Returns what stood in the way. Raises
        sqlite3.Error."""
        try:
            self.connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                return f"{self.path}: a transaction keeps it locked"
            raise
        return ""

    def wal_size(self) -> int:
        try:
            return os.stat(self.path + "-wal").st_size
        except FileNotFoundError:
            return 0


def _connect(path: str, descriptor: int) -> sqlite3.Connection:
    """Closes the descriptor if it raises: WriterError, sqlite3.Error."""
    connection = None
    try:
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode=rw", timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, uri=True
        )
        now, opened = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
        if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            raise WriterError(f"{path} was replaced just now")
    except BaseException:
        if connection:
            connection.close()
        os.close(descriptor)
        raise
    return connection


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _integrity(connection: sqlite3.Connection, deadline_ns: int) -> list[str]:
    """What SQLite finds wrong; `ok` if nothing. Raises sqlite3.OperationalError if it could not look."""
    connection.set_progress_handler(lambda: int(time.monotonic_ns() > deadline_ns), 100_000)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        return [text for (text,) in connection.execute("PRAGMA integrity_check(5)")]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:  # it is damaged so much that it cannot be read
        return [str(error)]


class Sqlite(ApplicationWriter):
    """All files of one service."""

    application = "sqlite"

    def __init__(self, unit: str, paths: list[str], users: Optional[dict[str, int]] = None) -> None:
        """`users`: who has each file open; root, where it is not said."""
        super().__init__(f"sqlite:{unit}")
        self.version = sqlite3.sqlite_version
        self.data_directory = os.path.dirname(paths[0])
        self.hold_limit_ms = HOLD_LIMIT_MS
        self.unit = unit
        self.freezing = True
        """Whether this writer freezes the service; if not, another writer does."""
        self._paths = paths
        self._users = users or {}
        self._files: list[_File] = []
        self._cgroup: Optional[Cgroup] = None

    def account(self) -> Account:
        """The service is frozen anywhere in its work, so that its other files are not at a boundary."""
        return Account(paths=tuple(path + suffix for path in self._paths for suffix in ("", "-wal", "-shm", "-journal")))

    def undo(self) -> Optional[Undo]:
        if not self.freezing:
            return None
        try:
            cgroup = Cgroup(systemd.freezable_cgroup(self.unit))
            cgroup.open()
        except (systemd.UnitError, OSError) as error:
            self.warnings.append(f"its writers may be told that the file is busy during the hold: {error}")
            return None
        self._cgroup = cgroup
        return cgroup.undo

    def on_identify(self, deadline_ns: int) -> None:
        self.grade, self.reason = Grade.CLEAN, None
        self.position = {"files": str(len(self._paths))}

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        for path in self._paths:
            uid, descriptor = self._open(path)
            with linux.as_user(uid):
                connection = _connect(path, descriptor)
                self._files.append(_File(path, descriptor, connection, uid))
                try:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise

    def _open(self, path: str) -> tuple[int, int]:
        """As whom to open the file, and a descriptor: as its owner for a process of root's, else as the process's own user, so
        that a name that leads elsewhere now leads nowhere that he cannot go. Raises OSError."""
        uid = self._users.get(path, 0) or looks.at(path, os.lstat, path).st_uid
        return uid, files.open_regular(path, uid)

    def on_hold(self, deadline_ns: int) -> None:
        for attempt in range(MAX_TRIES):
            obstacle = self._try_to_hold(attempt, deadline_ns)
            if not obstacle:
                break
            self._let_go()
            left_ns = deadline_ns - time.monotonic_ns()
            if attempt + 1 == MAX_TRIES or left_ns <= 0:
                raise WriterError(obstacle, Outcome.TIMEOUT)
            time.sleep(min(0.01 * 2**attempt, 0.2, left_ns / 1e9))
        for file in self._files:
            file.state = file.look()
            counter, pages = struct.unpack(">II", file.state[0])
            self.position[file.path] = f"change {counter} pages {pages}"
        if any(file.wal_size() for file in self._files):
            self.grade, self.reason = Grade.NIL_REDO, "a reader kept its log from being emptied; it is read at the next start"

    def _try_to_hold(self, attempt: int, deadline_ns: int) -> str:
        """Returns what stood in the way, or the empty string. The later half of the tries takes a log that is not empty."""
        if self._cgroup:
            try:
                self._cgroup.freeze(deadline_ns)
            except CgroupError as error:
                raise WriterError(str(error)) from None
        for file in self._files:
            left_ms = max(0, deadline_ns - time.monotonic_ns()) // 1_000_000
            with linux.as_user(file.uid):
                obstacle = file.lock(0 if self._cgroup else min(BUSY_TIMEOUT_MS, left_ms // 2))  # it may wait twice
            if not obstacle and file.wal_size() and attempt < MAX_TRIES // 2:
                obstacle = f"{file.path}: a reader keeps its log from being emptied"
            if obstacle:
                return obstacle
        return ""

    def on_release(self) -> None:
        moved = next((file.path for file in self._files if file.look() != file.state), None)
        self._let_go()
        if moved:
            raise WriterError(f"{moved} was written to during the window", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        for file in self._files:
            with suppress(sqlite3.Error), linux.as_user(file.uid):
                file.connection.close()
            os.close(file.descriptor)
        self._files = []
        if self._cgroup:
            self._cgroup.thaw()
            self._cgroup.close()
            self._cgroup = None

    def _let_go(self) -> None:
        for file in self._files:
            if file.connection.in_transaction:
                file.connection.execute("ROLLBACK")
        if self._cgroup:
            self._cgroup.thaw()

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        """Whether each file is sound, and at which commit. Before the service opened it, SQLite may have rolled a transaction
        back; nothing tells that afterwards."""
        position = {}
        for path in self._paths:
            uid, descriptor = self._open(path)
            with linux.as_user(uid), closing(_connect(path, descriptor)) as connection:
                said = _integrity(connection, deadline_ns)
            counter, pages = struct.unpack(">II", os.pread(descriptor, 8, 24))
            os.close(descriptor)
            if said != ["ok"]:
                raise WriterError(f"{path}: integrity_check: {'; '.join(said)}", Outcome.INCONSISTENT)
            position[path] = f"change {counter} pages {pages}"
        checks = (f"integrity_check: {len(position)} files are ok",)
        return replace(start, did=Did.NOTHING, position=position, checks=checks)

    def paths(self) -> list[str]:
        return sorted({os.path.dirname(looks.real(path)) for path in self._paths})
