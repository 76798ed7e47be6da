"""MariaDB, and MySQL 8: every writer held between two of its transactions, and InnoDB's log empty after its last checkpoint.

How: one connection a table says `LOCK TABLES t READ`, which waits for the transactions that wrote to the table and keeps new
ones from writing. Were it one connection for all, the server would see a deadlock with a transaction that takes the tables
in another order, and end it: an error of the application's. So it sees none; we wait for each lock a short while of our own,
and give up by KILL QUERY. A table at which we gave up is moved to the front of the next try: the application's own order
is learned (1 to 3 tries, no error of a client; notes/writers.md 17). Then nothing is in flight, and `FLUSH TABLES WITH READ
LOCK` keeps it so for whatever else could be written; alone, it would stop transactions in their middle.

With no transaction open and every page written, `innodb_log_checkpoint_now` leaves nothing after the last checkpoint, and
InnoDB starts without crash recovery (log0recv.cc: "redo log is logically empty"). MySQL has no such checkpoint: its recovery
always runs. Nor can FLUSH TABLES WITH READ LOCK be had there once tables are locked: a writer that waits for a table already
has the right (MDL GLOBAL IX, sql_base.cc: open_table) that it asks for. There the tables' locks are the hold, all or nothing,
and `LOCK INSTANCE FOR BACKUP` keeps the tables from changing.

A session's own `wait_timeout` is the server's dead-man: locks end with the session.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, Optional

from quiesce.agent import memory, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb_session import Session, code_of, connect
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

HOLD_BUDGET_MS = 5000
"""Longest time spent on getting the locks, in milliseconds, and never more than half of what is left to the deadline."""
LOCK_TIMEOUT_MS = 60
"""How long the first try waits for one lock; each try waits twice as long as the one before. Writers queue behind us then."""
MAX_LOCK_TIMEOUT_MS = 700
MAX_TABLES = 64
"""Connections opened to lock tables, one each, and never more than half of those that the server has left."""
PREPARE_FLUSH_S = 2.0
MAX_FLUSHES = 20
BOOKKEEPING_BYTES = 64
"""What may follow a checkpoint in the log: its own record (16 bytes; 24 if the log is encrypted)."""
STALE_S = 0.11
"""The server renews its list of transactions only if nobody read it for 100 ms (trx0i_s.cc: CACHE_MIN_IDLE_TIME_NS)."""
RELEASE_TIMEOUT_S = 2.0
OLDEST_MYSQL = [8, 0, 22]

MEMORY = "mariadb-lock-order"

_NO_SUCH_TABLE = 1146
_CONFLICT = (1205, 1213, 1317)  # lock time-out, deadlock, KILL QUERY

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
# Those written to last come first, as far as the server remembers: a hint, for where not all can be locked.
_TABLES = (
    "SELECT CONCAT('`', REPLACE(table_schema, '`', '``'), '`.`', REPLACE(table_name, '`', '``'), '`'), engine"
    + _OWN_TABLES
    + " ORDER BY update_time DESC, table_schema, table_name"
)
_TRANSACTIONS = (
    "SELECT /* {mark} */ t.trx_mysql_thread_id, p.user, TIMESTAMPDIFF(SECOND, t.trx_started, NOW()), t.trx_rows_modified,"
    " t.trx_query FROM information_schema.innodb_trx t"
    " LEFT JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id ORDER BY t.trx_started"
)
_KNOWN_ENGINES = {"InnoDB", "Aria", "MyISAM", "MRG_MyISAM", "MRG_MYISAM", "MEMORY", "CSV", "ARCHIVE", "BLACKHOLE"}
_PROOF = ("lsn_current", "gtid_binlog_pos", "gtid_executed", "binlog_file", "binlog_position")
"""What moves when anything is written. MySQL's log also moves by itself, and only there the LSN is not among them."""


