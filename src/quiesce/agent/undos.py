"""How a hold is ended that would outlive the agent: by the dead-man, or by the next agent."""

from __future__ import annotations

import importlib
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Optional

from quiesce.agent import limits

UNDO_TIMEOUT_S = 30.0
"""Longest that a command or a call of an undo may run, in seconds."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Undo:
    """How to end a hold that would outlive the conversation: bytes to write to an open descriptor or, where there is no other
    way, a command or a call.

    The next agent, which has no descriptor of this one, writes the bytes to `path`, or runs the command or the call.
    """

    descriptor: Optional[int] = None
    data: bytes = b""
    command: tuple[str, ...] = ()
    path: str = ""
    """The file behind the descriptor."""
    call: Optional[tuple[str, int]] = None
    """A module of `agent/writers` and a server's process id, for `take_back(pid)` of that module."""

    def recorded(self) -> dict[str, Any]:
        """What the next agent needs, as a JSON value."""
        if self.path:
            return {"path": self.path, "data": self.data.decode()}
        return {"command": list(self.command), "call": list(self.call or ())}

    def words(self) -> str:
        return " ".join(self.command) or (f"letting {self.call[0]} (process {self.call[1]}) go" if self.call else "")


def run_undos(undos: dict[int, Undo]) -> tuple[list[str], list[int]]:
    """Runs the commands and calls all at once, each for at most UNDO_TIMEOUT_S. Returns what failed, in words, and the keys of
    those that did not."""
    started: dict[int, int] = {}
    failed, done = [], []
    for key, undo in undos.items():
        try:
            if undo.command:
                started[_spawn(undo.command)] = key
            elif undo.call:
                started[_call(*undo.call)] = key
        except OSError as error:
            failed.append(f"{undo.words()} failed: {error.strerror}")
    give_up = time.monotonic() + UNDO_TIMEOUT_S
    while started:
        for pid in list(started):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                key = started.pop(pid)
                if status:
                    failed.append(f"{undos[key].words()} failed")
                else:
                    done.append(key)
            elif time.monotonic() > give_up:
                kill_group(pid)
        time.sleep(0.01)
    return failed, done


def _call(module: str, server: int) -> int:
    """Runs `take_back(pid)` of a module of `agent/writers`, in an ordinary process of its own. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        with limits.until(time.monotonic_ns() + int(UNDO_TIMEOUT_S * 1e9)):
            importlib.import_module(f"quiesce.agent.writers.{module}").take_back(server)
        status = 0
    except Exception:  # noqa: BLE001 - the status tells that it failed
        pass
    finally:
        os._exit(status)


def _spawn(command: tuple[str, ...]) -> int:
    """Starts an ordinary process, which does not inherit the ignored signals and the OOM protection. Raises OSError."""
    shell = ("/bin/sh", "-c", 'echo 0 >/proc/self/oom_score_adj; ulimit -S -d "$(ulimit -H -d)"; exec "$@"', "sh", *command)
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE]
    return os.posix_spawn(shell[0], shell, {"PATH": _PATH}, setpgroup=0, setsigdef=signals)


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
