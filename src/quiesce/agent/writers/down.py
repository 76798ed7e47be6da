"""Services that keep data and are not running: there is nothing to hold, and systemd tells how they ended.

Only services that ran since the machine started are listed: systemd knows nothing of how the others ended.
"""

from __future__ import annotations

from dataclasses import replace

from quiesce.agent import logs, systemd
from quiesce.agent.writers import start_log
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

UNITS = {
    "mariadb.service": "mariadb",
    "mysql.service": "mysql",
    "redis.service": "redis",
    "redis-server.service": "redis",
    "valkey-server.service": "valkey",
    "slapd.service": "openldap",
    "rabbitmq-server.service": "rabbitmq",
}
"""PostgreSQL is not among them: its own files tell more than systemd does (postgresql_stopped.py)."""


def discover() -> list[ApplicationWriter]:
    """One writer for each service that is down."""
    try:
        shown = systemd.properties_of_units(list(UNITS))
    except systemd.UnitError as error:
        return [Unasked(str(error))]
    return [
        Down(unit, UNITS[unit], found)
        for unit, found in shown.items()
        if found.get("ActiveState") not in ("active", "reloading") and found.get("ExecMainStartTimestamp")
    ]


class Unasked(ApplicationWriter):
    """Stands for all of them when systemd does not answer."""

    application = "systemd"

    def __init__(self, problem: str) -> None:
        super().__init__("systemd")
        self._problem = problem

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            f"nobody says which services are down, and how they ended: {self._problem} (accept that in"
            " /etc/quiesce/writers.d: [Match] Writer=systemd, Required=no)"
        )


class Down(ApplicationWriter):
    """A service that was started, and has ended."""

    def __init__(self, unit: str, application: str, found: dict[str, str]) -> None:
        super().__init__(f"{application}:{unit}")
        self.application = application
        self.role = "down"
        self._unit = unit
        self._before = found

    def on_identify(self, deadline_ns: int) -> None:
        found = systemd.properties_of(self._unit)
        if found.get("ExecMainStartTimestamp") != self._before.get("ExecMainStartTimestamp"):
            raise WriterError("it was down, and was started during the attempt", Outcome.INCONSISTENT, Grade.CRASH)
        if found.get("ActiveState") != "inactive" or found.get("Result") != "success":
            raise WriterError(
                f"it is down and did not shut down cleanly ({found.get('Result')}); it will recover when started",
                Outcome.NON_RETRYABLE,
                Grade.CRASH,
            )
        self.grade, self.reason = Grade.CLEAN, "it is down; it was shut down cleanly"

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        lines = logs.of_unit(self._unit).splitlines()
        lost = start_log.lost_files_in(lines)  # said long before the last line, which only tells that it gives up
        failure = f"did not start: {'; '.join(lost[:3])}" if lost else None
        return replace(start, running=False, failure=failure, evidence=tuple(start_log.trouble_in(lines)))

    def on_release(self) -> None:
        self.on_identify(0)
