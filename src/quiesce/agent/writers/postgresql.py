"""PostgreSQL 13 and later: every database held at a commit boundary, its log proved to end at a checkpoint.

How: in one session a database, every table is locked in SHARE mode, which waits for the transactions that wrote and keeps
new ones from writing; then the catalogs, so that neither DDL nor autovacuum does; then a CHECKPOINT. What a recovery would
replay is then only the checkpoint's own records ("nil redo"): read from the log itself, under the hold and once more before it
is given up.

The locks are taken one after another, and a table at which we were made to wait too long, or would have deadlocked, is
moved to the front of the next try: so the application's own lock order is learned (8 to 52 ms until held under load, where
a fixed order took seconds; notes/writers.md 17). The session's `idle_in_transaction_session_timeout` is the server's own
dead-man: locks vanish with the session.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from quiesce.agent import linux, memory
from quiesce.agent.writers import wal
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.postgresql_files import Postmaster, cluster_id, data_directories, paths_of, read_version, running
from quiesce.agent.writers.postgresql_stopped import Stopped
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

HOLD_BUDGET_MS = 5000
"""Longest time spent on getting the locks, in milliseconds, and never more than half of what is left to the deadline."""
LOCK_TIMEOUT_MS = 700
"""Longest wait for one lock; while we wait, writers queue behind us."""
DEADLOCK_TIMEOUT_MS = 10
"""Short, so that of two sessions in a deadlock we are the one to give up, and autovacuum steps aside at once."""
CHUNK = 64
"""Tables locked by one statement, where no conflict is expected."""
MAX_CHECKPOINTS = 3
WRITTEN_WITHIN_S = 1.0
"""Longest wait for log to reach its file: the server's own bookkeeping is written by its WAL writer, every 200 ms
(wal_writer_delay), and not by the one who inserts it."""
MAX_RECORDS = 20
"""Records of the log named in a report; an honest one has three."""

_RETRY = {"55P03": "lock time-out", "40P01": "deadlock", "57014": "statement time-out"}
MEMORY = "postgresql-lock-order"

_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY c.oid
"""
_CATALOGS = """
SELECT format('pg_catalog.%I', relname) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace ORDER BY oid
"""
_UNLOGGED = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'u' ORDER BY c.oid
"""
_WRITING = """
SELECT pid, usename::text, coalesce(application_name, ''), extract(epoch FROM now() - xact_start)::int
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3
"""
_NOW = """
SELECT s.system_identifier::text, c.timeline_id::text, pg_current_wal_insert_lsn()::text,
       pg_snapshot_xmax(pg_current_snapshot())::text,
       ARRAY(SELECT x::text FROM pg_snapshot_xip(pg_current_snapshot()) x)
FROM pg_control_checkpoint() c, pg_control_system() s
"""
_POSITION = """
SELECT s.system_identifier::text, c.timeline_id, c.checkpoint_lsn::text, c.redo_lsn::text, c.next_xid::text,
       pg_current_wal_insert_lsn()::text,
       EXISTS (SELECT 1 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid())
