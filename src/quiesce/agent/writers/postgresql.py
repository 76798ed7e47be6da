"""PostgreSQL 13 and later, held in one of two ways:

stands still    the kernel stops all processes of the cluster at one instant (postgresql_still.py). Always possible where the
                cluster has a control group of its own
nil redo        locks keep every writer out until the log ends at a checkpoint (postgresql_nil_redo.py). For who asks for it,
                and where the cluster cannot be stopped alone
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from typing import Any, Optional

from quiesce.agent import looks
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.postgresql_files import (
    Postmaster,
    cluster_id,
    data_directories,
    paths_of,
    read_version,
    running_postmasters,
    unlogged_databases,
)
from quiesce.agent.writers.postgresql_hold import ClusterHold
from quiesce.agent.writers.postgresql_nil_redo import NilRedo
from quiesce.agent.writers.postgresql_session import close, connect, sqlstate_of, user_of, words_of
from quiesce.agent.writers.postgresql_start import postgresql_started
from quiesce.agent.writers.postgresql_still import StandingCluster
from quiesce.agent.writers.postgresql_stopped import StoppedCluster
from quiesce.agent.writers.unsupported import Unanswered
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

MIB = 1024 * 1024
CHECKPOINT_ROOM = 16 * MIB
"""Room that a checkpoint needs besides two segments of the log, in bytes: for what the server allocates only as it writes (free
space maps, transaction status, the end of a relation on a filesystem that allocates late)."""
MAINTENANCE_DATABASES = ("postgres", "template1")
"""Where the writer asks its questions: the first that exists and lets it in."""
_NO_SUCH_DATABASE, _NOT_ALLOWED = "3D000", "55000"

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


def discover() -> list[ApplicationWriter]:
    """Every cluster of this machine, running or down."""
    postmasters = list(running_postmasters())
    running = {looks.real(postmaster.directory) for postmaster in postmasters}
    stopped = [directory for directory in sorted(data_directories()) if looks.real(directory) not in running]
    unread = [Unanswered(cluster_id(each.directory), "postgresql", each.problem) for each in postmasters if each.problem]
    return [*map(Cluster, (each for each in postmasters if not each.problem)), *unread, *map(StoppedCluster, stopped)]


class Cluster(ApplicationWriter):
    """A running cluster."""

    application = "postgresql"

    def __init__(self, postmaster: Postmaster) -> None:
        super().__init__(cluster_id(postmaster.directory))
        self._postmaster = postmaster
        self.pids = (postmaster.pid,)
        self.version = read_version(postmaster.directory)
        self.data_directory = postmaster.directory
        self._control: Any = None
        self._segment_size = 0
        self._chosen: Optional[ClusterHold] = None

    @property
    def _way(self) -> ClusterHold:
        """How the cluster is held. The choice is made once in an attempt."""
        if self._chosen is None:
            self._chosen = (None if self.nil_redo else StandingCluster.of(self._postmaster)) or NilRedo(self._postmaster)
            self.outlives = self._chosen.undo is not None
        return self._chosen

    def undo(self) -> Optional[Undo]:
        return None if self._postmaster.container else self._way.undo

    # -- identify

    def on_identify(self, deadline_ns: int) -> None:
        if self._postmaster.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = self._connect(deadline_ns)
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
            reason = f"the role {user_of(self._postmaster)} is not a superuser; CHECKPOINT needs one"
            raise WriterError(reason, Outcome.NON_RETRYABLE)
        self._way.segment_size = self._segment_size
        self._way.require_possible(self._control)
        self.grade, self.reason = self._way.grade, None

    def _connect(self, deadline_ns: int) -> Any:
        for database in MAINTENANCE_DATABASES[:-1]:
            try:
                return connect(self._postmaster, database, deadline_ns)
            except Exception as error:
                if sqlstate_of(error) not in (_NO_SUCH_DATABASE, _NOT_ALLOWED):
                    raise
        return connect(self._postmaster, MAINTENANCE_DATABASES[-1], deadline_ns)

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

    # -- the attempt

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._way.prepare(self._control, deadline_ns, window_ms)
        self._warn_of_unlogged_tables(deadline_ns)
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
            free = looks.room(path)  # the server does not run as root
            if free < needed:
                raise WriterError(
                    f"{path} has {free // MIB} MiB free and a checkpoint of the server may need {needed // MIB}: it would stop"
                    " if there were too little",
                    Outcome.OUT_OF_RESOURCES,
                )

    def _warn_of_unlogged_tables(self, deadline_ns: int) -> None:
        oids = unlogged_databases(self._postmaster.directory)
        for oid, database in self._control.run("SELECT oid::text, datname::text FROM pg_database ORDER BY oid"):
            if oid not in oids:
                continue
            found = "unlogged tables"
            # No connection may be left, or the database may let nobody in. Then the tables go without their names.
            with suppress(Exception), closing(connect(self._postmaster, database, deadline_ns)) as connection:
                tables = [name for (name,) in connection.run(_UNLOGGED)]
                if not tables:
                    continue
                found = f"unlogged table {tables[0]}" + (f" and {len(tables) - 1} more" if len(tables) > 1 else "")
            self.warnings.append(f"database {database!r}: {found} will be empty after a restore, as after any recovery")

    def on_hold(self, deadline_ns: int) -> None:
        started = time.monotonic_ns()
        try:
            self.reason = self._way.take(self._control, deadline_ns)
        finally:
            self.position = self._way.position or self.position
            self.timings.update(self._way.timings)
        self.time("take", started)

    def on_release(self) -> None:
        try:
            self.reason = self._way.release(self._control)
        finally:
            self.position = self._way.position or self.position

    def on_abort(self) -> None:
        if self._chosen:
            self._chosen.close()
        close(self._control)
        self._control = None

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        if self._postmaster.container:
            raise WriterError("it runs in a container; its writer cannot reach it yet", Outcome.NON_RETRYABLE)
        self._control = self._connect(deadline_ns)
        return postgresql_started(start, self._postmaster, self._control, deadline_ns)

    def paths(self) -> list[str]:
        return paths_of(self._postmaster.directory)

    def remember(self) -> None:
        if self._chosen:
            self._chosen.remember()

    def say(self, error: Exception) -> str:
        return words_of(error)
