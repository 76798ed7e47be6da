"""Takes a checkpoint: plan, differencing disks, switch, judge, record. How the switch is done is a matter of the type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NameTakenError, QuiesceError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.names import check_checkpoint_name, default_checkpoint_name
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Checkpoint, GroupPart, Kind
from quiesce.operations.recover import recover
from quiesce.taking import offline, plan, production, standard
from quiesce.taking.part import Evidence, Part, record

DEFAULT_WINDOW_S = 10.0
"""VSS's own limit for holding writes."""


def checkpoint(
    context: Context,
    vm_name: str,
    *,
    name: str | None = None,
    type: Type | None = None,
    required: Consistency | None = None,
    exclude: tuple[str, ...] = (),
    window_s: float = DEFAULT_WINDOW_S,
    automatic: bool = False,
) -> Checkpoint:
    """Takes a checkpoint of the VM, running or off, and returns it. What the call leaves open, the VM's settings say.

    Its label is at least `required`. If that cannot be had, a QuiesceError is raised, the guest runs, and nothing is left
    behind. Killed at any moment, the guest releases itself within `window_s`.
    """
    name = check_checkpoint_name(name) if name is not None else default_checkpoint_name(datetime.now(UTC))
    with context.vm(vm_name) as vm, context.locked(vm, "checkpoint"), contextlib.ExitStack() as stack:
        settings = settings_of(context, vm, type, required)
        with context.phase("plan"):
            taking = Taking(context, vm, name, settings, exclude, stack)
        stack.enter_context(taking.undone_unless_recorded())
        taking.make_overlays()
        if taking.guest:
            (verdict,) = production.take(context, [taking.guest], window_s)
        else:
            verdict = taking.take_alone()
        if automatic:
            verdict.kind = Kind.AUTOMATIC
        with context.phase("record"):
            node = taking.describe(verdict)
            record(context.catalog, [(taking.attempt, node)])
    for warning in node.warnings:
        context.emit(Warned(warning))
    return node


class Taking:
    """One VM's checkpoint while it is taken, under the VM's lock."""

    def __init__(
        self,
        context: Context,
        vm: Vm,
        name: str,
        settings: Settings,
        exclude: tuple[str, ...],
        stack: contextlib.ExitStack,
    ) -> None:
        """Refuses what cannot work before anything is touched. `stack` closes the conversation with the guest. Raises
        QuiesceError."""
        self._context = context
        self._vm = vm
        self._name = name
        self._settings = settings
        recover(context, vm)
        facts = vm.facts()
        present = {disk.target for disk in facts.disks}
        excluded = (*(target for target in settings.exclude if target in present), *exclude)
        disks = plan.disks_to_switch(facts, excluded)
        _require_power(facts, settings)
        plan.require_nothing_in_the_way(facts)
        found = survey(context, vm)
        if found.tree.has_name(name):
            raise NameTakenError(f"{vm.name} has a checkpoint named {name!r} already", hint="choose another --name")
        found.require_known_chain({disk.target: str(disk.path) for disk in disks})
        plan.require_short_chains(disks, found.chains, context.emit)
        self._parent = found.tree.head_parent
        self._off = facts.power is PowerState.OFF
        if self._off:
            offline.require(vm, offline.judge(context, vm, {str(disk.path) for disk in disks}), settings.require)
        if settings.type is Type.STANDARD and excluded:
            raise RefusedError(
                f"disk {', '.join(excluded)} would not go back with the memory; the guest's memory would ruin it",
                hint="a standard checkpoint must have all disks",
            )
        in_window = settings.type is Type.PRODUCTION and not self._off
        requester = production.open_agent(context, vm, facts, settings.require, stack) if in_window else None
        self.attempt = Part(context, vm, disks, tuple(dict.fromkeys(excluded)))
        self.guest: production.Guest | None = None
        """Who takes part in a window; None where there is none: the VM is off, or the checkpoint a standard one."""
        if in_window:
            self.guest = production.Guest(context, vm, self.attempt, settings.require, requester)

    @contextlib.contextmanager
    def undone_unless_recorded(self) -> Iterator[None]:
        """Unless the block records the checkpoint, nothing is left of it. The guest's writers are told how it ended."""
        try:
            with self.attempt.undone_unless_recorded():
                yield
        except BaseException:
            self._tell_writers(kept=self._is_recorded())
            raise
        self._tell_writers(kept=True)

    def _is_recorded(self) -> bool:
        """Whatever went wrong afterwards, as with another member of a group."""
        with contextlib.suppress(QuiesceError):
            return self._context.catalog.has(self.attempt.id)
        return False

    def _tell_writers(self, *, kept: bool) -> None:
        if self.guest:
            self.guest.tell_writers(kept=kept)

    def make_overlays(self) -> None:
        self.attempt.make_overlays()

    def take_alone(self) -> Evidence:
        """Where there is no window."""
        if not self._off:
            return standard.take(self._context, self._vm, self.attempt)
        verdict = offline.take(self._context, self._vm, self.attempt)
        self.attempt.untouched = images.written(self._vm, self.attempt.overlays.values())
        return verdict

    def require_as_taken(self) -> None:
        """Raises RefusedError if the VM was off when it was taken, and runs now: beside others it is not of their instant."""
        if self._off and self._vm.active():
            raise RefusedError(f"{self._vm.name} was started by somebody else meanwhile", hint="try again")

    def describe(self, verdict: Evidence, group: GroupPart | None = None) -> Checkpoint:
        return self.attempt.describe(verdict, self._name, self._settings.require, self._parent, group)


def settings_of(context: Context, vm: Vm, type: Type | None, required: Consistency | None) -> Settings:
    """The VM's settings, with what this call says put in their place."""
    settings = context.catalog.settings(vm.host.name, vm.uuid)
    if type is None and settings.type is Type.DISABLED:
        raise RefusedError(
            f"checkpoints are disabled for {vm.name}", hint=f"quiesce settings {vm.name} --type production, or give --type"
        )
    if type is Type.DISABLED:
        raise UsageError("a checkpoint cannot be taken as disabled", hint=f"quiesce settings {vm.name} --type disabled")
    if type is not None:
        settings = replace(settings, type=type)
    if required is not None:
        settings = replace(settings, require=required)
    return settings


def _require_power(facts: Facts, settings: Settings) -> None:
    if facts.power is PowerState.OFF:
        if settings.type is Type.STANDARD:
            raise RefusedError(f"{facts.name} is off: it has no memory to save", hint="use --type production")
        plan.require_no_saved_memory(facts)
        plan.require_persistent(facts)
    elif settings.type is Type.STANDARD:
        plan.require_running(facts)  # saving the memory of a paused VM leaves QEMU unable to merge until it is resumed
    else:
        plan.require_answering(facts, settings.require)
