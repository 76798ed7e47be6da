"""MariaDB, and MySQL 8: every writer held between two of its transactions, and InnoDB's log empty after its last checkpoint.

How: every table is locked, so that no transaction is open that wrote (mariadb_locks.py).

With no transaction open and every page written, `innodb_log_checkpoint_now` leaves nothing after the last checkpoint, and
InnoDB starts without crash recovery (log0recv.cc: "redo log is logically empty"). MySQL has no such checkpoint: its recovery
always runs. In MySQL, FLUSH TABLES WITH READ LOCK cannot follow the table locks either: a writer that waits for a locked table
already holds the metadata lock that the statement needs (MDL GLOBAL IX, sql_base.cc: open_table). So in MySQL the table locks
are the hold, all of them or none, and `LOCK INSTANCE FOR BACKUP` keeps the set of tables from changing.

The sessions' `wait_timeout` is the server's own dead-man: the locks end with the session.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from typing import Any, NoReturn, Optional

from quiesce.agent import memory, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb_locks import DatabaseLocks
from quiesce.agent.writers.mariadb_session import Session, connect
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

HOLD_BUDGET_MS = 5000
"""Longest time spent on taking the locks, in milliseconds; never more than half of the time left to the deadline."""
MAX_TABLES = 64
"""Most connections opened to lock tables, one for each table; never more than half of the connections still free."""
PREPARE_FLUSH_S = 2.0
MAX_FLUSHES = 20
BOOKKEEPING_BYTES = 64
"""Most bytes of log after a checkpoint: the checkpoint's own record has 16 (24 if the log is encrypted)."""
RELEASE_TIMEOUT_S = 2.0
OLDEST_MYSQL = [8, 0, 22]

MEMORY = "mariadb-lock-order"

_CHECKPOINT = "SET GLOBAL innodb_log_checkpoint_now = ON"
_DIRECTORIES = ("innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path")
_VARIABLES = (
    *("version", "datadir", "server_id", "server_uid", "server_uuid", "log_bin", "log_bin_basename", "wsrep_on"),
    *("max_connections", "innodb_log_checkpoint_now", "innodb_flush_log_at_trx_commit", *_DIRECTORIES),
)
_OWN_TABLES = (
    " FROM information_schema.tables WHERE table_type IN ('BASE TABLE', 'SYSTEM VERSIONED')"
    " AND table_schema NOT IN ('mysql', 'sys', 'performance_schema', 'information_schema')"
)
_ENGINES = "SELECT engine, MIN(CONCAT(table_schema, '.', table_name)), COUNT(*)" + _OWN_TABLES + " GROUP BY engine"
# The tables written to most recently come first, as far as the server remembers: they matter most where not all can be locked.
_TABLES = (
    "SELECT CONCAT('`', REPLACE(table_schema, '`', '``'), '`.`', REPLACE(table_name, '`', '``'), '`'), engine"
    + _OWN_TABLES
    + " ORDER BY update_time DESC, table_schema, table_name"
)
_KNOWN_ENGINES = {"InnoDB", "Aria", "MyISAM", "MRG_MyISAM", "MRG_MYISAM", "MEMORY", "CSV", "ARCHIVE", "BLACKHOLE"}
_PROOF = ("lsn_current", "gtid_binlog_pos", "gtid_executed", "binlog_file", "binlog_position")
"""Parts of the position that change with every write. MySQL's LSN also grows by itself, so its position has it elsewhere."""


