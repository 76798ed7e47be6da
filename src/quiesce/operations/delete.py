"""Deletes a checkpoint nothing but the running VM depends on."""

from __future__ import annotations

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.hypervisor import volumes
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import RefusedError
from quiesce.model.events import Progress
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint
from quiesce.operations import plan
from quiesce.operations.checkpoint import remove_image
from quiesce.operations.context import Context


def delete(context: Context, reference: CheckpointReference) -> Checkpoint:
    """Removes a leaf of the tree and returns what it was. If the VM's disks are based on it, what the VM wrote since is
    merged into its images, while the VM runs; its state does not change.

    Raises RefusedError if other checkpoints are based on it.
    """
    with context.vm(reference.vm) as vm:
        with context.phase("plan"):
            tree = context.catalog.tree(vm.host.name, vm.uuid)
            node = tree.find(reference.checkpoint)
            children = tree.children(node.id)
            if children:
                names = ", ".join(repr(child.name) for child in children)
                raise RefusedError(f"other checkpoints are based on {node.name!r}: {names}", hint="delete those first")
            facts = vm.facts()
            plan.require_nothing_in_the_way(facts)
            is_head = tree.head_parent == node.id
            if is_head:
                _require_mergeable(vm, facts.power, node)
                plan.require_known_chain(plan.disks_to_switch(facts), tree, context.emit)
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "delete")
        if is_head:
            with context.phase("merge"):
                _merge_head(context, vm, journal, node)
        else:
            with context.phase("remove images"):
                for image in node.disks:
                    with journal.step("remove-image", path=image.path):
                        remove_image(vm, image.path)
        with journal.step("forget", checkpoint=node.id):
            remove_image(vm, _manifest_path(node))
            context.catalog.remove(node, head_parent=node.parent if is_head else tree.head_parent)
        journal.finish("done")
        return node


def _require_mergeable(vm: Vm, power: PowerState, node: Checkpoint) -> None:
    if power is not PowerState.RUNNING:
        raise RefusedError(
            f"{vm.name} is based on {node.name!r} and is not running; merging needs it to run",
            hint=f"virsh start {vm.name}",
        )


def _merge_head(context: Context, vm: Vm, journal: Journal, node: Checkpoint) -> None:
    before = vm.sources()
    for image in node.disks:

        def progress(done: int, total: int) -> None:
            context.emit(Progress("merge", done, total))

        with journal.step("merge", target=image.target, base=image.path, top=before[image.target]):
            vm.commit_into_base(image.target, image.path, progress=progress)
        with journal.step("remove-image", path=before[image.target]):
            remove_image(vm, before[image.target])


def _manifest_path(node: Checkpoint) -> str:
    return f"{volumes.split(node.disks[0].path)[0]}/{manifest.name(node.id)}"
