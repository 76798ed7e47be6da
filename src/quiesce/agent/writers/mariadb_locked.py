"""A MariaDB or MySQL server that locks hold: no transaction is open that wrote, and in MariaDB InnoDB's log is at rest.

With no transaction open and every page written, `innodb_log_checkpoint_now` leaves nothing after the last checkpoint, and
InnoDB starts without crash recovery (log0recv.cc: "redo log is logically empty"). MySQL has no such checkpoint: its recovery
always runs. In MySQL, FLUSH TABLES WITH READ LOCK cannot follow the table locks either: a writer that waits for a locked table
already holds the metadata lock that the statement needs (MDL GLOBAL IX, sql_base.cc: open_table). So in MySQL the table locks
are the hold, all of them or none, and `LOCK INSTANCE FOR BACKUP` keeps the set of tables from changing.

The sessions' `wait_timeout` is the server's own dead-man: the locks end with the session.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Callable, NoReturn, Optional

from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.mariadb_blockers import Blockers
from quiesce.agent.writers.mariadb_files import ARIA, MYISAM_AND_CSV, OtherTables, aria_log
from quiesce.agent.writers.mariadb_locks import DatabaseLocks
from quiesce.agent.writers.mariadb_session import Session, TooManyConnectionsError
from quiesce.agent.writers.mariadb_status import named, read_position
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

HOLD_BUDGET_MS = 5000
"""Longest time spent on taking the locks, in milliseconds; never more than half of the time left to the deadline."""
MAX_TABLES = 64
"""Most connections opened to lock tables, one for each table; never more than half of the connections still free."""
MAX_FLUSHES = 20
BOOKKEEPING_BYTES = 64
"""Most bytes of log after a checkpoint: the checkpoint's own record has 16 (24 if the log is encrypted)."""

CHECKPOINT = "SET GLOBAL innodb_log_checkpoint_now = ON"
ARIA_CHECKPOINT = "SET GLOBAL aria_checkpoint_interval = {seconds}"
"""Set to what it is, it does nothing but a checkpoint of all tables (ha_maria.cc: update_checkpoint_interval)."""
OWN_TABLES = (
    " FROM information_schema.tables WHERE table_type IN ('BASE TABLE', 'SYSTEM VERSIONED')"
    " AND table_schema NOT IN ('mysql', 'sys', 'performance_schema', 'information_schema')"
)
# The tables written to most recently come first, as far as the server remembers: they matter most where not all can be locked.
TABLES = (
    "SELECT CONCAT('`', REPLACE(table_schema, '`', '``'), '`.`', REPLACE(table_name, '`', '``'), '`'), engine"
    + OWN_TABLES
    + " ORDER BY update_time DESC, table_schema, table_name"
)
_PROOF = ("lsn_current", "gtid_binlog_pos", "gtid_executed", "binlog_file", "binlog_position")
"""Parts of the position that change with every write. MySQL's LSN also grows by itself, so its position has it elsewhere."""


