"""A server whose processes stand still as one: the kernel's freezer stops all of them at an instant that no client can see.

A database that is crash-safe is at an application boundary then. What it acknowledged is on disk, or in the page cache, which
the freeze of the filesystem writes out; what it had not acknowledged is rolled back by its next start. Clients wait, and never
get an error."""

from __future__ import annotations

import os
from typing import Optional

from quiesce.agent import processes, systemd
from quiesce.agent.cgroups import ROOT, Cgroup, CgroupError
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import WriterError
from quiesce.model.reports import Outcome

STOP_TIMEOUT_MS = 2000
"""Longest wait until all processes stand still, in milliseconds. A process in an uninterruptible wait delays it: 2 to 5 ms as a
rule."""


class Standstill:
    """The control group of one server. Raises OSError if it cannot be opened."""

    def __init__(self, pid: int) -> None:
        """`pid`: the server's first process, of which all others are descendants."""
        self._pid = pid
        path = processes.cgroup(pid)
        if not path or path == "/":
            raise OSError(f"process {pid} is in no control group of its own")
        self._cgroup = Cgroup(path)
        self._cgroup.open()

    @property
    def path(self) -> str:
        """Of the control group, as `/system.slice/mariadb.service`."""
        return self._cgroup.path

    @property
    def undo(self) -> Undo:
        return self._cgroup.undo

    def others(self) -> list[int]:
        """Processes in the group that are not the server's: they would be stopped with it."""
        members = _members(self._cgroup.path)
        return sorted(pid for pid in members if not _descends(pid, self._pid))

    def stop(self, deadline_ns: int) -> None:
        """Returns when every process stands still. Raises WriterError, TimeoutError; all of them run then."""
        if processes.cgroup(self._pid) != self._cgroup.path:
            raise WriterError(f"it left the control group {self._cgroup.path}")
        if others := self.others():
            raise WriterError(
                f"process {others[0]} ({processes.kernel_name(others[0])}) is in its control group {self._cgroup.path} as well",
                Outcome.NON_RETRYABLE,
            )
        try:
            self._cgroup.freeze(deadline_ns)
        except CgroupError as error:
            raise WriterError(str(error)) from None

    def stopped(self) -> bool:
        return self._cgroup.frozen()

    def go_on(self) -> None:
        """Idempotent."""
        self._cgroup.thaw()

    def close(self) -> None:
        self._cgroup.thaw()
        self._cgroup.close()


def standstill_of(pid: int) -> Optional[Standstill]:
    """None where the kernel has no freezer for this process alone (without cgroup v2, or in a session with other programs), or
    where systemd would notice (a watchdog)."""
    try:
        found = Standstill(pid)
    except OSError:
        return None
    unit = processes.unit(pid)
    try:
        if not found.others() and (not unit or systemd.freezable_cgroup(unit) == found.path):
            return found
    except systemd.UnitError:
        pass
    found.close()
    return None


def _members(path: str) -> set[int]:
    """The processes of a control group and of those below it."""
    found = set()
    for directory, _, files in os.walk(ROOT + path):
        if "cgroup.procs" in files:
            with open(os.path.join(directory, "cgroup.procs")) as file:
                found |= {int(line) for line in file.read().split()}
    return found


def _descends(pid: int, ancestor: int) -> bool:
    """Whether the process is the ancestor, or a child of a child of it. One that is neither may have ended meanwhile."""
    seen = set()
    while pid not in seen:
        if pid == ancestor:
            return True
        if pid == 1:
            return False
        seen.add(pid)
        parent = processes.parent(pid)
        if not parent:
            return True  # it ended, and stands in nobody's way
        pid = parent
    return False
