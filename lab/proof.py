"""Proof from a restored PostgreSQL or MariaDB itself: its log, and its own checks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.machine import GuestCommandError, Machine

_END = (
    r"(?:invalid record length|invalid magic number.*|unexpected pageaddr.*|record with incorrect prev-link \S+"
    r"|incorrect resource manager data checksum in record|invalid resource manager ID \d+) at ([0-9A-F]+/[0-9A-F]+)"
)
"""How PostgreSQL says where the log ends; the last segment may have been used before. Source: access/transam/xlogreader.c."""
LOG = "/var/log/postgresql/postgresql-*-main.log"


@dataclass(frozen=True)
class Recovery:
    """The last start of the server, from its log. LSNs are written as PostgreSQL prints them."""

    redo_starts: str | None
    redo_done: str | None
    log_ends: str | None
    """The position at which the server found the end of the log."""
    lines: tuple[str, ...]

    def redo_bytes(self) -> int:
        """The length of the log that was replayed, in bytes."""
        if self.redo_starts is None:
            return 0
        assert self.log_ends is not None
        return lsn(self.log_ends) - lsn(self.redo_starts)


def recovery(machine: Machine) -> Recovery:
    lines = machine.run(f"cat {LOG}").stdout.splitlines()
    starts = [index for index, line in enumerate(lines) if "starting PostgreSQL" in line]
    last = lines[starts[-1] :] if starts else lines
    text = "\n".join(last)
    return Recovery(
        _find(r"redo starts at ([0-9A-F]+/[0-9A-F]+)", text),
        _find(r"redo done at ([0-9A-F]+/[0-9A-F]+)", text),
        _find(_END, text),
        tuple(last),
    )


@dataclass(frozen=True)
class InnodbRecovery:
    """The last start of MariaDB, from its log."""

    starts: str | None
    """LSN; None if the log was empty after its last checkpoint."""
    ends: str | None
    damaged: tuple[str, ...]
    """What the server says of tables that it would have to repair."""


def innodb_recovery(machine: Machine) -> InnodbRecovery:
    lines = machine.run("journalctl -b -u mariadb -o cat --no-pager").stdout.splitlines()
    starts = [index for index, line in enumerate(lines) if "Starting MariaDB" in line and "as process" in line]
    last = lines[starts[-1] :] if starts else lines
    text = "\n".join(last)
    return InnodbRecovery(
        _find(r"Starting crash recovery from checkpoint LSN=(\d+)", text),
        _find(r"End of log at LSN=(\d+)", text),
        tuple(line for line in last if "marked as crashed" in line or "corrupt" in line.lower()),
    )


def amcheck_errors(machine: Machine, timeout: float = 300) -> int:
    """The number of complaints of pg_amcheck about all tables and indexes of all databases."""
    command = "runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_amcheck --all --install-missing --heapallindexed"
    finished = machine.run(command, check=False, timeout=timeout)
    if finished.returncode not in (0, 2):  # 2: it found corruption
        raise GuestCommandError(command, finished)
    return len([line for line in finished.stdout.splitlines() if line.strip()]) if finished.returncode else 0


def _find(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None


def same_end(one: str | None, other: str | None) -> bool:
    """Whether two positions are the same end of a log. One at the end of a page may be written with the next page's header (24
    or 40 bytes) or without."""
    if not one or not other:
        return one == other
    return len({lsn(each) - lsn(each) % 8192 * (lsn(each) % 8192 in (24, 40)) for each in (one, other)}) == 1


def lsn(text: str) -> int:
    """The number of a log position that is written as PostgreSQL prints it."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