FROM pg_control_checkpoint() c, pg_control_system() s
"""


def discover() -> list[ApplicationWriter]:
    """Every cluster of this machine, running or down."""
    postmasters = list(running())
    directories = {os.path.realpath(postmaster.directory) for postmaster in postmasters}
    found: list[ApplicationWriter] = [Cluster(postmaster) for postmaster in postmasters]
    found += [Stopped(directory) for directory in sorted(data_directories()) if os.path.realpath(directory) not in directories]
    return found


@dataclass
class _Session:
    """One database: its connection and its tables, those known to need an early lock first."""

    database: str
    connection: Any
    tables: list[str]
    catalogs: list[str]
    """Large objects among them."""
    learned: list[str] = field(default_factory=list)


class Cluster(ApplicationWriter):
    """A running cluster."""

    application = "postgresql"

    def __init__(self, postmaster: Postmaster) -> None:
        super().__init__(cluster_id(postmaster.directory))
        self._postmaster = postmaster
        self.version = read_version(postmaster.directory)
        self.data_directory = postmaster.directory
        self._control: Any = None
        self._sessions: list[_Session] = []
        self._segment_size = 0
        self._insert_lsn = ""
        self._learned_now: dict[str, list[str]] = {}

    # -- what it says of itself

    def on_identify(self, deadline_ns: int) -> None:
        if self._postmaster.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = self._connect(self._maintenance_database(), deadline_ns)
        version, recovery, superuser, segment_size, version_number = self._control.run(
            "SELECT current_setting('server_version'), pg_is_in_recovery(),"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),"
            " (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),"
            " current_setting('server_version_num')::int"
        )[0]
        self.version, self._segment_size = version.split(" ")[0], segment_size
        if version_number < 130000:
            raise WriterError(f"PostgreSQL {self.version} is older than 13", Outcome.NON_RETRYABLE)
        if recovery:
            self._see_standby()
        self.role = "primary"
        self._see_position()
        if not superuser:
            reason = f"the role {self._user()} is not a superuser; CHECKPOINT and locks need one"
            raise WriterError(reason, Outcome.NON_RETRYABLE)
        self._refuse_prepared_transactions()
        self.grade, self.reason = Grade.NIL_REDO, None

    def _see_standby(self) -> None:
        self.role = "standby"
        system, timeline, replayed, received = self._control.run(
            "SELECT s.system_identifier::text, c.timeline_id, pg_last_wal_replay_lsn()::text, pg_last_wal_receive_lsn()::text"
            " FROM pg_control_system() s, pg_control_checkpoint() c"
        )[0]
        self.position = {"system_identifier": system, "timeline": str(timeline), "replay_lsn": replayed or "0/0"}
        if received:  # since it started; what it has not replayed yet, it will
            self.position["receive_lsn"] = received
        raise WriterError(
            "a standby: it always starts with recovery, from its last restart point, and follows its primary again;"
            " checkpoint the primary for an application-consistent image",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )

    def _see_position(self) -> None:
        """Where it stands while it runs: without what only a hold can say of its log."""
        system, timeline, insert, next_xid, in_progress = self._control.run(_NOW)[0]
        epoch, xid = divmod(int(next_xid), 1 << 32)
        self.position = {
            "system_identifier": system,
            "timeline": timeline,
            "next_xid": f"{epoch}:{xid}",  # as pg_control_checkpoint() has it
            "insert_lsn": insert,
        }
        if in_progress:  # numbers taken before, whose changes come all the same
            self.position["in_progress_xids"] = ",".join(in_progress)

    def _refuse_prepared_transactions(self) -> None:
        prepared = self._control.run(
            "SELECT gid, database, extract(epoch FROM now() - prepared)::int FROM pg_prepared_xacts ORDER BY prepared"
        )
        if not prepared:
            return
        gid, database, age = prepared[0]
        more = f" and {len(prepared) - 1} more" if len(prepared) > 1 else ""
        raise WriterError(
            f"prepared transaction {gid!r} in database {database!r}, {age} s old{more}, holds its locks until it is"
            " committed or rolled back (COMMIT PREPARED, ROLLBACK PREPARED)"
        )

    # -- the attempt

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        learned = memory.recall(MEMORY).get(self._postmaster.directory, {})
        for (database,) in self._control.run("SELECT datname::text FROM pg_database WHERE datallowconn"):
            connection = self._connect(database, deadline_ns)
            tables = [name for (name,) in connection.run(_TABLES)]
            unlogged = [name for (name,) in connection.run(_UNLOGGED)]
            if unlogged:
                self.warnings.append(
                    f"database {database!r}: unlogged table {unlogged[0]}"
                    + (f" and {len(unlogged) - 1} more" if len(unlogged) > 1 else "")
                    + " will be empty after a restore, as after any recovery"
                )
            catalogs = [name for (name,) in connection.run(_CATALOGS)]
            connection.run(f"SET idle_in_transaction_session_timeout = {window_ms}")
            connection.run(f"SET deadlock_timeout = {DEADLOCK_TIMEOUT_MS}")
            known = set(tables)
            order = [table for table in learned.get(database, []) if table in known]
            self._sessions.append(_Session(database, connection, tables, catalogs, order))
        started = time.monotonic_ns()
        # Twice: the first writes the mass of dirty pages, the second what was dirtied meanwhile.
        self._control.run("CHECKPOINT")
        self._control.run("CHECKPOINT")
        self._control.run(f"SET statement_timeout = {window_ms}")
        self.time("prepare_checkpoint", started)

    def on_hold(self, deadline_ns: int) -> None:
        started = time.monotonic_ns()
        self._lock_all(min(deadline_ns, started + min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)))
        self.time("lock", started)
        started = time.monotonic_ns()
        self._settle(deadline_ns)
        self.time("checkpoint", started)

    def _lock_all(self, deadline_ns: int) -> None:
        """Holds every table of every database in SHARE mode, and no transaction open that wrote. Raises WriterError."""
        tries = 0
        obstacle = ""
        while True:
            left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
            if left_ms <= 0:
                raise WriterError(f"its writers could not be held in time: {obstacle or 'no time was left'}", Outcome.TIMEOUT)
            tries += 1
            self.timings["lock_tries"] = tries
            failed = next((session for session in self._sessions if not self._lock_database(session, left_ms)), None)
            # Last, in all databases: whoever changes them in a transaction that wrote has been waited for by then.
            failed = failed or next((session for session in self._sessions if not self._lock_catalogs(session)), None)
            if failed is None:
                writing = self._control.run(_WRITING)
                if not writing:
                    return
                obstacle = _describe_writing(writing)
            else:
                obstacle = _describe_writing(self._control.run(_WRITING)) or f"locks in database {failed.database!r}"
            for session in self._sessions:
                session.connection.run("ROLLBACK")
            time.sleep(min(0.002 * tries, 0.05))

    def _lock_database(self, session: _Session, left_ms: int) -> bool:
        """One try. On a conflict the table it was about is put first for the next try."""
        timeout = max(1, min(LOCK_TIMEOUT_MS, left_ms))
        session.connection.run(f"BEGIN; SET LOCAL lock_timeout = {timeout}; SET LOCAL statement_timeout = {max(1, left_ms)}")
        learned = set(session.learned)
        rest = [table for table in session.tables if table not in learned]
        # One by one while the order is being learned, so that a conflict names its table; many at once where none is expected.
        size = 1 if len(session.tables) <= CHUNK else CHUNK
        batches = [[table] for table in session.learned]
        batches += [rest[start : start + size] for start in range(0, len(rest), size)]
        for batch in batches:
            try:
                session.connection.run(f"LOCK TABLE {', '.join(batch)} IN SHARE MODE")
            except Exception as error:
                code = _code(error)
                if code == "42P01":  # dropped since prepare
                    session.tables = [name for (name,) in _fresh(session.connection, _TABLES)]
                    session.learned = [table for table in session.learned if table in set(session.tables)]
                    return False
                if code not in _RETRY:
                    raise
                session.learned = batch + [table for table in session.learned if table not in batch]
                self._learned_now[session.database] = session.learned[: 8 * CHUNK]
                return False
        return True

    def _lock_catalogs(self, session: _Session) -> bool:
        """One try, in the transaction that has the tables. Autovacuum, which writes much when it comes to a catalog, steps
        aside or passes it over; whoever creates a table waits."""
        try:
            session.connection.run(f"LOCK TABLE {', '.join(session.catalogs)} IN SHARE MODE")
        except Exception as error:
            if _code(error) not in _RETRY:
                raise
            return False
        return True

    def _settle(self, deadline_ns: int) -> None:
        """Checkpoints until the log ends with a checkpoint's own records. Raises WriterError."""
        last = ""
        for _ in range(MAX_CHECKPOINTS):
            left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
            if left_ms <= 0:
                raise WriterError("the deadline passed during its checkpoint", Outcome.TIMEOUT)
            self._control.run("CHECKPOINT")
            last = self._read_position()
            if not last:
                return
        raise WriterError(f"its log does not come to rest: {last}")

    def _read_position(self) -> str:
        """Records where the log ends. Returns what a recovery would replay beyond bookkeeping, or the empty string."""
        system, timeline, checkpoint, redo, next_xid, insert, writing = self._control.run(_POSITION)[0]
        self._insert_lsn = insert
        self.position = {
            "system_identifier": system,
            "timeline": str(timeline),
            "checkpoint_lsn": checkpoint,
            "redo_lsn": redo,
            "next_xid": next_xid,
        }
        if writing:  # what no table lock guards
            return _describe_writing(self._control.run(_WRITING)) or "a transaction that just ended"
        return self._beyond_bookkeeping(insert)

    def _beyond_bookkeeping(self, end: str) -> str:
        """Records what a recovery from the checkpoint to `end` would replay at most, and returns what of it is more than
        bookkeeping, or the empty string."""
        self.position["insert_lsn"] = end
        directory = os.path.join(self._postmaster.directory, "pg_wal")
        start, timeline = wal.parse_lsn(self.position["redo_lsn"]), int(self.position["timeline"])
        try:
            found = wal.records(directory, timeline, self._segment_size, start, wal.parse_lsn(end))
        except (wal.WalError, OSError) as error:
            return f"its log from {self.position['redo_lsn']} to {end}: {error}"
        self.position["redo_records"] = ",".join(name for _, name in found[:MAX_RECORDS])
        self.position["redo_bytes"] = str(wal.parse_lsn(end) - start)
        foreign = [f"{name} at {at:X}" for at, name in found if name not in wal.NAMES.values()]
        return ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")

    def on_release(self) -> None:
        insert = self._control.run("SELECT pg_current_wal_insert_lsn()::text")[0][0]
        # A session that can still roll back was there all the time, and its locks with it.
        lost = self._let_go()
        if lost:
            raise WriterError(f"the hold of database {lost[0]!r} was lost during the window", Outcome.INCONSISTENT)
        if insert == self._insert_lsn:
            return
        self._wait_until_written(insert)
        moved = self._beyond_bookkeeping(insert)
        if moved:
            raise WriterError(f"its log moved during the window: {moved}", Outcome.INCONSISTENT)

    def _wait_until_written(self, end: str) -> None:
        """Until the log's files reach that far, or for WRITTEN_WITHIN_S: then reading them says what is missing."""
        deadline = time.monotonic() + WRITTEN_WITHIN_S
        while not self._control.run(f"SELECT pg_current_wal_lsn() >= '{end}'::pg_lsn")[0][0] and time.monotonic() < deadline:
            time.sleep(0.02)

    def on_abort(self) -> None:
        for session in self._sessions:
            _close(session.connection)
        self._sessions = []
        _close(self._control)
        self._control = None

    def paths(self) -> list[str]:
        return paths_of(self._postmaster.directory)

    def remember(self) -> None:
        if self._learned_now:
            known = memory.recall(MEMORY)
            known.setdefault(self._postmaster.directory, {}).update(self._learned_now)
            memory.keep(MEMORY, known)

    def say(self, error: Exception) -> str:
        return _say(error)

    def _let_go(self) -> list[str]:
        """Ends every hold. Returns the databases whose session was no longer there to be ended."""
        lost = []
        for session in self._sessions:
            try:
                session.connection.run("ROLLBACK")
            except Exception:  # noqa: BLE001 - a session that cannot even roll back is closed
                lost.append(session.database)
                _close(session.connection)
        return lost

    # -- connections

    def _user(self) -> str:
        import pwd

        return pwd.getpwuid(self._postmaster.uid).pw_name

    def _maintenance_database(self) -> str:
        return "postgres"

    def _connect(self, database: str, deadline_ns: int) -> Any:
        """A session as the cluster's own user, which peer authentication lets in. It writes nothing to the server's log:
        inside the window a line of log would wait for the frozen disk."""
        from pg8000.native import Connection

        # No answer may take longer than the whole preparation. In the window the server's own time-outs come first.
        left = max(1.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        socket = f"{self._postmaster.socket_directory}/.s.PGSQL.{self._postmaster.port}"
        with linux.as_user(self._postmaster.uid):
            connection = Connection(self._user(), database=database, unix_sock=socket, timeout=left, application_name="quiesce")
        for setting in (
            "log_min_messages = panic",
            "log_min_error_statement = panic",
            "log_statement = 'none'",
            "log_duration = off",
            "log_lock_waits = off",
            "log_min_duration_statement = -1",
            "idle_session_timeout = 0",  # from 14 on; like the next, it would end the hold in its own time
            "transaction_timeout = 0",  # from 17 on
        ):
            with suppress(Exception):  # an older server, or not a superuser: `_look` says so
                connection.run(f"SET {setting}")
        return connection


def _fresh(connection: Any, statement: str) -> list[list[Any]]:
    connection.run("ROLLBACK")
    return list(connection.run(statement))


def _describe_writing(rows: list[list[Any]]) -> str:
    return "; ".join(
        f"process {pid} of user {user!r} ({application or 'no application name'}) is in a writing transaction for {age} s"
        for pid, user, application, age in rows
    )


def _code(error: Exception) -> str:
    detail = error.args[0] if error.args else None
    return str(detail.get("C", "")) if isinstance(detail, dict) else ""


def _say(error: Exception) -> str:
    detail = error.args[0] if error.args else None
    if isinstance(detail, dict):
        return str(detail.get("M", "an error without a message"))
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _close(connection: Any) -> None:
    with suppress(Exception):
        connection.close()
