"""PgBouncer: paused, so that its clients' next transactions wait and the databases behind it fall quiet.

Transaction and statement pooling can be paused in bounded time; with session pooling PAUSE waits until the clients disconnect.
PgBouncer keeps no data, so the label never depends on it. Its console is reached over its Unix socket as the user `pgbouncer`,
which it lets in without a password if the peer is its own operating system user (pgbouncer(5), admin console).
PAUSE outlives the session that sent it, so the dead-man has a session of its own in which to send RESUME.
"""

from __future__ import annotations

import struct
from typing import Any, Optional

from quiesce.agent import identity, processes, sockets
from quiesce.agent.processes import Process
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.agent.writers.postgresql_session import close, words_of
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome

HOLD_LIMIT_MS = 3000
"""Longest wait for the running transactions to end, in milliseconds; new clients wait meanwhile."""
CONNECT_TIMEOUT_S = 10.0
_RESUME = b"RESUME;\0"


def discover() -> list[ApplicationWriter]:
    """One writer for each PgBouncer process that listens on a Unix socket."""
    return [
        PgBouncer(process, paths[0])
        for process in identity.applications("pgbouncer")
        if not process.container and (paths := processes.listening_paths(process.pid))
    ]


def take_back(pid: int) -> None:
    """Has the pooler of this process id resume, which an earlier agent paused. If it is gone, so is the pause. Raises whatever
    its console's library raises."""
    for writer in discover():
        if isinstance(writer, PgBouncer) and writer.pid == pid:
            writer.resume()


class PgBouncer(ApplicationWriter):
    """One pooler."""

    application = "pgbouncer"
    level = Level.FRONT_END
    stateless = True
    outlives = True

    def __init__(self, process: Process, socket_path: str) -> None:
        super().__init__(f"pgbouncer:{socket_path.rpartition('.')[2]}")
        self.pid = process.pid
        self._process = process
        self.pids = (process.pid,)
        self._socket_path = socket_path
        self._console: Any = None
        self._rescue: Any = None
        self._paused = False
        self.hold_limit_ms = HOLD_LIMIT_MS

    def undo(self) -> Optional[Undo]:
        try:
            self._rescue = self._connect(CONNECT_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - `on_identify` says why
            return None
        message = b"Q" + struct.pack("!i", len(_RESUME) + 4) + _RESUME
        return Undo(self._rescue._usock.fileno(), message, call=("pgbouncer", self.pid))

    def on_identify(self, deadline_ns: int) -> None:
        self.grade = Grade.CLEAN
        self._console = self._console or self._connect(left_s(deadline_ns))
        self.version = self._console.run("SHOW VERSION")[0][0].removeprefix("PgBouncer ")
        rows = self._console.run("SHOW DATABASES")
        names = [column["name"] for column in self._console.columns]
        databases = [dict(zip(names, row)) for row in rows]
        default = dict(row[:2] for row in self._console.run("SHOW CONFIG")).get("pool_mode", "session")
        paused = [item["name"] for item in databases if str(item.get("paused", "0")) == "1"]
        if paused:
            raise WriterError(f"database {paused[0]!r} is paused already, by somebody else")
        slow = [item["name"] for item in databases if item["name"] != "pgbouncer" and _mode(item, default) == "session"]
        if slow:
            reason = f"database {slow[0]!r} has session pooling, where PAUSE could wait without end; it is not paused"
            raise WriterError(reason, Outcome.NON_RETRYABLE)
        self.reason = None

    def on_hold(self, deadline_ns: int) -> None:
        self._paused = True
        self._console._usock.settimeout(left_s(deadline_ns))
        try:
            self._console.run("PAUSE")
        except Exception as error:
            if "timed out" in str(error) or isinstance(error, TimeoutError):
                raise WriterError("transactions did not end in time", Outcome.TIMEOUT) from None
            if "already" in str(error):
                self._paused = False  # whoever paused it has to resume it
            raise

    def on_release(self) -> None:
        self._resume()

    def on_abort(self) -> None:
        """The rescue session stays open until nothing is left to resume: the dead-man uses it, too."""
        try:
            if self._paused:
                self._resume()
            close(self._rescue)
            self._rescue = None
        finally:
            close(self._console)
            self._console = None

    def say(self, error: Exception) -> str:
        return words_of(error)

    def resume(self) -> None:
        """Ends a pause over a connection of its own. If it is not paused, does nothing."""
        console = self._connect(CONNECT_TIMEOUT_S)
        try:
            console.run("RESUME")
        except Exception as error:
            if "not paused" not in words_of(error):
                raise
        finally:
            close(console)

    def _resume(self) -> None:
        self._rescue._usock.settimeout(5)
        self._rescue.run("RESUME")
        self._paused = False

    def _connect(self, timeout_s: float) -> Any:
        from pg8000.native import Connection  # slow to import, so before the time-out counts

        with sockets.closed_on_error(sockets.connect(self.pid, self._socket_path, timeout_s, uid=self._process.uid)) as reached:
            return Connection("pgbouncer", database="pgbouncer", sock=reached, timeout=timeout_s)


def _mode(database: dict[str, Any], default: str) -> str:
    return str(database.get("pool_mode") or default)