class LockedServer:
    """One attempt at one server."""

    def __init__(self, connect: Callable[[str], Session], control: Session, variables: dict[str, str], mariadb: bool) -> None:
        """`connect`: opens a session, for a table or for the empty string. `control`: takes the lock on everything, and
        flushes."""
        self._connect = connect
        self._control = control
        self._variables = variables
        self._mariadb = mariadb
        self._watcher: Any = None
        self._locks: Optional[DatabaseLocks] = None
        self._aria_log: list[tuple[str, int, int]] = []
        self.position: dict[str, str] = {}
        self.aria_recovers = False
        """A table of Aria could not be closed: the next start goes through Aria's log."""
        self.learned: list[str] = []
        """Tables that have to be locked before the others."""

    @property
    def tries(self) -> int:
        return self._taken.tries

    @property
    def _taken(self) -> DatabaseLocks:
        assert self._locks is not None  # made by prepare, which hold and release follow
        return self._locks

    def prepare(self, learned: list[str], deadline_ns: int) -> str:
        """Opens the sessions. `learned`: by earlier attempts. Returns a warning, or the empty string. Raises WriterError."""
        try:
            self._watcher = self._connect("")
            return self._open_sessions(learned, deadline_ns)
        except TooManyConnectionsError:
            blockers = Blockers(lambda question: self._control.run(question, deadline_ns), ())
            raise TooManyConnectionsError(blockers.connections()) from None

    def _open_sessions(self, learned: list[str], deadline_ns: int) -> str:
        tables = self._tables(deadline_ns)
        known = set(tables)
        self.learned = [table for table in learned if table in known]
        ordered = self.learned + [table for table in tables if table not in set(self.learned)]
        locks = self._locks = DatabaseLocks(self._control, self._watcher, self._mariadb, self.learned)
        used = int(named(self._control, "STATUS", ("Threads_connected",), deadline_ns)["Threads_connected"])
        most = max(0, min(MAX_TABLES, (int(self._variables["max_connections"]) - used) // 2))
        warning = ""
        if len(ordered) > most:
            if not self._mariadb:
                refuse(f"it has {len(ordered)} tables, and at most {most} of MySQL can be held, each by a connection")
            warning = (
                f"only {most} of its {len(ordered)} tables can be locked one by one; while transactions write to the others,"
                " only luck finds a moment with none open"
            )
        for table in ordered[:most]:
            locks.sessions.append(self._connect(table))
        return warning

    def hold(self, window_s: int, deadline_ns: int) -> None:
        """Takes the locks. The server ends them by itself `window_s` seconds after the last statement. Raises WriterError."""
        locks = self._taken
        # Not set in `prepare`: the server counts from a session's last statement, and other writers may prepare for long.
        for session in (self._watcher, self._control, *locks.sessions):
            session.run(f"SET SESSION wait_timeout = {window_s}, interactive_timeout = {window_s}", deadline_ns)
        started = time.monotonic_ns()
        budget = min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)
        try:
            locks.take(started + budget, deadline_ns)
        finally:
            self.learned = locks.learned

    def come_to_rest(self, others: Optional[OtherTables], deadline_ns: int) -> None:
        """Empties the logs, and notes the position. `others`: MariaDB's. Raises WriterError."""
        if self._mariadb and others:
            complete_other_tables(self._control, others, self._variables.get("aria_checkpoint_interval", "0"), deadline_ns)
            if kept := others.changed(MYISAM_AND_CSV):
                raise WriterError(f"table {kept[0]} is kept open by a session, and its file is marked as crashed until then")
            # Who waits to write to it has it open. Nothing is lost: Aria's log has all of it.
            self.aria_recovers = bool(others.changed(ARIA))
            self._aria_log = self._look_at_aria_log()
            self._empty_log(deadline_ns)
            return
        locked = {session.table for session in self._taken.sessions}
        for table in self._tables(deadline_ns):
            if table not in locked:
                raise WriterError(f"table {table} was created just now")
        self.position = self._read_position(deadline_ns)

    def _empty_log(self, deadline_ns: int) -> None:
        """Repeats the checkpoint until the log is empty after it and the position no longer changes. Raises WriterError."""
        age, dirty = 0, ""
        for n in range(MAX_FLUSHES):
            self._control.run(CHECKPOINT, deadline_ns)
            before, self.position = self.position, self._read_position(deadline_ns)
            status = named(
                self._control, "STATUS", ("Innodb_buffer_pool_pages_dirty", "Innodb_history_list_length"), deadline_ns
            )
            dirty, history = status["Innodb_buffer_pool_pages_dirty"], status.get("Innodb_history_list_length", "0")
            age = int(self.position["lsn_current"]) - int(self.position["lsn_checkpoint"])
            still = age <= BOOKKEEPING_BYTES and dirty == "0" and self.position == before
            # Old row versions are purged in the background, which writes; not awaited for ever, for a reader may need them.
            if still and (history == "0" or n >= MAX_FLUSHES // 2):
                return
            time.sleep(min(0.002 * n, 0.05))
        raise WriterError(f"its log does not come to rest: {age} bytes after its checkpoint, {dirty} dirty pages")

    def release(self, deadline_ns: int) -> str:
        """Lets go. Returns what of the server's own writing its next start will go through, or the empty string. Raises
        WriterError if the hold did not last."""
        position, aria = self._read_position(deadline_ns), self._look_at_aria_log()
        moved = [
            f"{name} from {self.position[name]} to {position.get(name)}"
            for name in _PROOF
            if name in self.position and position.get(name) != self.position[name]
        ]
        # A session that can still unlock has existed all the time, and so has its lock.
        lost = self._taken.let_go(deadline_ns)
        if lost:
            raise WriterError(f"the hold of {lost[0]} was lost during the window", Outcome.INCONSISTENT)
        if [name.partition(" ")[0] for name in moved] == ["lsn_current"]:
            # The lock on everything was there to the end, so no client's transaction is in that log.
            return f"InnoDB's own housekeeping wrote log during the window ({moved[0]}); its next start reads that log"
        if moved:
            raise WriterError(f"it was written to during the window: {', '.join(moved)}", Outcome.INCONSISTENT)
        return (
            "Aria's own housekeeping wrote log during the window; its next start reads that log"
            if aria != self._aria_log
            else ""
        )

    def close(self) -> None:
        """Idempotent."""
        if self._locks:
            self._locks.close()
        if self._watcher:
            self._watcher.close()
        self._watcher = None

    def _tables(self, deadline_ns: int) -> list[str]:
        """Tables to be locked: in MariaDB InnoDB's alone. Others have no transactions; the lock on everything holds them."""
        return [name for name, engine in self._control.run(TABLES, deadline_ns) if engine == "InnoDB" or not self._mariadb]

    def _read_position(self, deadline_ns: int) -> dict[str, str]:
        return read_position(self._control, self._variables, mariadb=self._mariadb, deadline_ns=deadline_ns)

    def _look_at_aria_log(self) -> list[tuple[str, int, int]]:
        return aria_log(os.path.join(self._variables["datadir"], self._variables.get("aria_log_dir_path", "")))


def complete_other_tables(control: Session, others: OtherTables, aria_interval: str, deadline_ns: int) -> None:
    """Has the server close tables of other engines that were written to and are idle, which completes their files, and empty
    Aria's log. `aria_interval`: between its checkpoints, in seconds; with 0 it makes none."""

    def checkpoint_aria() -> None:
        if aria_interval != "0":
            control.run(ARIA_CHECKPOINT.format(seconds=aria_interval), deadline_ns)

    checkpoint_aria()  # it marks the tables that were written to in Aria's log alone (ma_locking.c: _ma_mark_file_changed)
    in_use = {f"{row[0]}.{row[1]}" for row in control.run("SHOW OPEN TABLES WHERE in_use > 0", deadline_ns)}
    closed = False
    for table in others.changed():
        if table not in in_use:  # the statement would make its users wait for each other
            schema, _, name = table.replace("`", "``").partition(".")
            with suppress(Exception):  # it is looked at again
                control.run(f"FLUSH LOCAL TABLES `{schema}`.`{name}`", deadline_ns)
                closed = True
    if closed:
        checkpoint_aria()


def refuse(reason: str) -> NoReturn:
    """Raises WriterError for a server that no attempt can hold; a checkpoint has it as a crash image."""
    raise WriterError(reason, Outcome.NON_RETRYABLE, Grade.CRASH)
