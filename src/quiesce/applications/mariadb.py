"""MariaDB: the binary log tells how many transactions there were; without one, only InnoDB's log is left.

A position of MariaDB has `server_id`, `server_uid` (of newer releases), `lsn_current`, `lsn_checkpoint`, and with a binary log
`gtid_binlog_pos`; a replica's has `gtid_slave_pos` only. MySQL has the same writer, but its positions have other keys, of which
nothing is known here: MySQL moved if any value changed.
"""

from __future__ import annotations

import re

from quiesce.applications.application import Ahead, Application, Comparison, StartVerdict, from_to, judge_log, moved_by
from quiesce.model.divergence import Agreement
from quiesce.model.grades import Grade
from quiesce.model.reports import WriterReport
from quiesce.model.starts import Start

_GTID = re.compile(r"(\d+)-(\d+)-(\d+)")
"""Domain, server, sequence: `0-1-5501`."""


class MariadbApplication(Application):
    def compare(self, before: WriterReport, now: WriterReport) -> Comparison:
        """By the binary log, or by what a replica has applied; else by InnoDB's log, which its own housekeeping moves, too."""
        for key in ("server_uid", "server_uuid"):
            if len({report.position[key] for report in (before, now) if key in report.position}) > 1:
                return Comparison(Agreement.MOVED, "is another server now")
        for key in ("gtid_binlog_pos", "gtid_slave_pos"):
            if key in before.position and key in now.position:
                return _compare_gtids(before.position[key], now.position[key])
        first, second = (report.position.get("lsn_current", "") for report in (before, now))
        if not (first.isdecimal() and second.isdecimal()):
            return super().compare(before, now)
        where = f"LSN {from_to(before, now, 'lsn_current')}; how many transactions, only a binary log would tell"
        return moved_by(int(second) - int(first), "byte", where)

    def replica_ahead(self, replica: WriterReport, primary: WriterReport) -> Ahead | None:
        """By the GTIDs of the primary's own `server_id` that the replica has applied. If it follows in several domains, the one
        counts in which it is ahead furthest."""
        if "gtid_binlog_pos" not in primary.position:
            return None
        written = {match[1]: match for match in _GTID.finditer(primary.position["gtid_binlog_pos"])}
        found = []
        for match in _GTID.finditer(replica.position.get("gtid_slave_pos", "")):
            if match[2] == primary.position.get("server_id"):
                own = written.get(match[1])
                where = f"GTID {own[0] if own else 'none'} -> {match[0]}"
                found.append(Ahead(int(match[3]) - (int(own[3]) if own else 0), "transaction", where))
        return max(found, default=None)

    def judge_start(self, claimed: WriterReport, start: Start, *, held: bool) -> StartVerdict:
        """By InnoDB's log. If the writer could not read the log's end, the log may go on a little."""
        begins = _number(claimed.position.get("lsn_checkpoint")), _number(start.redo_from)
        then, now = _number(claimed.position.get("lsn_current")), _number(start.redo_to)
        if LOG_NOT_READ in (claimed.reason or "") and then is not None and now is not None and now > then:
            then = now
        if claimed.grade in (Grade.CLEAN, Grade.NIL_REDO):  # its last checkpoint is the end of the log, but for its own record
            then = begins[0]
        return judge_log(claimed, start, begins, (then, now), held=held)


LOG_NOT_READ = "the log may end somewhat later"
"""In the reason of the writer's grade (agent/writers/mariadb_still.py)."""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


APPLICATIONS = {"mariadb": MariadbApplication("MariaDB"), "mysql": Application("MySQL")}


def _compare_gtids(first: str, second: str) -> Comparison:
    """Counted in all domains together."""
    before, after = (set(_GTID.findall(text)) for text in (first, second))
    where = f"GTID {first or 'none'} -> {second or 'none'}"
    count = sum(int(sequence) for *_, sequence in after) - sum(int(sequence) for *_, sequence in before)
    if count == 0 and before != after:  # as many transactions, but other ones
        return Comparison(Agreement.MOVED, f"has moved since the checkpoint ({where})")
    return moved_by(count, "transaction", where)
