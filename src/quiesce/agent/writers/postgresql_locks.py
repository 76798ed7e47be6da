"""Holds PostgreSQL's writers: every table of every database locked in SHARE mode, and no transaction open that wrote.

A SHARE lock waits for the transactions that wrote to the table and keeps new ones from writing. The locks are taken one after
another. A table at which a try had to wait too long, or ran into a deadlock, comes first in the next try, so that the order in
which the application itself locks its tables is learned: 8 to 52 ms until all is locked under load, where a fixed order took
seconds. The catalogs come last: with them locked, neither DDL nor autovacuum writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql_session import close, sqlstate_of
from quiesce.model.reports import Outcome

LOCK_TIMEOUT_MS = 700
"""Longest wait for one lock, in milliseconds; meanwhile the application's own writers queue behind the waiting session."""
DEADLOCK_TIMEOUT_MS = 10
"""Short, so that of two sessions in a deadlock ours gives up and not the application's, and autovacuum steps aside at once."""
CHUNK = 64
"""Tables locked by one statement, where no conflict is expected."""

_CANCELLED = "57014"
_RETRY = {"55P03": "lock time-out", "40P01": "deadlock", _CANCELLED: "statement time-out"}
_NO_SUCH_TABLE = "42P01"

_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY c.oid
"""
_CATALOGS = """
SELECT format('pg_catalog.%I', relname) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace ORDER BY oid
"""
_WRITING = """
SELECT pid, usename::text, coalesce(application_name, ''), extract(epoch FROM now() - xact_start)::int
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3
"""


@dataclass
class LockSession:
    """The session that locks the tables of one database."""

    database: str
    connection: Any
    tables: list[str]
    catalogs: list[str]
    """Large objects among them."""
    learned: list[str] = field(default_factory=list)
    """Tables to be locked before the others."""


class ClusterLocks:
    """The locks of one attempt, in all databases of a cluster."""

    def __init__(self) -> None:
        self.sessions: list[LockSession] = []
        self.tries = 0
        self.learned: dict[str, list[str]] = {}
        """By database, the tables that had to come first; only of databases where a try failed."""

    def prepare(self, database: str, connection: Any, learned: list[str], window_ms: int) -> None:
        """Takes over the connection, which locks nothing yet. `learned`: from earlier attempts; tables dropped since are left
        out. The server ends the session, and its locks with it, when it was idle in a transaction for `window_ms`."""
        tables = [name for (name,) in connection.run(_TABLES)]
        catalogs = [name for (name,) in connection.run(_CATALOGS)]
        connection.run(f"SET idle_in_transaction_session_timeout = {window_ms}")
        connection.run(f"SET deadlock_timeout = {DEADLOCK_TIMEOUT_MS}")
        known = set(tables)
        order = [table for table in learned if table in known]
        self.sessions.append(LockSession(database, connection, tables, catalogs, order))

    def take(self, control: Any, deadline_ns: int) -> None:
        """Returns when every table is locked and no transaction is open that wrote. Raises WriterError."""
        self.tries = 0
        obstacle = ""
        while True:
            left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
            if left_ms <= 0:
                raise WriterError(f"its writers could not be held in time: {obstacle or 'no time was left'}", Outcome.TIMEOUT)
            self.tries += 1
            failed = next((session for session in self.sessions if not self._lock_tables(session, left_ms)), None)
            # The catalogs of all databases come last: by now no transaction is open that changed one and also wrote to a table.
            failed = failed or next((session for session in self.sessions if not _lock_catalogs(session)), None)
            obstacle = writing_transactions(control)
            if failed is None and not obstacle:
                return
            if failed is not None:
                obstacle = obstacle or f"locks in database {failed.database!r}"
            for session in self.sessions:
                _roll_back(session.connection)
            time.sleep(min(0.002 * self.tries, 0.05))

    def let_go(self) -> list[str]:
        """Releases every lock. Returns the databases whose session was gone, so that their locks had ended before."""
        lost = []
        for session in self.sessions:
            try:
                _roll_back(session.connection)
            except Exception:  # noqa: BLE001 - a session that cannot even roll back is closed
                lost.append(session.database)
                close(session.connection)
        return lost

    def close(self) -> None:
        """Ends the sessions, and their locks with them; what was learned stays. Idempotent; never raises."""
        for session in self.sessions:
            close(session.connection)
        self.sessions = []

    def _lock_tables(self, session: LockSession, left_ms: int) -> bool:
        """One try. On a conflict, the table it was about comes first in the next try."""
        timeout = max(1, min(LOCK_TIMEOUT_MS, left_ms))
        session.connection.run(f"BEGIN; SET LOCAL lock_timeout = {timeout}; SET LOCAL statement_timeout = {max(1, left_ms)}")
        learned = set(session.learned)
        rest = [table for table in session.tables if table not in learned]
        # One by one while the order is being learned, so that a conflict names its table; many at once where none is expected.
        size = 1 if len(session.tables) <= CHUNK else CHUNK
        batches = [[table] for table in session.learned]
        batches += [rest[start : start + size] for start in range(0, len(rest), size)]
        for batch in batches:
            try:
                session.connection.run(f"LOCK TABLE {', '.join(batch)} IN SHARE MODE")
            except Exception as error:
                code = sqlstate_of(error)
                if code == _NO_SUCH_TABLE:  # dropped since prepare
                    session.connection.run("ROLLBACK")
                    session.tables = [name for (name,) in session.connection.run(_TABLES)]
                    session.learned = [table for table in session.learned if table in set(session.tables)]
                    return False
                if code not in _RETRY:
                    raise
                session.learned = batch + [table for table in session.learned if table not in batch]
                self.learned[session.database] = session.learned[: 8 * CHUNK]
                return False
        return True


def _roll_back(connection: Any) -> None:
    """Ends the transaction. Its statement time-out applies to the ROLLBACK, too, so the server may cancel the ROLLBACK. That
    aborts the transaction and resets the time-out: the second ROLLBACK has none."""
    try:
        connection.run("ROLLBACK")
    except Exception as error:
        if sqlstate_of(error) != _CANCELLED:
            raise
        connection.run("ROLLBACK")


def _lock_catalogs(session: LockSession) -> bool:
    """One try, in the transaction that holds the tables. Autovacuum, which writes much when it comes to a catalog, steps aside
    or passes it over; whoever creates a table waits."""
    try:
        session.connection.run(f"LOCK TABLE {', '.join(session.catalogs)} IN SHARE MODE")
    except Exception as error:
        if sqlstate_of(error) not in _RETRY:
            raise
        return False
    return True


def writing_transactions(control: Any) -> str:
    """Who is in a transaction that wrote, as a reason for a person: at most the three oldest. Empty if nobody is."""
    return "; ".join(
        f"process {pid} of user {user!r} ({application or 'no application name'}) is in a writing transaction for {age} s"
        for pid, user, application, age in control.run(_WRITING)
    )
