"""agent/writers/pgbouncer.py, with a small console in memory; tests/vm has the real one."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pg8000.native
import pytest
from pg8000.exceptions import DatabaseError, InterfaceError

from quiesce.agent import identity, processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.writers import pgbouncer
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.pgbouncer import PgBouncer
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome

SOCKET = "/run/postgresql/.s.PGSQL.6432"
COLUMNS = ["name", "host", "port", "database", "pool_mode", "paused", "disabled"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes the pooler's user")


class Pooler:
    """What it answers can be changed by a test; what it was told is remembered, with the number of the session."""

    def __init__(self) -> None:
        self.pool_mode = "transaction"
        self.databases: list[list[Any]] = [
            ["pgbouncer", None, 6432, "pgbouncer", "statement", 0, 0],
            ["shop", "/run", 5432, "shop", None, 0, 0],
        ]
        self.errors: dict[str, Exception] = {}
        self.refuses: set[int] = set()
        """Sessions that it does not let in, by number."""
        self.sessions: list[Connection] = []
        self.tried = 0
        self.said: list[tuple[int, str]] = []

    def connect(self, user: str, *, database: str, sock: str, timeout: float) -> Connection:
        assert (user, database, sock) == ("pgbouncer", "pgbouncer", SOCKET)
        assert timeout > 0
        self.tried += 1
        if self.tried in self.refuses:
            raise InterfaceError("communication error")
        self.sessions.append(Connection(self, self.tried))
        return self.sessions[-1]

    def done(self) -> list[tuple[int, str]]:
        """What was not only a question."""
        return [(session, statement) for session, statement in self.said if not statement.startswith("SHOW")]


class Connection:
    """pg8000's, as far as the writer uses it."""

    def __init__(self, pooler: Pooler, number: int) -> None:
        self.pooler, self.number, self.closed = pooler, number, False
        self._usock, self.peer = socket.socketpair()
        self.columns: list[dict[str, str]] = []

    def run(self, statement: str) -> list[Any]:
        assert not self.closed
        self.pooler.said.append((self.number, statement))
        if statement in self.pooler.errors:
            raise self.pooler.errors[statement]
        self.columns = [{"name": name} for name in COLUMNS]
        return {
            "SHOW VERSION": [["PgBouncer 1.24.0"]],
            "SHOW DATABASES": self.pooler.databases,
            "SHOW CONFIG": [["listen_port", "6432", "x", "no"], ["pool_mode", self.pooler.pool_mode, "session", "yes"]],
        }.get(statement, [])

    def close(self) -> None:
        if self.closed:
            raise InterfaceError("connection is closed")
        self.closed = True
        self._usock.close()
        self.peer.close()


@pytest.fixture
def pooler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pooler]:
    made = Pooler()
    monkeypatch.setattr(pg8000.native, "Connection", made.connect)
    monkeypatch.setattr(sockets, "connect", lambda _pid, path, _timeout_s, **_: path)
    monkeypatch.setattr(sockets, "closed_on_error", nullcontext)
    yield made
    for session in made.sessions:
        if not session.closed:
            session.close()


def prepared() -> PgBouncer:
    """As an attempt does it: the rescue session first, which is number 1."""
    writer = PgBouncer(Process(7, "pgbouncer", 0, container=False), SOCKET)
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(5), 1000)
    return writer


def test_it_is_paused_over_one_session_and_resumed_over_the_other(pooler):
    """Broken: databases behind it would not fall quiet; or a pause that its session survives would not be ended."""
    writer = prepared()
    report = writer.report()
    assert (report.id, report.application, report.version) == ("pgbouncer:6432", "pgbouncer", "1.24.0")
    assert (report.level, report.grade, report.reason) == (Level.FRONT_END, Grade.CLEAN, None)
    assert writer.hold_limit_ms == 3000
    assert pooler.done() == []
    writer.hold(deadline_in_ns(5))
    assert 2 < pooler.sessions[1]._usock.gettimeout() <= 3
    writer.release()
    assert pooler.done() == [(2, "PAUSE"), (1, "RESUME")]
    assert (writer.grade, writer.outcome) == (Grade.CLEAN, Outcome.STABLE)
    writer.abort()
    writer.abort()
    assert pooler.done() == [(2, "PAUSE"), (1, "RESUME")]
    assert all(session.closed for session in pooler.sessions)


def test_the_dead_mans_undo_is_a_query_message_on_the_rescue_session(pooler):
    """Broken: an agent that dies would leave every client of the pooler waiting for ever."""
    writer = PgBouncer(Process(7, "pgbouncer", 0, container=False), SOCKET)
    undo = writer.undo()
    assert undo is not None
    assert undo.descriptor == pooler.sessions[0]._usock.fileno()
    os.write(undo.descriptor, undo.data)
    message = pooler.sessions[0].peer.recv(100)
    code, length = struct.unpack_from("!ci", message)
    assert (code, length, len(message)) == (b"Q", len(message) - 1, 1 + length)
    assert message[5:] == b"RESUME;\0"
    writer.abort()


