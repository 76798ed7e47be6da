"""Takes a checkpoint: plan, differencing disks, switch, judge, record. How the switch is done is a matter of the type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NameTakenError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.names import check_checkpoint_name, default_checkpoint_name
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Checkpoint, Kind
from quiesce.operations import offline, plan, standard
from quiesce.operations.attempt import Attempt
from quiesce.operations.context import Context
from quiesce.operations.production import Production, open_agent
from quiesce.operations.recover import recover
from quiesce.operations.survey import survey

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
        settings = _settings(context, vm, type, required)
        with context.phase("plan"):
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
            off = facts.power is PowerState.OFF
            if off:
                offline.require(vm, offline.judge(context, vm, {str(disk.path) for disk in disks}), settings.require)
            if settings.type is Type.STANDARD and excluded:
                raise RefusedError(
                    f"disk {', '.join(excluded)} would not go back with the memory; the guest's memory would ruin it",
                    hint="a standard checkpoint must have all disks",
                )
            production = settings.type is Type.PRODUCTION and not off
            requester = open_agent(context, vm, facts, settings.require, stack) if production else None
        attempt = Attempt(context, vm, disks, tuple(dict.fromkeys(excluded)))
        taking = Production(context, vm, attempt, settings.require, window_s, requester)
        with _told(taking), attempt.undone_unless_recorded():
            attempt.make_overlays()
            if off:
                verdict = offline.take(context, vm, attempt)
            elif settings.type is Type.STANDARD:
                verdict = standard.take(context, vm, attempt)
            else:
                verdict = taking.take()
            if automatic:
                verdict.kind = Kind.AUTOMATIC
            with context.phase("record"):
                node = attempt.record(verdict, name, settings.require, found.tree.head_parent)
        for warning in node.warnings:
            context.emit(Warned(warning))
        return node


@contextlib.contextmanager
def _told(taking: Production) -> Iterator[None]:
    """The guest's writers are told how the block ended."""
    try:
        yield
    except BaseException:
        taking.tell_writers(kept=False)
        raise
    taking.tell_writers(kept=True)


def _settings(context: Context, vm: Vm, type: Type | None, required: Consistency | None) -> Settings:
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
