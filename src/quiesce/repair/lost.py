"""VMs that have checkpoints, but that libvirt no longer knows, or knows under another UUID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import PutBack, Switch
from quiesce.context import Context
from quiesce.disks import images, machine_files, places
from quiesce.disks.last_written import last_written
from quiesce.disks.neighbours import Seen, neighbours_of
from quiesce.disks.survey import recorded_raw, survey
from quiesce.disks.unneeded import is_empty
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NotFoundError, QuiesceError, RefusedError
from quiesce.model.keys import VmKey
from quiesce.model.tree import Role, Tree
from quiesce.recovery import journalled
from quiesce.repair.imports import undo_import


@dataclass(frozen=True)
class Lost:
    """A VM that is in the catalog but not in libvirt."""

    key: VmKey
    name: str
    checkpoints: int


def never_imported(context: Context, host: Host, vm_uuid: str) -> Callable[[], str] | None:
    """If libvirt does not know this VM, and an import of it was interrupted: the function that removes the import's files."""
    if host.has(vm_uuid):
        return None
    pending = journal.interrupted(context.catalog, VmKey(host.id, vm_uuid))
    imports = [operation for operation in pending if operation.verb == "import"]
    return partial(_undo_imports, context, vm_uuid, imports) if imports else None


def _undo_imports(context: Context, vm_uuid: str, imports: list[Interrupted]) -> str:
    with context.host() as host, context.locked_key(VmKey(host.id, vm_uuid), "quiesce doctor"):
        for operation in imports:
            outcome = undo_import(context, host, vm_uuid, operation)
            journal.finish(context.catalog, operation.id, f"recovered: {outcome}")
    return "the files of an interrupted import were removed"


def redefined(context: Context, vm: Vm, lost_ones: Callable[[], list[Lost]]) -> Lost | None:
    """The lost VM whose images `vm` writes, or that had the name and an image of `vm`: somebody defined the VM anew, with
    another UUID. None if `vm` has checkpoints of its own."""
    if context.catalog.checkpoints.has_any(vm.key):
        return None
    heads = set(vm.heads().values())
    written = context.catalog.checkpoints.of_others(vm.key, sorted(heads))
    for lost in lost_ones():
        if any(node.key == lost.key for node in written):
            return lost
        if lost.name == vm.name:
            tree = context.catalog.checkpoints.readable(lost.key)[0]
            nodes = tree.nodes
            raw = vm.raw_images() | recorded_raw(tree)
            found = context.storage(vm.host).look({*vm.chain(), *(path for node in nodes for path in node.paths())}, raw)
            read = found.chains.needed(vm.chain())
            if any(node.paths() & read for node in nodes):
                return lost
    return None


def surely_same(context: Context, vm: Vm, old: Lost) -> bool:
    """Whether `vm` can have the checkpoints of the lost VM without a question: it has the name of it, or writes what only that
    VM wrote. A VM of another name that has the image of a checkpoint as its disk may be a clone."""
    if old.name == vm.name:
        return True
    nodes = context.catalog.checkpoints.tree(old.key).checkpoints
    return not any(node.paths() & set(vm.heads().values()) for node in nodes)


def take_over(context: Context, vm: Vm, old: Lost) -> str:
    """Moves all records of the lost VM to this VM. Returns what was done."""
    with context.locked(vm, "doctor"):
        context.catalog.rehome(old.key, vm.key)
        for node in context.catalog.checkpoints.tree(vm.key).nodes:
            images.write_manifest(context, vm, node)
    return f"its {old.checkpoints} checkpoints belong to {vm.name} as it is now"


def define_again(context: Context, lost: Lost) -> str:
    """Defines the VM with the definition of the last checkpoint and the images that the VM wrote last. A disk whose image is
    gone gets a new overlay of that checkpoint's image. Returns what was done.

    Raises RefusedError if nothing tells which images the VM wrote last; NotFoundError if a disk would have no image at all;
    HypervisorError if a directory cannot be read. Then nothing was changed.
    """
    with context.host() as host:
        tree = context.catalog.checkpoints.tree(lost.key)
        node = tree.get(tree.visible(tree.head_parent)) or tree.checkpoints[-1]
        if node.excluded:
            raise RefusedError(
                f"{lost.name} cannot be defined again: its checkpoint {node.name!r} leaves out disk {', '.join(node.excluded)},"
                " and nothing tells which image that disk has now",
                hint=f"define the VM yourself, with UUID {lost.key.uuid}: `quiesce show` names its other images",
            )
        heads, storage = _heads(context, host, lost, tree), context.storage(host)
        place = places.of_checkpoint(storage, node)
        for disk in node.disks:
            if disk.target not in heads and storage.knows(disk.path) and not storage.has(disk.path):
                raise NotFoundError(f"{disk.path}, the image of disk {disk.target} at checkpoint {node.name!r}, is gone")
        planned = {
            disk.target: images.new_path(
                storage, lost.name, places.for_overlay(storage, disk.path, None, place) or place, disk.target, "qcow2"
            )
            for disk in node.disks
            if disk.target not in heads
        }
        recorded = {disk.path: disk.format for each in tree.nodes for disk in each.disks}
        sources = {  # any other image is an overlay
            target: images.source(storage, path, recorded.get(path, "qcow2")) for target, path in (heads | planned).items()
        }
        host.define(domain_xml.with_sources(context.catalog.checkpoints.domain_xml(node.id), sources))
    with context.vm(lost.key.uuid) as vm, context.locked(vm, "doctor"), journalled(context, vm, "define") as operation:
        _put_machine_files(context, vm, {file.role: file.path for file in node.files})
        sizes = survey(context, vm, patient=True).images
        for disk in node.disks:
            if path := planned.get(disk.target):
                size = sizes[disk.path].capacity
                images.make_overlay(context, vm, operation, disk.target, size, disk.path, disk.format, path)
        context.catalog.images.set_live(vm.key.host, [*heads.values(), *planned.values()], True)
        untouched = None if heads else images.untouched(context, vm, planned.values())
        context.catalog.checkpoints.set_head(vm.key, node.id, untouched)
    if not planned:
        return f"{lost.name} was defined again, with the images that it wrote last"
    return (
        f"{lost.name} was defined again; the image of disk {', '.join(sorted(planned))} is gone, so it has the content of"
        f" checkpoint {node.name!r}"
    )


