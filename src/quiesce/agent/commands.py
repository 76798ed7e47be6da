"""Runs an administrator's commands: with a limit, killed with all their children when it passes, their words kept."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from quiesce.agent import linux
from quiesce.agent.trust import UntrustedError, require_trusted
from quiesce.agent.writers import WriterError
from quiesce.model.reports import Outcome

MAX_WORDS = 300
"""Of what a command says, how much a report keeps, in characters."""


def require_runnable(path: str) -> None:
    """Raises WriterError unless the file is root's own and can be run."""
    try:
        require_trusted(path)
    except UntrustedError as error:
        raise WriterError(str(error), Outcome.NON_RETRYABLE) from None
    except OSError as error:
        raise WriterError(f"{path}: {error.strerror}", Outcome.NON_RETRYABLE) from None
    if not os.access(path, os.X_OK):
        raise WriterError(f"{path} cannot be executed: chmod +x {path}", Outcome.NON_RETRYABLE)


def run(command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end and returns what it said on its standard output, at most MAX_WORDS characters.

    Raises WriterError: a time-out (it and its children are killed then), or an exit status other than 0, with its words. Dies
    with the conversation.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=linux.die_with_service,
    )
    try:
        said, complained = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise WriterError(f"{' '.join(command)} did not end within {timeout_s:.1f} s", Outcome.TIMEOUT) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if process.returncode:
        words = (complained or said).decode(errors="replace").strip()[-MAX_WORDS:]
        ended = f"ended with {process.returncode}" if process.returncode > 0 else f"was killed by signal {-process.returncode}"
        raise WriterError(f"{' '.join(command)} {ended}" + (f": {words}" if words else ""))
    return said.decode(errors="replace").strip()[:MAX_WORDS]
