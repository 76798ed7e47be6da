"""Takes back what an earlier attempt left, when the agent and the dead-man were both killed.

Example: both are killed while PgBouncer is paused and /srv is frozen. systemd starts the agent again a second later; it reads
in /run/quiesce/holds that /srv was frozen and PgBouncer paused by us, thaws /srv, and has PgBouncer resume.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress
from typing import Any

from quiesce.agent import deadman, filesystems, holds, memory, processes
from quiesce.agent.holds import Left
from quiesce.agent.undos import Undo, kill_group, run_undos

LOCK = "attempt.lock"
RETRY_FOR_S = 30.0
"""How long a call that fails is tried again, in seconds: the application may be busy, or starting."""
RETRY_S = 1.0


def open_lock() -> int:
    """The file lock that an attempt and its dead-man hold until both have let go, as a descriptor. Raises OSError."""
    return os.open(os.path.join(memory.DIRECTORY, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def wait_and_take_back() -> None:
    """For a process of its own: waits until nobody holds the lock. An attempt that gets it first takes back by itself."""
    lock = open_lock()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        take_back_all(RETRY_FOR_S)
    finally:
        os.close(lock)


def take_back_all(retry_for_s: float = 0.0) -> None:
    """Takes everything back that is left. To be called with the lock. Never raises; what cannot be taken back is noted beside
    what was (`deadman.last_rescue`), and not tried again by a later call."""
    left = holds.left()
    if not left:
        return
    for group in left.groups:
        if processes.session(group) == group:  # still the command that we started, and no process that got its number since
            kill_group(group)
    thawed = filesystems.thaw_recorded(left.filesystems.values())
    for index in left.filesystems:
        holds.note_undone(holds.THAWED, index)
    failed = _undo(left, retry_for_s)
    for index in left.undos:
        holds.note_undone(holds.UNDONE, index)
    undone = f", {len(left.undos) - len(failed)} hold(s) taken back" if left.undos else ""
    said = f"the agent and its dead-man died; the next agent: {len(thawed)} filesystem(s) thawed{undone}"
    said = "; ".join([said, *failed])
    deadman.leave_note(said)
    with suppress(OSError):
        print(f"quiesce: {said}", file=sys.stderr, flush=True)


def _undo(left: Left, retry_for_s: float) -> list[str]:
    """Returns what failed."""
    failed = []
    todo: dict[int, Undo] = {}
    for index, recorded in left.undos.items():
        if path := recorded.get("path"):
            if problem := _write(path, recorded):
                failed.append(problem)
        else:
            todo[index] = _recalled(recorded)
    give_up = time.monotonic() + retry_for_s
    while True:
        words, done = run_undos(todo)
        # A command runs once: nobody knows what its second run does. What was not recorded in full cannot be undone here.
        todo = {index: undo for index, undo in todo.items() if index not in done and undo.call}
        if not todo or time.monotonic() >= give_up:
            return failed + words
        failed += [each for each in words if each not in {f"{undo.words()} failed" for undo in todo.values()}]
        time.sleep(RETRY_S)


def _recalled(recorded: dict[str, Any]) -> Undo:
    module, pid = recorded.get("call") or ("", 0)
    return Undo(command=tuple(recorded.get("command") or ()), call=(module, pid) if module else None)


def _write(path: str, recorded: dict[str, Any]) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, recorded.get("data", "").encode())
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return ""  # the control group is gone, and its processes with it
    except OSError as error:
        return f"writing {path} failed: {error.strerror}"
    return ""
