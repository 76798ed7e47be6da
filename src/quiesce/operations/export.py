"""Writes a checkpoint into a directory from which any libvirt host can start it."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.catalog import exported
from quiesce.catalog.exported import Export, ExportedDisk, ExportedFile
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import CopyDisk, WriteExport
from quiesce.context import Context
from quiesce.disks import fingerprints, machine_files
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import lowered
from quiesce.model.names import CheckpointReference, check_directory
from quiesce.model.tree import Checkpoint, Role
from quiesce.recovery import journalled, operating
from quiesce.storage.port import Storage, minding_room, plain, require_room


@dataclass(frozen=True)
class Exported:
    directory: str
    export: Export


def export(context: Context, reference: CheckpointReference, directory: str, *, accept_changed: bool = False) -> Exported:
    """Exports a checkpoint into `directory`, on the VM's host: each disk as one image without a backing file, the definition,
    UEFI variables and TPM state, and a manifest with checksums. Makes the directory if it does not exist; if it exists, it must
    be empty. The VM may run meanwhile; other operations on it are locked out.

    Leaves out the memory of a standard checkpoint. After an error, nothing is left in the directory. Raises UsageError,
    RefusedError, NotFoundError, NoSpaceError. Unless `accept_changed`, raises RefusedError as `restore` does, if the content is
    not known to be what was checkpointed; the export of such a checkpoint is crash-consistent.
    """
    directory = check_directory(directory)
    with (
        operating(context, reference.vm, "export") as vm,
        context.locked_directory(vm.key.host, directory, "quiesce export to"),
    ):
        with context.phase("plan"):
            found = survey(context, vm)
            node = found.tree.find(reference.checkpoint)
            if missing := found.missing(node):
                raise RefusedError(
                    f"checkpoint {node.name!r} cannot be exported: {', '.join(missing)} is gone",
                    hint=f"quiesce doctor {vm.name}",
                )
            changed = found.changed_for(disk.path for disk in node.disks)
            if not accept_changed:
                fingerprints.require_content(node, changed, "exported")
            node = lowered(node, changed)
            needed = _bytes(found, node)
            _require_empty(context.storage(vm.host), directory, needed)
        for text in changed.values():
            context.emit(Warned(f"the export of {node.name!r} is crash-consistent: {text}"))
        if node.file(Role.MEMORY):
            context.emit(Warned(f"the memory of {node.name!r} is left out: an export has only the disks"))
        names = (*(f"{disk.target}.qcow2" for disk in node.disks), *_NAMES.values(), exported.DOMAIN, exported.NAME)
        with (
            journalled(context, vm, "export") as journal,
            journal.step(WriteExport(directory, names)),
            minding_room(context.storage(vm.host), directory, needed, "the export"),
        ):
            return Exported(directory, _write(context, vm, found, node, directory, journal))


_NAMES = {Role.NVRAM: "nvram.fd", Role.TPM: "tpm.state"}


def _bytes(found: Survey, node: Checkpoint) -> int:
    """An upper bound of the space that the export takes, in bytes."""
    total = 0
    for disk in node.disks:
        chain = found.chains.chain(disk.path)
        written = sum(found.images[path].allocation for path in chain if path in found.images)
        total += min(written, found.images[disk.path].capacity) + 1024 * 1024
    return total + sum(found.images[file.path].capacity for file in node.files if file.role in _NAMES)


def _require_empty(storage: Storage, directory: str, needed: int) -> None:
    if present := storage.contents(directory, make=True):
        raise RefusedError(
            f"{directory} is not empty: it has {min(present)}", hint="name a directory that is empty or does not exist"
        )
    require_room(storage, directory, needed, "the export")


def _write(context: Context, vm: Vm, found: Survey, node: Checkpoint, directory: str, journal: Journal) -> Export:
    storage = context.storage(vm.host)
    disks, kept = [], {}
    with storage.merger() as merger:
        for disk in node.disks:
            name, capacity = f"{disk.target}.qcow2", found.images[disk.path].capacity
            path, phase = plain(storage, directory, name), f"export {disk.target}"
            with context.phase(phase), journal.step(CopyDisk(disk.target)):
                storage.make_flat(path, capacity)
                merger.copy(disk.path, disk.format, capacity, path, context.progress(phase))
            disks.append(ExportedDisk(disk.target, name, capacity))
    for role, name in _NAMES.items():
        if file := node.file(role):
            machine_files.write_small_file(storage, plain(storage, directory, name), storage.read(file.path))
            kept[role] = name
    nvram = f"{directory}/{kept[Role.NVRAM]}" if Role.NVRAM in kept else None
    sources = {disk.target: f"{directory}/{disk.file}" for disk in disks}
    xml = domain_xml.exported(context.catalog.checkpoints.domain_xml(node.id), sources=sources, nvram=nvram)
    machine_files.write_small_file(storage, plain(storage, directory, exported.DOMAIN), xml.encode())
    names = [*(disk.file for disk in disks), *kept.values(), exported.DOMAIN]
    files = tuple(_checksum(context, storage, directory, name) for name in names)
    done = Export(exported.FORMAT, node, tuple(disks), files, kept.get(Role.NVRAM), kept.get(Role.TPM))
    machine_files.write_small_file(storage, plain(storage, directory, exported.NAME), exported.dump(done))
    return done


def _checksum(context: Context, storage: Storage, directory: str, name: str) -> ExportedFile:
    phase, path = f"checksum of {name}", storage.inside(directory, name)
    with context.phase(phase):
        return ExportedFile(name, storage.size(path), storage.sha256(path, context.progress(phase)))


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Removes the files of an incomplete export. An export is complete if it has its manifest, which is written last."""
    storage = context.storage(vm.host)
    for step in operation.unfinished(WriteExport):
        try:
            if storage.has(f"{step.directory}/{exported.NAME}"):
                return "was complete"
        except HypervisorError:
            continue  # the directory is gone, with all that was in it
        for name in step.files:
            storage.remove(f"{step.directory}/{name}")
    return "was undone"