def discover() -> list[ApplicationWriter]:
    """Every server of this machine."""
    found: list[ApplicationWriter] = []
    for process in processes.running("mariadbd", "mysqld"):
        with suppress(OSError):  # it ended
            found.append(Database(process, os.readlink(f"/proc/{process.pid}/cwd")))  # the server works in its data directory
    return found


class _Transaction(NamedTuple):
    thread: int
    user: Optional[str]
    seconds: int
    modified: int
    """Rows."""

    def __str__(self) -> str:
        return f"thread {self.thread} of user {self.user or 'unknown'!r} is in a transaction for {self.seconds} s"


class Database(ApplicationWriter):
    """A running server."""

    def __init__(self, process: Process, directory: str) -> None:
        self.application = "mariadb" if process.name == "mariadbd" else "mysql"
        super().__init__(f"{self.application}:{'main' if directory == '/var/lib/mysql' else directory}")
        self.data_directory = directory
        self._process = process
        self._mariadb = True
        self._variables: dict[str, str] = {}
        self._control: Any = None
        """Has the lock on everything, and flushes."""
        self._watcher: Any = None
        """Kills what waits too long, and sees who is in a transaction."""
        self._sessions: list[Session] = []
        """In the order in which their tables are locked."""
        self._learned: list[str] = []
        self._window_s = 0
        self._looks = 0

    # -- what it says of itself

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
            # It is marked as in use for as long as the server runs (sql/log.cc: LOG_EVENT_BINLOG_IN_USE_F).
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
        """What follows others is not a boundary of its own."""
        if self._variables.get("wsrep_on") == "ON":
            self.role = "galera node"
            _refuse("a node of a Galera cluster: it starts with recovery and joins the others again")
        if not self._mariadb and [int(part) for part in self.version.split(".")] < OLDEST_MYSQL:
            _refuse(f"MySQL {self.version} is older than {'.'.join(map(str, OLDEST_MYSQL))}")
        # With ALL, the connections of MariaDB that have a name.
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
        self._learned = [table for table in memory.recall(MEMORY).get(self.id, []) if table in known]
        ordered = self._learned + [table for table in tables if table not in set(self._learned)]
        used = int(self._named("STATUS", ("Threads_connected",), deadline_ns)["Threads_connected"])
        most = max(0, min(MAX_TABLES, (int(self._variables["max_connections"]) - used) // 2))
        if len(ordered) > most:
            if not self._mariadb:
                _refuse(f"it has {len(ordered)} tables, and at most {most} of MySQL can be held, each by a connection")
            self.warnings.append(
                f"of its {len(ordered)} tables only {most} are waited for one by one; while transactions write to others, it"
                " is a matter of luck to find a moment with none open"
            )
        for table in ordered[:most]:
            self._sessions.append(self._connect(table))
        if self._mariadb:
            started = time.monotonic_ns()
            # While it is written to, this has no end of its own; what counts is that the mass of dirty pages is written.
            self._attempt(self._control, _CHECKPOINT, min(deadline_ns, deadline_in_ns(PREPARE_FLUSH_S)), deadline_ns)
            self.time("prepare_flush", started)

    def on_hold(self, deadline_ns: int) -> None:
        started = time.monotonic_ns()
        # Not before: it counts from a session's last statement, and the others may still have had much to prepare.
        for session in (self._watcher, self._control, *self._sessions):
            limit = self._window_s
            session.run(f"SET SESSION wait_timeout = {limit}, interactive_timeout = {limit}", deadline_ns)
        budget = min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)
        self._hold_writers(started + budget, deadline_ns)
        self.time("lock", started)
        started = time.monotonic_ns()
        if self._mariadb:
            self._empty_log(deadline_ns)
        else:
            locked = {session.table for session in self._sessions}
            for table in self._tables(deadline_ns):
                if table not in locked:
                    raise WriterError(f"table {table} was created just now")
            self.position = self._read_position(deadline_ns)
        self.time("flush", started)

    def _tables(self, deadline_ns: int) -> list[str]:
        """Those to be locked: where a lock on everything comes after, only they can have transactions."""
        return [name for name, engine in self._control.run(_TABLES, deadline_ns) if engine == "InnoDB" or not self._mariadb]

    def _hold_writers(self, until_ns: int, deadline_ns: int) -> None:
        """Every table locked, no transaction open that wrote, and none to come. Raises WriterError, holding perhaps a part."""
        tries, obstacle = 0, "no time was left"
        while time.monotonic_ns() < until_ns:
            timeout_ms = min(LOCK_TIMEOUT_MS << tries, MAX_LOCK_TIMEOUT_MS)
            tries += 1
            self.timings["lock_tries"] = tries
            obstacle, pause_s = self._try_to_hold(timeout_ms, until_ns, deadline_ns)
            if not obstacle:
                return
            lost = self._let_go(deadline_ns)
            if lost:
                raise WriterError(f"the session for {lost[0]} was lost")
            time.sleep(pause_s)
        oldest = ""
        with suppress(Exception):
            oldest = "".join(f"; {transaction}" for transaction in self._transactions(deadline_ns)[:1])
        raise WriterError(f"its writers could not be held in time: {obstacle}{oldest}", Outcome.TIMEOUT)

    def _try_to_hold(self, timeout_ms: int, until_ns: int, deadline_ns: int) -> tuple[str, float]:
        """One try. Returns what stood in the way, or the empty string, and how long to let the others run, in seconds."""
        for session in list(self._sessions):
            give_up_ns = min(until_ns, time.monotonic_ns() + timeout_ms * 1_000_000)
            try:
                locked = self._attempt(session, f"LOCK TABLES {session.table} READ", give_up_ns, deadline_ns)
            except Exception as error:
                if code_of(error) != _NO_SUCH_TABLE:
                    raise
                self._sessions.remove(session)  # it was dropped since prepare
                session.close()
                continue
            if not locked:
                self._sessions.remove(session)
                self._sessions.insert(0, session)
                self._learned = [session.table, *(table for table in self._learned if table != session.table)]
                return f"table {session.table} was in use", 0.01
        everything = "FLUSH TABLES WITH READ LOCK" if self._mariadb else "LOCK INSTANCE FOR BACKUP"
        give_up_ns = min(until_ns, time.monotonic_ns() + timeout_ms * 1_000_000)
        if not self._attempt(self._control, everything, give_up_ns, deadline_ns):
            return f"{everything} had to wait for a statement", 0.01
        writing = [transaction for transaction in self._transactions(deadline_ns) if transaction.modified]
        return "; ".join(map(str, writing[:3])), STALE_S

    def _attempt(self, session: Session, statement: str, give_up_ns: int, deadline_ns: int) -> bool:
        """Whether the statement was done by then. If not, it has been killed, or the server gave it up."""
        session.send(statement)
        in_time = session.answers_until(give_up_ns)
        if not in_time:
            self._watcher.run(f"KILL QUERY {session.id}", deadline_ns)
        try:
            session.answer(deadline_ns)
            if in_time:
                return True
            session.run("DO 0", deadline_ns)  # a kill that came too late hits what comes next
        except Exception as error:
            if code_of(error) not in _CONFLICT:
                raise
        return False

    def _let_go(self, deadline_ns: int) -> list[str]:
        """Ends every hold. Returns what could no longer be given back, because its session was gone."""
        lost = []
        for session in (self._control, *self._sessions):
            statement = "UNLOCK INSTANCE" if session is self._control and not self._mariadb else "UNLOCK TABLES"
            try:
                session.run(statement, deadline_ns)
            except Exception:  # noqa: BLE001 - a session that cannot even let go is closed
                lost.append(session.table or "everything")
                session.close()
        return lost

    def _transactions(self, deadline_ns: int) -> list[_Transaction]:
        """Those open now, but for our own; the oldest first. Raises WriterError if only an older list can be had.

        The server answers from a copy that it keeps as long as it is read often. One of our own transactions is shown with
        the statement that asks: only in a copy made for it.
        """
        self._watcher.run("START TRANSACTION WITH CONSISTENT SNAPSHOT", deadline_ns)
        try:
            for _ in range(3):
                self._looks += 1
                mark = f"quiesce {self._looks}."
                rows = self._watcher.run(_TRANSACTIONS.format(mark=mark), deadline_ns)
                if any(row[0] == self._watcher.id and mark in str(row[4]) for row in rows):
                    return [_Transaction(*row[:4]) for row in rows if row[0] != self._watcher.id]
                time.sleep(STALE_S)
            raise WriterError(
                "it does not say which transactions are open now; others read information_schema.innodb_trx too often"
            )
        finally:
            self._watcher.run("COMMIT", deadline_ns)

    def _empty_log(self, deadline_ns: int) -> None:
        """Checkpoints until nothing follows the last one, and all stands still. Raises WriterError."""
        age, dirty = 0, ""
        for n in range(MAX_FLUSHES):
            self._control.run(_CHECKPOINT, deadline_ns)
            before, self.position = self.position, self._read_position(deadline_ns)
            status = self._named("STATUS", ("Innodb_buffer_pool_pages_dirty", "Innodb_history_list_length"), deadline_ns)
            dirty, history = status["Innodb_buffer_pool_pages_dirty"], status.get("Innodb_history_list_length", "0")
            age = int(self.position["lsn_current"]) - int(self.position["lsn_checkpoint"])
            still = age <= BOOKKEEPING_BYTES and dirty == "0" and self.position == before
            # What transactions left behind is purged in the background, which writes; not for ever, as a reader may need it.
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
        # A session that can still let go was there all the time, and its lock with it.
        lost = self._let_go(deadline_ns)
        if lost:
            raise WriterError(f"the hold of {lost[0]} was lost during the window", Outcome.INCONSISTENT)
        if [name.partition(" ")[0] for name in moved] == ["lsn_current"]:
            # The lock on everything was there to the end, so no transaction of anybody's is among it.
            self.grade = min(self.grade, Grade.NIL_REDO, key=[Grade.HELD, Grade.NIL_REDO, Grade.CLEAN].index)
            self.reason = f"InnoDB's own housekeeping wrote log during the window ({moved[0]}); it is gone through at the start"
            return
        if moved:
            raise WriterError(f"it was written to during the window: {', '.join(moved)}", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        for session in (*self._sessions, self._control, self._watcher):
            if session:
                session.close()
        self._sessions, self._control, self._watcher = [], None, None

    def paths(self) -> list[str]:
        directory = str(self.data_directory)
        named = [self._variables.get(name, "") for name in _DIRECTORIES]
        named.append(os.path.dirname(self._variables.get("log_bin_basename", "")))
        found = (os.path.realpath(os.path.join(directory, path)) for path in ["", *named])
        return sorted({path for path in found if os.path.isdir(path)})

    def remember(self) -> None:
        if self._learned:
            memory.keep(MEMORY, {**memory.recall(MEMORY), self.id: self._learned[: 8 * MAX_TABLES]})

    def say(self, error: Exception) -> str:
        if len(error.args) == 2 and isinstance(error.args[0], int) and not isinstance(error, OSError):
            return f"{error.args[1]} ({error.args[0]})" if error.args[0] else "its connection is closed"
        return super().say(error)

    # -- reading

    def _named(self, what: str, names: tuple[str, ...], deadline_ns: int) -> dict[str, str]:
        """Of its VARIABLES or its STATUS, those of these names that it has."""
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
        """MySQL's; its LSN is under a name that proves nothing, because it moves by itself."""
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


def _refuse(reason: str) -> NoReturn:
    """What no attempt can change, and no attempt makes worse than a crash image."""
    raise WriterError(reason, Outcome.NON_RETRYABLE, Grade.CRASH)
