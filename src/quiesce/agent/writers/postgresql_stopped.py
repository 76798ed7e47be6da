"""A PostgreSQL cluster that is not running: there is nothing to hold, and its control file tells how it will start."""

from __future__ import annotations

import struct
from typing import Optional

from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.postgresql_files import cluster_id, paths_of, read_control_file, read_version
from quiesce.agent.writers.postgresql_start import postgresql_did_not_start
from quiesce.agent.writers.wal import format_lsn
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

_CONTROL_STATES = {1: "shut down", 2: "shut down in recovery"}


class StoppedCluster(ApplicationWriter):
    """Its control file must be the same from `prepare` to `release`: else somebody started the cluster."""

    application = "postgresql"

    def __init__(self, directory: str) -> None:
        super().__init__(cluster_id(directory))
        self._directory = self.data_directory = directory
        self.version = read_version(directory)
        self.role = "down"
        self._before: Optional[tuple[int, int, int, int]] = None

    def on_identify(self, deadline_ns: int) -> None:
        try:
            control = read_control_file(self._directory)
        except (OSError, struct.error) as error:
            raise WriterError(f"it is down and its control file cannot be read: {error}", Outcome.NON_RETRYABLE) from None
        system, state, checkpoint, redo = self._before or control
        self.position = {
            "system_identifier": str(system),
            "checkpoint_lsn": format_lsn(checkpoint),
            "redo_lsn": format_lsn(redo),
        }
        if self._before is not None and control != self._before:
            raise WriterError("it was down, and was started during the attempt", Outcome.INCONSISTENT, Grade.CRASH)
        self._before = control
        if state not in _CONTROL_STATES:
            raise WriterError(
                "it is down and was not shut down cleanly; it will recover when started", Outcome.NON_RETRYABLE, Grade.CRASH
            )
        self.grade, self.reason = Grade.CLEAN, f"it is down; it was {_CONTROL_STATES[state]} cleanly"

    def on_hold(self, deadline_ns: int) -> None:
        self.on_identify(deadline_ns)

    def on_release(self) -> None:
        self.on_identify(0)

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        return postgresql_did_not_start(start, self._directory)

    def paths(self) -> list[str]:
        return paths_of(self._directory)
