"""A session at PostgreSQL, as the cluster's own operating system user, which peer authentication lets in."""

from __future__ import annotations

import pwd
import time
from contextlib import suppress
from typing import Any

from quiesce.agent import sockets
from quiesce.agent.writers.postgresql_files import Postmaster

_SETTINGS = (
    # Inside the window a session that wrote to the server's log would wait for the frozen disk.
    "log_min_messages = panic",
    "log_min_error_statement = panic",
    "log_statement = 'none'",
    "log_duration = off",
    "log_lock_waits = off",
    "log_min_duration_statement = -1",
    # Any of these that the site sets (ALTER SYSTEM, ALTER ROLE, ALTER DATABASE) would cancel our CHECKPOINT or end a hold too
    # early. What a hold is limited by, it sets itself.
    "statement_timeout = 0",
    "lock_timeout = 0",
    "idle_in_transaction_session_timeout = 0",
    "idle_session_timeout = 0",  # from PostgreSQL 14 on
    "transaction_timeout = 0",  # from PostgreSQL 17 on
    "default_transaction_read_only = off",
    "default_transaction_isolation = 'read committed'",
    "search_path = pg_catalog",
    "synchronous_commit = local",  # else our own commit would wait for a standby that may not come
)


def connect(postmaster: Postmaster, database: str, deadline_ns: int) -> Any:
    """A pg8000 connection that writes nothing to the server's log. Raises what pg8000 does, and OSError."""
    from pg8000.native import Connection

    # No answer may take longer than the whole preparation. In the window the server's own time-outs come first.
    left_s = max(1.0, (deadline_ns - time.monotonic_ns()) / 1e9)
    path = f"{postmaster.socket_directory}/.s.PGSQL.{postmaster.port}"
    user = user_of(postmaster)
    with sockets.closed_on_error(sockets.connect(postmaster.pid, path, left_s, uid=postmaster.uid)) as reached:
        connection = Connection(user, database=database, sock=reached, timeout=left_s, application_name="quiesce")
    for setting in _SETTINGS:
        with suppress(Exception):  # an older server lacks some; a role that is no superuser is refused by `Cluster.on_identify`
            connection.run(f"SET {setting}")
    return connection


def user_of(postmaster: Postmaster) -> str:
    """The name of the operating system user, which is also the database role."""
    return pwd.getpwuid(postmaster.uid).pw_name


def close(connection: Any) -> None:
    """Never raises."""
    with suppress(Exception):
        connection.close()


def sqlstate_of(error: Exception) -> str:
    """The server's code of an error, as `55P03`; empty if the error is not the server's."""
    detail = error.args[0] if error.args else None
    return str(detail.get("C", "")) if isinstance(detail, dict) else ""


def words_of(error: Exception) -> str:
    """The server's message, without pg8000's dictionary around it."""
    detail = error.args[0] if error.args else None
    if isinstance(detail, dict):
        return str(detail.get("M", "an error without a message"))
    if type(error).__name__ == "InterfaceError":  # pg8000's word for whatever ends a connection
        return "its connection is closed"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
