"""The real program in a process of its own, to its end; or killed at a journal write, or whenever its parent likes.

Processes are forked from a server that has imported everything and done nothing else, so each starts at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from quiesce.catalog import journal
from quiesce.cli.main import app, main

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["lab.victim"])
NEVER = -1
_READING = threading.Lock()
"""Held to start a process, and to read an exit code. When multiprocessing starts a process, it reads the exit codes of all
earlier ones, too; of two threads that read the same exit code at once, one finds the pipe empty and returns 255."""


def start(
    arguments: list[str], catalog: str, output: Path, kill_at: int = NEVER, clock: timedelta = timedelta()
) -> ForkServerProcess:
    """Starts `quiesce ARGUMENTS`. It kills itself with SIGKILL after `kill_at` writes to the journal, before the next one. Its
    clock is wrong by `clock`."""
    return _started(_run, arguments, catalog, output, kill_at, clock)


def _started(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = _FORKSERVER.Process(target=target, args=arguments)
    with _READING:
        process.start()
    return process


def wait(process: ForkServerProcess, timeout_s: float) -> int | None:
    """The process's exit code; None if it still runs after so many seconds."""
    if not connection.wait([process.sentinel], timeout_s):
        return None
    with _READING:
        process.join()
    return process.exitcode


def run(arguments: list[str], environment: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs `quiesce ARGUMENTS` to its end. Raises subprocess.TimeoutExpired after so many seconds; it is killed then, and its
    output printed."""
    with tempfile.TemporaryDirectory() as scratch:
        stdout, stderr = Path(scratch, "stdout"), Path(scratch, "stderr")
        process = _started(_main, arguments, environment, stdout, stderr)
        code = wait(process, timeout_s)
        if code is None:
            process.kill()
            process.join()
            print(stdout.read_text() + stderr.read_text())
            raise subprocess.TimeoutExpired(["quiesce", *arguments], timeout_s)
        return subprocess.CompletedProcess(arguments, code, stdout.read_text(), stderr.read_text())


def _main(arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    for path, number in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["quiesce", *arguments]
    main()


def _set_clock(off: timedelta) -> None:
    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override] # it is one of the day before
            return datetime.now(tz) + off

    for name, module in list(sys.modules.items()):
        if name.startswith("quiesce.") and vars(module).get("datetime") is datetime:
            module.datetime = WrongClock  # type: ignore[attr-defined]


def _run(arguments: list[str], catalog: str, output: Path, kill_at: int, clock: timedelta) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.environ["QUIESCE_CATALOG"] = catalog
    if clock:
        _set_clock(clock)
    left = kill_at

    def die_at_last() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            die_at_last()
            return function(*arguments, **named)

        return wrapper

    if kill_at != NEVER:
        for name in ("intend", "done", "finish"):
            setattr(journal.Journal, name, deadly(getattr(journal.Journal, name)))
    app(arguments)
