"""Writes a checkpoint into a directory from which any libvirt host can start it."""

from __future__ import annotations

from dataclasses import dataclass

from quiesce.catalog import exported
from quiesce.catalog.exported import Export, ExportedDisk, ExportedFile
from quiesce.catalog.journal import Journal
from quiesce.context import Context
from quiesce.disks import machine_files
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml, merge, volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Role
from quiesce.operations.recover import recover


@dataclass(frozen=True)
class Exported:
    directory: str
    export: Export


def export(context: Context, reference: CheckpointReference, directory: str) -> Exported:
    """Writes the checkpoint's disks, flattened, its definition, UEFI variables and TPM state, and a manifest with checksums
    into `directory` on the VM's host, which is made, or must be empty. The VM may run meanwhile; no other operation on it
    can.

    Memory of a standard checkpoint is left out. After an error, nothing is left in the directory.
    """
    if not directory.startswith("/"):
        raise UsageError(f"{directory} is no absolute path", hint="the directory is one of the VM's host")
    directory = directory.rstrip("/")
    with (
        context.vm(reference.vm) as vm,
        context.locked(vm, "export"),
        context.locked_directory(vm.host.name, directory, "quiesce export to"),
    ):
        with context.phase("plan"):
            recover(context, vm)
            found = survey(context, vm)
            node = found.tree.find(reference.checkpoint)
            if missing := found.missing(node):
                raise RefusedError(f"checkpoint {node.name!r} cannot be exported: {', '.join(missing)} is gone")
            needed = _bytes(found, node)
            _require_empty(vm, directory, needed)
        if node.file(Role.MEMORY):
            context.emit(Warned(f"the memory of {node.name!r} is left out: what is exported is its disks"))
        names = [*(f"{disk.target}.qcow2" for disk in node.disks), *_NAMES.values(), exported.DOMAIN, exported.NAME]
        journal = Journal(context.catalog, vm.host.name, vm.uuid, "export")
        try:
            with (
                journal.step("export", directory=directory, files=names),
                volumes.minding_room(vm.host, directory, needed, "the export"),
            ):
                done = _write(context, vm, found, node, directory, journal)
        except BaseException:
            _undo(context, vm, journal, directory, names)
            raise
        journal.finish("done")
        return Exported(directory, done)


_NAMES = {Role.NVRAM: "nvram.fd", Role.TPM: "tpm.state"}


def _bytes(found: Survey, node: Checkpoint) -> int:
    """Most room that the export can take."""
    total = 0
    for disk in node.disks:
        chain = found.chains.chain(disk.path)
        written = sum(found.volumes[path].allocation for path in chain if path in found.volumes)
        total += min(written, found.volumes[disk.path].capacity) + 1024 * 1024
    return total + sum(found.volumes[file.path].capacity for file in node.files if file.role in _NAMES)


def _require_empty(vm: Vm, directory: str, needed: int) -> None:
    with volumes.directory(vm.host, directory, build=True) as pool:
        if present := pool.volumes():
            raise RefusedError(f"{directory} is not empty: {present[0].path} is in it", hint="name one that does not exist")
        pool.require_room(needed, "the export")


def _write(context: Context, vm: Vm, found: Survey, node: Checkpoint, directory: str, journal: Journal) -> Export:
    disks, kept = [], {}
    with merge.Helper(vm.host) as helper:
        for disk in node.disks:
            name, capacity = f"{disk.target}.qcow2", found.volumes[disk.path].capacity
            with context.phase(f"export {disk.target}"), journal.step("copy", disk=disk.target):
                with volumes.directory(vm.host, directory) as pool:
                    path = pool.create_flat(name, capacity)
                helper.copy(disk.path, path, context.progress(f"export {disk.target}"))
            disks.append(ExportedDisk(disk.target, name, capacity))
    for role, name in _NAMES.items():
        if file := node.file(role):
            machine_files.write(vm.host, f"{directory}/{name}", machine_files.content(vm.host, file.path))
            kept[role] = name
    nvram = f"{directory}/{kept[Role.NVRAM]}" if Role.NVRAM in kept else None
    sources = {disk.target: f"{directory}/{disk.file}" for disk in disks}
    xml = domain_xml.exported(context.catalog.domain_xml(node.id), sources=sources, nvram=nvram)
    machine_files.write(vm.host, f"{directory}/{exported.DOMAIN}", xml.encode())
    names = [*(disk.file for disk in disks), *kept.values(), exported.DOMAIN]
    files = tuple(_checksum(context, vm, directory, name) for name in names)
    done = Export(exported.FORMAT, node, tuple(disks), files, kept.get(Role.NVRAM), kept.get(Role.TPM))
    with journal.step("write-manifest"):
        machine_files.write(vm.host, f"{directory}/{exported.NAME}", exported.dump(done))
    return done


def _checksum(context: Context, vm: Vm, directory: str, name: str) -> ExportedFile:
    phase = f"checksum of {name}"
    with context.phase(phase), volumes.directory(vm.host, directory) as pool:
        return ExportedFile(name, pool.size(name), pool.sha256(name, context.progress(phase)))


def _undo(context: Context, vm: Vm, journal: Journal, directory: str, names: list[str]) -> None:
    try:
        machine_files.remove(vm.host, directory, names)
        journal.finish("undone")
    except QuiesceError as error:
        context.emit(Warned(f"what was written to {directory} could not be removed: {error.message}"))
