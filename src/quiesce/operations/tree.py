"""The checkpoints of a VM."""

from __future__ import annotations

from quiesce.context import Context
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree


def tree(context: Context, vm_name: str) -> Tree:
    """Raises NotFoundError if there is no such VM."""
    with context.vm(vm_name) as vm:
        return context.catalog.checkpoints.tree(vm.key)


def show_checkpoint(context: Context, reference: CheckpointReference) -> Checkpoint:
    """Raises NotFoundError."""
    return tree(context, reference.vm).find(reference.checkpoint)
