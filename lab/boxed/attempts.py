"""Attempts at a checkpoint, as the agent makes them."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from quiesce.agent import deadman, memory
from quiesce.agent.attempt import Attempt, AttemptError
from quiesce.agent.filesystems import Freezer
from quiesce.agent.writers import registry
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.model.grades import LEVELS
from quiesce.model.reports import FreezeState, WriterReport
from quiesce.wire.messages import Prepare
from quiesce.wire.schema import to_wire

DISKS = ("/srv", "/data2")
WINDOW_MS = 8000
STEP_NS = 15_000_000_000


def prepare_box() -> None:
    deadman._never_kill_for_memory = lambda: None  # a container's root may not do this
    os.makedirs(memory.DIRECTORY, exist_ok=True)
    os.makedirs("/etc/quiesce/writers.d", exist_ok=True)
    with open("/etc/quiesce/writers.d/box.conf", "w") as file:
        file.write("[Match]\nWriter=systemd\nRequired=no\n")  # there is none in a box
    for place in (*DISKS, "/mem"):
        os.chmod(place, 0o1777)
    for left in glob.glob("/etc/postgresql/*/*") + glob.glob("/var/lib/postgresql/*/*"):
        shutil.rmtree(left)  # a cluster of the distribution's own, on a filesystem that is not frozen


def checkpoint(*, nil_redo: bool, held: Callable[[], None] = lambda: None, copy: bool = True) -> dict[str, Any]:
    """What the agent reports of an attempt. `held`: called when all is held, and nothing frozen yet. `copy`: the frozen disks
    are in /copy afterwards."""
    attempt = Attempt("token", Prepare(WINDOW_MS, False, nil_redo))
    try:
        found = registry.discover()
        processes_of = {writer.id: writer.pids for writer in found}
        writers, held_ns = hold_all(attempt, found)
        held()
        frozen = attempt.freeze(deadline_ns())
        for disk in DISKS if copy else ():
            subprocess.run(["cp", "-a", "--sparse=always", disk, "/copy/"], check=True, timeout=15)
        thawed = attempt.thaw()
        released_ns = time.monotonic_ns()
        for level in reversed(LEVELS):
            writers |= {writer.id: writer for writer in attempt.release(level).writers}
        attempt.post_checkpoint(True)
    except AttemptError as error:
        return {"refused": str(error)}
    finally:
        attempt.abort()
    return {
        "writers": [to_wire(writer) for writer in writers.values()],
        "processes": {id: pids for id, pids in processes_of.items() if writers[id].not_accounted_for is None},
        "filesystems": {item.mountpoint: item.state.value for item in frozen.filesystems},
        "unbroken": thawed.unbroken,
        "held_ns": held_ns,
        "released_ns": released_ns,
    }


def hold_all(attempt: Attempt, found: Sequence[ApplicationWriter]) -> tuple[dict[str, WriterReport], int]:
    """The writers by id, and CLOCK_MONOTONIC when the last of them held, in nanoseconds. Raises AttemptError."""
    _require_no_other_disks()
    writers = {writer.id: writer for writer in attempt.prepare(found, deadline_ns()).writers}
    held_ns = 0
    for level in LEVELS:
        held = attempt.hold(level, deadline_ns())
        writers |= {writer.id: writer for writer in held.writers}
        held_ns = held.monotonic_ns
    return writers, held_ns


def deadline_ns() -> int:
    return time.monotonic_ns() + STEP_NS


def _require_no_other_disks() -> None:
    """What is frozen here must never be the host's."""
    freezer = Freezer()
    others = {item.mountpoint for item in freezer.report() if item.state is FreezeState.FREEZABLE} - set(DISKS)
    freezer.close()
    if others:
        raise SystemExit(f"these filesystems are not the box's own: {others}")