def test_without_a_rescue_session_it_is_never_paused(pooler):
    """Broken: as above."""
    pooler.refuses = {1}
    writer = prepared()
    assert not writer.guarded
    assert writer.grade is Grade.CLEAN
    with pytest.raises(WriterError, match="nobody could let it go"):
        writer.hold(deadline_in_ns(5))
    assert pooler.done() == []
    assert writer.grade is Grade.CLEAN
    assert str(writer.reason).endswith("it keeps no data")


# -- what cannot be paused


def _default(pooler: Pooler) -> None:
    pooler.pool_mode = "session"


def _own(pooler: Pooler) -> None:
    pooler.databases[1][4] = "session"


@pytest.mark.parametrize("change", [_default, _own])
def test_session_pooling_is_left_alone_and_said(change, pooler):
    """Broken: PAUSE would wait for clients to leave, and every checkpoint fail with it; or nobody would know that the pooler
    was not paused."""
    change(pooler)
    writer = prepared()
    assert (writer.grade, writer.outcome) == (Grade.CLEAN, Outcome.NON_RETRYABLE)
    assert "database 'shop' has session pooling" in str(writer.reason)
    writer.hold(deadline_in_ns(5))
    writer.release()
    writer.abort()
    assert pooler.done() == []
    assert writer.report().grade is Grade.CLEAN


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_databases_own_mode_counts_more_than_the_default(mode, pooler):
    """Broken: a pooler that can be paused would not be."""
    pooler.pool_mode = "session"
    pooler.databases[1][4] = mode
    writer = prepared()
    assert writer.reason is None
    writer.abort()


def test_its_own_console_is_no_database(pooler):
    """Broken: no pooler could be paused where the console has session pooling."""
    pooler.databases[0][4] = "session"
    assert prepared().reason is None


@pytest.mark.parametrize("paused", [1, "1"])
def test_what_somebody_else_paused_stays_paused(paused, pooler):
    """Broken: an administrator's PAUSE would be ended by a checkpoint."""
    pooler.databases[1][5] = paused
    writer = prepared()
    assert writer.reason == "database 'shop' is paused already, by somebody else"
    writer.hold(deadline_in_ns(5))
    writer.release()
    writer.abort()
    assert pooler.done() == []


def test_a_pause_of_everything_by_somebody_else_is_theirs_to_end(pooler):
    """Broken: as above; SHOW DATABASES does not show it."""
    pooler.errors["PAUSE"] = DatabaseError({"S": "ERROR", "C": "08P01", "M": "already suspended/paused"})
    writer = prepared()
    with pytest.raises(WriterError, match="not held: already suspended/paused; it keeps"):
        writer.hold(deadline_in_ns(5))
    writer.abort()
    assert pooler.done() == [(2, "PAUSE")]
    assert (writer.grade, writer.let_go) == (Grade.CLEAN, True)


# -- when it does not answer


@pytest.mark.parametrize("error", [TimeoutError("timed out"), InterfaceError("the read timed out")])
def test_transactions_that_do_not_end_are_let_go_on(error, pooler):
    """Broken: a pause that comes later would stay."""
    pooler.errors["PAUSE"] = error
    writer = prepared()
    with pytest.raises(WriterError, match="transactions did not end in time") as raised:
        writer.hold(deadline_in_ns(5))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert pooler.done() == [(2, "PAUSE"), (1, "RESUME")]
    assert writer.let_go


def test_a_pooler_that_cannot_be_resumed_is_left_to_the_dead_man(pooler):
    """Broken: the session over which the dead-man would say RESUME would be closed by the one who could not; and every
    client wait for ever."""
    writer = prepared()
    writer.hold(deadline_in_ns(5))
    pooler.errors["RESUME"] = TimeoutError("timed out")
    writer.release()
    assert (writer.outcome, writer.let_go) == (Outcome.TIMEOUT, False)
    rescue, console = pooler.sessions
    assert (rescue.closed, console.closed) == (False, True)
    assert writer.warnings == ["it could not be let go: timed out"]
    pooler.errors.clear()
    writer.abort()
    assert (writer.let_go, rescue.closed) == (True, True)


def test_one_that_lets_nobody_in_says_why(pooler):
    """Broken: an error of a library's would end every look at the machine."""
    pooler.refuses = {1, 2}
    writer = prepared()
    assert writer.reason == "its connection is closed"
    assert (writer.grade, writer.outcome) == (Grade.CLEAN, Outcome.RETRYABLE)
    writer.abort()
    assert writer.warnings == []


def test_each_pooler_is_found_by_its_socket(monkeypatch):
    """Broken: two poolers of one machine would be one; or one in a container be asked at a path of ours."""
    found = [Process(pid, "pgbouncer", 0, container=pid == 9) for pid in (7, 8, 9, 10)]
    paths = {7: [SOCKET], 8: ["/tmp/.s.PGSQL.6433"], 9: [SOCKET], 10: []}
    monkeypatch.setattr(identity, "applications", lambda _: iter(found))
    monkeypatch.setattr(processes, "listening_paths", paths.__getitem__)
    assert [writer.id for writer in pgbouncer.discover()] == ["pgbouncer:6432", "pgbouncer:6433"]
