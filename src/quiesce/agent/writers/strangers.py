"""Processes that have the name of an application, and are none of the system's (identity.py): a login user's own database, or
anything that only calls itself `mariadbd`. Nobody talks to them, and no label depends on them unless the administrator says so.
"""

from __future__ import annotations

from quiesce.agent import identity, processes
from quiesce.agent.writers import unsupported
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.agent.writers.unaccounted import ID, MAX_PROGRAMS, brief_name
from quiesce.model.grades import Grade
from quiesce.model.reports import OpenFiles, Outcome

HELD = {
    "postgres": "PostgreSQL",
    "postmaster": "PostgreSQL",
    "mariadbd": "MariaDB",
    "mysqld": "MySQL",
    "redis-server": "Redis",
    "valkey-server": "Valkey",
    "pgbouncer": "PgBouncer",
    "slapd": "OpenLDAP",
    "nginx": "nginx",
    "haproxy": "haproxy",
}
"""Applications that have a writer, by the kernel's name of their processes."""


def discover() -> list[ApplicationWriter]:
    """One writer for each application and user; the first MAX_PROGRAMS by name, and one for all others."""
    found: dict[tuple[str, int], Stranger] = {}
    for process in processes.running():
        called = HELD.get(process.name) or unsupported.known_as(process)
        if called and (why := identity.why_stranger(process)):
            key = called, process.uid
            if key not in found:
                found[key] = Stranger(f"{ID}{called.lower()}@{process.uid}", called, process, why)
            found[key].pids += (process.pid,)
    ordered = [found[key] for key in sorted(found)]
    return [*ordered[:MAX_PROGRAMS], *([Others(ordered[MAX_PROGRAMS:])] if ordered[MAX_PROGRAMS:] else [])]


class Stranger(ApplicationWriter):
    """A user's processes of one name."""

    application = "not accounted for"

    def __init__(self, id: str, called: str, process: processes.Process, why: str) -> None:
        super().__init__(id)
        self.required = False
        self.executable = brief_name(_executable(process.pid))
        self.not_accounted_for = OpenFiles(self.executable, "", (), 0, kept=False)
        self._what = f"process {process.pid} of user {processes.user_name(process.uid)} has the name of {called}, but {why}"

    def on_identify(self, deadline_ns: int) -> None:
        more = f" (and {len(self.pids) - 1} more)" if len(self.pids) > 1 else ""
        text = f"not accounted for: {brief_name(self._what)}{more}; it is not asked, and not held"
        if self.required:
            raise WriterError(text, Outcome.NON_RETRYABLE, Grade.CRASH)
        self.grade = Grade.CRASH
        self.reason = (
            f"{text}. If it matters, say in /etc/quiesce/writers.d how it is held ([Writer], CGroup= or Hold=), or that a"
            f" checkpoint depends on it ([Match], Writer={self.id}, Required=yes)"
        )


class Others(ApplicationWriter):
    """Those that are too many to be listed."""

    application = "not accounted for"

    def __init__(self, left_out: list[Stranger]) -> None:
        super().__init__(f"{ID}more-names")
        self.required = False
        self.not_accounted_for = OpenFiles(f"{len(left_out)} more", "", (), 0, kept=False)
        self._number = len(left_out)

    def on_identify(self, deadline_ns: int) -> None:
        text = f"not accounted for: {self._number} more users' processes with names of applications"
        if self.required:
            raise WriterError(text, Outcome.NON_RETRYABLE, Grade.CRASH)
        self.grade, self.reason = Grade.CRASH, text


def _executable(pid: int) -> str:
    try:
        return processes.executable(pid)
    except OSError:
        return ""
