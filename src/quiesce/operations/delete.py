"""Deletes a checkpoint nothing but the VM itself depends on."""

from __future__ import annotations

from quiesce.catalog.journal import Journal
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError
from quiesce.model.events import Progress
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint
from quiesce.operations import images, plan
from quiesce.operations.context import Context
from quiesce.operations.recover import recover


def delete(context: Context, reference: CheckpointReference) -> Checkpoint:
    """Removes a leaf of the tree and returns what it was. If the VM's disks are based on it, what the VM wrote since is
    merged into its images, whether the VM runs or is off; its state does not change. Interrupted, it can be called again to
    finish; the checkpoint cannot be restored meanwhile.

    Raises RefusedError if other checkpoints are based on it.
    """
    with context.vm(reference.vm) as vm, context.locked(vm, "delete"):
        with context.phase("plan"):
            recover(context, vm)
            tree = context.catalog.tree(vm.host.name, vm.uuid)
            node = tree.find(reference.checkpoint)
            children = tree.children(node.id)
            if children:
                names = ", ".join(repr(child.name) for child in children)
                raise RefusedError(f"other checkpoints are based on {node.name!r}: {names}", hint="delete those first")
            facts = vm.facts()
            plan.require_nothing_in_the_way(facts)
            is_head = tree.head_parent == node.id
            to_merge = _to_merge(vm, node) if is_head else []
            if not is_head:
                _require_unused(vm, node)
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "delete")
        context.catalog.mark_deleting(node)
        if is_head:
            with context.phase("merge"):
                for target, top, base in to_merge:
                    _merge(context, vm, journal, target, top, base)
        with journal.step("forget", checkpoint=node.id):
            images.remove_manifest(vm, node)
            context.catalog.remove(node, head_parent=node.parent if is_head else tree.head_parent)
        if not is_head:
            with context.phase("remove images"):
                for image in node.disks:
                    images.discard_or_warn(context, vm, journal, image.path)
        journal.finish("done")
        return node


def _to_merge(vm: Vm, node: Checkpoint) -> list[tuple[str, str, str]]:
    """(target, overlay, image below) of the disks still to be merged; those an interrupted deletion did are not among them."""
    sources = vm.sources()
    found = []
    for image in node.disks:
        top = sources.get(image.target)
        if top is None:
            raise RefusedError(f"{vm.name} no longer has disk {image.target}, which {node.name!r} holds")
        if top == image.path:
            continue
        if images.backing(vm, top) != image.path:
            raise RefusedError(f"disk {image.target} is not based on {image.path}: somebody changed its chain")
        found.append((image.target, top, image.path))
    return found


def _require_unused(vm: Vm, node: Checkpoint) -> None:
    used = images.in_use(vm)
    for image in node.disks:
        if image.path in used:
            raise RefusedError(
                f"{vm.name} stands on {image.path} of {node.name!r}, although the catalog says otherwise; it is left alone"
            )


def _merge(context: Context, vm: Vm, journal: Journal, target: str, top: str, base: str) -> None:
    def progress(done: int, total: int) -> None:
        context.emit(Progress("merge", done, total))

    with journal.step("merge", target=target, base=base, top=top):
        vm.commit_into_base(target, base, progress=progress)
    images.discard_or_warn(context, vm, journal, top)
