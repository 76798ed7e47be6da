"""Starts a VM, after an automatic checkpoint of its disks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from quiesce.context import Context
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import ConsistencyError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.names import automatic_name
from quiesce.model.settings import Type
from quiesce.model.tree import Checkpoint
from quiesce.operations.checkpoint import checkpoint
from quiesce.recovery import recover_all


@dataclass(frozen=True)
class Started:
    vm: str
    checkpoint: Checkpoint | None
    """The automatic checkpoint that was taken before."""


def start(context: Context, vm_name: str) -> Started:
    """Takes an automatic checkpoint if the VM's settings ask for one and the VM has no checkpoint; then starts the VM. The
    guest does not run yet, so the checkpoint has exactly the disks that the VM starts from.

    If the checkpoint fails, the VM stays off, and the error says why. There is one exception: if the label of the disks would
    be less than the settings require, as after a power failure, starts the VM with a warning. When the guest runs, a checkpoint
    may get that label, and `quiesce watch` takes it then. Raises RefusedError if the VM is not off, or if it would
    overwrite an image of a checkpoint.
    """
    with context.vm(vm_name) as vm:
        taken = _checkpoint(context, vm)
        with context.locked(vm, "start"):
            recover_all(context, vm)
            _require_off(vm)
            if context.catalog.checkpoints.tree(vm.key).checkpoints and not vm.facts().managed_save:
                survey(context, vm, patient=True).require_no_overwriting(vm.heads())
            with context.phase("start"):
                vm.start()
        return Started(vm.name, taken)


def _checkpoint(context: Context, vm: Vm) -> Checkpoint | None:
    _require_off(vm)
    catalog = context.catalog
    if not catalog.settings.get(vm.key).wants_automatic or catalog.checkpoints.tree(vm.key).checkpoints:
        return None
    if vm.facts().managed_save:
        context.emit(Warned(f"{vm.name} resumes from its saved memory, so no automatic checkpoint is taken"))
        return None
    try:
        return checkpoint(context, vm.uuid, name=automatic_name(datetime.now(UTC)), type=Type.PRODUCTION, automatic=True)
    except ConsistencyError as error:
        context.emit(Warned(f"no automatic checkpoint: {error.message}"))
        return None


def _require_off(vm: Vm) -> None:
    power = vm.facts().power
    if power is PowerState.PAUSED:
        raise RefusedError(f"{vm.name} is paused, not off", hint=f"let it run on: virsh resume {vm.name}")
    if power is PowerState.PANICKED:
        raise RefusedError(f"the guest of {vm.name} panicked", hint=f"end the VM first: virsh destroy {vm.name}")
    if power is not PowerState.OFF:
        raise RefusedError(f"{vm.name} is not off, so it cannot be started", hint=f"see its state: virsh domstate {vm.name}")
