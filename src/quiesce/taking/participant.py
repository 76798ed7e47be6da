"""One VM as a member of a freeze window: the steps, done through its agent and through libvirt."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import anyio
import anyio.to_thread

from quiesce.guests.vss import AnyRequester
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError
from quiesce.model.grades import Level
from quiesce.window.driver import WindowExpiredError
from quiesce.window.machine import Action, WindowStep

SETTLE_TIMEOUT_S = 60.0
"""Longest wait for a switch that libvirt did not return from in the window, in seconds; the guest was released long before."""


class VmParticipant:
    """One VM in the window."""

    def __init__(
        self,
        vm: Vm,
        requester: AnyRequester | None,
        overlays: dict[str, str],
        excluded: tuple[str, ...] = (),
        hold_s: float = math.inf,
    ) -> None:
        """`hold_s`: longest time from the end of the freeze to that of the switch, in seconds, where the window is longer."""
        self._vm = vm
        self._requester = requester
        self._overlays = overlays
        self._excluded = excluded
        self._hold_s = hold_s
        self._held_until = math.inf
        self._switch_ended = threading.Event()
        self._switch_started = False
        self.switched_ns = 0
        """When the switch returned, by this host's CLOCK_MONOTONIC, in nanoseconds."""
        self.switched = False
        """The VM writes to the overlays."""
        self.whole = False
        """It has no disk that was neither switched nor excluded, as one plugged in during the attempt."""

    async def perform(self, step: WindowStep, timeout: float) -> Any:
        if step.action is Action.SWITCH:
            return await self._perform_switch(min(timeout, self._held_until - time.monotonic()))
        value = await anyio.to_thread.run_sync(self._ask, step, timeout)
        if step.action is Action.FREEZE:
            self._held_until = time.monotonic() + self._hold_s
        return value

    def _ask(self, step: WindowStep, timeout: float) -> Any:
        requester = self._requester
        assert requester is not None
        match step:
            case WindowStep(Action.HOLD, _, Level() as level):
                return requester.hold(level, timeout)
            case WindowStep(Action.FREEZE):
                return requester.freeze(timeout)
            case WindowStep(Action.THAW):
                return requester.thaw(timeout)
            case WindowStep(Action.RELEASE, _, Level() as level):
                return requester.release(level, timeout)
            case WindowStep(Action.ABORT):
                return requester.abort(timeout)
        raise AssertionError(step)

    async def _perform_switch(self, timeout: float) -> None:
        if timeout <= 0:
            raise WindowExpiredError("no time was left to switch")
        self._switch_started = True
        with anyio.move_on_after(timeout):
            return await anyio.to_thread.run_sync(self._switch, abandon_on_cancel=True)
        raise WindowExpiredError("libvirt did not return from the switch in time")

    def _switch(self) -> None:
        try:
            self._vm.switch(self._overlays)
        finally:
            self.switched_ns = time.monotonic_ns()
            self._switch_ended.set()

    @property
    def ended(self) -> bool:
        """No switch is under way."""
        return not self._switch_started or self._switch_ended.is_set()

    def settle(self) -> None:
        """Waits for a switch that was given up on, and finds out whether the VM writes to its overlays, all of it."""
        if not self._switch_started:
            return
        if not self._switch_ended.wait(SETTLE_TIMEOUT_S):
            raise HypervisorError(f"libvirt has not returned from switching {self._vm.name} for {SETTLE_TIMEOUT_S:g} s")
        sources = self._vm.disk_sources()
        self.switched = all(sources.get(target) == path for target, path in self._overlays.items())
        self.whole = sources.keys() == self._overlays.keys() | set(self._excluded)
