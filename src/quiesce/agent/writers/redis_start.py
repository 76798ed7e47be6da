"""How a Redis or Valkey started on a copy of a checkpoint: by its own log, and by what it loaded."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from quiesce.agent import logs
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.redis_info import Info, position_in
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

MAX_EVIDENCE = 10
_TELLING = re.compile(r"loaded|Loading|AOF|RDB|truncat|Short read|checksum|error|Done loading", re.IGNORECASE)
_CUT = re.compile(r"truncat|short read|unexpected end of file|last short write|AOF loaded anyway", re.IGNORECASE)
"""It loaded what it could of a file that ends too early: `aof-load-truncated yes` of its configuration. Source: src/aof.c."""


def redis_started(base: Start, pid: int, info: Info, log_file: str, directory: str) -> Start:
    """Of a running server. Raises WriterError while it still loads."""
    if info.get("loading") == "1":
        raise WriterError("it is still loading its data", Outcome.TIMEOUT)
    said = _log(pid, log_file, directory).splitlines()
    starts = [number for number, line in enumerate(said) if "is starting" in line]
    lines = [line for line in (said[starts[-1] :] if starts else said) if _TELLING.search(line)]
    cut = [line for line in lines if _CUT.search(line)]
    keys = position_in(info)["keys"]
    return replace(
        base,
        did=Did.REDO if cut else Did.NOTHING if starts else Did.UNKNOWN,
        checks=(f"it loaded its data to the end: {keys} keys",) if not cut else (),
        evidence=tuple((cut or lines)[:MAX_EVIDENCE]),
        notes=() if starts else ("its log of this start was not found",),
    )


def _log(pid: int, log_file: str, directory: str) -> str:
    try:
        return logs.end_of(os.path.join(directory, log_file)) if log_file else logs.of_process(pid)
    except OSError:
        return ""
