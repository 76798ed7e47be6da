"""How a PostgreSQL cluster started on a copy of a checkpoint: by its own log, and by pg_amcheck."""

from __future__ import annotations

import glob
import os
from dataclasses import replace
from typing import Any

from quiesce.agent import commands, logs, processes
from quiesce.agent.commands import CommandError
from quiesce.agent.writers.base import WriterError, left_s
from quiesce.agent.writers.postgresql_files import Postmaster
from quiesce.agent.writers.start_log import Recovery, recovery_in, trouble_in
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

RUNUSER = "/usr/sbin/runuser"
QUIET = {"PGOPTIONS": "-c client_min_messages=error"}
"""Else its words would be that the extension is there already."""
FOUND_CORRUPTION = 2
"""Exit status of pg_amcheck; its manual page."""
_TELLING = ("redo ", "database system was", "invalid ", "could not", "consistent recovery", "FATAL", "PANIC", "unexpected")
MAX_EVIDENCE = 12


def postgresql_started(base: Start, postmaster: Postmaster, control: Any, deadline_ns: int) -> Start:
    """Of a running cluster. Raises WriterError if pg_amcheck finds corruption; see `base.verify`."""
    seen = recovery_in(_log(postmaster, control))
    found = _with(base, seen)
    checks, notes = _amcheck(postmaster, deadline_ns)
    return replace(found, checks=checks, notes=(*found.notes, *notes))


def postgresql_did_not_start(base: Start, directory: str) -> Start:
    """Of a cluster that does not run: why, by the log of its last start, and by what its unit said."""
    name = "-".join(directory.split("/")[-2:])
    lines: list[str] = []
    for text in (_file_log(directory), logs.of_unit(f"postgresql@{name}.service"), logs.of_unit("postgresql*.service")):
        lines += [line for line in trouble_in(recovery_in(text).lines) if line not in lines]
    return replace(base, running=False, evidence=tuple(lines[-MAX_EVIDENCE:]))


def _with(base: Start, seen: Recovery) -> Start:
    evidence = tuple(line for line in seen.lines if any(words in line for words in _TELLING))[:MAX_EVIDENCE]
    if seen.redo_starts:
        ends = seen.log_ends
        return replace(
            base,
            did=Did.REDO,
            redo_from=seen.redo_starts,
            redo_to=ends,
            redo_bytes=seen.redo_bytes() if ends else None,
            evidence=evidence,
            notes=seen.unreadable,
        )
    if seen.was_shut_down or any("redo is not required" in line for line in seen.lines):
        return replace(base, did=Did.NOTHING, evidence=evidence)
    return replace(base, evidence=evidence, notes=("its log of this start was not found, or is not in English (lc_messages)",))


def _log(postmaster: Postmaster, control: Any) -> str:
    """Of the last start. A server with a logging collector writes only the first lines to standard error."""
    collected = ""
    name = control.run("SELECT pg_current_logfile()")[0][0]
    if name:
        path = name if os.path.isabs(name) else os.path.join(postmaster.directory, name)
        collected = logs.end_of(path, postmaster.uid)
    return (
        collected
        if "redo " in collected or "was shut down" in collected
        else logs.of_process(postmaster.pid) + "\n" + collected
    )


def _file_log(directory: str) -> str:
    version, _, name = directory.removeprefix("/var/lib/postgresql/").partition("/")
    own = sorted(glob.glob(os.path.join(glob.escape(directory), "log", "*.log")), key=_written)
    for path in (f"/var/log/postgresql/postgresql-{version}-{name}.log", *own[-1:]):
        try:
            return logs.end_of(path)
        except OSError:
            continue
    return ""


def _written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _amcheck(postmaster: Postmaster, deadline_ns: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what was found right, what was not checked and why). Raises WriterError for corruption."""
    program = os.path.join(os.path.dirname(processes.executable(postmaster.pid)), "pg_amcheck")
    if not os.access(program, os.X_OK):
        return (), ("pg_amcheck is not installed (PostgreSQL 14 and later have it), so no table was read",)
    user = processes.user_name(postmaster.uid)
    where = ["--host", postmaster.socket_directory, "--port", str(postmaster.port)]
    command = [RUNUSER, "-u", user, "--", program, *where, "--all", "--install-missing", "--heapallindexed"]
    try:
        commands.run_command(command, left_s(deadline_ns), None, QUIET)
    except CommandError as error:
        if error.status == FOUND_CORRUPTION:
            raise WriterError(f"pg_amcheck: {'; '.join(error.words.splitlines())}", Outcome.INCONSISTENT) from None
        return (), (f"pg_amcheck could not check it: {error.words}",)
    except WriterError as error:
        if error.outcome is not Outcome.TIMEOUT:
            raise
        return (), ("pg_amcheck did not end in time, so not all tables were read",)
    return ("pg_amcheck --heapallindexed: every table and index of every database",), ()
