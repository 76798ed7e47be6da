"""Which processes and files are an application's own, so that its writer answers for what they write."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.agent import processes, systemd


@dataclass(frozen=True)
class Account:
    pids: tuple[int, ...] = ()
    """First processes of the application. Their descendants are its own, too."""
    unit: str = ""
    """A system service, with all its processes."""
    cgroup: str = ""
    """A control group with all below it, as `/shop.slice`; empty: none."""
    paths: tuple[str, ...] = ()
    """Files, and directories with all that is in them."""

    def has(self, pid: int, group: str) -> bool:
        """Whether the process, which is in this control group, is the application's own."""
        unit = processes.unit_of(group)
        if (self.unit and unit == self.unit) or (self.cgroup and f"{group}/".startswith(f"{self.cgroup.rstrip('/')}/")):
            return True
        family = {pid, *processes.ancestors(pid)}
        if not family.isdisjoint(self.pids):
            return True
        beside = [first for first in self.pids if unit and processes.unit(first) == unit]
        return bool(beside) and systemd.main_process(unit) in beside
