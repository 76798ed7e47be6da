"""Processes of a guest's user that do their worst to whoever asks them: real Unix sockets, answers of a test's choice."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quiesce.agent import processes
from quiesce.agent.processes import Process
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.agent.writers.mariadb import DatabaseServer
from quiesce.agent.writers.pgbouncer import PgBouncer
from quiesce.agent.writers.postgresql import Cluster
from quiesce.agent.writers.postgresql_files import Postmaster
from quiesce.agent.writers.redis import RedisServer

NOBODY = 65534
Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(path: Path, behave: Behaviour) -> Iterator[None]:
    """This process listens at the path; each connection is treated so, until it ends."""
    listener = socket.socket(socket.AF_UNIX)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o777)
    listener.listen()
    talks: list[threading.Thread] = []

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                talks.append(threading.Thread(target=talk, args=(connection,), daemon=True))
                talks[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(10)
        listener.close()
        for each in talks:
            each.join(10)


def says(*pieces: bytes, pause_s: float = 0.0, again: bool = False) -> Behaviour:
    """Sends these, and hangs up; `again`: the last one for ever."""

    def behave(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause_s)
        while again:
            connection.sendall(pieces[-1])
            time.sleep(pause_s)

    return behave


def drips(data: bytes) -> Behaviour:
    """A byte every 70 ms, for ever: no single read waits for long."""
    return says(*(data[at : at + 1] for at in range(len(data))), b"\0", pause_s=0.07, again=True)


def writer_of(protocol: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> ApplicationWriter:
    """A writer that talks to this very process at `directory`."""
    path = str(directory / (".s.PGSQL.5432" if protocol == "postgresql" else "s"))
    monkeypatch.setattr(processes, "listening_paths", lambda _: [path])
    monkeypatch.setattr(processes, "listening_ports", lambda _: [])
    own = os.getpid()
    if protocol == "postgresql":
        return Cluster(Postmaster(own, 0, str(directory), 5432, str(directory), container=False))
    if protocol == "mariadb":
        return DatabaseServer(Process(own, "mariadbd", 0, container=False), str(directory))
    if protocol == "redis":
        return RedisServer(Process(own, "redis-server", 0, container=False))
    return PgBouncer(Process(own, "pgbouncer", 0, container=False), path)


def path_of(protocol: str, directory: Path) -> Path:
    return directory / (".s.PGSQL.5432" if protocol == "postgresql" else "s")


PROTOCOLS = ("postgresql", "mariadb", "redis", "pgbouncer")
POSTGRESQL_READY = b"NR\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\1\0\0\0\1Z\0\0\0\5I"
"""No TLS, AuthenticationOk, BackendKeyData, ReadyForQuery."""
POSTGRESQL_ROWS = b"T\0\0\0\x1b\0\1a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0" + b"D\0\0\0\x0b\0\1\0\0\0\1a" * 5000
MARIADB_GREETING = (
    b"\x4a\0\0\0\x0a10.11.6-MariaDB\0\1\0\0\0abcdefgh\0\xfe\xf7\x2d\2\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0abcdefghijkl\0"
    b"mysql_native_password\0"
)


def start_named(directory: Path, name: str, *, user: int = NOBODY, words: tuple[str, ...] = ("60",)) -> subprocess.Popen[bytes]:
    """A user's own process of this name, from an executable that is his."""
    directory.chmod(0o755)
    program = directory / name
    if not program.exists():
        shutil.copy("/bin/sleep", program)
        os.chown(program, user, user)
    return subprocess.Popen([str(program), *words], user=user, group=user)
