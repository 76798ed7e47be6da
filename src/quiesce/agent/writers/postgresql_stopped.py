"""A PostgreSQL cluster that is not running: nothing to hold, and its control file says how it will start."""

from __future__ import annotations

import struct
from typing import Optional

from quiesce.agent.writers import HoldError
from quiesce.agent.writers.postgresql_files import cluster_id, paths_of, read_control_file, read_version
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Writer

_CONTROL_STATES = {1: "shut down", 2: "shut down in recovery"}


class Stopped:
    """A cluster that is not running: there is nothing to hold, and its control file says how it will start."""

    level = Level.BACK_END

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._before: Optional[tuple[int, int, int, int]] = None
        self._grade = Grade.REFUSED
        self._reason: Optional[str] = None
        self._look()

    def _look(self) -> None:
        try:
            control = read_control_file(self._directory)
        except (OSError, struct.error) as error:
            self._grade, self._reason = Grade.REFUSED, f"it is down and its control file cannot be read: {error}"
            return
        state = control[1]
        if self._before is not None and control != self._before:
            self._grade, self._reason = Grade.CRASH, "it was down, and was started during the attempt"
        elif state in _CONTROL_STATES:
            self._grade, self._reason = Grade.CLEAN, f"it is down; it was {_CONTROL_STATES[state]} cleanly"
        else:
            self._grade, self._reason = (
                Grade.CRASH,
                "it is down and was not shut down cleanly; it will recover when started",
            )
        self._before = self._before or control

    def identify(self) -> Writer:
        system, _state, checkpoint, redo = self._before or (0, 0, 0, 0)
        position = {
            "system_identifier": str(system),
            "checkpoint_lsn": _format_lsn(checkpoint),
            "redo_lsn": _format_lsn(redo),
        }
        return Writer(
            id=cluster_id(self._directory),
            application="postgresql",
            version=read_version(self._directory),
            level=self.level,
            grade=self._grade,
            reason=self._reason,
            role="down",
            position=position,
            data_directory=self._directory,
        )

    def prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._look()

    def hold(self, deadline_ns: int) -> None:
        self._look()
        if not self._grade.vouched:
            raise HoldError(self._reason or "it changed")

    def forgo(self, reason: str) -> None:
        self._grade, self._reason = Grade.CRASH, reason

    def release(self) -> None:
        self._look()

    def abort(self) -> None:
        pass

    def paths(self) -> list[str]:
        return paths_of(self._directory)

    def remember(self) -> None:
        pass


def _format_lsn(value: int) -> str:
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"
