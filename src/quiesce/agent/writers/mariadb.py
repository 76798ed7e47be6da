"""MariaDB, which stands still as a whole, or is held by locks; and MySQL 8, held by locks.

A MariaDB of which only InnoDB's tables are being written to is stopped by the kernel's freezer (mariadb_still.py): its start
recovers a known length of log. If tables of another engine are being written to, if the kernel cannot stop the server alone, or
if the host wants nothing to recover, locks hold every writer between two of its transactions, with InnoDB's log empty after its
last checkpoint: every table is locked, so that no transaction is open that wrote (mariadb_locks.py).
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from typing import Any, Optional

from quiesce.agent import identity, looks, memory
from quiesce.agent.processes import Process
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb_files import OtherTables, aria_log, elsewhere
from quiesce.agent.writers.mariadb_locked import CHECKPOINT, MAX_TABLES, OWN_TABLES, LockedServer, complete_other_tables, refuse
from quiesce.agent.writers.mariadb_session import GONE, Session, TooManyConnectionsError, code_of, connect
from quiesce.agent.writers.mariadb_start import mariadb_started
from quiesce.agent.writers.mariadb_status import named, prepared_transactions, read_position
from quiesce.agent.writers.mariadb_still import StandingServer
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

PREPARE_FLUSH_S = 2.0
RELEASE_TIMEOUT_S = 2.0
ROOM = 16 * 1024 * 1024
"""Bytes that must be free where the server writes before it is made to write: dirty pages of a file with holes, a checkpoint of
Aria's log, the end of the binary log. Full, it waits for room ("Disk is full"), and so would we."""
OLDEST_MYSQL = [8, 0, 22]

MEMORY = "mariadb-lock-order"

_DIRECTORIES = ("innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path")
_VARIABLES = (
    *("version", "datadir", "server_id", "server_uid", "server_uuid", "log_bin", "log_bin_basename", "wsrep_on"),
    *("max_connections", "innodb_log_checkpoint_now", "innodb_flush_log_at_trx_commit", "aria_checkpoint_interval"),
    *("encrypt_binlog", "log_output", "general_log", "slow_query_log", *_DIRECTORIES),
)
_ENGINES = "SELECT engine, MIN(CONCAT(table_schema, '.', table_name)), COUNT(*)" + OWN_TABLES + " GROUP BY engine"
_KNOWN_ENGINES = {"InnoDB", "Aria", "MyISAM", "MRG_MyISAM", "MRG_MYISAM", "MEMORY", "CSV", "ARCHIVE", "BLACKHOLE"}
_STANDING_ENGINES = _KNOWN_ENGINES - {"ARCHIVE"}
"""Of these it can be told whether their tables are being written to, or they keep nothing."""
_FLUSH_SETTING = "innodb_flush_log_at_trx_commit"
_DURABLE_S = 0.5
_FLUSH = (
    "BEGIN NOT ATOMIC SET GLOBAL innodb_flush_log_at_trx_commit = 1; FLUSH LOCAL ENGINE LOGS; DO SLEEP({seconds});"
    " SET GLOBAL innodb_flush_log_at_trx_commit = 0; END"
)
"""Makes commits wait for the disk, for as many seconds, and flushes what came before. With 0, FLUSH ENGINE LOGS passes over
InnoDB (ha_innodb.cc: innobase_flush_logs). The server itself takes the setting back, also if this process dies meanwhile."""
_IN_SLEEP = "SELECT 1 FROM information_schema.processlist WHERE id = {id} AND state = 'User sleep'"


def discover() -> list[ApplicationWriter]:
    """Every server of this machine."""
    found: list[ApplicationWriter] = []
    for process in identity.applications("mariadbd", "mysqld"):
        with suppress(OSError):  # it ended
            directory = os.readlink(f"/proc/{process.pid}/cwd")  # the server works in its data directory
            found.append(DatabaseServer(process, directory))
    return found


