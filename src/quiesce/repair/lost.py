"""VMs that have checkpoints, but that libvirt no longer knows, or knows under another UUID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted
from quiesce.context import Context
from quiesce.disks import images, machine_files
from quiesce.disks.survey import survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NotFoundError, RefusedError
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


def never_imported(context: Context, vm_uuid: str) -> Callable[[], str] | None:
    """If libvirt does not know this VM, and an import of it was interrupted: the function that removes the import's files."""
    with context.host() as host:
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


def undefined(context: Context, name: str) -> Lost | None:
    """The VM of this name or UUID, if the catalog has it and libvirt does not."""
    with context.host() as host:
        if host.has(name):
            return None
        return next((lost for lost in _lost(context, host) if name in (lost.key.uuid, lost.name)), None)


def redefined(context: Context, vm: Vm) -> Lost | None:
    """The lost VM that had the name and an image of `vm`: somebody defined the VM anew, with another UUID. None if `vm` has
    checkpoints of its own."""
    if context.catalog.checkpoints.tree(vm.key).nodes:
        return None
    for lost in _lost(context, vm.host):
        if lost.name == vm.name:
            nodes = context.catalog.checkpoints.readable(lost.key)[0].nodes
            found = context.storage(vm.host).look({*vm.chain(), *(path for node in nodes for path in node.paths())})
            read = found.chains.needed(vm.chain())
            if any(node.paths() & read for node in nodes):
                return lost
    return None


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

    Raises RefusedError if nothing tells which images the VM wrote last.
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
        heads = _heads(context, host, lost, tree)
        planned = {
            disk.target: images.new_path(context.storage(host), lost.name, disk.path, disk.target, "qcow2")
            for disk in node.disks
            if disk.target not in heads
        }
        host.define(domain_xml.with_sources(context.catalog.checkpoints.domain_xml(node.id), heads | planned))
    with context.vm(lost.key.uuid) as vm, context.locked(vm, "doctor"), journalled(context, vm, "define") as operation:
        _put_machine_files(context, vm, {file.role: file.path for file in node.files})
        sizes = survey(context, vm, patient=True).images
        for disk in node.disks:
            if path := planned.get(disk.target):
                if disk.path not in sizes:
                    raise NotFoundError(f"{disk.path}, the image of disk {disk.target} at checkpoint {node.name!r}, is gone")
                size = sizes[disk.path].capacity
                images.make_overlay(context, vm, operation, disk.target, size, disk.path, disk.format, path)
        context.catalog.images.set_live(vm.key.host, planned.values(), True)
        untouched = None if heads else images.untouched(context, vm, planned.values())
        context.catalog.checkpoints.set_head(vm.key, node.id, untouched)
    if not planned:
        return f"{lost.name} was defined again, with the images that it wrote last"
    return (
        f"{lost.name} was defined again; the image of disk {', '.join(sorted(planned))} is gone, so it has the content of"
        f" checkpoint {node.name!r}"
    )


def _lost(context: Context, host: Host) -> list[Lost]:
    here = {str(domain.UUIDString()) for domain in host.domains()}
    found = []
    for key in context.catalog.vms(host.id):
        nodes = context.catalog.checkpoints.readable(key)[0].checkpoints
        if key.uuid not in here and nodes:
            found.append(Lost(key, nodes[-1].vm_name, len(nodes)))
    return found


def _heads(context: Context, host: Host, lost: Lost, tree: Tree) -> dict[str, str]:
    """The images that the VM wrote last, by target. Raises RefusedError if a disk has several, or if an image cannot be
    assigned to a disk."""
    live = context.catalog.images.live(lost.key)
    owned = {disk.path: disk.target for node in tree.nodes for disk in node.disks}
    found = context.storage(host).look(live | owned.keys())
    heads: dict[str, str] = {}
    for path in sorted(live & found.images.keys() - owned.keys()):
        base = found.chains.base(path, owned)
        if base is None or owned[base] in heads:
            raise RefusedError(
                f"{lost.name} cannot be defined again: nothing tells to which of its disks the image {path} belongs",
                hint=f"define the VM yourself, with UUID {lost.key.uuid}",
            )
        heads[owned[base]] = path
    return heads


def _put_machine_files(context: Context, vm: Vm, kept: dict[Role, str]) -> None:
    """Writes the checkpoint's UEFI variables and TPM state if `virsh undefine` removed those of the VM. `kept`: the
    checkpoint's files."""
    present, storage = machine_files.read(context, vm), context.storage(vm.host)
    if Role.NVRAM in kept and Role.NVRAM not in present and (place := domain_xml.nvram(vm.definition())):
        machine_files.write_small_file(storage, place, storage.read(kept[Role.NVRAM]))
    if Role.TPM in kept and Role.TPM not in present:
        machine_files.put_tpm(context, vm, kept[Role.TPM])


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: the VM is defined, and `doctor` finds a disk whose overlay was not made."""
    return "can be called again"
