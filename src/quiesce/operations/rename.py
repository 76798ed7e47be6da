"""Gives a checkpoint another name."""

from __future__ import annotations

from dataclasses import replace

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import Rename
from quiesce.context import Context
from quiesce.disks import images
from quiesce.hypervisor.vm import Vm
from quiesce.model.names import CheckpointReference, check_checkpoint_name
from quiesce.model.tree import Checkpoint
from quiesce.recovery import journalled, operating


def rename(context: Context, reference: CheckpointReference, name: str) -> Checkpoint:
    """Returns the renamed checkpoint. Raises NameTakenError, NotFoundError, UsageError."""
    check_checkpoint_name(name)
    with operating(context, reference.vm, "rename") as vm:
        tree = context.catalog.checkpoints.tree(vm.key)
        node = tree.find(reference.checkpoint)
        if node.name == name:
            return node
        tree.require_free_name(name, vm.name, hint="choose another name")
        renamed = replace(node, name=name)
        with journalled(context, vm, "rename") as journal, journal.step(Rename(node.id)):
            context.catalog.checkpoints.update(renamed)
            images.write_manifest(context, vm, renamed)
        return renamed


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: the catalog has the old name or the new one, and recovery.py writes the manifest again."""
    return "can be called again"
