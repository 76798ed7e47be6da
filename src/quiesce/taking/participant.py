"""One VM as a member of a freeze window: does the window's steps through the VM's guest and through libvirt."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from quiesce.guests.port import Guest
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import OutcomeUnknownError
from quiesce.model.grades import Level
from quiesce.window.driver import WindowExpiredError
from quiesce.window.machine import Action, WindowStep

SWITCH_TIMEOUT_S = 60.0
"""If libvirt did not return from the switch during the window: longest wait for its return, in seconds. The guest was released
at the end of the window."""


@dataclass(frozen=True)
class Switched:
    """The result of the switch."""

    done: bool
    """Whether the VM writes to all its overlays."""
    whole: bool
    """Whether each disk of the VM was switched or excluded. False, for example, if somebody plugged in a disk during the
    window."""
    at_ns: int
    """When the switch returned, by this host's CLOCK_MONOTONIC, in nanoseconds; 0 if it was never begun."""


class VmParticipant:
    """A quiesce.window.driver.Participant."""

    def __init__(self, vm: Vm, guest: Guest | None, overlays: dict[str, str], excluded: tuple[str, ...] = ()) -> None:
        """Without `guest` the VM is only switched. `overlays`: path by target. `excluded`: targets."""
        self._vm = vm
        self._guest = guest
        self._overlays = overlays
        self._excluded = excluded
        self._held_until = math.inf
        self._switch_ended = threading.Event()
        self._switch_begun = False
        self._switched_ns = 0

    async def perform(self, step: WindowStep, timeout: float) -> Any:
        if step.action is Action.SWITCH:
            return await self._perform_switch(min(timeout, self._held_until - time.monotonic()))
        value = await anyio.to_thread.run_sync(self._ask, step, timeout)
        if step.action is Action.FREEZE and self._guest:
            self._held_until = time.monotonic() + self._guest.hold_s
        return value

    def _ask(self, step: WindowStep, timeout: float) -> Any:
        guest = self._guest
        assert guest is not None
        match step:
            case WindowStep(Action.HOLD, _, Level() as level):
                return guest.hold(level, timeout)
            case WindowStep(Action.FREEZE):
                return guest.freeze(timeout)
            case WindowStep(Action.THAW):
                return guest.thaw(timeout)
            case WindowStep(Action.RELEASE, _, Level() as level):
                return guest.release(level, timeout)
            case WindowStep(Action.ABORT):
                return guest.abort(timeout)
        raise AssertionError(step)

    async def _perform_switch(self, timeout: float) -> None:
        if timeout <= 0:
            raise WindowExpiredError("no time was left for the switch")
        self._switch_begun = True
        with anyio.move_on_after(timeout):
            return await anyio.to_thread.run_sync(self._switch, abandon_on_cancel=True)
        raise WindowExpiredError("libvirt did not return from the switch in time")

    def _switch(self) -> None:
        try:
            self._vm.switch(self._overlays)
        finally:
            self._switched_ns = time.monotonic_ns()
            self._switch_ended.set()

    def outcome(self) -> Switched:
        """The result of the switch. Waits at most SWITCH_TIMEOUT_S for a switch that did not return in the window. Raises
        OutcomeUnknownError if libvirt does not return: it may still switch the VM later."""
        if not self._switch_begun:
            return Switched(done=False, whole=False, at_ns=0)
        if not self._switch_ended.wait(SWITCH_TIMEOUT_S):
            raise OutcomeUnknownError(
                f"libvirt did not return from the switch of {self._vm.name} for {SWITCH_TIMEOUT_S:g} s, and may still do it",
                hint=f"when libvirt answers again: quiesce doctor {self._vm.name} --repair",
            )
        sources = self._vm.disk_sources()
        return Switched(
            done=all(sources.get(target) == path for target, path in self._overlays.items()),
            whole=sources.keys() == self._overlays.keys() | set(self._excluded),
            at_ns=self._switched_ns,
        )
