"""PostgreSQL: transactions tell whether a cluster moved; its log (LSNs) moves by itself, too.

The position of a running cluster has `system_identifier`, `timeline`, `next_xid`, `insert_lsn`, and `in_progress_xids` if
transactions are open; that of a held one has `checkpoint_lsn` and `redo_lsn`, too. A standby's has `replay_lsn`, and
`receive_lsn` once it has received log since it started. A cluster that is down has no `timeline`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quiesce.applications.application import (
    Ahead,
    Application,
    Comparison,
    StartVerdict,
    from_to,
    judge_log,
    moved_by,
    not_comparable,
)
from quiesce.model.divergence import Agreement
from quiesce.model.reports import WriterReport
from quiesce.model.starts import Did, Start

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SAME_LOG = ("system_identifier", "timeline")
"""Two LSNs are points of the same log only if both keys have the same values."""


class PostgresqlApplication(Application):
    def compare(self, before: WriterReport, now: WriterReport) -> Comparison:
        """A primary moved if a transaction took a number, or if one that was open has ended. A standby takes no numbers: it
        moved if it replayed any log."""
        if before.role == now.role == "down":
            return super().compare(before, now)
        for key, text in (("system_identifier", "is another cluster now"), ("timeline", "is on another timeline now")):
            if before.position.get(key) is None or now.position.get(key) is None:
                return not_comparable(before, now)
            if before.position[key] != now.position[key]:
                return Comparison(Agreement.MOVED, text)
        first, second = (_transaction_id(report.position.get("next_xid")) for report in (before, now))
        if first is not None and second is not None:
            where = f"LSN {before.position.get('insert_lsn', '?')} -> {now.position.get('insert_lsn', '?')}"
            if first == second and before.position.get("in_progress_xids") != now.position.get("in_progress_xids"):
                return Comparison(Agreement.MOVED, f"has ended transactions that were open at the checkpoint ({where})")
            return moved_by(second - first, "transaction", where)
        first, second = (_lsn(report.position.get("replay_lsn", "")) for report in (before, now))
        if first is None or second is None:
            return not_comparable(before, now)
        return moved_by(second - first, "byte", f"LSN {from_to(before, now, 'replay_lsn')}")

    def replica_ahead(self, replica: WriterReport, primary: WriterReport) -> Ahead | None:
        """By the log that the standby has replayed or received: it will replay what it has received."""
        if any(replica.position.get(key) != primary.position.get(key) for key in _SAME_LOG):
            return None
        end = _lsn(primary.position.get("insert_lsn", ""))
        replayed, received = (_lsn(replica.position.get(key, "")) for key in ("replay_lsn", "receive_lsn"))
        if not replayed or end is None:  # 0/0: it has replayed nothing yet
            return None
        key = "receive_lsn" if received and received > replayed else "replay_lsn"
        where = f"LSN {primary.position['insert_lsn']} -> {replica.position[key]}"
        return Ahead(max(replayed, received or 0) - end, "byte", where)

    def log_bytes(self, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, int]:
        if any(before.get(key) is None or before.get(key) != after.get(key) for key in _SAME_LOG):
            return {}
        found = {}
        for key in sorted(before.keys() & after.keys()):
            first, second = _lsn(before[key]), _lsn(after[key])
            if key.endswith("_lsn") and first is not None and second is not None:
                found[key] = second - first
        return found

    def judge_start(self, claimed: WriterReport, start: Start, *, held: bool) -> StartVerdict:
        """By the log that it replayed. Nothing to replay is right only if the checkpoint has no log to replay."""
        position = claimed.position
        begins = _lsn(position.get("redo_lsn", "")), _lsn(start.redo_from or "")
        claimed_end, found_end = position.get("insert_lsn"), start.redo_to
        if start.did is Did.NOTHING and claimed_end:
            found_end = position.get("redo_lsn")
        ends = (_lsn(claimed_end or ""), _lsn(found_end or ""))
        if same_end(claimed_end, found_end):
            ends = ends[0], ends[0]
        return judge_log(claimed, start, begins, ends, held=held)


def same_end(one: str | None, other: str | None) -> bool:
    """Whether two positions are the same end of a log. One at the end of a page may be written with the next page's header (24
    or 40 bytes) or without."""
    first, second = (_lsn(each or "") for each in (one, other))
    if first is None or second is None:
        return first == second
    return len({each - each % 8192 * (each % 8192 in (24, 40)) for each in (first, second)}) == 1


APPLICATIONS = {
    "postgresql": PostgresqlApplication(
        "PostgreSQL", summary_keys=("timeline", "checkpoint_lsn", "redo_lsn", "insert_lsn", "replay_lsn")
    )
}


def _lsn(text: str) -> int | None:
    """`16/B374D848` as a number."""
    match = _LSN.fullmatch(text)
    return (int(match[1], 16) << 32) + int(match[2], 16) if match else None


def _transaction_id(text: str | None) -> int | None:
    """`EPOCH:XID`, as pg_control_checkpoint() shows it, as a number that never begins anew."""
    match = re.fullmatch(r"(\d+):(\d+)", text or "")
    return (int(match[1]) << 32) + int(match[2]) if match else None
