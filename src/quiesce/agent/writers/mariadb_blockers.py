"""Who stands in the way of a lock in MariaDB or MySQL: the session, its user, its statement, and for how long.

The server tells who holds a lock on a table only with the plugin `metadata_lock_info` (MariaDB) or with the performance schema
(MySQL's default). Without them it is inferred from what is open: `LOCK TABLES` of an idle session shows as a table in use that
no statement uses.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Callable, NamedTuple, Optional

MOST_NAMED = 3
_STATEMENT_LENGTH = 80

_SESSIONS = (  # whoever waits is in nobody's way, or behind the one who is
    "SELECT id, user, command, time, info FROM information_schema.processlist WHERE IFNULL(state, '') NOT LIKE 'Waiting for %'"
)
_OWNERS = (
    "SELECT thread_id FROM information_schema.metadata_lock_info WHERE {mariadb}",
    "SELECT t.processlist_id FROM performance_schema.metadata_locks l JOIN performance_schema.threads t"
    " ON t.thread_id = l.owner_thread_id WHERE l.lock_status = 'GRANTED' AND {standard}",
)
_OF_TABLE = (
    "table_schema = '{schema}' AND table_name = '{name}' AND lock_mode NOT IN ('MDL_SHARED', 'MDL_SHARED_HIGH_PRIO',"
    " 'MDL_SHARED_READ', 'MDL_SHARED_READ_ONLY')",
    "l.object_type = 'TABLE' AND l.object_schema = '{schema}' AND l.object_name = '{name}'"
    " AND l.lock_type NOT IN ('SHARED', 'SHARED_HIGH_PRIO', 'SHARED_READ', 'SHARED_READ_ONLY')",
)
_OF_EVERYTHING = ("lock_type LIKE 'Backup%' OR lock_type LIKE 'Global%'", "l.object_type IN ('BACKUP', 'GLOBAL')")
_IN_TRANSACTION = "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx"
_IN_USE = "SHOW OPEN TABLES WHERE in_use > 0"
_BY_USER = (
    "SELECT user, COUNT(*), MAX(IF(command = 'Sleep', time, 0)) FROM information_schema.processlist GROUP BY user"
    " ORDER BY 2 DESC"
)
_READS = re.compile(r"\s*SELECT\b(?!.*\bFOR\s+UPDATE\b)", re.IGNORECASE | re.DOTALL)
"""A statement that only reads; in nobody's way who wants to read."""
_BACKGROUND = ("Daemon", "Binlog Dump", "Slave_IO", "Slave_SQL", "Slave_worker")


class OtherSession(NamedTuple):
    """A session that is not ours."""

    thread: int
    user: Optional[str]
    command: str
    seconds: int
    """Since its statement began or, if it is idle, since its last one ended."""
    statement: Optional[str]

    @property
    def idle(self) -> bool:
        return self.command == "Sleep"

    def __str__(self) -> str:
        what = "idle" if self.idle else f"running {clipped(self.statement)}" if self.statement else self.command.lower()
        return f"thread {self.thread} of user {self.user or 'unknown'!r}, {what} for {self.seconds} s"


class Blockers:
    """Asks by a session of the writer's that waits for nothing. A question that fails is no error: it tells nothing."""

    def __init__(self, run: Callable[[str], list[Any]], own: Collection[int]) -> None:
        """`run`: performs a statement. `own`: ids of the writer's own sessions."""
        self._run = run
        self._own = own

    def of_table(self, table: str) -> str:
        """Who uses or locks the table, which is given as `` `shop`.`orders` ``; empty if nobody can be named."""
        schema, name = re.findall(r"`((?:[^`]|``)*)`", table)[:2]
        quoted = {"schema": _text(schema), "name": _text(name)}
        sessions = self._sessions()
        if named := self._owners([where.format(**quoted) for where in _OF_TABLE], sessions):
            return named
        running = [session for session in sessions if _mentions(session, name.replace("``", "`"))]
        if running:
            return _listed(running)
        in_use = {(row[0], row[1]) for row in self._ask(_IN_USE)}
        if (schema, name) in in_use:
            return self._holders_of_locked_tables(sessions)
        return ""

    def of_everything(self) -> str:
        """Who keeps FLUSH TABLES WITH READ LOCK, or LOCK INSTANCE, waiting; empty if nobody can be named."""
        sessions = self._sessions()
        if named := self._owners(_OF_EVERYTHING, sessions):
            return named
        running = [session for session in sessions if session.statement and not session.idle]
        if running:
            return _listed(running)
        return self._holders_of_locked_tables(sessions) if self._ask(_IN_USE) else ""

    def connections(self) -> str:
        """Who has the connections: `148 of user 'app', idle for up to 33 s`."""
        rows = self._ask(_BY_USER)[:MOST_NAMED]
        return ", ".join(
            f"{count} of user {user!r}" + (f" (idle for up to {idle} s)" if idle else "") for user, count, idle in rows
        )

    def _owners(self, where: Collection[str], sessions: list[OtherSession]) -> str:
        mariadb, standard = where
        for question in _OWNERS:
            owners = {row[0] for row in self._ask(question.format(mariadb=mariadb, standard=standard))}
            found = [session for session in sessions if session.thread in owners]
            if found:
                return _listed(found)
        return ""

    def _holders_of_locked_tables(self, sessions: list[OtherSession]) -> str:
        busy = {row[0] for row in self._ask(_IN_TRANSACTION)}
        idle = [session for session in sessions if session.idle and session.thread not in busy]
        if not idle:
            return ""
        one = "held by LOCK TABLES of " if len(idle) == 1 else "held by LOCK TABLES of one of: "
        return one + _listed(idle)

    def _sessions(self) -> list[OtherSession]:
        """The longest first."""
        found = [OtherSession(*row) for row in self._ask(_SESSIONS)]
        wanted = [session for session in found if session.thread not in self._own and session.command not in _BACKGROUND]
        return sorted(wanted, key=lambda session: -int(session.seconds or 0))

    def _ask(self, question: str) -> list[Any]:
        try:
            return self._run(question)
        except Exception:  # noqa: BLE001 - a plugin that is not there, or a server that has other columns
            return []


def clipped(statement: object) -> str:
    """A statement on one line, in quotation marks, not too long for a message."""
    text = " ".join(str(statement).split())
    return f'"{text[: _STATEMENT_LENGTH - 1]}…"' if len(text) > _STATEMENT_LENGTH else f'"{text}"'


def _listed(sessions: list[OtherSession]) -> str:
    more = f" and {len(sessions) - MOST_NAMED} more" if len(sessions) > MOST_NAMED else ""
    return "; ".join(map(str, sessions[:MOST_NAMED])) + more


def _mentions(session: OtherSession, table: str) -> bool:
    statement = session.statement or ""
    named = re.search(rf"(?<!\w){re.escape(table)}(?!\w)", statement, re.IGNORECASE)
    return bool(named) and not session.idle and not _READS.match(statement)


def _text(identifier: str) -> str:
    return identifier.replace("``", "`").replace("\\", "\\\\").replace("'", "''")
