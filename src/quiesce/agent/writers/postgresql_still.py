"""A PostgreSQL cluster that stands still: all its processes stopped at one instant, with a known length of log to replay.

What the cluster acknowledged is in its log by then, in files that the freeze of the filesystem writes to the disk. Its next
start replays that log, and rolls back the transactions that were in flight. The end of the log is read from its files, as a
recovery reads it, after all processes have stopped."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Optional

from quiesce.agent.writers import wal
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql_files import Postmaster, read_control_file
from quiesce.agent.writers.postgresql_hold import ClusterHold
from quiesce.agent.writers.standstill import Standstill, standstill_of
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

MAX_STOPS = 3
"""How often the cluster is stopped until its log is flushed almost to the end."""
MAX_IN_PROGRESS = 100
"""Most transactions in flight that are named by their numbers."""

_FLUSH = """
SELECT pg_logical_emit_message(true, 'quiesce', '')::text, s.system_identifier::text, c.timeline_id::text,
       pg_snapshot_xmax(pg_current_snapshot())::text,
       ARRAY(SELECT x::text FROM pg_snapshot_xip(pg_current_snapshot()) x)
FROM pg_control_checkpoint() c, pg_control_system() s
"""
"""Its commit waits until the log is on disk up to it, and so is whatever was acknowledged before without waiting
(synchronous_commit = off)."""
_ASYNCHRONOUS = """
SELECT EXISTS (SELECT 1 FROM pg_settings WHERE name = 'synchronous_commit' AND reset_val = 'off')
    OR EXISTS (SELECT 1 FROM pg_db_role_setting, unnest(setconfig) s WHERE s = 'synchronous_commit=off')
"""


class StandingCluster(ClusterHold):
    """One attempt at one cluster."""

    grade = Grade.STANDS_STILL

    def __init__(self, postmaster: Postmaster, standstill: Standstill) -> None:
        super().__init__()
        self._directory = postmaster.directory
        self._uid = postmaster.uid
        self._standstill = standstill
        self.undo = standstill.undo
        self._end = 0
        self._timeline = 0
        self._flying = 0
        """Number of transactions that had not ended."""
        self._asynchronous = False
        """Clients may be told of a commit before it is on disk, by a setting that can be seen."""

    @classmethod
    def of(cls, postmaster: Postmaster) -> Optional[StandingCluster]:
        """None where this cluster cannot be stopped alone."""
        found = standstill_of(postmaster.pid)
        return cls(postmaster, found) if found else None

    def prepare(self, control: Any, deadline_ns: int, window_ms: int) -> None:
        self._asynchronous = bool(control.run(_ASYNCHRONOUS)[0][0])

    def take(self, control: Any, deadline_ns: int) -> Optional[str]:
        """Stops the cluster, which runs after an error. The reason of the grade is what the next start will do."""
        for left in reversed(range(MAX_STOPS)):
            flushed, system, timeline, next_xid, in_progress = control.run(_FLUSH)[0]
            self._timeline = int(timeline)
            self._standstill.stop(deadline_ns)
            try:
                tail = self._tail(wal.parse_lsn(flushed))
                break
            except wal.WalError as error:
                self._standstill.go_on()
                if not left:
                    raise WriterError(f"the end of its log cannot be told: {error}") from None
            except OSError as error:
                self._standstill.go_on()
                raise WriterError(f"its log cannot be read: {error}") from None
        self._end = tail.end
        self._note_position(system, int(next_xid), {int(xid) for xid in in_progress}, tail)
        return self._reason(int(self.position["redo_bytes"]))

    @property
    def _log(self) -> str:
        return os.path.join(self._directory, "pg_wal")

    def _tail(self, start: int) -> wal.Tail:
        return wal.tail(self._log, self._timeline, self.segment_size, start, self._uid)

    def _note_position(self, system: str, next_xid: int, in_progress: set[int], tail: wal.Tail) -> None:
        """As it was when the processes stopped: after what was flushed, by the records that follow it."""
        _, _, checkpoint, redo = read_control_file(self._directory, self._uid)
        if redo == checkpoint:  # nothing was written while the server checkpointed; it replays what follows its record
            with suppress(wal.WalError, OSError):
                redo = min(wal.after(self._log, self._timeline, self.segment_size, checkpoint, self._uid), tail.end)
        begun = {_near(next_xid, xid) for xid in tail.begun}
        flying = (in_progress | begun) - {_near(next_xid, xid) for xid in tail.ended}
        epoch, xid = divmod(max({next_xid, *(xid + 1 for xid in begun)}), 1 << 32)
        self.position = {
            "system_identifier": system,
            "timeline": str(self._timeline),
            "checkpoint_lsn": wal.format_lsn(checkpoint),
            "redo_lsn": wal.format_lsn(redo),
            "insert_lsn": wal.format_lsn(tail.end),
            "next_xid": f"{epoch}:{xid}",
            "redo_bytes": str(tail.end - redo),
        }
        if flying:
            self.position["in_progress_xids"] = ",".join(map(str, sorted(flying)[:MAX_IN_PROGRESS]))
        self._flying = len(flying)

    def _reason(self, redo_bytes: int) -> str:
        back = {0: "", 1: ", and rolls back the transaction in flight"}.get(
            self._flying, f", and rolls back the {self._flying} transactions in flight"
        )
        lost = (
            "; commits of the last milliseconds that were acknowledged before they were on disk (synchronous_commit = off) may"
            " be missing"
        )
        return (
            f"its start replays {redo_bytes:,} bytes of log, from {self.position['redo_lsn']} to {self.position['insert_lsn']}"
            + back
            + (lost if self._asynchronous else "")
        )

    def release(self, _control: Any) -> Optional[str]:
        stopped = self._standstill.stopped()
        try:
            end = self._tail(self._end).end if stopped else self._end
        except (wal.WalError, OSError):
            end = -1
        self._standstill.go_on()
        if not stopped:
            raise WriterError("its processes ran during the window: somebody thawed their control group", Outcome.INCONSISTENT)
        if end != self._end:
            raise WriterError("its log moved during the window", Outcome.INCONSISTENT)
        return self._reason(int(self.position["redo_bytes"]))

    def close(self) -> None:
        self._standstill.close()


def _near(full: int, xid: int) -> int:
    """The 64-bit number of a transaction, given 32 bits of it and a full number less than 2^31 away."""
    return full + ((xid - full + (1 << 31)) % (1 << 32)) - (1 << 31)