class DatabaseServer(ApplicationWriter):
    """A running server."""

    def __init__(self, process: Process, directory: str) -> None:
        self.application = "mariadb" if process.name == "mariadbd" else "mysql"
        super().__init__(f"{self.application}:{'main' if directory == '/var/lib/mysql' else directory}")
        self.data_directory = directory
        self._process = process
        self.pids = (process.pid,)
        self._mariadb = process.name == "mariadbd"
        self._variables: dict[str, str] = {}
        self._control: Any = None
        """The session that takes the lock on everything, and flushes."""
        self._flusher: Optional[Session] = None
        """Makes commits durable for a moment, in a server where they are not."""
        self._still: Optional[StandingServer] = None
        """Where the kernel can stop the server alone."""
        self._stands = False
        """It is going to stand still, or does; else locks hold it."""
        self._others: Optional[OtherTables] = None
        self._locked: Optional[LockedServer] = None
        self._does: list[str] = []
        """What its next start does besides InnoDB, if locks hold it."""
        self._aria_log: Any = None
        """Aria's log in `prepare`, after a checkpoint, of a server that is going to stand still."""
        self._aria_tables = False
        """There are tables of Aria besides the server's own."""
        self._window_s = 0

    def undo(self) -> Optional[Undo]:
        if self.nil_redo or self._process.container or not self._mariadb:
            return None
        self._still = StandingServer.of(self._process.pid)
        self.outlives = self._still is not None
        return self._still.undo if self._still else None

    # -- identify

    def on_identify(self, deadline_ns: int) -> None:
        if self._process.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = self._connect()
        self._variables = named(self._control, "VARIABLES", _VARIABLES, deadline_ns)
        version = self._variables["version"]
        self._mariadb, self.version = "MariaDB" in version, version.split("-")[0]
        self.data_directory = os.path.normpath(self._variables["datadir"])
        self._refuse_members(deadline_ns)
        self.grade, self.reason = Grade.CLEAN, None
        foreign = self._look_at_engines(deadline_ns)
        self._stands = not foreign and self._can_stand_still()
        if self._stands:
            self.grade = Grade.STANDS_STILL
            if prepared := prepared_transactions(self._control, deadline_ns):
                self.warnings.append(f"prepared transaction {prepared}: it is prepared after a restore, too")
        else:
            self._see_what_locks_give(deadline_ns)
        self.position = read_position(self._control, self._variables, mariadb=self._mariadb, deadline_ns=deadline_ns)

    def _can_stand_still(self) -> bool:
        if self.nil_redo or not self._mariadb:
            return False
        if self._still:
            return True
        found = StandingServer.of(self._process.pid)
        if found:
            found.close()
        return found is not None

    def _see_what_locks_give(self, deadline_ns: int) -> None:
        """Raises WriterError if locks cannot hold the server."""
        if self._mariadb and "innodb_log_checkpoint_now" not in self._variables:
            refuse(
                f"MariaDB {self.version} cannot be told to empty its log (innodb_log_checkpoint_now, from 10.6.22, 10.11.12,"
                " 11.4.6 and 11.8 on)"
            )
        if prepared := prepared_transactions(self._control, deadline_ns):
            raise WriterError(
                f"prepared transaction {prepared} holds its locks until it is committed or rolled back (XA COMMIT, XA ROLLBACK)"
            )
        if self._variables.get(_FLUSH_SETTING) != "1":
            self.warnings.append(
                f"{_FLUSH_SETTING} is not 1: a crash would lose transactions that a checkpoint would have kept"
            )
        if not self._mariadb:
            self.grade, self.reason = Grade.HELD, "held between transactions; MySQL's own recovery runs at every such start"
        elif self.grade is not Grade.HELD:
            self._see_its_next_start(deadline_ns)

    def _see_its_next_start(self, deadline_ns: int) -> None:
        """Grades a server that locks hold by what it will write to its own log at its next start."""
        does = self._does = self._passes(deadline_ns)
        if self._aria_interval == "0" or (self._locked and self._locked.aria_recovers):
            does.append("goes through Aria's log")
        self.grade, self.reason = Grade.CLEAN, None
        if does:
            self.grade = Grade.NIL_REDO
            self.reason = f"InnoDB starts without recovery; the server {', '.join(does)}, which changes nothing"

    def _passes(self, deadline_ns: int) -> list[str]:
        """What the server does at a start that follows no orderly end, besides InnoDB and Aria."""
        does = []
        if self._variables.get("log_bin") == "ON":
            # The binary log is marked as in use for as long as the server runs (sql/log.cc: LOG_EVENT_BINLOG_IN_USE_F).
            does.append("goes through its last binary log")
        else:
            status = named(self._control, "STATUS", ("Tc_log_page_size",), deadline_ns)
            # Deleted by an orderly end alone (sql/log.cc: TC_LOG_MMAP); there if two engines can take part in one transaction.
            if status.get("Tc_log_page_size", "0") != "0" or os.path.exists(os.path.join(str(self.data_directory), "tc.log")):
                does.append("goes through tc.log")
        logging = {self._variables.get("general_log"), self._variables.get("slow_query_log")}
        if "TABLE" in self._variables.get("log_output", "") and "ON" in logging:
            does.append("may find its log in mysql.general_log or mysql.slow_log marked as crashed, and repairs it")
        return does

    def _refuse_members(self, deadline_ns: int) -> None:
        """A server that follows another has no commit boundary of its own."""
        if self._variables.get("wsrep_on") == "ON":
            self.role = "galera node"
            refuse("a node of a Galera cluster: it starts with recovery and joins the others again")
        if not self._mariadb and [int(part) for part in self.version.split(".")] < OLDEST_MYSQL:
            refuse(f"MySQL {self.version} is older than {'.'.join(map(str, OLDEST_MYSQL))}")
        # MariaDB lists named replication connections only with ALL.
        if self._control.run("SHOW ALL SLAVES STATUS" if self._mariadb else "SHOW REPLICA STATUS", deadline_ns):
            self.role = "replica"
            self.position = named(self._control, "VARIABLES", ("gtid_slave_pos", "gtid_executed"), deadline_ns)
            refuse("a replica: it follows its primary again; checkpoint the primary for an application-consistent image")
        self.role = "primary"

    def _look_at_engines(self, deadline_ns: int) -> bool:
        """Whether there are tables of which it cannot be told whether they are being written to."""
        foreign = False
        for engine, example, count in self._control.run(_ENGINES, deadline_ns):
            tables = f"table {example}" + (f" and {count - 1} more" if count > 1 else "")
            if engine == "MEMORY":
                self.warnings.append(f"{tables}: kept in memory, empty after a restore, as after any start")
            elif engine and engine not in _KNOWN_ENGINES:
                self.grade, self.reason = Grade.HELD, f"{tables}: kept by {engine}, which recovers in its own way"
            foreign = foreign or bool(engine and engine not in _STANDING_ENGINES)
            self._aria_tables = self._aria_tables or engine == "Aria"
        return foreign

    # -- the attempt

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._window_s = math.ceil(window_ms / 1000) + 1
        self._require_room()
        if self._mariadb:
            self._others = OtherTables(str(self.data_directory), self._process.pid)
        self._stands = self._stands and self._still is not None
        if self._stands and self._others:
            complete_other_tables(self._control, self._others, self._aria_interval, deadline_ns)
            self._aria_log = self._look_at_aria_log()
        if self._mariadb and "innodb_log_checkpoint_now" in self._variables:
            self._write_dirty_pages(deadline_ns)
        if self._stands and self._still and not self._others_written():
            redo = os.path.join(str(self.data_directory), self._variables.get("innodb_log_group_home_dir", ""))
            readable = self._variables.get("encrypt_binlog") != "ON"
            if self._variables.get(_FLUSH_SETTING) == "0":
                with suppress(TooManyConnectionsError):
                    self._flusher = self._connect()
            self._still.prepare(redo, os.path.dirname(self._variables.get("log_bin_basename", "")) if readable else "")
        else:
            self._prepare_locks(deadline_ns)

    def _require_room(self) -> None:
        """Raises WriterError if what we ask for could fill a filesystem, or meet a full one."""
        for path in self.paths():
            if looks.room(path) < ROOM:  # the server does not run as root
                raise WriterError(
                    f"{path} has less than {ROOM >> 20} MiB free; what the server writes for a checkpoint may wait for room",
                    Outcome.OUT_OF_RESOURCES,
                )

    @property
    def _aria_interval(self) -> str:
        return self._variables.get("aria_checkpoint_interval", "0")

    def _look_at_aria_log(self) -> list[tuple[str, int, int]]:
        return aria_log(os.path.join(str(self.data_directory), self._variables.get("aria_log_dir_path", "")))

    def _write_dirty_pages(self, deadline_ns: int) -> None:
        """Has the mass of them written, for PREPARE_FLUSH_S at most. Under load the statement takes far longer, and heeds no
        kill while it writes (21 s, seen with a log of 80 MB): so it has a session of its own, which is left to it."""
        started = time.monotonic_ns()
        try:
            session = self._connect()
        except TooManyConnectionsError:
            return  # more is left to recover
        try:
            session.send(CHECKPOINT)
            if session.answers_until(min(deadline_ns, deadline_in_ns(PREPARE_FLUSH_S))):
                session.answer(deadline_ns)
            else:
                self._control.run(f"KILL QUERY {session.id}", deadline_ns)
        finally:
            session.close()
        self.time("prepare_flush", started)

    def _others_written(self) -> bool:
        """Whether tables of other engines are being written to: then locks hold the server. What the server writes to its own
        tables of Aria (CREATE USER, an event that ran) is as crash-safe as InnoDB."""
        changed = bool(self._others and self._others.changed())
        self._stands = not changed and not (self._aria_tables and self._look_at_aria_log() != self._aria_log)
        return not self._stands

    def _prepare_locks(self, deadline_ns: int) -> None:
        if self.grade is Grade.STANDS_STILL:
            self._see_what_locks_give(deadline_ns)
        self._locked = LockedServer(self._connect, self._control, self._variables, self._mariadb)
        if warning := self._locked.prepare(memory.recall(MEMORY).get(self.id, []), deadline_ns):
            self.warnings.append(warning)

    def on_hold(self, deadline_ns: int) -> None:
        if self._stands and self._stand_still(deadline_ns):
            return
        if not self._locked:  # a table of another engine was written to just now
            self._prepare_locks(deadline_ns)
        self._hold_by_locks(deadline_ns)

    def _stand_still(self, deadline_ns: int) -> bool:
        """False if tables of other engines were written to at that moment; the server runs then."""
        assert self._still is not None and self._others is not None  # since prepare
        started = time.monotonic_ns()
        asynchronous = self._variables.get(_FLUSH_SETTING) == "0"
        does = self._passes(deadline_ns)
        before = read_position(self._control, self._variables, mariadb=True, deadline_ns=deadline_ns)
        durable_until_ns = self._make_commits_durable(deadline_ns) if asynchronous else 0
        status = named(self._control, "STATUS", ("Innodb_lsn_flushed",), deadline_ns)
        self._still.stop(before, int(status.get("Innodb_lsn_flushed", before["lsn_current"])), deadline_ns)
        may_miss = asynchronous and time.monotonic_ns() >= durable_until_ns
        if self._others_written():
            self._still.go_on()
            return False
        if self._aria_interval == "0" or self._look_at_aria_log() != self._aria_log:
            does.append("may go through Aria's log")
        self.position, self.reason = self._still.position, self._still.reason()
        if does:
            self.reason += f"; the server {', '.join(does)}"
        if may_miss:
            self.reason += (
                "; of commits that were acknowledged before they were written (innodb_flush_log_at_trx_commit = 0), those of"
                " the last milliseconds may be missing"
            )
            if self._variables.get("log_bin") == "ON":
                self.reason += ", though the binary log has them"
        self.time("stop", started)
        return True

    def _make_commits_durable(self, deadline_ns: int) -> int:
        """Returns the CLOCK_MONOTONIC time, in nanoseconds, until which every commit is on disk before it is acknowledged. It
        is past if no connection was left for that: then the log is flushed once."""
        until_ns = deadline_in_ns(_DURABLE_S)
        if not self._flusher:
            self._control.run(_FLUSH.format(seconds=0), deadline_ns)
            return 0
        self._flusher.send(_FLUSH.format(seconds=_DURABLE_S))
        while time.monotonic_ns() < until_ns:
            if self._control.run(_IN_SLEEP.format(id=self._flusher.id), deadline_ns):
                return until_ns
            time.sleep(0.001)
        return 0

    def _hold_by_locks(self, deadline_ns: int) -> None:
        assert self._locked is not None  # since prepare, or just now
        started = time.monotonic_ns()
        try:
            self._locked.hold(self._window_s, deadline_ns)
        finally:
            self.timings["lock_tries"] = self._locked.tries
        self.time("lock", started)
        started = time.monotonic_ns()
        self._locked.come_to_rest(self._others, deadline_ns)
        self.position = self._locked.position
        self.time("flush", started)
        if self._mariadb and self.grade is not Grade.HELD:
            self._see_its_next_start(deadline_ns)

    def on_release(self) -> None:
        deadline_ns = deadline_in_ns(RELEASE_TIMEOUT_S)
        if self._stands and self._still:
            self._still.release()
            self._control.run("DO 0", deadline_ns)  # it is the server that stood still, and not one that was started meanwhile
            return
        assert self._locked is not None  # since the hold
        if housekeeping := self._locked.release(deadline_ns):
            self.grade = min(self.grade, Grade.NIL_REDO, key=[Grade.HELD, Grade.NIL_REDO, Grade.CLEAN].index)
            self.reason = "; ".join([housekeeping, *([f"the server {', '.join(self._does)}"] if self._does else [])])

    def on_abort(self) -> None:
        try:
            if self._still:
                self._still.close()
        finally:
            if self._locked:
                self._locked.close()
            for session in (self._control, self._flusher):
                if session:
                    session.close()
            self._control = self._flusher = self._still = None

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        self._control = self._connect()
        return mariadb_started(start, self._process.pid, self._control, deadline_ns)

    def paths(self) -> list[str]:
        directory = str(self.data_directory)
        named = [self._variables.get(name, "") for name in _DIRECTORIES]
        named.append(os.path.dirname(self._variables.get("log_bin_basename", "")))
        named += elsewhere(directory)
        found = (looks.real(os.path.join(directory, path)) for path in ["", *named])
        return sorted({path for path in found if looks.is_directory(path)})

    def remember(self) -> None:
        if self._locked and self._locked.learned:
            memory.retain(MEMORY, {**memory.recall(MEMORY), self.id: self._locked.learned[: 8 * MAX_TABLES]})

    def say(self, error: Exception) -> str:
        code = code_of(error)
        if code in GONE:
            return "it ended, or closed the session"
        if len(error.args) == 2 and isinstance(error.args[0], int) and not isinstance(error, OSError):
            return f"{error.args[1]} ({code})" if code else "its connection is closed"
        return super().say(error)

    def _connect(self, table: str = "") -> Session:
        return connect(self._process, self.application, table)
