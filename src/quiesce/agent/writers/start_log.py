"""What PostgreSQL's and MariaDB's own logs say of the last start. Pure; the lab reads logs by it, too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from quiesce.agent.writers.wal import format_lsn, parse_lsn

_LSN = r"([0-9A-F]+/[0-9A-F]+)"
_REASON = (
    r"(?:invalid record length|invalid record offset|invalid magic number|invalid info bits|unexpected pageaddr"
    r"|out-of-sequence timeline ID|record with incorrect prev-link|there is no contrecord flag|invalid contrecord length"
    r"|incorrect resource manager data checksum in record|invalid resource manager ID"
    r"|could not read from(?= (?:WAL|log) segment))"
)
"""How PostgreSQL says that the log ends; the last segment may have been used before. Source: access/transam/xlogreader.c and
xlogrecovery.c."""
_END = _REASON + r"[^\n]*? (?:at|LSN) " + _LSN
_END_IN_SEGMENT = re.compile(_REASON + r"[^\n]*? (?:WAL|log) segment ([0-9A-F]{24}), offset (\d+)")
"""Before PostgreSQL 16, if the log ends where a page begins."""
_SEGMENT_SIZES = [1 << bits for bits in range(20, 31)]
_CLEAN = ("database system was shut down at", "database system was shut down in recovery at")
_UNREADABLE = re.compile(r"could not (?:read from|open) (?:WAL|log|file \"pg_wal)|could not locate a valid checkpoint record")
_TROUBLE = re.compile(r"\b(?:FATAL|PANIC)\b|\[ERROR\]|marked as crashed|corrupt", re.IGNORECASE)
_LOST = re.compile(
    r"InnoDB: (?:Tablespace \d+ was not found at|Could not find a valid tablespace file for|Cannot open datafile for read-only)"
    r"(?!.*#sql)|doesn't exist in engine"
)
"""How InnoDB names a tablespace whose file is missing; not those of an ALTER TABLE that did not end, which it removes itself.
Source: storage/innobase/log/log0recv.cc, fil/fil0fil.cc, fsp/fsp0file.cc."""
_PROMPT = "the database system is starting up"
"""What a client is told that comes too early: no trouble."""


@dataclass(frozen=True)
class Recovery:
    """The last start of a PostgreSQL server, from its log. LSNs are written as PostgreSQL prints them."""

    redo_starts: Optional[str]
    redo_done: Optional[str]
    log_ends: Optional[str]
    """The position at which the server found the end of the log."""
    was_shut_down: bool
    """The server found that it had been shut down cleanly."""
    unreadable: tuple[str, ...]
    """What it says of log that it could not read."""
    lines: tuple[str, ...]

    def redo_bytes(self) -> int:
        """The length of the log that was replayed, in bytes."""
        if self.redo_starts is None:
            return 0
        assert self.log_ends is not None
        return parse_lsn(self.log_ends) - parse_lsn(self.redo_starts)


def recovery_in(log: str) -> Recovery:
    last = _last_start(log, "starting PostgreSQL")
    text = "\n".join(last)
    starts, done = _find(f"redo starts at {_LSN}", text), _find(f"redo done at {_LSN}", text)
    return Recovery(
        starts,
        done,
        _find(_END, text) or _end_in_segment(text, done or starts),
        any(words in text for words in _CLEAN),
        tuple(line for line in last if _UNREADABLE.search(line)),
        tuple(last),
    )


def _end_in_segment(text: str, after: Optional[str]) -> Optional[str]:
    """The end of the log by the name of its last segment. The log of the server does not say how large a segment is: it is as
    large as puts the end next to the last record, which begins at `after`."""
    match = _END_IN_SEGMENT.search(text)
    if not match or after is None:
        return None
    name, offset = match.groups()
    ends = [
        (int(name[8:16], 16) << 32) + int(name[16:], 16) * size + int(offset) for size in _SEGMENT_SIZES if int(offset) < size
    ]
    near = min((end for end in ends if end >= parse_lsn(after)), default=None)
    return None if near is None else format_lsn(near)


@dataclass(frozen=True)
class InnodbRecovery:
    """The last start of MariaDB, from its log."""

    starts: Optional[str]
    """LSN; None if the log was empty after its last checkpoint."""
    ends: Optional[str]
    damaged: tuple[str, ...]
    """What the server says of tables that it would have to repair."""
    lost: tuple[str, ...]
    """What the server says of tablespaces whose file is missing."""
    came_up: bool
    """The log has the whole start."""
    lines: tuple[str, ...]


def innodb_recovery_in(log: str) -> InnodbRecovery:
    last = _last_start(log, "Starting MariaDB", "as process")
    text = "\n".join(last)
    return InnodbRecovery(
        _find(r"Starting crash recovery from checkpoint LSN=(\d+)", text),
        _find(r"End of log at LSN=(\d+)", text),
        tuple(line for line in last if "marked as crashed" in line or "corrupt" in line.lower()),
        lost_files_in(last),
        "ready for connections" in text,
        tuple(last),
    )


def lost_files_in(lines: Sequence[str]) -> tuple[str, ...]:
    """The lines in which InnoDB names files that are missing, each once."""
    return tuple(dict.fromkeys(line for line in lines if _LOST.search(line)))


def trouble_in(lines: Sequence[str]) -> list[str]:
    """The lines by which a server tells why it does not go on, at most the last eight."""
    return [line for line in lines if _TROUBLE.search(line) and _PROMPT not in line][-8:]


def _last_start(log: str, *words: str) -> list[str]:
    """The lines from the last one that has all these words; all lines if none has."""
    lines = log.splitlines()
    starts = [index for index, line in enumerate(lines) if all(word in line for word in words)]
    return lines[starts[-1] :] if starts else lines


def _find(pattern: str, text: str) -> Optional[str]:
    match = re.search(pattern, text)
    return match.group(1) if match else None
