"""Puts a VM back to a checkpoint (Hyper-V: "apply")."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, DiskImage, Kind
from quiesce.operations import plan
from quiesce.operations.checkpoint import checkpoint, overlay_name, remove_image
from quiesce.operations.context import Context


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

    The state it leaves is kept as a safety checkpoint unless `discard_current`. Fails before the VM is touched, or after
    with the VM off and defined either wholly as before or wholly as restored.
    """
    with context.vm(reference.vm) as vm:
        with context.phase("plan"):
            facts = vm.facts()
            tree = context.catalog.tree(vm.host.name, vm.uuid)
            node = tree.find(reference.checkpoint)
            _require_restorable(facts)
            plan.require_nothing_in_the_way(facts)
            capacities = _require_images(vm, node)
        left_images = {target: path for target, path in vm.sources().items() if target in _targets(facts)}
        safety = None
        if not discard_current:
            with context.phase("keep the present state"):
                safety = _keep_present_state(context, vm, facts)
        if safety and facts.power is PowerState.RUNNING:
            left_images = {target: path for target, path in vm.sources().items() if target in _targets(facts)}
        kept = {image.path for image in safety.disks} if safety else set()
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "restore")
        with context.phase("stop"), journal.step("stop"):
            vm.power_off()
        generation = str(uuid.uuid4())
        made: dict[str, str] = {}
        try:
            with context.phase("make differencing disks"):
                for image in node.disks:
                    made[image.target] = _fresh_overlay(vm, journal, image, capacities[image.target])
            with context.phase("define"), journal.step("define", checkpoint=node.id, sources=made):
                xml = context.catalog.domain_xml(node.id)
                vm.redefine(domain_xml.restored(xml, name=vm.name, generation=generation, sources=made))
        except BaseException:
            for path in made.values():
                remove_image(vm, path)
            journal.finish("undone")
            raise
        with journal.step("head", parent=node.id):
            context.catalog.set_head(vm.host.name, vm.uuid, node.id)
        _remove_left_images(context, vm, journal, set(left_images.values()) - kept)
        journal.finish("done")
        if start:
            with context.phase("start"):
                vm.start()
        return Restored(node, safety, generation, start)


def _require_restorable(facts: Facts) -> None:
    if not facts.persistent:
        raise RefusedError(f"{facts.name} is transient: libvirt forgets it when it stops", hint="virsh define it first")
    if facts.managed_save:
        raise RefusedError(
            f"{facts.name} has a saved memory image, which does not fit the disks of a checkpoint",
            hint=f"start it, or drop the saved memory: virsh managedsave-remove {facts.name}",
        )


def _require_images(vm: Vm, node: Checkpoint) -> dict[str, int]:
    """The virtual size of each image of the checkpoint, in bytes. Raises NotFoundError if one is gone."""
    sizes = {}
    for image in node.disks:
        directory, name = volumes.split(image.path)
        with volumes.directory(vm.host, directory) as pool:
            if not pool.has(name):
                raise NotFoundError(f"the image {image.path} of checkpoint {node.name!r} is gone")
            sizes[image.target] = pool.size(name)[0]
    return sizes


def _keep_present_state(context: Context, vm: Vm, facts: Facts) -> Checkpoint:
    """A running VM is checkpointed as well as its guest allows; the images of one that is off simply become a node."""
    name = f"before restore {datetime.now(UTC):%Y-%m-%dT%H.%M.%S.%fZ}"
    if facts.power is PowerState.RUNNING:
        return checkpoint(context, vm.uuid, name=name, required=Consistency.CRASH, kind=Kind.SAFETY)
    if facts.power is PowerState.PAUSED:
        vm.power_off()
    tree = context.catalog.tree(vm.host.name, vm.uuid)
    disks = plan.disks_to_switch(facts)
    node = Checkpoint(
        id=uuid.uuid4().hex,
        host=vm.host.name,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        kind=Kind.SAFETY,
        consistency=Consistency.CRASH,
        required=Consistency.CRASH,
        disks=tuple(DiskImage(disk.target, str(disk.path), disk.format) for disk in disks),
        parent=tree.head_parent,
        warnings=("the VM was not running; nobody asked its guest how it was left",),
    )
    xml = vm.definition()
    context.catalog.add(node, xml, head_parent=node.id)
    with volumes.directory(vm.host, volumes.split(node.disks[0].path)[0]) as pool:
        pool.write(manifest.name(node.id), manifest.dump(node, xml))
    return node


def _fresh_overlay(vm: Vm, journal: Journal, image: DiskImage, capacity: int) -> str:
    directory, _ = volumes.split(image.path)
    name = overlay_name(vm.name, image.target)
    with journal.step("make-overlay", target=image.target, path=f"{directory}/{name}"):
        with volumes.directory(vm.host, directory) as pool:
            return pool.create_overlay(name, capacity, image.path, image.format)


def _remove_left_images(context: Context, vm: Vm, journal: Journal, paths: set[str]) -> None:
    """Removes what the VM wrote and nobody wants; never an image a checkpoint consists of."""
    tree = context.catalog.tree(vm.host.name, vm.uuid)
    needed = {image.path for node in tree.checkpoints for image in node.disks}
    for path in sorted(paths - needed - set(vm.sources().values())):
        try:
            with journal.step("remove-image", path=path):
                remove_image(vm, path)
        except QuiesceError as error:
            context.emit(Warned(f"{path} is no longer needed but could not be removed: {error.message}"))


def _targets(facts: Facts) -> set[str]:
    return {disk.target for disk in facts.disks if disk.device == "disk"}
