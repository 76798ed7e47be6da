"""Runs an administrator's commands. A command that exceeds its time is killed with all its children; its output is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Optional

from quiesce.agent import linux, looks
from quiesce.agent.trust import UntrustedError, require_trusted
from quiesce.agent.writers.base import CommandObserver, WriterError
from quiesce.model.reports import Outcome

MAX_WORDS = 300
"""How much of a command's output a report keeps, in characters."""
POLL_S = 0.002


class CommandError(WriterError):
    """A command ended with an exit status other than 0."""

    def __init__(self, command: Sequence[str], status: int, words: str) -> None:
        ended = f"ended with {status}" if status > 0 else f"was killed by signal {-status}"
        super().__init__(f"{' '.join(command)} {ended}" + (f": {words}" if words else ""))
        self.status = status
        """A negative one is the signal that killed the command."""
        self.words = words or ended


def require_runnable(path: str) -> None:
    """Raises WriterError unless the file is executable and only root can change it."""
    if not os.path.isabs(path):
        raise WriterError(f"{path or 'an empty name'} is no absolute path", Outcome.NON_RETRYABLE)
    try:
        looks.at(path, os.stat, path)
        require_trusted(path)
    except UntrustedError as error:
        raise WriterError(str(error), Outcome.NON_RETRYABLE) from None
    except OSError as error:
        raise WriterError(f"{path}: {error.strerror}", Outcome.NON_RETRYABLE) from None
    if not os.path.isfile(path):
        raise WriterError(f"{path} is no file", Outcome.NON_RETRYABLE)
    if not os.access(path, os.X_OK):
        raise WriterError(f"{path} cannot be executed: chmod +x {path}", Outcome.NON_RETRYABLE)


def run_command(
    command: Sequence[str],
    timeout_s: float,
    observer: Optional[CommandObserver],
    environment: Optional[Mapping[str, str]] = None,
    limit: int = MAX_WORDS,
) -> str:
    """Runs a command to its end and returns the first `limit` characters of its standard output.

    Raises WriterError for a time-out (the command and its children are killed then), and CommandError for an exit status other
    than 0, with the last words of its output. The command dies with the conversation. Processes that it leaves in the
    background are left alone: a script may hold by one, as QEMU's own mysql-flush.sh.sample does."""
    # Files in memory, not pipes: a pipe would end only with the last background process, and break for it if closed before.
    said, complained = os.memfd_create("said"), os.memfd_create("complained")
    try:
        status = _run(command, timeout_s, observer, environment, said, complained)
        if status:
            raise CommandError(command, status, _last_words(complained) or _last_words(said))
        return os.pread(said, 4 * limit, 0).decode(errors="replace").strip()[:limit]
    finally:
        os.close(said)
        os.close(complained)


def _last_words(descriptor: int) -> str:
    start = max(0, os.fstat(descriptor).st_size - 4 * MAX_WORDS)
    return os.pread(descriptor, 4 * MAX_WORDS, start).decode(errors="replace").strip()[-MAX_WORDS:]


def _run(
    command: Sequence[str],
    timeout_s: float,
    observer: Optional[CommandObserver],
    environment: Optional[Mapping[str, str]],
    said: int,
    complained: int,
) -> int:
    """Returns the exit status; a negative one is the signal that killed the command."""
    give_up = time.monotonic() + timeout_s
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=complained,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=linux.prepare_program,
    )
    try:
        if observer:
            observer.command_started(process.pid)
        while process.poll() is None:
            if time.monotonic() >= give_up:
                raise WriterError(f"{' '.join(command)} did not end within {timeout_s:.1f} s", Outcome.TIMEOUT)
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if observer:
            observer.command_ended(process.pid)
    return process.returncode
