"""Deletes a checkpoint nothing but the running VM depends on."""

from __future__ import annotations

from quiesce.catalog.journal import Journal
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import RefusedError
from quiesce.model.events import Progress
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint
from quiesce.operations import images, plan
from quiesce.operations.context import Context


def delete(context: Context, reference: CheckpointReference) -> Checkpoint:
    """Removes a leaf of the tree and returns what it was. If the VM's disks are based on it, what the VM wrote since is
    merged into its images, while the VM runs; its state does not change. Interrupted, it can be called again to finish; the
    checkpoint cannot be restored meanwhile.

    Raises RefusedError if other checkpoints are based on it.
    """
    with context.vm(reference.vm) as vm, context.locked(vm, "delete"):
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
            to_merge = _to_merge(facts.power, vm, node, facts.disks) if is_head else []
            if not is_head:
                _require_unused(vm, node)
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "delete")
        context.catalog.mark_deleting(node)
        if is_head:
            with context.phase("merge"):
                for disk in to_merge:
                    _merge(context, vm, journal, disk, node)
        with journal.step("forget", checkpoint=node.id):
            images.remove_manifest(vm, node)
            context.catalog.remove(node, head_parent=node.parent if is_head else tree.head_parent)
        if not is_head:
            with context.phase("remove images"):
                for image in node.disks:
                    images.discard_or_warn(context, vm, journal, image.path)
        journal.finish("done")
        return node


def _to_merge(power: PowerState, vm: Vm, node: Checkpoint, disks: tuple[Disk, ...]) -> list[Disk]:
    """The disks still to be merged into the checkpoint's images; those an interrupted deletion did are not among them."""
    if power is not PowerState.RUNNING:
        raise RefusedError(
            f"{vm.name} is based on {node.name!r} and is not running; merging needs it to run",
            hint=f"virsh start {vm.name}",
        )
    found = []
    for image in node.disks:
        disk = next((disk for disk in disks if disk.target == image.target), None)
        if disk is None:
            raise RefusedError(f"{vm.name} no longer has disk {image.target}, which {node.name!r} holds")
        if disk.path == image.path:
            continue
        if not disk.chain or disk.chain[0] != image.path:
            raise RefusedError(f"disk {disk.target} is not based on {image.path}: somebody changed its chain")
        found.append(disk)
    return found


def _require_unused(vm: Vm, node: Checkpoint) -> None:
    used = images.in_use(vm)
    for image in node.disks:
        if image.path in used:
            raise RefusedError(
                f"{vm.name} stands on {image.path} of {node.name!r}, although the catalog says otherwise; it is left alone"
            )


def _merge(context: Context, vm: Vm, journal: Journal, disk: Disk, node: Checkpoint) -> None:
    base, top = node.image(disk.target), str(disk.path)
    assert base is not None

    def progress(done: int, total: int) -> None:
        context.emit(Progress("merge", done, total))

    with journal.step("merge", target=disk.target, base=base.path, top=top):
        vm.commit_into_base(disk.target, base.path, progress=progress)
    images.discard_or_warn(context, vm, journal, top)
