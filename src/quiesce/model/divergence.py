"""What would disagree if some servers of an application went back to a checkpoint and others stayed as they are. Pure.

Each application is judged by the position its writer named at the checkpoint's instant, and the one it names now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from quiesce.model.positions import lsn
from quiesce.model.reports import WriterReport

_GTID = re.compile(r"(\d+)-(\d+)-(\d+)")
"""MariaDB's: domain, server, sequence."""


class Agreement(str, Enum):
    """Of a server that stays as it is; the worst of what is true of its applications."""

    AGREES = "agrees"
    """It stands where it stood at the checkpoint's instant, or can follow from there."""
    SILENT = "silent"
    """None of its applications that our writers know keeps anything."""
    UNKNOWN = "unknown"
    """It could not be asked, or does not say, where it stood or stands."""
    MOVED = "moved"
    """It went on, or back."""


NOTHING_KNOWN = "keeps nothing that a writer knows of"
"""Said of a server without findings."""
_BEST_FIRST = (Agreement.AGREES, Agreement.SILENT, Agreement.UNKNOWN, Agreement.MOVED)


@dataclass(frozen=True)
class Finding:
    """What is true of one application, as the end of a sentence that begins with the server's name."""

    writer: str
    """Its id; empty where it is of the whole server."""
    verdict: Agreement
    text: str


@dataclass(frozen=True)
class Server:
    vm_name: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Agreement:
        return max((finding.verdict for finding in self.findings), key=_BEST_FIRST.index, default=Agreement.SILENT)

    @property
    def agrees(self) -> bool:
        """Nothing speaks against leaving it as it is."""
        return self.verdict in (Agreement.AGREES, Agreement.SILENT)

    def __str__(self) -> str:
        said = [finding.text for finding in self.findings if finding.verdict is self.verdict]
        return f"{self.vm_name}: {'; '.join(said) or NOTHING_KNOWN}"

    @classmethod
    def whole(cls, vm_name: str, verdict: Agreement, text: str) -> Server:
        """One of which only this is known, whatever runs in it."""
        return cls(vm_name, (Finding("", verdict, text),))


def judge(
    vm_name: str, then: Sequence[WriterReport] | None, now: Sequence[WriterReport], going: Sequence[WriterReport]
) -> Server:
    """The server by its applications at the checkpoint's instant and now. `then`: None if they were not asked at that instant.
    `going`: applications of the servers that go back, as they were at that instant; what follows one of these is judged by
    whether it still could."""
    findings: list[Finding] = []
    before = {writer.id: writer for writer in then or ()}
    for writer in now:
        followed = next(filter(None, (_follows(writer, primary) for primary in going)), None)
        if followed:
            findings.append(followed)
        elif writer.id in before:
            findings += _compare(before[writer.id], writer)
        elif not writer.stateless and (then is None or writer.role == "down"):  # which is known by another id while it runs
            findings.append(Finding(writer.id, Agreement.UNKNOWN, f"where {_name(writer)} stood at that instant is not known"))
        elif not writer.stateless:
            findings.append(Finding(writer.id, Agreement.MOVED, f"{_name(writer)} was not there then"))
    gone = before.keys() - {writer.id for writer in now}
    findings += [
        Finding(id, Agreement.UNKNOWN, f"{_name(before[id])} is not there now, or does not run")
        for id in sorted(gone)
        if not before[id].stateless
    ]
    return Server(vm_name, tuple(findings))


def describe(servers: Iterable[Server]) -> list[dict[str, object]]:
    """For a program: each server, its verdict, and what is true of each application."""
    return [
        {
            "vm": each.vm_name,
            "verdict": each.verdict.value,
            "findings": [
                {"writer": finding.writer or None, "verdict": finding.verdict.value, "text": finding.text}
                for finding in each.findings
            ],
        }
        for each in servers
    ]


def _compare(before: WriterReport, now: WriterReport) -> list[Finding]:
    if now.stateless:
        return []
    verdict, text = _RULES.get(now.application, _by_position)(before, now)
    return [Finding(now.id, verdict, f"{_name(now)} {text}")]


