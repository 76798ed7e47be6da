"""Makes a VM from an export: a new one, or the same again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from quiesce.catalog import exported
from quiesce.catalog.exported import Export
from quiesce.catalog.journal import Journal, interrupted
from quiesce.context import Context
from quiesce.disks import machine_files
from quiesce.hypervisor import domain_xml, merge, volumes
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import NameTakenError, NotFoundError, QuiesceError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.repair.imports import undo_import


@dataclass(frozen=True)
class Imported:
    vm: str
    uuid: str
    directory: str
    started: bool


def import_vm(
    context: Context, source: str, *, to: str, name: str | None = None, same: bool = False, start: bool = False
) -> Imported:
    """Copies an export's disks into the directory `to` of the host and defines a VM on them; returns what it is called.

    By default it is a new VM: new UUID, MAC addresses and generation ID, under `name`. With `same` it is the exported one
    again, under its own name, UUID and addresses, which must be free. The export is checked against its checksums first, and
    stays as it is. After an error, nothing is left.
    """
    if not to.startswith("/") or not source.startswith("/"):
        raise UsageError("both directories must be absolute paths", hint="they are directories of the host")
    if same == (name is not None):
        raise UsageError("give either a name for a new VM, or --same")
    source, to = source.rstrip("/"), to.rstrip("/")
    with context.host() as host:
        with context.phase("check the export"):
            export, xml = _read(host, source)
            identity = domain_xml.identity(xml) if same else domain_xml.Identity(str(name), str(uuid.uuid4()))
            _require_free(host, identity)
            _require_fitting(host, xml)
            _verify(context, host, source, export)
        with (
            context.locked_uuid(host.name, identity.uuid, f"quiesce import {identity.name}"),
            context.locked_directory(host.name, to, "quiesce import to"),
        ):
            _make(context, host, source, to, export, xml, identity, same=same)
    with context.vm(identity.uuid) as vm:
        if start:
            with context.phase("start"):
                vm.start()
    return Imported(identity.name, identity.uuid, to, start)


def _read(host: Host, source: str) -> tuple[Export, str]:
    try:
        with volumes.directory(host, source) as pool:
            export = exported.load(pool.read(exported.NAME))
            return export, pool.read(exported.DOMAIN).decode()
    except (NotFoundError, UnicodeDecodeError) as error:
        raise NotFoundError(f"{source} holds no export of quiesce", hint="an interrupted one has no manifest") from error


def _require_free(host: Host, identity: domain_xml.Identity) -> None:
    for key in (identity.name, identity.uuid):
        if host.has(key):
            raise NameTakenError(f"there is a VM {key} on {host.name} already", hint="import it under another --name")


def _require_fitting(host: Host, xml: str) -> None:
    """Raises RefusedError, naming all of it, if the host lacks something the VM needs."""
    problems = host.what_does_not_fit(xml)
    if problems:
        raise RefusedError(f"{host.name} cannot run it: {'; '.join(problems)}", details={"problems": problems})


def _verify(context: Context, host: Host, source: str, export: Export) -> None:
    for file in export.files:
        phase = f"checksum of {file.name}"
        with context.phase(phase), volumes.directory(host, source) as pool:
            if pool.sha256(file.name, context.progress(phase)) != file.sha256:
                raise QuiesceError(f"{source}/{file.name} is damaged: its checksum is not that of the manifest")


def _make(
    context: Context,
    host: Host,
    source: str,
    to: str,
    export: Export,
    xml: str,
    identity: domain_xml.Identity,
    *,
    same: bool,
) -> None:
    journal = Journal(context.catalog, host.name, identity.uuid, "import")
    needed = sum(file.bytes for file in export.files)
    try:
        with volumes.directory(host, to, build=True) as pool:
            pool.require_room(needed, "the import")
            present = {volume.path for volume in pool.volumes()}
        paths = {disk.target: f"{to}/{identity.name}.{disk.target}.qcow2" for disk in export.disks}
        nvram = f"{to}/{identity.name}.nvram.fd" if export.nvram else None
        if taken := present & {*paths.values(), *([nvram] if nvram else [])}:
            raise RefusedError(f"{min(taken)} is there already")
        with merge.Helper(host) as helper:
            for disk in export.disks:
                phase = f"copy {disk.target}"
                path = paths[disk.target]
                room = volumes.minding_room(host, to, needed, "the import")
                with context.phase(phase), journal.step("copy", path=path), room:
                    with volumes.directory(host, to) as pool:
                        pool.create_flat(volumes.split(path)[1], disk.capacity)
                    helper.copy(f"{source}/{disk.file}", path, context.progress(phase))
        if nvram:
            with journal.step("copy", path=nvram):
                machine_files.copy(host, f"{source}/{export.nvram}", nvram)
        with context.phase("define"), journal.step("define"):
            definition = domain_xml.imported(
                xml, identity=identity, generation=str(uuid.uuid4()), sources=paths, nvram=nvram, same=same
            )
            if export.tpm and (place := domain_xml.tpm_state(definition)):
                machine_files.copy(host, f"{source}/{export.tpm}", place)
            host.define(definition)
    except BaseException:
        _undo(context, host, identity.uuid, journal)
        raise
    if context.catalog.tree(host.name, identity.uuid).nodes:
        context.catalog.set_head(host.name, identity.uuid, None)  # the same again, and it stands on none of its checkpoints now
    journal.finish("done")


def _undo(context: Context, host: Host, vm_uuid: str, journal: Journal) -> None:
    try:
        for operation in interrupted(context.catalog, host.name, vm_uuid):
            if operation.id == journal.id:
                undo_import(host, vm_uuid, operation)
        journal.finish("undone")
    except QuiesceError as error:
        context.emit(Warned(f"the failed import could not be undone: {error.message}"))