def discover() -> list[ApplicationWriter]:
    """Every server of this machine."""
    found: list[ApplicationWriter] = []
    for process in processes.running("mariadbd", "mysqld"):
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
        self._mariadb = True
        self._variables: dict[str, str] = {}
        self._control: Any = None
        """The session that takes the lock on everything, and flushes."""
        self._watcher: Any = None
        self._locks: Optional[DatabaseLocks] = None
        self._window_s = 0

    # -- identify

    def on_identify(self, deadline_ns: int) -> None:
        if self._process.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = self._connect()
        self._variables = self._named("VARIABLES", _VARIABLES, deadline_ns)
        version = self._variables["version"]
        self._mariadb, self.version = "MariaDB" in version, version.split("-")[0]
        self.data_directory = os.path.normpath(self._variables["datadir"])
        self._refuse_members(deadline_ns)
        self._refuse_prepared_transactions(deadline_ns)
        if self._mariadb and "innodb_log_checkpoint_now" not in self._variables:
            _refuse(
                f"MariaDB {self.version} cannot be told to empty its log (innodb_log_checkpoint_now, from 10.6.22, 10.11.12,"
                " 11.4.6 and 11.8 on)"
            )
        self.grade, self.reason = Grade.CLEAN, None
        if self._variables.get("log_bin") == "ON":
            # The binary log is marked as in use for as long as the server runs (sql/log.cc: LOG_EVENT_BINLOG_IN_USE_F).
            self.grade = Grade.NIL_REDO
            self.reason = "InnoDB starts without recovery; the server goes through its last binary log, which changes nothing"
        if not self._mariadb:
            self.grade, self.reason = Grade.HELD, "held between transactions; MySQL's own recovery runs at every such start"
        self._look_at_engines(deadline_ns)
        if self._variables.get("innodb_flush_log_at_trx_commit") != "1":
            self.warnings.append(
                "innodb_flush_log_at_trx_commit is not 1: a crash would lose transactions that a checkpoint would have kept"
            )
        self.position = self._read_position(deadline_ns)

    def _refuse_members(self, deadline_ns: int) -> None:
        """A server that follows another has no commit boundary of its own."""
        if self._variables.get("wsrep_on") == "ON":
            self.role = "galera node"
            _refuse("a node of a Galera cluster: it starts with recovery and joins the others again")
        if not self._mariadb and [int(part) for part in self.version.split(".")] < OLDEST_MYSQL:
            _refuse(f"MySQL {self.version} is older than {'.'.join(map(str, OLDEST_MYSQL))}")
        # MariaDB lists named replication connections only with ALL.
        if self._control.run("SHOW ALL SLAVES STATUS" if self._mariadb else "SHOW REPLICA STATUS", deadline_ns):
            self.role = "replica"
            self.position = self._named("VARIABLES", ("gtid_slave_pos", "gtid_executed"), deadline_ns)
            _refuse("a replica: it follows its primary again; checkpoint the primary for an application-consistent image")
        self.role = "primary"

    def _refuse_prepared_transactions(self, deadline_ns: int) -> None:
        prepared = self._control.run("XA RECOVER", deadline_ns)
        if prepared:
            data = prepared[0][3]
            name = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
            more = f" and {len(prepared) - 1} more" if len(prepared) > 1 else ""
            raise WriterError(
                f"prepared transaction {name!r}{more} holds its locks until it is committed or rolled back (XA COMMIT, XA"
                " ROLLBACK)"
            )

    def _look_at_engines(self, deadline_ns: int) -> None:
        for engine, example, count in self._control.run(_ENGINES, deadline_ns):
            tables = f"table {example}" + (f" and {count - 1} more" if count > 1 else "")
            if engine == "MEMORY":
                self.warnings.append(f"{tables}: kept in memory, empty after a restore, as after any start")
            elif engine and engine not in _KNOWN_ENGINES:
                self.grade, self.reason = Grade.HELD, f"{tables}: kept by {engine}, which recovers in its own way"

    # -- the attempt

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._window_s = math.ceil(window_ms / 1000) + 1
        self._watcher = self._connect()
        tables = self._tables(deadline_ns)
        known = set(tables)
        learned = [table for table in memory.recall(MEMORY).get(self.id, []) if table in known]
        ordered = learned + [table for table in tables if table not in set(learned)]
        locks = self._locks = DatabaseLocks(self._control, self._watcher, self._mariadb, learned)
        used = int(self._named("STATUS", ("Threads_connected",), deadline_ns)["Threads_connected"])
        most = max(0, min(MAX_TABLES, (int(self._variables["max_connections"]) - used) // 2))
        if len(ordered) > most:
            if not self._mariadb:
                _refuse(f"it has {len(ordered)} tables, and at most {most} of MySQL can be held, each by a connection")
            self.warnings.append(
                f"only {most} of its {len(ordered)} tables can be locked one by one; while transactions write to the others,"
                " only luck finds a moment with none open"
            )
        for table in ordered[:most]:
            locks.sessions.append(self._connect(table))
        if self._mariadb:
            started = time.monotonic_ns()
            # Under load this statement does not end by itself; it serves to write the mass of dirty pages, and is then ended.
            locks.run_until(self._control, _CHECKPOINT, min(deadline_ns, deadline_in_ns(PREPARE_FLUSH_S)), deadline_ns)
            self.time("prepare_flush", started)

    def on_hold(self, deadline_ns: int) -> None:
        locks = self._prepared_locks
        started = time.monotonic_ns()
        # Not set in `prepare`: the server counts from a session's last statement, and other writers may prepare for long.
        for session in (self._watcher, self._control, *locks.sessions):
            limit = self._window_s
            session.run(f"SET SESSION wait_timeout = {limit}, interactive_timeout = {limit}", deadline_ns)
        budget = min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)
        try:
            locks.take(started + budget, deadline_ns)
        finally:
            self.timings["lock_tries"] = locks.tries
        self.time("lock", started)
        started = time.monotonic_ns()
        if self._mariadb:
            self._empty_log(deadline_ns)
        else:
            locked = {session.table for session in locks.sessions}
            for table in self._tables(deadline_ns):
                if table not in locked:
                    raise WriterError(f"table {table} was created just now")
            self.position = self._read_position(deadline_ns)
        self.time("flush", started)

    @property
    def _prepared_locks(self) -> DatabaseLocks:
        assert self._locks is not None  # made by prepare, which hold and release follow
        return self._locks

    def _tables(self, deadline_ns: int) -> list[str]:
        """Tables to be locked: in MariaDB InnoDB's alone. Others have no transactions; the lock on everything holds them."""
        return [name for name, engine in self._control.run(_TABLES, deadline_ns) if engine == "InnoDB" or not self._mariadb]

    def _empty_log(self, deadline_ns: int) -> None:
        """Repeats the checkpoint until the log is empty after it and the position no longer changes. Raises WriterError."""
        age, dirty = 0, ""
        for n in range(MAX_FLUSHES):
            self._control.run(_CHECKPOINT, deadline_ns)
            before, self.position = self.position, self._read_position(deadline_ns)
            status = self._named("STATUS", ("Innodb_buffer_pool_pages_dirty", "Innodb_history_list_length"), deadline_ns)
            dirty, history = status["Innodb_buffer_pool_pages_dirty"], status.get("Innodb_history_list_length", "0")
            age = int(self.position["lsn_current"]) - int(self.position["lsn_checkpoint"])
            still = age <= BOOKKEEPING_BYTES and dirty == "0" and self.position == before
            # Old row versions are purged in the background, which writes; not awaited for ever, for a reader may need them.
            if still and (history == "0" or n >= MAX_FLUSHES // 2):
                return
            time.sleep(min(0.002 * n, 0.05))
        raise WriterError(f"its log does not come to rest: {age} bytes after its checkpoint, {dirty} dirty pages")

    def on_release(self) -> None:
        deadline_ns = deadline_in_ns(RELEASE_TIMEOUT_S)
        position = self._read_position(deadline_ns)
        moved = [
            f"{name} from {self.position[name]} to {position.get(name)}"
            for name in _PROOF
            if name in self.position and position.get(name) != self.position[name]
        ]
        # A session that can still unlock has existed all the time, and so has its lock.
        lost = self._prepared_locks.let_go(deadline_ns)
        if lost:
            raise WriterError(f"the hold of {lost[0]} was lost during the window", Outcome.INCONSISTENT)
        if [name.partition(" ")[0] for name in moved] == ["lsn_current"]:
            # The lock on everything was there to the end, so no client's transaction is in that log.
            self.grade = min(self.grade, Grade.NIL_REDO, key=[Grade.HELD, Grade.NIL_REDO, Grade.CLEAN].index)
            self.reason = f"InnoDB's own housekeeping wrote log during the window ({moved[0]}); its next start reads that log"
            return
        if moved:
            raise WriterError(f"it was written to during the window: {', '.join(moved)}", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        if self._locks:
            self._locks.close()
        for session in (self._control, self._watcher):
            if session:
                session.close()
        self._control = self._watcher = None

    def paths(self) -> list[str]:
        directory = str(self.data_directory)
        named = [self._variables.get(name, "") for name in _DIRECTORIES]
        named.append(os.path.dirname(self._variables.get("log_bin_basename", "")))
        named += elsewhere(directory)
        found = (os.path.realpath(os.path.join(directory, path)) for path in ["", *named])
        return sorted({path for path in found if os.path.isdir(path)})

    def remember(self) -> None:
        if self._locks and self._locks.learned:
            memory.retain(MEMORY, {**memory.recall(MEMORY), self.id: self._locks.learned[: 8 * MAX_TABLES]})

    def say(self, error: Exception) -> str:
        if len(error.args) == 2 and isinstance(error.args[0], int) and not isinstance(error, OSError):
            return f"{error.args[1]} ({error.args[0]})" if error.args[0] else "its connection is closed"
        return super().say(error)

    # -- what the server tells

    def _named(self, what: str, names: tuple[str, ...], deadline_ns: int) -> dict[str, str]:
        """The server's VARIABLES or STATUS values of these names, as far as it has them."""
        wanted = ", ".join(f"'{name}'" for name in names)
        return dict(self._control.run(f"SHOW GLOBAL {what} WHERE variable_name IN ({wanted})", deadline_ns))

    def _read_position(self, deadline_ns: int) -> dict[str, str]:
        names = ("server_id", "server_uid", "server_uuid")
        position: dict[str, str] = {name: self._variables[name] for name in names if name in self._variables}
        if not self._mariadb:
            return {**position, **self._read_log_status(deadline_ns)}
        status = self._named("STATUS", ("Innodb_lsn_current", "Innodb_lsn_last_checkpoint"), deadline_ns)
        position["lsn_current"] = status["Innodb_lsn_current"]
        position["lsn_checkpoint"] = status["Innodb_lsn_last_checkpoint"]
        if self._variables.get("log_bin") == "ON":
            position.update(self._named("VARIABLES", ("gtid_binlog_pos", "gtid_current_pos"), deadline_ns))
            for row in self._control.run("SHOW BINLOG STATUS", deadline_ns):
                position["binlog_file"], position["binlog_position"] = row[0], str(row[1])
        return position

    def _read_log_status(self, deadline_ns: int) -> dict[str, str]:
        """MySQL's position. Its LSN has a name that is not in _PROOF, because it grows by itself."""
        rows = self._control.run("SELECT `LOCAL`, `STORAGE_ENGINES` FROM performance_schema.log_status", deadline_ns)
        local, engines = (json.loads(text) for text in rows[0])
        return {
            "gtid_executed": local.get("gtid_executed", ""),
            "binlog_file": local.get("binary_log_file", ""),
            "binlog_position": str(local.get("binary_log_position", "")),
            "innodb_lsn": str(engines["InnoDB"]["LSN"]),
            "innodb_lsn_checkpoint": str(engines["InnoDB"]["LSN_checkpoint"]),
        }

    def _connect(self, table: str = "") -> Session:
        return connect(self._process, self.application, table)


def elsewhere(directory: str) -> set[str]:
    """Directories outside the data directory that have tables in them.

    Databases and tables can be symbolic links (MyISAM's `DATA DIRECTORY` and `INDEX DIRECTORY`). An InnoDB table with a `DATA
    DIRECTORY` leaves a file `TABLE.isl` in the data directory, with its path.
    """
    found = set()
    for database in (directory, *_directories(directory)):
        try:
            entries = list(os.scandir(database))
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                found.add(target if entry.is_dir() else os.path.dirname(target))
            elif entry.name.endswith(".isl"):
                with suppress(OSError):
                    found.add(os.path.dirname(processes.read_file(entry.path).strip()))
    return {path for path in found if path.startswith("/")}


def _directories(directory: str) -> list[str]:
    with suppress(OSError):
        return [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    return []


def _refuse(reason: str) -> NoReturn:
    """Raises WriterError for a server that no attempt can hold; a checkpoint has it as a crash image."""
    raise WriterError(reason, Outcome.NON_RETRYABLE, Grade.CRASH)