def _postgresql(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    """Of one cluster on one timeline, every transaction that writes takes the next number; the log moves by itself, too."""
    if before.role == now.role == "down":
        return _by_position(before, now)
    for key, what in (("system_identifier", "is another cluster now"), ("timeline", "went on along another timeline")):
        if before.position.get(key) is None or now.position.get(key) is None:
            return _silent(before, now)
        if before.position[key] != now.position[key]:
            return Agreement.MOVED, what
    first, second = (_transaction_id(writer.position.get("next_xid")) for writer in (before, now))
    if first is not None and second is not None:
        where = f"LSN {before.position.get('insert_lsn', '?')} -> {now.position.get('insert_lsn', '?')}"
        if first == second and before.position.get("in_progress_xids") != now.position.get("in_progress_xids"):
            return Agreement.MOVED, f"has ended transactions that were open then ({where})"
        return _moved(second - first, "transaction", where)
    first, second = (lsn(writer.position.get("replay_lsn", "")) for writer in (before, now))
    if first is None or second is None:
        return _silent(before, now)
    return _moved(second - first, "byte", f"LSN {_from_to(before, now, 'replay_lsn')}")


def _transaction_id(text: str | None) -> int | None:
    """`EPOCH:XID`, as pg_control_checkpoint() has it, as a number."""
    match = re.fullmatch(r"(\d+):(\d+)", text or "")
    return (int(match[1]) << 32) + int(match[2]) if match else None


def _mariadb(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    """By its binary log where there is one; else by InnoDB's log, which its own housekeeping moves, too."""
    for key in ("server_uid", "server_uuid"):
        named = {writer.position[key] for writer in (before, now) if key in writer.position}
        if len(named) > 1:
            return Agreement.MOVED, "is another server now"
    for key in ("gtid_binlog_pos", "gtid_slave_pos"):
        if key in before.position and key in now.position:
            return _gtids(before.position[key], now.position[key])
    first, second = (writer.position.get("lsn_current", "") for writer in (before, now))
    if not (first.isdecimal() and second.isdecimal()):
        return _by_position(before, now)
    where = f"LSN {_from_to(before, now, 'lsn_current')}; how many transactions, only a binary log would tell"
    return _moved(int(second) - int(first), "byte", where)


def _gtids(first: str, second: str) -> tuple[Agreement, str]:
    """In all domains together."""
    before, after = (set(_GTID.findall(text)) for text in (first, second))
    where = f"GTID {first or 'none'} -> {second or 'none'}"
    count = sum(int(sequence) for *_, sequence in after) - sum(int(sequence) for *_, sequence in before)
    if count == 0 and before != after:  # as many, but others
        return Agreement.MOVED, f"has moved ({where}) since"
    return _moved(count, "transaction", where)


def _by_position(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    """By whatever its writer names: it must name now all that it named then."""
    if not before.position or not before.position.keys() <= now.position.keys():
        return _silent(before, now)
    changed = [key for key in before.position if before.position[key] != now.position[key]]
    if not changed:
        return Agreement.AGREES, "stands where it stood"
    return Agreement.MOVED, f"has moved ({', '.join(f'{key} {_from_to(before, now, key)}' for key in changed)}) since"


def _sqlite(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    """Unless it was held, it names only how many files there are, which says nothing of what is in them."""
    return _silent(before, now) if before.position.keys() == {"files"} else _by_position(before, now)


_RULES: dict[str, Callable[[WriterReport, WriterReport], tuple[Agreement, str]]] = {
    "postgresql": _postgresql,
    "mariadb": _mariadb,
    "sqlite": _sqlite,
}


def _silent(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    if not before.position:
        return Agreement.UNKNOWN, f"did not say where it stood{f': {before.reason}' if before.reason else ''}"
    return Agreement.UNKNOWN, f"does not say where it stands{f': {now.reason}' if now.reason else ''}"


def _moved(count: int, unit: str, where: str) -> tuple[Agreement, str]:
    if count == 0:
        return Agreement.AGREES, "stands where it stood"
    if count < 0:
        return Agreement.MOVED, f"stands {_plural(-count, unit)} before that ({where})"
    return Agreement.MOVED, f"has moved {_plural(count, unit)} ({where}) since"


def _plural(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def _follows(replica: WriterReport, primary: WriterReport) -> Finding | None:
    """If one replicates the other: whether it could go on from there when the primary has gone back."""
    if replica.role not in ("standby", "replica") or replica.application != primary.application:
        return None
    found = _standby(replica, primary) if replica.application == "postgresql" else _replica(replica, primary)
    if found is None:
        return None
    ahead, unit, where = found
    name = f"{_name(replica)}, which follows,"
    if ahead <= 0:
        return Finding(replica.id, Agreement.AGREES, f"{name} is not ahead of the checkpoint and can follow from there")
    text = f"{name} is {_plural(ahead, unit)} ahead of the checkpoint ({where}); it could not follow"
    return Finding(replica.id, Agreement.MOVED, f"{text}, and would have to be made anew")


def _standby(replica: WriterReport, primary: WriterReport) -> tuple[int, str, str] | None:
    """On another timeline the same LSN may be of another log."""
    if any(replica.position.get(key) != primary.position.get(key) for key in ("system_identifier", "timeline")):
        return None
    end = lsn(primary.position.get("insert_lsn", ""))
    replayed, received = (lsn(replica.position.get(key, "")) for key in ("replay_lsn", "receive_lsn"))
    if not replayed or end is None:  # 0/0: none yet
        return None
    key = "receive_lsn" if received and received > replayed else "replay_lsn"
    return max(replayed, received or 0) - end, "byte", f"LSN {primary.position['insert_lsn']} -> {replica.position[key]}"


def _replica(replica: WriterReport, primary: WriterReport) -> tuple[int, str, str] | None:
    """It is known by the primary's own number in what it has applied. Where it is ahead furthest, counts."""
    if "gtid_binlog_pos" not in primary.position:
        return None
    written = {match[1]: match for match in _GTID.finditer(primary.position["gtid_binlog_pos"])}
    found = []
    for match in _GTID.finditer(replica.position.get("gtid_slave_pos", "")):
        if match[2] == primary.position.get("server_id"):
            own = written.get(match[1])
            where = f"GTID {own[0] if own else 'none'} -> {match[0]}"
            found.append((int(match[3]) - (int(own[3]) if own else 0), "transaction", where))
    return max(found, default=None)


def _from_to(before: WriterReport, now: WriterReport, key: str) -> str:
    return f"{before.position[key]} -> {now.position[key]}"


_NAMES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "redis": "Redis", "valkey": "Valkey"}


def _name(writer: WriterReport) -> str:
    """As people call it, and which of those that a server may have."""
    known = _NAMES.get(writer.application)
    return f"{known} {writer.id.partition(':')[2]}" if known else writer.id
