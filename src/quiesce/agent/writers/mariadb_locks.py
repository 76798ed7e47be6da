"""Holds the writers of MariaDB or MySQL: every table locked, no transaction open that wrote, and none to come.

Each table has a connection of its own, which runs `LOCK TABLES t READ`: that waits for the transactions that wrote to the table
and keeps new ones from writing. One connection for all tables could deadlock with a transaction that takes them in another
order; the server would see the deadlock and end one of the two, perhaps the application's. With a connection for each table the
server sees no deadlock: the wait for a lock is ended here, after a short time, by KILL QUERY. The table that was waited for in
vain comes first in the next try, so that the application's own order is learned: in 1 to 3 tries, without an error of a client.

Once every table is locked, a lock on everything keeps it so for whatever else could be written: `FLUSH TABLES WITH READ LOCK`
in MariaDB (alone, it would stop transactions in their middle), `LOCK INSTANCE FOR BACKUP` in MySQL.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, NamedTuple, Optional

from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.mariadb_blockers import Blockers, clipped
from quiesce.agent.writers.mariadb_session import Session, code_of
from quiesce.model.reports import Outcome

LOCK_TIMEOUT_MS = 60
"""How long the first try waits for one lock, in milliseconds; each try waits twice as long as the one before. Meanwhile the
application's own writers queue behind the waiting session."""
MAX_LOCK_TIMEOUT_MS = 700
STALE_S = 0.11
"""The server renews its list of transactions only if nobody read it for 100 ms (trx0i_s.cc: CACHE_MIN_IDLE_TIME_NS)."""

_NO_SUCH_TABLE = 1146
_CONFLICT = (1205, 1213, 1317)  # lock time-out, deadlock, KILL QUERY

_TRANSACTIONS = (
    "SELECT /* {mark} */ t.trx_mysql_thread_id, p.user, TIMESTAMPDIFF(SECOND, t.trx_started, NOW()), t.trx_rows_modified,"
    " t.trx_query FROM information_schema.innodb_trx t"
    " LEFT JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id ORDER BY t.trx_started"
)


class _Transaction(NamedTuple):
    thread: int
    user: Optional[str]
    seconds: int
    modified: int
    """Rows."""
    statement: Optional[str] = None

    def __str__(self) -> str:
        if not self.thread:  # nobody's any more
            return f"a prepared XA transaction, which XA RECOVER lists, is open for {self.seconds} s"
        what = f"running {clipped(self.statement)}" if self.statement else "idle"
        return f"thread {self.thread} of user {self.user or 'unknown'!r} is in a transaction for {self.seconds} s ({what})"


class _Obstacle(NamedTuple):
    text: str
    by: str = ""
    """The table, or _EVERYTHING, that could not be locked: somebody is to be named."""
    pause_s: float = 0.01
    """How long to let the application run before the next try."""


_EVERYTHING = "everything"


