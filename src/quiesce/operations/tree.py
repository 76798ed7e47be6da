"""The checkpoints of a VM."""

from __future__ import annotations

from quiesce.context import Context
from quiesce.disks.fingerprints import tree_as_it_is
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree


def tree(context: Context, vm_name: str) -> Tree:
    """The labels are those that the images deserve now: if another program changed one, the checkpoints that read it are shown
    as crash-consistent. Raises NotFoundError if there is no such VM."""
    with context.vm(vm_name) as vm:
        return tree_as_it_is(context, vm)


def show_checkpoint(context: Context, reference: CheckpointReference) -> Checkpoint:
    """Raises NotFoundError."""
    return tree(context, reference.vm).find(reference.checkpoint)
