"""Applications that are held by the kernel's cgroup freezer: no process of their control group runs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Optional

from quiesce.agent import processes, systemd
from quiesce.agent.cgroups import Cgroup, CgroupError
from quiesce.agent.undos import Undo
from quiesce.agent.writers.account import Account
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

FREEZE_TIMEOUT_MS = 2000
"""Longest wait until all processes stand still, in milliseconds; a process in an uninterruptible wait delays it."""


class FrozenCgroup(ApplicationWriter):
    """Held by freezing a control group: a systemd unit's, or one given by path. Clients wait; the work goes on afterwards.

    The application may stop anywhere in its work, so each subclass says by `worth` what a restore of that state is worth.
    """

    worth = Grade.CRASH
    worth_reason: Optional[str] = None
    outlives = True

    def __init__(self, id: str, *, unit: str = "", cgroup: str = "") -> None:
        super().__init__(id)
        self.unit = unit
        self.hold_limit_ms = FREEZE_TIMEOUT_MS
        self._cgroup = Cgroup(cgroup or f"/system.slice/{unit}")

    def account(self) -> Account:
        return replace(super().account(), unit=self.unit, cgroup=self._cgroup.path)

    def undo(self) -> Optional[Undo]:
        try:
            self._cgroup.open()
        except OSError:
            return None  # `on_identify` reports it
        return self._cgroup.undo

    def on_identify(self, deadline_ns: int) -> None:
        try:
            systemd.require_dispensable(os.path.basename(self._cgroup.path))
            group = systemd.freezable_cgroup(self.unit) if self.unit else self._cgroup.path
        except systemd.UnitError as error:
            raise WriterError(str(error), Outcome.NON_RETRYABLE) from None
        if group != self._cgroup.path:
            raise WriterError(f"{self.unit} is in {group}, not in {self._cgroup.path}", Outcome.NON_RETRYABLE)
        own = processes.cgroup(os.getpid())
        if self._cgroup.path == "/" or own == self._cgroup.path or own.startswith(f"{self._cgroup.path}/"):
            raise WriterError(f"the agent itself is in {self._cgroup.path}", Outcome.NON_RETRYABLE)
        try:
            self._cgroup.open()
        except OSError as error:
            reason = f"the control group {self._cgroup.path} cannot be frozen: {error.strerror}"
            raise WriterError(reason, Outcome.NON_RETRYABLE) from None
        if self._cgroup.asked():
            raise WriterError(f"{self._cgroup.path} is frozen already, by somebody else")
        self.grade, self.reason = self.worth, self.worth_reason

    def on_hold(self, deadline_ns: int) -> None:
        try:
            self._cgroup.freeze(deadline_ns)
        except CgroupError as error:
            raise WriterError(str(error)) from None

    def on_release(self) -> None:
        held = self._cgroup.frozen()
        self._cgroup.thaw()
        if not held:
            raise WriterError(f"{self._cgroup.path} was thawed during the window, or ended", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        self._cgroup.thaw()
        self._cgroup.close()
