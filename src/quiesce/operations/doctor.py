"""Looks for what interrupted operations left behind on a VM, and mends it."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.catalog import journal
from quiesce.operations import images
from quiesce.operations.context import Context
from quiesce.operations.recover import recover


@dataclass(frozen=True)
class Diagnosis:
    found: tuple[str, ...]
    mended: tuple[str, ...]


def doctor(context: Context, vm_name: str, *, repair: bool) -> Diagnosis:
    """What is wrong with the VM's checkpoints; with `repair`, mended. Raises BusyError while an operation is under way."""
    with context.vm(vm_name) as vm, context.locked(vm, "doctor"):
        found = [
            f"the {operation.verb} begun at {operation.started} was interrupted"
            for operation in journal.interrupted(context.catalog, vm.host.name, vm.uuid)
        ]
        if not found:
            found = [f"{path} is needed by nothing" for path in images.orphans(context, vm)]
        return Diagnosis(tuple(found), tuple(recover(context, vm, orphans=True)) if repair else ())
