"""PostgreSQL 13 and later: every database held at a commit boundary, its log proved to end at a checkpoint.

How: every table of every database is locked in SHARE mode, then the catalogs (postgresql_locks.py), so that no transaction is
open that wrote, and neither DDL nor autovacuum writes. Then comes a CHECKPOINT, after which a recovery would replay only the
checkpoint's own records ("nil redo"). The write-ahead log itself is read to prove this: once under the hold, and once more
before the locks are released.

The sessions' `idle_in_transaction_session_timeout` is the server's own dead-man: the locks end with the session.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any, Optional

from quiesce.agent import memory
from quiesce.agent.deadman import Undo
from quiesce.agent.writers import wal
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.postgresql_files import (
    Postmaster,
    cluster_id,
    data_directories,
    paths_of,
    read_version,
    running_postmasters,
)
from quiesce.agent.writers.postgresql_locks import ClusterLocks, writing_transactions
from quiesce.agent.writers.postgresql_session import close, connect, user_of, words_of
from quiesce.agent.writers.postgresql_still import StandingCluster
from quiesce.agent.writers.postgresql_stopped import StoppedCluster
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

HOLD_BUDGET_MS = 5000
"""Longest time spent on taking the locks, in milliseconds; never more than half of the time left to the deadline."""
MAX_CHECKPOINTS = 3
WRITTEN_WITHIN_S = 1.0
"""Longest wait until inserted records are in the log's file, in seconds. The server's bookkeeping records are written by its
WAL writer, every 200 ms (wal_writer_delay), not by the process that inserts them."""
MAX_RECORDS = 20
"""Most records of the log named in a report. After a good hold there are three."""

MIB = 1024 * 1024
CHECKPOINT_ROOM = 16 * MIB
"""Room that a checkpoint needs besides two segments of the log, in bytes: for what the server allocates only as it writes (free
space maps, transaction status, the end of a relation on a filesystem that allocates late)."""

MEMORY = "postgresql-lock-order"
MAINTENANCE_DATABASE = "postgres"

_UNLOGGED = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'u' ORDER BY c.oid
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
    postmasters = list(running_postmasters())
    running = {os.path.realpath(postmaster.directory) for postmaster in postmasters}
    stopped = [directory for directory in sorted(data_directories()) if os.path.realpath(directory) not in running]
    return [*map(Cluster, postmasters), *map(StoppedCluster, stopped)]


class Cluster(ApplicationWriter):
    """A running cluster."""

    application = "postgresql"

    def __init__(self, postmaster: Postmaster) -> None:
        super().__init__(cluster_id(postmaster.directory))
        self._postmaster = postmaster
        self.version = read_version(postmaster.directory)
        self.data_directory = postmaster.directory
        self._control: Any = None
        self._still: Optional[StandingCluster] = None
        """Where the cluster can be stopped as a whole; else its tables are locked."""
        self._locks = ClusterLocks()
        self._segment_size = 0
        self._insert_lsn = ""

    def undo(self) -> Optional[Undo]:
        if self.nil_redo or self._postmaster.container:
            return None
        self._still = StandingCluster.of(self._postmaster)
        self.outlives = self._still is not None
        return self._still.undo if self._still else None

    # -- identify

    def on_identify(self, deadline_ns: int) -> None:
        if self._postmaster.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = connect(self._postmaster, MAINTENANCE_DATABASE, deadline_ns)
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
            reason = f"the role {user_of(self._postmaster)} is not a superuser; CHECKPOINT and locks need one"
            raise WriterError(reason, Outcome.NON_RETRYABLE)
        if self._still is None and not self.nil_redo and (found := StandingCluster.of(self._postmaster)):
            found.close()
            self.grade, self.reason = Grade.STANDS_STILL, None
            return
        if self._still:
            self.grade, self.reason = Grade.STANDS_STILL, None
            return
        self._refuse_prepared_transactions()
        self.grade, self.reason = Grade.NIL_REDO, None

    def _see_standby(self) -> None:
        self.role = "standby"
        system, timeline, replayed, received = self._control.run(
            "SELECT s.system_identifier::text, c.timeline_id, pg_last_wal_replay_lsn()::text, pg_last_wal_receive_lsn()::text"
            " FROM pg_control_system() s, pg_control_checkpoint() c"
        )[0]
        self.position = {"system_identifier": system, "timeline": str(timeline), "replay_lsn": replayed or "0/0"}
        if received:  # since the standby started; it will replay what it has not replayed yet
            self.position["receive_lsn"] = received
        raise WriterError(
            "a standby: it always starts with recovery, from its last restart point, and follows its primary again;"
            " checkpoint the primary for an application-consistent image",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )

    def _see_position(self) -> None:
        """The position of a running cluster, without what only a hold can tell of its log."""
        system, timeline, insert, next_xid, in_progress = self._control.run(_NOW)[0]
        epoch, xid = divmod(int(next_xid), 1 << 32)
        self.position = {
            "system_identifier": system,
            "timeline": timeline,
            "next_xid": f"{epoch}:{xid}",  # as pg_control_checkpoint() has it
            "insert_lsn": insert,
        }
        if in_progress:  # transaction numbers below next_xid that may still commit
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
        if self._still:
            self._still.prepare(self._control, self._segment_size)
            for (database,) in self._control.run("SELECT datname::text FROM pg_database WHERE datallowconn"):
                with closing(connect(self._postmaster, database, deadline_ns)) as connection:
                    self._warn_of_unlogged_tables(database, connection)
            self._checkpoint_twice(window_ms)
            return
        learned = memory.recall(MEMORY).get(self._postmaster.directory, {})
        for (database,) in self._control.run("SELECT datname::text FROM pg_database WHERE datallowconn"):
            connection = connect(self._postmaster, database, deadline_ns)
            self._locks.prepare(database, connection, learned.get(database, []), window_ms)
            self._warn_of_unlogged_tables(database, connection)
        self._checkpoint_twice(window_ms)

    def _checkpoint_twice(self, window_ms: int) -> None:
        self._require_room()
        started = time.monotonic_ns()
        # Twice: the first writes the mass of dirty pages, the second the pages that were dirtied meanwhile.
        self._control.run("CHECKPOINT")
        self._control.run("CHECKPOINT")
        self._control.run(f"SET statement_timeout = {window_ms}")
        self.time("prepare_checkpoint", started)

    def _require_room(self) -> None:
        """Raises WriterError if a checkpoint could run out of space: the server stops then (PANIC), and does not start again
        until there is some. A checkpoint writes dirty pages, and the log moves on to new segments meanwhile."""
        needed = 2 * self._segment_size + CHECKPOINT_ROOM
        for path in self.paths():
            found = os.statvfs(path)
            free = found.f_bavail * found.f_frsize  # the server does not run as root
            if free < needed:
                raise WriterError(
                    f"{path} has {free // MIB} MiB free and a checkpoint of the server may need {needed // MIB}: it would stop"
                    " if there were too little",
                    Outcome.OUT_OF_RESOURCES,
                )

    def _warn_of_unlogged_tables(self, database: str, connection: Any) -> None:
        unlogged = [name for (name,) in connection.run(_UNLOGGED)]
        if unlogged:
            self.warnings.append(
                f"database {database!r}: unlogged table {unlogged[0]}"
                + (f" and {len(unlogged) - 1} more" if len(unlogged) > 1 else "")
                + " will be empty after a restore, as after any recovery"
            )

    def on_hold(self, deadline_ns: int) -> None:
        started = time.monotonic_ns()
        if self._still:
            self.reason = self._still.stop(self._control, deadline_ns)
            self.position = self._still.position
            self.time("stop", started)
            return
        budget_ns = min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)
        try:
            self._locks.take(self._control, min(deadline_ns, started + budget_ns))
        finally:
            self.timings["lock_tries"] = self._locks.tries
        self.time("lock", started)
        started = time.monotonic_ns()
        self._settle(deadline_ns)
        self.time("checkpoint", started)

    def _settle(self, deadline_ns: int) -> None:
        """Repeats CHECKPOINT until the log ends with a checkpoint's own records. Raises WriterError."""
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
        """Notes where the log ends. Returns what a recovery would replay besides bookkeeping records, or the empty string."""
        system, timeline, checkpoint, redo, next_xid, insert, writing = self._control.run(_POSITION)[0]
        self._insert_lsn = insert
        self.position = {
            "system_identifier": system,
            "timeline": str(timeline),
            "checkpoint_lsn": checkpoint,
            "redo_lsn": redo,
            "next_xid": next_xid,
        }
        if writing:  # a transaction that writes without a lock on a table
            return writing_transactions(self._control) or "a transaction that just ended"
        return self._beyond_bookkeeping(insert)

    def _beyond_bookkeeping(self, end: str) -> str:
        """Notes which records a recovery from the checkpoint to `end` would replay, and returns those that are not
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
        if self._still:
            self._still.release()
            return
        insert = self._control.run("SELECT pg_current_wal_insert_lsn()::text")[0][0]
        # A session that can still roll back has existed all the time, and so have its locks.
        lost = self._locks.let_go()
        if lost:
            raise WriterError(f"the hold of database {lost[0]!r} was lost during the window", Outcome.INCONSISTENT)
        if insert == self._insert_lsn:
            return
        self._wait_until_written(insert)
        moved = self._beyond_bookkeeping(insert)
        if moved:
            raise WriterError(f"its log moved during the window: {moved}", Outcome.INCONSISTENT)

    def _wait_until_written(self, end: str) -> None:
        """Returns when the log's files reach `end`, or after WRITTEN_WITHIN_S: reading the log then tells what is missing."""
        deadline = time.monotonic() + WRITTEN_WITHIN_S
        while not self._control.run(f"SELECT pg_current_wal_lsn() >= '{end}'::pg_lsn")[0][0] and time.monotonic() < deadline:
            time.sleep(0.02)

    def on_abort(self) -> None:
        if self._still:
            self._still.close()
            self._still = None
        self._locks.close()
        close(self._control)
        self._control = None

    def paths(self) -> list[str]:
        return paths_of(self._postmaster.directory)

    def remember(self) -> None:
        if self._locks.learned:
            known = memory.recall(MEMORY)
            known.setdefault(self._postmaster.directory, {}).update(self._locks.learned)
            memory.retain(MEMORY, known)

    def say(self, error: Exception) -> str:
        return words_of(error)