class DatabaseLocks:
    """The locks of one attempt."""

    def __init__(self, control: Session, watcher: Session, mariadb: bool, learned: list[str]) -> None:
        """`control` takes the lock on everything. `watcher` kills what waits too long, and sees who is in a transaction.
        `learned`: tables that have to be locked before the others, by earlier attempts."""
        self.sessions: list[Session] = []
        """One a table, in the order in which the tables are locked."""
        self.tries = 0
        self.learned = learned
        self._control = control
        self._watcher = watcher
        self._mariadb = mariadb
        self._looks = 0

    def take(self, until_ns: int, deadline_ns: int) -> None:
        """Locks everything, beginning no try after `until_ns`. Raises WriterError, when a part may still be locked."""
        obstacle = _Obstacle("no time was left")
        self.tries = 0
        while time.monotonic_ns() < until_ns:
            timeout_ms = min(LOCK_TIMEOUT_MS << self.tries, MAX_LOCK_TIMEOUT_MS)
            self.tries += 1
            found = self._try(timeout_ms, until_ns, deadline_ns)
            if not found:
                return
            obstacle = found
            lost = self.let_go(deadline_ns)
            if lost:
                raise WriterError(f"the session for {lost[0]} was lost")
            time.sleep(obstacle.pause_s)
        who = self._who(obstacle, deadline_ns)
        raise WriterError(f"its writers could not be held in time: {obstacle.text}{who}", Outcome.TIMEOUT)

    def _who(self, obstacle: _Obstacle, deadline_ns: int) -> str:
        """Who stood in the way, if that is not in the obstacle's text. Nothing is locked by this writer any more."""
        if not obstacle.by:
            return ""
        own = {session.id for session in (self._control, self._watcher, *self.sessions)}
        blockers = Blockers(lambda question: self._watcher.run(question, deadline_ns), own)
        named = blockers.of_everything() if obstacle.by is _EVERYTHING else blockers.of_table(obstacle.by)
        if named:
            return f": {named}"
        with suppress(Exception):
            found = self._transactions(deadline_ns)
            if found:
                return f"; of {len(found)} open transactions the oldest: {found[0]}" if found[1:] else f"; {found[0]}"
        return ""

    def let_go(self, deadline_ns: int) -> list[str]:
        """Releases every lock. Returns what was locked by a session that was gone, so that its lock had ended before."""
        lost = []
        for session in (self._control, *self.sessions):
            statement = "UNLOCK INSTANCE" if session is self._control and not self._mariadb else "UNLOCK TABLES"
            try:
                session.run(statement, deadline_ns)
            except Exception:  # noqa: BLE001 - a session that cannot even unlock is closed
                lost.append(session.table or "everything")
                session.close()
        return lost

    def close(self) -> None:
        """Ends the sessions that lock tables, and their locks with them; what was learned stays. Idempotent; never raises."""
        for session in self.sessions:
            session.close()
        self.sessions = []

    def run_until(self, session: Session, statement: str, give_up_ns: int, deadline_ns: int) -> bool:
        """Whether the statement was done by `give_up_ns`. If not, it has been killed, or the server gave it up."""
        session.send(statement)
        in_time = session.answers_until(give_up_ns)
        if not in_time:
            self._watcher.run(f"KILL QUERY {session.id}", deadline_ns)
        try:
            session.answer(deadline_ns)
            if in_time:
                return True
            session.run("DO 0", deadline_ns)  # a kill that came too late hits the session's next statement
        except Exception as error:
            if code_of(error) not in _CONFLICT:
                raise
        return False

    def _try(self, timeout_ms: int, until_ns: int, deadline_ns: int) -> Optional[_Obstacle]:
        """One try. Returns what stood in the way."""
        for session in list(self.sessions):
            give_up_ns = min(until_ns, time.monotonic_ns() + timeout_ms * 1_000_000)
            try:
                locked = self.run_until(session, f"LOCK TABLES {session.table} READ", give_up_ns, deadline_ns)
            except Exception as error:
                if code_of(error) != _NO_SUCH_TABLE:
                    raise
                self.sessions.remove(session)  # the table was dropped since prepare
                session.close()
                continue
            if not locked:
                self.sessions.remove(session)
                self.sessions.insert(0, session)
                self.learned = [session.table, *(table for table in self.learned if table != session.table)]
                return _Obstacle(f"table {session.table} was in use", session.table)
        everything = "FLUSH TABLES WITH READ LOCK" if self._mariadb else "LOCK INSTANCE FOR BACKUP"
        give_up_ns = min(until_ns, time.monotonic_ns() + timeout_ms * 1_000_000)
        if not self.run_until(self._control, everything, give_up_ns, deadline_ns):
            return _Obstacle(f"{everything} had to wait", _EVERYTHING)
        writing = [transaction for transaction in self._transactions(deadline_ns) if transaction.modified]
        return _Obstacle("; ".join(map(str, writing[:3])), pause_s=STALE_S) if writing else None

    def _transactions(self, deadline_ns: int) -> list[_Transaction]:
        """Every open transaction but the watcher's own, the oldest first. Raises WriterError if only an older list can be had.

        The server answers from a copy of the list, and keeps the copy for as long as somebody reads it often. A copy that
        shows the watcher's own transaction, with the marked statement that asks, was made for this very statement.
        """
        self._watcher.run("START TRANSACTION WITH CONSISTENT SNAPSHOT", deadline_ns)
        try:
            for _ in range(3):
                self._looks += 1
                mark = f"quiesce {self._looks}."
                rows: list[Any] = self._watcher.run(_TRANSACTIONS.format(mark=mark), deadline_ns)
                if any(row[0] == self._watcher.id and mark in str(row[4]) for row in rows):
                    return [_Transaction(*row[:5]) for row in rows if row[0] != self._watcher.id]
                time.sleep(STALE_S)
            raise WriterError(
                "it does not say which transactions are open now; others read information_schema.innodb_trx too often"
            )
        finally:
            self._watcher.run("COMMIT", deadline_ns)
