"""SQLite's real files, real processes that have them open, and writers that hold them."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.sqlite import Sqlite

UNIT = "shop.service"

_OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
for line in sys.stdin:
    try:
        print(connection.execute(line).fetchall(), flush=True)
    except sqlite3.Error as error:
        print(error, flush=True)
"""


class Other:
    """A process that has a file open, and says what it is told to."""

    def __init__(self, path: Path, user: int = 0) -> None:
        command = [sys.executable, "-I", "-S", "-c", _OTHER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user)

    def say(self, *statements: str) -> str:
        """Returns the last answer."""
        assert self.process.stdin
        assert self.process.stdout
        answer = ""
        for statement in statements:
            self.process.stdin.write(statement + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def others() -> Iterator[Callable[..., Other]]:
    """Starts one for each call, and ends them all."""
    started: list[Other] = []

    def start(path: Path, user: int = 0) -> Other:
        started.append(Other(path, user))
        return started[-1]

    yield start
    for each in started:
        each.end()


def database(path: Path, mode: str = "wal") -> Path:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("CREATE TABLE t (a)")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    connection.close()
    return path


@contextlib.contextmanager
def preparing(*paths: Path, freezing: bool = False) -> Iterator[Sqlite]:
    """A writer of these files, ready to hold; and let go in the end."""
    writer = Sqlite(UNIT, [str(path) for path in paths])
    writer.freezing = freezing
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(10), 1000)
    try:
        yield writer
    finally:
        writer.abort()


@contextlib.contextmanager
def holding(*paths: Path, freezing: bool = False) -> Iterator[Sqlite]:
    with preparing(*paths, freezing=freezing) as writer:
        writer.hold(deadline_in_ns(10))
        yield writer