def all_lost(context: Context, host: Host) -> list[Lost]:
    """The VMs that the catalog has and libvirt does not."""
    here = {str(domain.UUIDString()) for domain in host.domains()}
    gone = [key for key in context.catalog.vms(host.id) if key.uuid not in here]
    found = [(key, context.catalog.checkpoints.readable(key)[0].checkpoints) for key in gone]
    return [Lost(key, nodes[-1].vm_name, len(nodes)) for key, nodes in found if nodes]


def known_of(context: Context, lost: Lost) -> tuple[str, ...]:
    """What is known of the images that the VM wrote last: a sentence each."""
    with context.host() as host:
        try:
            heads = _heads(context, host, lost, context.catalog.checkpoints.tree(lost.key))
        except QuiesceError as error:
            return (error.message,)
    return tuple(f"disk {target} was {path} last" for target, path in sorted(heads.items()))


def _heads(context: Context, host: Host, lost: Lost, tree: Tree) -> dict[str, str]:
    """The images that the VM wrote last, by target. A target is left out if its image is gone. Raises RefusedError if a disk
    has several, or if an image cannot be assigned to a disk; HypervisorError if a directory cannot be read."""
    catalog, storage = context.catalog, context.storage(host)
    live, made = catalog.images.live(lost.key), set(catalog.images.made_for(lost.key))
    own = live | made | {disk.path for node in tree.nodes for disk in node.disks}
    found = storage.look(own, recorded_raw(tree))
    near = neighbours_of(context, host, {storage.place(path) for path in own if storage.knows(path)}, lost.key.uuid, Seen())
    for place, reason in {**found.unreadable, **near.unreadable}.items():
        raise HypervisorError(f"{place}, which has images of {lost.name}, cannot be read: {reason}", hint="mount it")
    left = journal.interrupted(catalog, lost.key)
    for step in (step for operation in left for step in operation.of(PutBack)):
        paths = step.sources.values()
        if all(map(storage.has, paths)) and not all(is_empty(storage, path) for path in paths):
            return dict(step.sources)  # the VM ran with what the restore defined
    switched = {path for operation in left for step in operation.of(Switch) for path in step.overlays.values()}
    beyond = storage.look(near.readers.of(own) - found.images.keys(), recorded_raw(tree)).images
    others = near.named_by_others({*beyond, *own}, lost.key.uuid)
    last = last_written({**beyond, **found.images}, tree, live, made, switched, others)
    unclear = {path for paths in last.images.values() if len(paths) > 1 for path in paths} | last.unassigned
    if unclear:
        raise RefusedError(
            f"{lost.name} cannot be defined again: nothing tells which of these images it wrote last, and to which of its disks"
            f" they belong: {', '.join(sorted(unclear))}",
            hint=f"define the VM yourself, with UUID {lost.key.uuid}",
        )
    return {target: path for target in last.images if (path := last.only(target))}


def _put_machine_files(context: Context, vm: Vm, kept: dict[Role, str]) -> None:
    """Writes the checkpoint's UEFI variables and TPM state if `virsh undefine` removed those of the VM. `kept`: the
    checkpoint's files."""
    present, storage = machine_files.read(context, vm), context.storage(vm.host)
    if Role.NVRAM in kept and Role.NVRAM not in present and (place := domain_xml.nvram(vm.definition())):
        like = next(iter(vm.heads(next_start=True).values()), None)  # nothing else tells who runs the VM
        machine_files.write_small_file(storage, place, storage.read(kept[Role.NVRAM]), like)
    if Role.TPM in kept and Role.TPM not in present:
        machine_files.put_tpm(context, vm, kept[Role.TPM])


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: the VM is defined, and `doctor` finds a disk whose overlay was not made."""
    return "can be called again"
