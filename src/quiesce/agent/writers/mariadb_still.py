"""A MariaDB server that stands still: all its threads stopped at one instant, a known length of InnoDB's log to recover."""

from __future__ import annotations

import os
from typing import Optional

from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.innodb_log import InnodbLog, InnodbLogError
from quiesce.agent.writers.mariadb_files import binary_log_end
from quiesce.agent.writers.standstill import Standstill, standstill_of
from quiesce.model.reports import Outcome

GTIDS = ("gtid_binlog_pos", "gtid_current_pos")


class StandingServer:
    """One attempt at one server."""

    def __init__(self, standstill: Standstill) -> None:
        self._standstill = standstill
        self._log: Optional[InnodbLog] = None
        self._why_no_log = ""
        self._binary_logs = ""
        self._end = 0
        self._binary_log_end: tuple[str, int] = ("", 0)
        self.position: dict[str, str] = {}

    @classmethod
    def of(cls, pid: int) -> Optional[StandingServer]:
        """None where this server cannot be stopped alone."""
        found = standstill_of(pid)
        return cls(found) if found else None

    @property
    def undo(self) -> Undo:
        return self._standstill.undo

    def prepare(self, log_directory: str, binary_logs: str) -> None:
        """`log_directory`: of InnoDB's log. `binary_logs`: directory of the binary logs; empty if there are none, or none that
        can be read."""
        self._binary_logs = binary_logs
        try:
            self._log = InnodbLog(log_directory)
        except (OSError, InnodbLogError) as error:
            self._why_no_log = str(error)

    def stop(self, position: dict[str, str], flushed: int, deadline_ns: int) -> None:
        """Stops the server. `position`: of a moment before; `flushed`: an LSN up to which the log was in its file then. Raises
        WriterError, TimeoutError; the server runs then."""
        self._standstill.stop(deadline_ns)
        try:
            self.position = self._read_position(position, flushed)
        except BaseException:
            self._standstill.go_on()
            raise

    def reason(self) -> str:
        """What the next start will do."""
        start, end = int(self.position["lsn_checkpoint"]), int(self.position["lsn_current"])
        text = f"it stood still: its start recovers InnoDB from LSN {start} to {end}, {end - start:,} bytes,"
        text += " and rolls back what was not committed"
        if self._why_no_log:
            text += f"; the log may end somewhat later ({self._why_no_log})"
        return text

    def go_on(self) -> None:
        self._standstill.go_on()

    def release(self) -> None:
        """Lets the server go on. Raises WriterError if it had gone on before."""
        stopped = self._standstill.stopped()
        try:
            moved = stopped and (self._read_end(self._end), self._read_binary_log_end()[:2]) != (
                self._end,
                self._binary_log_end,
            )
        finally:
            self._standstill.go_on()
        if not stopped:
            raise WriterError("its threads ran during the window: somebody thawed its control group", Outcome.INCONSISTENT)
        if moved:
            raise WriterError("its logs moved during the window", Outcome.INCONSISTENT)

    def close(self) -> None:
        """Lets the server go on. Idempotent."""
        self._standstill.close()
        if self._log:
            self._log.close()
            self._log = None

    def _read_position(self, before: dict[str, str], flushed: int) -> dict[str, str]:
        found = dict(before)
        if self._log:
            try:
                found["lsn_checkpoint"] = str(self._log.checkpoint())
            except (OSError, InnodbLogError) as error:
                self._why_no_log = str(error)
        self._end = self._read_end(flushed)
        if self._end:
            found["lsn_current"] = str(self._end)
        if "binlog_file" in found and self._binary_logs:
            self._binary_log_end = found["binlog_file"], int(found["binlog_position"])
            name, length, gtids = self._read_binary_log_end()
            self._binary_log_end = name, length
            found["binlog_file"], found["binlog_position"] = name, str(length)
            for known in GTIDS:
                found[known] = add_gtids(found.get(known, ""), gtids)
        return found

    def _read_end(self, start: int) -> int:
        """0 if the log's end cannot be told."""
        if not self._log:
            return 0
        try:
            return self._log.end(start)
        except (OSError, InnodbLogError) as error:
            self._why_no_log = str(error)
            return 0

    def _read_binary_log_end(self) -> tuple[str, int, list[str]]:
        name, position = self._binary_log_end
        if not name:
            return "", 0, []
        try:
            return binary_log_end(self._binary_logs, name, position)
        except OSError as error:
            raise WriterError(f"its binary log {os.path.join(self._binary_logs, name)}: {error.strerror}") from None


def add_gtids(position: str, gtids: list[str]) -> str:
    """The GTID position after more transactions. Example: `0-1-7,5-1-3` and `0-1-8` are `0-1-8,5-1-3`."""
    last = {gtid.partition("-")[0]: gtid for gtid in position.split(",") if gtid}
    last.update({gtid.partition("-")[0]: gtid for gtid in gtids})
    return ",".join(last.values())
