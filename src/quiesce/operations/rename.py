"""Gives a checkpoint another name."""

from __future__ import annotations

from dataclasses import replace

from quiesce.catalog.journal import Journal
from quiesce.context import Context
from quiesce.disks import images
from quiesce.model.errors import NameTakenError
from quiesce.model.names import CheckpointReference, check_checkpoint_name
from quiesce.model.tree import Checkpoint
from quiesce.operations.recover import recover


def rename(context: Context, reference: CheckpointReference, name: str) -> Checkpoint:
    """Returns the checkpoint as it is then. Raises NameTakenError, NotFoundError, UsageError."""
    check_checkpoint_name(name)
    with context.vm(reference.vm) as vm, context.locked(vm, "rename"):
        recover(context, vm)
        tree = context.catalog.tree(vm.host.name, vm.uuid)
        node = tree.find(reference.checkpoint)
        if node.name == name:
            return node
        if tree.has_name(name):
            raise NameTakenError(f"{vm.name} has a checkpoint named {name!r} already")
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "rename")
        renamed = replace(node, name=name)
        with journal.step("rename", checkpoint=node.id):
            context.catalog.update(renamed)
            images.write_manifest(context, vm, renamed)
        journal.finish("done")
        return renamed
