"""Takes a checkpoint: plan, overlays, switch, judge, record. The type and the VM's state decide how the switch is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import MakeOverlay, Switch
from quiesce.context import Context
from quiesce.disks import images, places
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency, RequiredGrade
from quiesce.model.names import CheckpointReference, check_checkpoint_name, default_checkpoint_name
from quiesce.model.settings import Settings, Type
from quiesce.model.tree import Checkpoint, Kind
from quiesce.operations.content import verify_content
from quiesce.operations.shorten import keep_short, make_room
from quiesce.recovery import journalled, operating
from quiesce.taking.evidence import Evidence
from quiesce.taking.offline import take_offline
from quiesce.taking.part import Part, record
from quiesce.taking.plan import Plan, plan
from quiesce.taking.production import RunningPart, open_guest, take_production
from quiesce.taking.standard import take_standard

DEFAULT_WINDOW_S = 10.0
"""VSS's own limit for holding writes."""


def checkpoint(
    context: Context,
    vm_name: str,
    *,
    name: str | None = None,
    type: Type | None = None,
    required: Consistency | None = None,
    required_grade: RequiredGrade | None = None,
    exclude: tuple[str, ...] = (),
    overlays: str | None = None,
    window_s: float = DEFAULT_WINDOW_S,
    automatic: bool = False,
    digest: bool = False,
) -> Checkpoint:
    """Takes a checkpoint of the VM, which runs or is off, and returns it. An argument that is None has the value of the VM's
    settings. Afterwards makes a long backing chain shorter, which may take long and can be interrupted.

    The checkpoint's label is at least `required`, and of an *application* label each required application has at least
    `required_grade`; otherwise a QuiesceError is raised, the guest runs, and nothing is left
    behind. If this process is killed at any moment, the guest releases itself within `window_s` seconds.

    `digest`: afterwards, reads all images of the checkpoint and records the digests of their bytes, as `verify_content`. A
    failure of that is a warning.
    """
    if name is not None:
        check_checkpoint_name(name)
    with operating(context, vm_name, "checkpoint") as vm:
        name = name or context.catalog.checkpoints.free_name(default_checkpoint_name(datetime.now(UTC)), [vm.key])
        settings = settings_of(context, vm, type, required, required_grade)
        if overlays is not None:
            settings = replace(settings, overlays=places.chosen(context.storage(vm.host), overlays))
        make_room(context, vm)
        with ExitStack() as stack:
            with context.phase("plan"):
                planned = plan(context, vm, name, settings, exclude)
                part, running = begin_part(context, vm, planned, stack)
            part.make_overlays()
            evidence = take_production(context, [running], window_s)[0] if running else take_alone(context, vm, part)
            if automatic:
                evidence = replace(evidence, kind=Kind.AUTOMATIC)
            with context.phase("record"):
                (node,) = record(context, [(part, evidence)])
        for warning in node.warnings:
            context.emit(Warned(warning))
        keep_short(context, vm)
    if digest:
        try:
            verify_content(context, CheckpointReference(vm_name, node.id)).require()
        except QuiesceError as error:
            context.emit(Warned(f"the digests of {node.name!r} were not recorded: {error.message}"))
    return node


def begin_part(context: Context, vm: Vm, planned: Plan, stack: ExitStack) -> tuple[Part, RunningPart | None]:
    """The VM's part of a checkpoint, with its journal; and, if the VM is switched in a window, the member of the window.
    Closing `stack` undoes a checkpoint that is not recorded, tells the guest's writers whether the checkpoint was kept, and
    ends the conversation with the guest."""
    guest = open_guest(context, vm, planned.facts, planned.settings.require, stack) if planned.in_window else None
    telling = stack.enter_context(_telling(context))
    part = Part(context, vm, planned, stack.enter_context(journalled(context, vm, "checkpoint")))
    running = RunningPart(context, vm, part, guest) if planned.in_window else None
    if running:
        telling.append((part, running))
    return part, running


@contextmanager
def _telling(context: Context) -> Iterator[list[tuple[Part, RunningPart]]]:
    """After the block, tells the writers of each member whether its checkpoint was kept. The catalog decides: an error may be
    raised after the checkpoint was recorded, as one of another member of a group."""
    members: list[tuple[Part, RunningPart]] = []
    try:
        yield members
    finally:
        for part, running in members:
            kept = False
            with suppress(QuiesceError):
                kept = context.catalog.checkpoints.has(part.id)
            running.tell_writers(kept=kept)


def take_alone(context: Context, vm: Vm, part: Part) -> Evidence:
    """Takes the disks of a VM that is switched without a window: it is off, or the type is standard."""
    return take_offline(context, vm, part) if part.plan.off else take_standard(context, vm, part)


def require_still_off(taken: Sequence[tuple[Vm, Part]]) -> None:
    """Raises RefusedError if a VM was off when its disks were taken, and runs now: its part may not be of the instant of the
    others."""
    for vm, part in taken:
        if part.plan.off and vm.active():
            raise RefusedError(f"somebody started {vm.name} while the checkpoint was taken", hint="try again")


def settings_of(
    context: Context, vm: Vm, type: Type | None, required: Consistency | None, required_grade: RequiredGrade | None
) -> Settings:
    """The VM's settings, with the arguments that are not None in place of the stored values."""
    settings = context.catalog.settings.get(vm.key)
    if type is None and settings.type is Type.DISABLED:
        raise RefusedError(
            f"the settings of {vm.name} disable checkpoints",
            hint=f"allow them: quiesce settings {vm.name} --type production; or give --type with this checkpoint",
        )
    if type is Type.DISABLED:
        raise UsageError(
            "--type disabled takes no checkpoint", hint=f"to forbid checkpoints: quiesce settings {vm.name} --type disabled"
        )
    if type is not None:
        settings = replace(settings, type=type)
    if required is not None:
        settings = replace(settings, require=required)
    if required_grade is not None:
        settings = replace(settings, require_grade=required_grade)
    return settings


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Undoes a checkpoint that was not recorded: commits the overlays into their backing files, which the VM writes then.
    Raises QuiesceError while libvirt is still busy with the switch: the switch may take effect later."""
    vm.end_saving()
    if context.catalog.checkpoints.has(operation.id):
        images.write_manifest(context, vm, context.catalog.checkpoints.tree(vm.key).find(operation.id))
        return "was complete"
    if not operation.of(Switch):
        return "had not begun to switch"  # the VM never wrote to the overlays; they are removed with the orphans
    images.undo_switch(context, vm, operation.of(MakeOverlay))
    return "was undone"
