"""What PostgreSQL's and MariaDB's own logs say of the last start. Pure: it is also given to a box (lab/boxed)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LSN = r"([0-9A-F]+/[0-9A-F]+)"
_END = (
    r"(?:invalid record length|invalid magic number|unexpected pageaddr|record with incorrect prev-link"
    r"|incorrect resource manager data checksum in record|invalid resource manager ID)[^\n]*? (?:at|LSN) " + _LSN
)
"""How PostgreSQL says where the log ends; the last segment may have been used before. Source: access/transam/xlogreader.c."""


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


def recovery_in(log: str) -> Recovery:
    last = _last_start(log, "starting PostgreSQL")
    text = "\n".join(last)
    return Recovery(_find(f"redo starts at {_LSN}", text), _find(f"redo done at {_LSN}", text), _find(_END, text), tuple(last))


@dataclass(frozen=True)
class InnodbRecovery:
    """The last start of MariaDB, from its log."""

    starts: str | None
    """LSN; None if the log was empty after its last checkpoint."""
    ends: str | None
    damaged: tuple[str, ...]
    """What the server says of tables that it would have to repair."""


def innodb_recovery_in(log: str) -> InnodbRecovery:
    last = _last_start(log, "Starting MariaDB", "as process")
    text = "\n".join(last)
    return InnodbRecovery(
        _find(r"Starting crash recovery from checkpoint LSN=(\d+)", text),
        _find(r"End of log at LSN=(\d+)", text),
        tuple(line for line in last if "marked as crashed" in line or "corrupt" in line.lower()),
    )


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


def _last_start(log: str, *words: str) -> list[str]:
    """The lines from the last one that has all these words; all lines if none has."""
    lines = log.splitlines()
    starts = [index for index, line in enumerate(lines) if all(word in line for word in words)]
    return lines[starts[-1] :] if starts else lines


def _find(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None
