"""Puts a VM back to a checkpoint (Hyper-V: "apply")."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from quiesce.catalog.journal import Journal
from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, DiskImage, Kind, Tree
from quiesce.operations import guest, images, plan
from quiesce.operations.context import Context
from quiesce.operations.recover import recover
from quiesce.wire.schema import to_wire

FLUSH_TIMEOUT_S = 30.0
"""Longest that a guest about to be powered off is given to write out what is dirty, in seconds."""


@dataclass(frozen=True)
class Restored:
    checkpoint: Checkpoint
    safety: Checkpoint | None
    """The state that was left, unless it was to be discarded."""
    generation: str
    """The VM's new generation ID."""
    started: bool


def restore(
    context: Context, reference: CheckpointReference, *, start: bool = False, discard_current: bool = False
) -> Restored:
    """Stops the VM and makes it stand where the checkpoint was taken; leaves it off unless `start`.

    The state it leaves is kept as a safety checkpoint unless `discard_current`: the very images it wrote until it was powered
    off, so nothing it acknowledged is lost. What can fail for want of room or rights is done before the VM is stopped; a
    failure after that leaves it off and defined as before.
    """
    with context.vm(reference.vm) as vm, context.locked(vm, "restore"):
        with context.phase("plan"):
            recover(context, vm)
            facts = vm.facts()
            tree = context.catalog.tree(vm.host.name, vm.uuid)
            node = tree.find(reference.checkpoint)
            _require_restorable(facts, tree, node)
            plan.require_nothing_in_the_way(facts)
            safety = None if discard_current else _safety(vm, facts, tree)
            if safety:
                images.require_known_base(vm, safety.disks, tree)
            capacities = _require_images(vm, node)
        if facts.power is PowerState.RUNNING and safety:
            with context.phase("flush the guest"):
                _flush(context, vm, facts)
        before, left = vm.definition(), set(vm.sources().values())
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "restore")
        generation = str(uuid.uuid4())
        made: dict[str, str] = {}
        try:
            with context.phase("make differencing disks"):
                for image in node.disks:
                    made[image.target] = images.make_overlay(
                        context, vm, journal, image.target, capacities[image.target], image.path, image.format
                    )
            with context.phase("stop"), journal.step("stop"):
                vm.power_off()
            intended = {"checkpoint": node.id, "sources": made, "before": before, "safety": to_wire(safety) if safety else None}
            with context.phase("define"), journal.step("define", **intended):
                xml = context.catalog.domain_xml(node.id)
                vm.redefine(domain_xml.restored(xml, name=vm.name, generation=generation, sources=made))
                if vm.active():
                    raise RefusedError(
                        f"{vm.name} was started by somebody else during the restore", hint="stop it and try again"
                    )
                if safety:
                    context.catalog.add(safety, before, head_parent=node.id)
                else:
                    context.catalog.set_head(vm.host.name, vm.uuid, node.id)
        except BaseException:
            if not _recorded(context, vm, node, safety, made):
                _undo(context, vm, journal, before, set(made.values()))
            raise
        if safety:
            images.write_manifest(context, vm, safety, before)
        else:
            for path in sorted(left):
                if context.catalog.made_image(vm.host.name, path):
                    images.discard_or_warn(context, vm, journal, path)
        journal.finish("done")
        if start:
            with context.phase("start"):
                vm.start()
        return Restored(node, safety, generation, start)


def _recorded(context: Context, vm: Vm, node: Checkpoint, safety: Checkpoint | None, made: dict[str, str]) -> bool:
    """Whether definition and catalog agree that the restore is done, whatever interrupted it afterwards."""
    defined = bool(made) and made.items() <= vm.sources().items()
    at_node = context.catalog.tree(vm.host.name, vm.uuid).head_parent == node.id
    return defined and at_node and (safety is None or context.catalog.has(safety.id))


def _undo(context: Context, vm: Vm, journal: Journal, before: str, made: set[str]) -> None:
    """The VM defined as before, the new overlays gone. What cannot be undone stays journalled."""
    try:
        if made & set(vm.sources().values()):
            vm.redefine(before)
        for path in made:
            with suppress(NotFoundError):
                images.discard(context, vm, path)
        journal.finish("undone")
    except QuiesceError as error:
        context.emit(Warned(f"the failed restore could not be undone: {error.message}"))


def _require_restorable(facts: Facts, tree: Tree, node: Checkpoint) -> None:
    if not facts.persistent:
        raise RefusedError(f"{facts.name} is transient: libvirt forgets it when it stops", hint="virsh define it first")
    if facts.managed_save:
        raise RefusedError(
            f"{facts.name} has a saved memory image, which does not fit the disks of a checkpoint",
            hint=f"start it, or drop the saved memory: virsh managedsave-remove {facts.name}",
        )
    if node.id in tree.deleting:
        raise RefusedError(
            f"checkpoint {node.name!r} is half deleted and can no longer be restored",
            hint=f"finish it: quiesce delete {facts.name}@{node.name}",
        )


def _require_images(vm: Vm, node: Checkpoint) -> dict[str, int]:
    """The virtual size of each image of the checkpoint, in bytes. Raises NotFoundError if one is gone."""
    sizes = {}
    for image in node.disks:
        directory, name = volumes.split(image.path)
        with volumes.directory(vm.host, directory) as pool:
            if not pool.has(name):
                raise NotFoundError(f"the image {image.path} of checkpoint {node.name!r} is gone")
            sizes[image.target] = pool.capacity(name)
    return sizes


def _safety(vm: Vm, facts: Facts, tree: Tree) -> Checkpoint:
    """The present images as a checkpoint. Nobody will have held the applications when the VM is powered off."""
    now = datetime.now(UTC)
    return Checkpoint(
        id=uuid.uuid4().hex,
        host=vm.host.name,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        name=f"before restore {now:%Y-%m-%dT%H.%M.%S.%f}Z",
        created=now.isoformat(timespec="milliseconds"),
        kind=Kind.SAFETY,
        consistency=Consistency.CRASH,
        required=Consistency.CRASH,
        disks=tuple(DiskImage(disk.target, str(disk.path), disk.format) for disk in plan.disks_to_switch(facts)),
        parent=tree.head_parent,
    )


def _flush(context: Context, vm: Vm, facts: Facts) -> None:
    """Has the guest write out what it can, as in any preparation, so that powering it off loses least. It may well be the
    guest's ruin that is the reason for the restore, so no failure of it is one of ours."""
    try:
        guest.require_agent_port(facts)
        with guest.agent(vm) as (requester, _), guest.translated(vm.name):
            requester.prepare(1000, False, FLUSH_TIMEOUT_S)
    except QuiesceError as error:
        context.emit(Warned(f"the guest was not flushed before it was powered off: {error.message}"))
