"""A PostgreSQL cluster that stands still: all its processes stopped at one instant, with a known length of log to replay."""

from __future__ import annotations

import os
from typing import Any, Optional

from quiesce.agent.writers import wal
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql_files import Postmaster, read_control_file
from quiesce.agent.writers.standstill import Standstill, standstill_of
from quiesce.model.reports import Outcome

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


class StandingCluster:
    """One attempt at one cluster."""

    def __init__(self, postmaster: Postmaster, standstill: Standstill) -> None:
        self._directory = postmaster.directory
        self._standstill = standstill
        self._segment_size = 0
        self._end = 0
        self._timeline = 0
        self.position: dict[str, str] = {}
        self.asynchronous = False
        """Clients may be told of a commit before it is on disk, by a setting that we can see."""

    @classmethod
    def of(cls, postmaster: Postmaster) -> Optional[StandingCluster]:
        """None where the kernel cannot stop this cluster alone."""
        found = standstill_of(postmaster.pid)
        return cls(postmaster, found) if found else None

    @property
    def undo(self) -> Any:
        return self._standstill.undo

    def prepare(self, control: Any, segment_size: int) -> None:
        self._segment_size = segment_size
        self.asynchronous = bool(control.run(_ASYNCHRONOUS)[0][0])

    def stop(self, control: Any, deadline_ns: int) -> str:
        """Stops the cluster. Returns, as the reason of the grade, what its next start will do. Raises WriterError, TimeoutError."""
        flushed, system, timeline, next_xid, in_progress = control.run(_FLUSH)[0]
        self._standstill.stop(deadline_ns)
        self._timeline = int(timeline)
        _, _, checkpoint, redo = read_control_file(self._directory)
        self._end = self._read_end(wal.parse_lsn(flushed))
        epoch, xid = divmod(int(next_xid), 1 << 32)
        self.position = {
            "system_identifier": system,
            "timeline": timeline,
            "checkpoint_lsn": wal.format_lsn(checkpoint),
            "redo_lsn": wal.format_lsn(redo),
            "insert_lsn": wal.format_lsn(self._end),
            "next_xid": f"{epoch}:{xid}",
            "redo_bytes": str(self._end - redo),
        }
        if in_progress:
            self.position["in_progress_xids"] = ",".join(in_progress)
        reason = (
            f"it stood still: its start replays {self._end - redo:,} bytes of log, from {self.position['redo_lsn']} to"
            f" {self.position['insert_lsn']}"
        )
        if self.asynchronous:
            reason += (
                "; of commits that were acknowledged before they were on disk (synchronous_commit = off), those of the last"
                " milliseconds may be missing"
            )
        return reason

    def release(self) -> None:
        """Lets the cluster go on. Raises WriterError if it had gone on before."""
        stopped = self._standstill.stopped()
        end = self._read_end(self._end) if stopped else self._end
        self._standstill.go_on()
        if not stopped:
            raise WriterError("its processes ran during the window: somebody thawed their control group", Outcome.INCONSISTENT)
        if end != self._end:
            raise WriterError(f"its log moved during the window, to {wal.format_lsn(end)}", Outcome.INCONSISTENT)

    def close(self) -> None:
        self._standstill.close()

    def _read_end(self, start: int) -> int:
        try:
            return wal.end(os.path.join(self._directory, "pg_wal"), self._timeline, self._segment_size, start)
        except (wal.WalError, OSError) as error:
            self._standstill.go_on()
            raise WriterError(f"the end of its log cannot be told: {error}") from None
