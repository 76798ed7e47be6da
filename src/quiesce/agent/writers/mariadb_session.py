"""A session at MariaDB or MySQL, as the operating system's root at the server's own socket. No wait is without an end."""

from __future__ import annotations

import math
import select
import time
from contextlib import suppress
from typing import Any

from quiesce.agent import processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.model.reports import Outcome

_COM_QUERY = 3
_ACCESS_DENIED = (1045, 1698)
_TOO_MANY_CONNECTIONS = 1040
GONE = (2006, 2013, 1927, 4031)
"""Numbers of errors that say that the session is no more, by PyMySQL and by the server."""
_SETTINGS = (
    "SET SESSION wait_timeout = 28800",  # until the hold makes it the dead-man
    "SET SESSION lock_wait_timeout = 2",  # in seconds, if the agent dies meanwhile; else KILL QUERY comes first
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",  # the only one with a consistent snapshot
    # The server's logs are on the disk that freezes; a statement that is logged there would wait. MySQL lacks some of these.
    "SET SESSION sql_log_off = ON",
    "SET SESSION slow_query_log = OFF",
    "SET SESSION max_statement_time = 0",
)


CONNECT_TIMEOUT_S = 5.0


class TooManyConnectionsError(WriterError):
    """Clients have all connections, and somebody has the one that the server keeps for an administrator."""

    def __init__(self, who: str = "") -> None:
        text = "all its connections are in use, also the one that it keeps for an administrator (max_connections)"
        super().__init__(f"{text}: {who}" if who else text)


class Session:
    """A connection, and the table that it locks. Answers are waited for here and not in PyMySQL, so that every wait can end."""

    def __init__(self, connection: Any, table: str = "") -> None:
        self.table = table
        self.id: int = connection.thread_id()
        self._connection = connection

    def send(self, statement: str) -> None:
        self._connection._execute_command(_COM_QUERY, statement.encode())

    def answers_until(self, until_ns: int) -> bool:
        poll = select.poll()
        poll.register(self._connection._sock, select.POLLIN)
        return bool(poll.poll(max(0, math.ceil((until_ns - time.monotonic_ns()) / 1e6))))

    def answer(self, deadline_ns: int) -> list[Any]:
        """The rows. Raises WriterError (timeout), and the server's errors."""
        if not self.answers_until(deadline_ns):
            raise WriterError("it gave no answer in time", Outcome.TIMEOUT)
        self._connection._read_query_result()
        return list(self._connection._result.rows or ())

    def run(self, statement: str, deadline_ns: int) -> list[Any]:
        self.send(statement)
        return self.answer(deadline_ns)

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()


def connect(process: Process, application: str, table: str = "") -> Session:
    """A session of the database's root, which the server lets in because this process is root. Raises WriterError,
    TooManyConnectionsError."""
    import pymysql

    paths = [path for path in processes.listening_paths(process.pid) if not path.endswith("mysqlx.sock")]
    if not paths:
        raise WriterError("it listens at no Unix socket, the only way in without a password", Outcome.NON_RETRYABLE)
    try:
        connection = pymysql.connect(user="root", autocommit=True, read_timeout=5, write_timeout=5, defer_connect=True)
        with sockets.closed_on_error(sockets.connect(process.pid, paths[0], CONNECT_TIMEOUT_S, uid=0)) as reached:
            connection.connect(reached)
    except pymysql.err.OperationalError as error:
        if code_of(error) == _TOO_MANY_CONNECTIONS:
            raise TooManyConnectionsError from None
        if code_of(error) not in _ACCESS_DENIED:
            raise
        how = "VIA unix_socket" if application == "mariadb" else "WITH auth_socket"
        raise WriterError(
            f"it does not let root in without a password ({error.args[1]}); allow it, only from this machine's root:"
            f" ALTER USER root@localhost IDENTIFIED {how} (or CREATE USER …, and GRANT ALL ON *.*)",
            Outcome.NON_RETRYABLE,
        ) from None
    session = Session(connection, table)
    for setting in _SETTINGS:
        with suppress(pymysql.err.DatabaseError):
            session.run(setting, deadline_in_ns(5))
    return session


def code_of(error: Exception) -> int:
    """The server's number of an error; 0 if it has none."""
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0
