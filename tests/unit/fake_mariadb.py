"""A small MariaDB in memory, which answers what a test wants, and writers that hold it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.err import OperationalError

from quiesce.agent import memory, processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.writers import mariadb, mariadb_locked, mariadb_locks
from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.mariadb import DatabaseServer

FTWRL = "FLUSH TABLES WITH READ LOCK"
KILLED = OperationalError(1317, "Query execution was interrupted")
VARIABLES = {
    "version": "10.11.19-MariaDB-0+deb12u1",
    "datadir": "/var/lib/mysql/",
    "server_id": "1",
    "log_bin": "ON",
    "wsrep_on": "OFF",
    "max_connections": "151",
    "innodb_log_checkpoint_now": "OFF",
    "innodb_flush_log_at_trx_commit": "1",
    "aria_checkpoint_interval": "30",
    "gtid_binlog_pos": "0-1-7",
    "gtid_current_pos": "0-1-7",
}
STATUS = {
    "Threads_connected": "5",
    "Tc_log_page_size": "0",
    "Innodb_lsn_current": "1016",
    "Innodb_lsn_last_checkpoint": "1000",
    "Innodb_buffer_pool_pages_dirty": "0",
}


class Server:
    """What it answers can be changed by a test; who holds what is remembered."""

    def __init__(self) -> None:
        self.variables = dict(VARIABLES)
        self.status = dict(STATUS)
        self.tables = [("`shop`.`a`", "InnoDB"), ("`shop`.`b`", "InnoDB"), ("`shop`.`c`", "InnoDB")]
        self.engines: list[tuple[str, str, int]] = [("InnoDB", "shop.a", 3)]
        self.answers: dict[str, Any] = {"SHOW BINLOG STATUS": [("bin.000003", 4711, "", "")]}
        """By how a statement begins: rows, or an error."""
        self.on: dict[str, Callable[[], Any]] = {}
        """By statement: what else it does."""
        self.waits: dict[str, int] = {}
        """By statement: how often it waits for a kill."""
        self.transactions: list[list[tuple[Any, ...]]] = []
        """What each look finds of others; the last one for ever."""
        self.old_copies = 0
        """How many looks are answered from a copy made before, that shows nobody."""
        self.late = False
        """A kill comes when the statement has just been done."""
        self.connections: list[Connection] = []
        self.said: list[tuple[int, str]] = []

    def connect(self, user: str, **_: Any) -> Connection:
        assert user == "root"
        self.connections.append(Connection(self, len(self.connections) + 1))
        return self.connections[-1]

    def perform(self, connection: Connection, statement: str) -> Any:
        """Rows, an error, or None: no answer yet."""
        self.said.append((connection.id, statement))
        if statement in self.on:
            self.on[statement]()
        if self.waits.get(statement):
            self.waits[statement] -= 1
            return None
        kill = re.fullmatch(r"KILL QUERY (\d+)", statement)
        if kill and "KILL QUERY" not in self.answers:
            self.connections[int(kill.group(1)) - 1].answer([] if self.late else KILLED)
        if named := re.match(r"SHOW GLOBAL (VARIABLES|STATUS) ", statement):
            values = self.variables if named.group(1) == "VARIABLES" else self.status
            return [(name, values[name]) for name in re.findall(r"'(\w+)'", statement) if name in values]
        for start, answer in self.answers.items():
            if statement.startswith(start):
                return answer
        if statement == mariadb_locked.TABLES:
            return self.tables
        if statement == mariadb._ENGINES:
            return self.engines
        if "innodb_trx" in statement:
            return self.look(connection.id, statement)
        return []

    def look(self, id: int, statement: str) -> list[tuple[Any, ...]]:
        if self.old_copies:
            self.old_copies -= 1
            return [(id, "root", 0, 0, statement.replace("quiesce", "before"))]
        others = self.transactions.pop(0) if len(self.transactions) > 1 else (self.transactions or [[]])[0]
        return [*others, (id, "root", 0, 0, statement)]

    def of(self, start: str) -> list[tuple[int, str]]:
        return [(id, statement) for id, statement in self.said if statement.startswith(start)]


class Connection:
    """PyMySQL's, as far as the writer uses it."""

    def __init__(self, server: Server, id: int) -> None:
        self.server, self.id = server, id
        self._sock, self._other = socket.socketpair()
        self._pending: Any = None
        self._result: Any = None
        self.rows: Any = ()
        self.closed = self.gone = False

    def thread_id(self) -> int:
        return self.id

    def _execute_command(self, command: int, sql: bytes) -> None:
        assert command == pymysql.constants.COMMAND.COM_QUERY
        if self.gone:
            raise OperationalError(2006, "MySQL server has gone away")
        answer = self.server.perform(self, sql.decode())
        if answer is not None:
            self.answer(answer)

    def answer(self, answer: Any) -> None:
        self._pending = answer
        self._other.send(b"x")

    def _read_query_result(self) -> None:
        self._sock.recv(1)
        if isinstance(self._pending, Exception):
            raise self._pending
        self._result, self.rows = self, self._pending

    def connect(self, path: str) -> None:
        assert path == "/run/mysqld/mysqld.sock"

    def close(self) -> None:
        self.closed = True
        self._sock.close()
        self._other.close()


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It is the one that the writer connects to, and waits are short."""
    server = Server()
    monkeypatch.setattr(pymysql, "connect", server.connect)
    monkeypatch.setattr(sockets, "connect", lambda _pid, path, _timeout_s, **_: path)
    monkeypatch.setattr(sockets, "closed_on_error", contextlib.nullcontext)
    monkeypatch.setattr(processes, "listening_paths", lambda _: ["/run/a/mysqlx.sock", "/run/mysqld/mysqld.sock"])
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(mariadb, "PREPARE_FLUSH_S", 0.01)
    monkeypatch.setattr(mariadb_locked, "HOLD_BUDGET_MS", 100)
    for name, value in {"LOCK_TIMEOUT_MS": 2, "STALE_S": 0.001}.items():
        monkeypatch.setattr(mariadb_locks, name, value)
    yield server
    for connection in server.connections:
        connection.close()


def database(name: str = "mariadbd", directory: str = "/var/lib/mysql", container: bool = False) -> DatabaseServer:
    return DatabaseServer(Process(1, name, 0, container), directory)


def prepared(name: str = "mariadbd") -> DatabaseServer:
    writer = database(name)
    writer.prepare(deadline_in_ns(5), 1500)
    return writer


def held(name: str = "mariadbd") -> DatabaseServer:
    writer = prepared(name)
    writer.hold(deadline_in_ns(5))
    return writer


def refused(writer: DatabaseServer) -> str:
    """Why it cannot be held, of a writer that says so before the attempt."""
    writer.identify()
    assert not writer.grade.vouched
    return str(writer.reason)


def says(statement: str, *rows: tuple[Any, ...]) -> Callable[[Server], None]:
    """A change of a server: what it answers to this statement."""
    return lambda server: server.answers.update({statement: list(rows)})
