"""agent/writers/postgresql_locks.py, with sessions that answer as a server would: tests/vm has the server."""

from __future__ import annotations

import re
import time

import pytest

from quiesce.agent.writers import postgresql_locks
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.postgresql_locks import ClusterLocks
from quiesce.model.reports import Outcome

TABLES = ["public.a", "public.b", "public.c"]
CATALOGS = ["pg_catalog.pg_class", "pg_catalog.pg_attribute"]
WRITER = [42, "shop", "till", 7]


def server_error(sqlstate: str) -> Exception:
    """As pg8000 raises it."""
    return Exception({"S": "ERROR", "C": sqlstate, "M": "no"})


class Session:
    """One connection of pg8000. `conflicts`: by table, the errors that the tries to lock it meet."""

    def __init__(self, **conflicts: list[Exception]) -> None:
        self.tables = list(TABLES)
        self.conflicts = {f"public.{name}": errors for name, errors in conflicts.items()}
        self.said: list[str] = []
        self.locked: list[str] = []
        """In the order in which they were locked, since the last rollback."""
        self.closed = False
        self.cancelled_rollbacks = 0
        """How many ROLLBACKs the server will cancel."""

    def run(self, statement: str) -> list[list[object]]:
        self.said.append(statement)
        if statement == postgresql_locks._TABLES:
            return [[table] for table in self.tables]
        if statement == postgresql_locks._CATALOGS:
            return [[catalog] for catalog in CATALOGS]
        if statement == "ROLLBACK":
            if self.cancelled_rollbacks:
                self.cancelled_rollbacks -= 1
                raise server_error("57014")
            self.locked = []
        if locking := re.fullmatch(r"LOCK TABLE (.*) IN SHARE MODE", statement):
            for table in locking.group(1).split(", "):
                if self.conflicts.get(table):
                    raise self.conflicts[table].pop(0)
                self.locked.append(table)
        return []

    def close(self) -> None:
        self.closed = True


class Control:
    """Answers who is in a transaction that wrote; the last answer for ever."""

    def __init__(self, *answers: list[list[object]]) -> None:
        self._answers = list(answers) or [[]]

    def run(self, statement: str) -> list[list[object]]:
        assert statement == postgresql_locks._WRITING
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def locks_of(*sessions: Session, learned: tuple[str, ...] = ()) -> ClusterLocks:
    locks = ClusterLocks()
    for number, session in enumerate(sessions):
        locks.prepare(f"db{number}", session, list(learned), window_ms=1500)
    return locks


def test_every_table_of_every_database_is_locked_and_the_catalogs_last():
    """Broken: a table would be written to during the hold; or a transaction that holds a catalog would deadlock with us."""
    first, second = Session(), Session()
    second.said = first.said  # one story of both
    locks = locks_of(first, second)
    assert "SET idle_in_transaction_session_timeout = 1500" in first.said
    locks.take(Control(), deadline_in_ns(5))
    assert first.locked == second.locked == TABLES + CATALOGS
    locked = [statement.split()[2] for statement in first.said if statement.startswith("LOCK TABLE")]
    assert locked == [*TABLES, *TABLES, *[f"{CATALOGS[0]},"] * 2]
    assert (locks.tries, locks.learned) == (1, {})


@pytest.mark.parametrize("sqlstate", ["55P03", "40P01", "57014"])
def test_a_table_in_conflict_comes_first_in_the_next_try_and_is_remembered(sqlstate):
    """Broken: the application's own lock order would not be learned, and the next hold would take seconds, too."""
    session = Session(c=[server_error(sqlstate)])
    locks = locks_of(session)
    locks.take(Control(), deadline_in_ns(5))
    assert session.locked[:3] == ["public.c", "public.a", "public.b"]
    assert (locks.tries, locks.learned) == (2, {"db0": ["public.c"]})


def test_a_rollback_that_is_cancelled_for_lack_of_time_is_repeated():
    """Broken: who holds a lock for longer than a window would get the server's own words for a reason, not the one to blame."""
    first, second = Session(), Session()
    second.conflicts[CATALOGS[0]] = [server_error("57014")]
    first.cancelled_rollbacks = 1
    locks = locks_of(first, second)
    locks.take(Control([WRITER], []), deadline_in_ns(5))
    assert (locks.tries, first.cancelled_rollbacks) == (2, 0)
    first.cancelled_rollbacks = 1
    assert locks.let_go() == []


def test_an_order_learned_before_is_used_but_for_tables_that_are_gone():
    """Broken: each hold would learn the order anew; or fail for a table that was dropped."""
    session = Session()
    locks_of(session, learned=("public.gone", "public.b")).take(Control(), deadline_in_ns(5))
    assert session.locked[:3] == ["public.b", "public.a", "public.c"]


def test_a_table_dropped_since_the_preparation_is_left_out():
    """Broken: an application that drops a table would fail the checkpoint."""
    session = Session(b=[server_error("42P01")])
    locks = locks_of(session)
    session.tables.remove("public.b")
    locks.take(Control(), deadline_in_ns(5))
    assert session.locked[:2] == ["public.a", "public.c"]


def test_a_catalog_in_conflict_is_tried_again():
    """Broken: autovacuum would fail the checkpoint."""
    session = Session()
    session.conflicts = {CATALOGS[1]: [server_error("55P03")]}
    locks = locks_of(session)
    locks.take(Control(), deadline_in_ns(5))
    assert (session.locked, locks.tries, locks.learned) == (TABLES + CATALOGS, 2, {})


def test_a_transaction_that_wrote_without_a_table_lock_is_waited_for():
    """Broken: its commit would be missing, though its client was told that it is in."""
    locks = locks_of(Session())
    locks.take(Control([WRITER], []), deadline_in_ns(5))
    assert locks.tries == 2


def test_locks_that_are_not_had_in_time_name_who_writes():
    """Broken: the administrator could not tell which client keeps the checkpoint from being taken."""
    locks = locks_of(Session())
    with pytest.raises(WriterError, match=r"process 42 of user 'shop' \(till\) is in a writing transaction for 7 s") as raised:
        locks.take(Control([WRITER]), time.monotonic_ns() + 20_000_000)
    assert raised.value.outcome is Outcome.TIMEOUT


def test_any_other_error_of_the_server_ends_the_hold():
    """Broken: a role without the right to lock a table would be tried until the deadline."""
    with pytest.raises(Exception, match="42501"):
        locks_of(Session(a=[server_error("42501")])).take(Control(), deadline_in_ns(5))


def test_releasing_names_the_databases_whose_session_was_gone(monkeypatch):
    """Broken: a hold that the server ended by itself would be vouched for."""
    good, lost = Session(), Session()
    locks = locks_of(good, lost)
    locks.take(Control(), deadline_in_ns(5))

    def gone(_: str) -> None:
        raise OSError("gone")

    monkeypatch.setattr(lost, "run", gone)
    assert locks.let_go() == ["db1"]
    assert (good.locked, lost.closed) == ([], True)
    locks.close()
    assert (good.closed, locks.sessions) == (True, [])
