"""What a service wrote to its log since this machine started. To be used outside the window: it starts journalctl."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Optional

from quiesce.agent import commands, files, processes
from quiesce.agent.writers.base import WriterError

JOURNALCTL = "/usr/bin/journalctl"
TIMEOUT_S = 60.0
LINES = 4000
MAX_LOG = 8 << 20
"""Most that is read of a log, in bytes: its end."""


def of_unit(unit: str) -> str:
    """The lines of a unit, or of all units that match a pattern, since the machine started; empty if there is no journal."""
    command = [JOURNALCTL, "--boot", "--unit", unit, "--output", "cat", "--no-pager", "--quiet", "--lines", str(LINES)]
    try:
        return commands.run_command(command, TIMEOUT_S, None, limit=MAX_LOG)
    except WriterError:
        return ""


def of_process(pid: int) -> str:
    """What a server writes to standard error: to a file, or to the journal of its service."""
    with suppress(OSError):
        link = f"/proc/{pid}/fd/2"
        if stat.S_ISREG(os.stat(link).st_mode):
            return end_of(os.readlink(link), processes.owner(pid))
    unit = processes.unit(pid)
    return of_unit(unit) if unit else ""


def end_of(path: str, uid: Optional[int] = None) -> str:
    """The end of a log file, looked at as this user. Raises OSError."""
    size = os.stat(path).st_size
    return files.read_bytes(path, MAX_LOG, uid, offset=max(0, size - MAX_LOG)).decode(errors="replace")
