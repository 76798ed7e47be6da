"""Nil redo: every database held at a commit boundary by locks, and the log proved to end at a checkpoint, or at records that
change nothing which a client sees (wal.HARMLESS): what no lock of ours prevents.

Every table of every database is locked in SHARE mode, then the catalogs (postgresql_locks.py), so that no transaction is open
that wrote, and neither DDL nor autovacuum writes. Then comes a CHECKPOINT, after which a recovery would replay only the
checkpoint's own records. The write-ahead log itself is read to prove this: once under the hold, and once more before the locks
are released.

The sessions' `idle_in_transaction_session_timeout` is the server's own dead-man: the locks end with the session.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any, Optional

from quiesce.agent import memory
from quiesce.agent.writers import wal
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql_files import Postmaster
from quiesce.agent.writers.postgresql_hold import ClusterHold
from quiesce.agent.writers.postgresql_locks import ClusterLocks, writing_transactions
from quiesce.agent.writers.postgresql_session import connect
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
MEMORY = "postgresql-lock-order"

MAX_KINDS = 5
"""Most kinds of records named in a sentence."""

_POSITION = """
SELECT s.system_identifier::text, c.timeline_id, c.checkpoint_lsn::text, c.redo_lsn::text, c.next_xid::text,
       pg_current_wal_insert_lsn()::text,
       EXISTS (SELECT 1 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid())
FROM pg_control_checkpoint() c, pg_control_system() s
"""


class NilRedo(ClusterHold):
    """One attempt at one cluster."""

    grade = Grade.NIL_REDO

    def __init__(self, postmaster: Postmaster) -> None:
        super().__init__()
        self._postmaster = postmaster
        self.locks = ClusterLocks()
        self._insert_lsn = ""
        self._also: Optional[str] = None
        """What else a start replays."""

    def require_possible(self, control: Any) -> None:
        """Raises WriterError if a prepared transaction holds locks: nobody can say when it ends."""
        prepared = control.run(
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

    def prepare(self, control: Any, deadline_ns: int, window_ms: int) -> None:
        learned = memory.recall(MEMORY).get(self._postmaster.directory, {})
        for (database,) in control.run("SELECT datname::text FROM pg_database WHERE datallowconn"):
            connection = connect(self._postmaster, database, deadline_ns)
            self.locks.prepare(database, connection, learned.get(database, []), window_ms)

    def take(self, control: Any, deadline_ns: int) -> Optional[str]:
        """Returns under the locks, with nothing in the log to replay. Raises WriterError."""
        started = time.monotonic_ns()
        budget_ns = min(HOLD_BUDGET_MS * 1_000_000, (deadline_ns - started) // 2)
        try:
            self.locks.take(control, min(deadline_ns, started + budget_ns))
        finally:
            self.timings["lock_tries"] = self.locks.tries
        locked = time.monotonic_ns()
        self.timings["lock"] = (locked - started) // 1000
        self._settle(control, deadline_ns)
        self.timings["checkpoint"] = (time.monotonic_ns() - locked) // 1000
        return self._also

    def _settle(self, control: Any, deadline_ns: int) -> None:
        """Repeats CHECKPOINT until the log ends with a checkpoint's own records. Raises WriterError."""
        last = ""
        for _ in range(MAX_CHECKPOINTS):
            left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
            if left_ms <= 0:
                raise WriterError("the deadline passed during its checkpoint", Outcome.TIMEOUT)
            control.run("CHECKPOINT")
            last = self._read_position(control)
            if not last:
                return
        raise WriterError(f"its log does not come to rest: {last}")

    def _read_position(self, control: Any) -> str:
        """Notes where the log ends. Returns what a recovery would replay besides bookkeeping records, or the empty string."""
        system, timeline, checkpoint, redo, next_xid, insert, writing = control.run(_POSITION)[0]
        self._insert_lsn = insert
        self.position = {
            "system_identifier": system,
            "timeline": str(timeline),
            "checkpoint_lsn": checkpoint,
            "redo_lsn": redo,
            "next_xid": next_xid,
        }
        if writing:  # a transaction that writes without a lock on a table
            return writing_transactions(control) or "a transaction that just ended"
        return self._beyond_bookkeeping(insert)

    def _beyond_bookkeeping(self, end: str) -> str:
        """Notes which records a recovery from the checkpoint to `end` would replay, and returns those that are not
        bookkeeping, or the empty string."""
        self.position["insert_lsn"] = end
        directory = os.path.join(self._postmaster.directory, "pg_wal")
        start, timeline = wal.parse_lsn(self.position["redo_lsn"]), int(self.position["timeline"])
        try:
            found = wal.records(directory, timeline, self.segment_size, start, wal.parse_lsn(end), self._postmaster.uid)
        except (wal.WalError, OSError) as error:
            return f"its log from {self.position['redo_lsn']} to {end}: {error}"
        self.position["redo_records"] = ",".join(record.name for record in found[:MAX_RECORDS])
        self.position["redo_bytes"] = str(wal.parse_lsn(end) - start)
        harmless = Counter(record.harmless for record in found if record.harmless)
        self._also = f"its start also replays {_counted(harmless)}, which no client can tell" if harmless else None
        return _counted(Counter(record.name for record in found if not record.bookkeeping and not record.harmless))

    def release(self, control: Any) -> Optional[str]:
        """Returns what a start replays besides a checkpoint's own records.

        Raises WriterError if a lock was lost, or if something was written under the locks."""
        insert = control.run("SELECT pg_current_wal_insert_lsn()::text")[0][0]
        # A session that can still roll back has existed all the time, and so have its locks.
        lost = self.locks.let_go()
        if lost:
            raise WriterError(f"the hold of database {lost[0]!r} was lost during the window", Outcome.INCONSISTENT)
        if insert == self._insert_lsn:
            return self._also
        self._wait_until_written(control, insert)
        moved = self._beyond_bookkeeping(insert)
        if moved:
            raise WriterError(f"its log moved during the window: {moved}", Outcome.INCONSISTENT)
        return self._also

    def _wait_until_written(self, control: Any, end: str) -> None:
        """Returns when the log's files reach `end`, or after WRITTEN_WITHIN_S: reading the log then tells what is missing."""
        deadline = time.monotonic() + WRITTEN_WITHIN_S
        while not control.run(f"SELECT pg_current_wal_lsn() >= '{end}'::pg_lsn")[0][0] and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        self.locks.close()

    def remember(self) -> None:
        """Keeps the order of the tables."""
        if self.locks.learned:
            known = memory.recall(MEMORY)
            known.setdefault(self._postmaster.directory, {}).update(self.locks.learned)
            memory.retain(MEMORY, known)


def _counted(kinds: Counter[str]) -> str:
    """`3 records of row locks and 1 of hint bits`; empty without any."""
    named = [f"{count} of {kind}" for kind, count in kinds.most_common(MAX_KINDS)]
    if more := sum(kinds.values()) - sum(count for _, count in kinds.most_common(MAX_KINDS)):
        named.append(f"{more} more")
    if not named:
        return ""
    head, _, rest = named[0].partition(" of ")
    named[0] = f"{head} record{'' if head == '1' else 's'} of {rest}"
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
