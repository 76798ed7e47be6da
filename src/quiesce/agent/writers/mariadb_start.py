"""How a MariaDB or MySQL started on a copy of a checkpoint: by its own log, and by CHECK TABLE of every table."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Optional

from quiesce.agent import logs
from quiesce.agent.writers.base import WriterError, left_s
from quiesce.agent.writers.mariadb_session import Session
from quiesce.agent.writers.mariadb_status import named
from quiesce.agent.writers.start_log import innodb_recovery_in
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

MAX_EVIDENCE = 12
_TABLES = (
    "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
    " AND table_schema NOT IN ('information_schema', 'performance_schema', 'sys') ORDER BY 1, 2"
)
_TELLING = (
    "crash recovery",
    "End of log",
    "rolled back",
    "Rollback",
    "[ERROR]",
    "corrupt",
    "marked as crashed",
    "ready for conn",
)
_FINE = ("status", "note", "info")
"""Kinds of what CHECK TABLE says. A status is OK, or what is wrong; the others say nothing of the table's state."""


def mariadb_started(base: Start, pid: int, control: Session, deadline_ns: int) -> Start:
    """Of a running server. Raises WriterError if a table is damaged, or its file missing."""
    log_file = _log_file(control, deadline_ns)
    seen = innodb_recovery_in(_log(pid, log_file))
    evidence = tuple(line for line in seen.lines if any(words in line for words in _TELLING))[:MAX_EVIDENCE]
    found = replace(base, evidence=evidence)
    if seen.starts:
        redo = int(seen.ends) - int(seen.starts) if seen.ends else None
        found = replace(found, did=Did.REDO, redo_from=seen.starts, redo_to=seen.ends, redo_bytes=redo)
    elif seen.came_up:
        found = replace(found, did=Did.NOTHING, redo_to=seen.ends)
    else:
        found = replace(found, notes=("its log of this start was not found",))
    if seen.damaged or seen.lost:
        raise WriterError("; ".join([*seen.damaged[:3], *seen.lost[:3]]), Outcome.INCONSISTENT)
    try:
        count, note = _check_tables(control, deadline_ns)
    except WriterError as error:  # InnoDB opens a table's file when the table is asked for: its log may know more now
        lost = innodb_recovery_in(_log(pid, log_file)).lost
        raise WriterError("; ".join([str(error), *lost[:3]]), error.outcome) from None
    checks = (f"CHECK TABLE: {count} tables are OK",) if count else ()
    return replace(found, checks=checks, notes=(*found.notes, *((note,) if note else ())))


def _log_file(control: Session, deadline_ns: int) -> str:
    """Empty if it writes to standard error."""
    variables = named(control, "VARIABLES", ("log_error", "datadir"), deadline_ns)
    path = variables.get("log_error", "")
    return os.path.join(variables.get("datadir", "/"), path) if path and path != "stderr" else ""


def _log(pid: int, file: str) -> str:
    return logs.end_of(file) if file else logs.of_process(pid)


def _check_tables(control: Session, deadline_ns: int) -> tuple[int, Optional[str]]:
    """(number of tables that are OK, what was not checked). Raises WriterError, naming the first damaged table."""
    tables = control.run(_TABLES, deadline_ns)
    for number, (schema, table) in enumerate(tables):
        try:
            left_s(deadline_ns)
        except WriterError:
            return number, f"the time was over after {number} of {len(tables)} tables"
        name = ".".join("`" + part.replace("`", "``") + "`" for part in (schema, table))
        for _, _, kind, text in control.run(f"CHECK TABLE {name}", deadline_ns):
            fine = kind.lower() in _FINE and (kind.lower() != "status" or text in ("OK", "Table is already up to date"))
            if not fine and not _of_the_kind_of_engine(text):
                raise WriterError(f"CHECK TABLE {schema}.{table}: {kind}: {text}", Outcome.INCONSISTENT)
    return len(tables), None


def _of_the_kind_of_engine(text: str) -> bool:
    """A table of an engine that cannot check."""
    return "doesn't support check" in text
