"""A service that is shut down for the checkpoint and started again: clean whatever it is, but down meanwhile."""

from __future__ import annotations

from typing import Optional

from quiesce.agent import commands, systemd
from quiesce.agent.undos import Undo
from quiesce.agent.writers.account import Account
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Start

START_TIMEOUT_S = 90.0


class StoppedService(ApplicationWriter):
    """For an application that cannot hold. Its clients are refused meanwhile, or have to connect again."""

    outlives = True

    def __init__(self, id: str, unit: str, application: str = "service", known: Optional[ApplicationWriter] = None) -> None:
        """`known`: the writer that knows the application, and would hold it otherwise."""
        super().__init__(id)
        self._known = known
        self.application = application
        self.unit = unit
        self._stopped = False

    def account(self) -> Account:
        return Account(unit=self.unit)

    def undo(self) -> Optional[Undo]:
        return Undo(command=(systemd.SYSTEMCTL, "start", "--no-block", self.unit))

    def on_identify(self, deadline_ns: int) -> None:
        try:
            found = systemd.properties_of(self.unit)
        except systemd.UnitError as error:
            raise WriterError(str(error), Outcome.NON_RETRYABLE) from None
        if found.get("LoadState") != "loaded":
            raise WriterError(f"there is no unit {self.unit}", Outcome.NON_RETRYABLE)
        if found.get("ActiveState") != "active":
            raise WriterError(f"{self.unit} is not running: it is {found.get('ActiveState', 'unknown')}")
        if others := systemd.would_stop_with(self.unit):
            raise WriterError(
                f"{', '.join(others)} would be stopped with {self.unit}, and not started again with it", Outcome.NON_RETRYABLE
            )
        self.grade, self.reason = Grade.CLEAN, "it is shut down for the checkpoint, and started again"

    def on_hold(self, deadline_ns: int) -> None:
        if systemd.properties_of(self.unit).get("ActiveState") != "active":
            raise WriterError(f"{self.unit} was stopped by somebody else meanwhile")
        self._stopped = True
        commands.run_command([systemd.SYSTEMCTL, "stop", self.unit], left_s(deadline_ns), self.command_observer)
        state = systemd.properties_of(self.unit)
        if state.get("ActiveState") != "inactive":
            raise WriterError(f"{self.unit} did not shut down cleanly: it is {state.get('ActiveState')}")

    def on_release(self) -> None:
        state = systemd.properties_of(self.unit).get("ActiveState")
        self._start()
        if state != "inactive":
            raise WriterError(f"{self.unit} was started during the window: it is {state}", Outcome.INCONSISTENT)

    def on_abort(self) -> None:
        if self._known:
            self._known.on_abort()
        self._start()

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        return self._known.on_verify(start, deadline_ns) if self._known else start

    def _start(self) -> None:
        """Does not wait until the service is up: other writers wait to be released."""
        if self._stopped:
            commands.run_command([systemd.SYSTEMCTL, "start", "--no-block", self.unit], START_TIMEOUT_S, self.command_observer)
            self._stopped = False
