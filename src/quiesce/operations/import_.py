"""Makes a VM from an export: a new VM, or the exported one again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

from quiesce.catalog import exported
from quiesce.catalog.exported import Export
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import CopyIn, Define
from quiesce.context import Context
from quiesce.disks import machine_files
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NameTakenError, NotFoundError, QuiesceError, RefusedError, UsageError
from quiesce.model.keys import VmKey
from quiesce.recovery import journalled_with
from quiesce.repair.imports import undo_import
from quiesce.storage.port import Storage, minding_room, require_room


@dataclass(frozen=True)
class Imported:
    vm: str
    uuid: str
    directory: str
    started: bool


def import_vm(
    context: Context, source: str, *, to: str, name: str | None = None, same: bool = False, start: bool = False
) -> Imported:
    """Copies the disks of the export in the directory `source` into the directory `to`, both on the host, and defines a VM with
    them.

    By default the VM is a new one, called `name`, with a new UUID, MAC addresses and generation ID. With `same` it is the
    exported VM again, with its name, UUID and addresses, which must be free. Checks the export against its checksums first, and
    does not change it. After an error, nothing is left. Raises UsageError, NotFoundError, NameTakenError, RefusedError,
    NoSpaceError.
    """
    if not to.startswith("/") or not source.startswith("/"):
        raise UsageError("both directories must be absolute paths", hint="name directories of the host, as /srv/export")
    if same == (name is not None):
        raise UsageError("give either --name for a new VM, or --same for the exported one")
    source, to = source.rstrip("/"), to.rstrip("/")
    with context.host() as host:
        with context.phase("check the export"):
            storage = context.storage(host)
            export, xml = _read(storage, source)
            identity = domain_xml.identity(xml) if same else domain_xml.Identity(str(name), str(uuid.uuid4()))
            _require_free(host, identity)
            _require_fitting(host, xml)
            _verify(context, storage, source, export)
        key = VmKey(host.id, identity.uuid)
        with (
            context.locked_key(key, f"quiesce import {identity.name}"),
            context.locked_directory(host.id, to, "quiesce import to"),
            journalled_with(context, key, "import", partial(undo_import, context, host, key.uuid)) as journal,
        ):
            _copy_and_define(context, host, source, to, export, xml, identity, journal, same=same)
            if context.catalog.checkpoints.tree(key).nodes:
                context.catalog.checkpoints.set_head(key, None)  # the same VM again: its new disks are based on no checkpoint
    with context.vm(identity.uuid) as vm:
        if start:
            with context.phase("start"):
                vm.start()
    return Imported(identity.name, identity.uuid, to, start)


def _read(storage: Storage, source: str) -> tuple[Export, str]:
    try:
        export = exported.load(storage.read(storage.inside(source, exported.NAME)))
        return export, storage.read(storage.inside(source, exported.DOMAIN)).decode()
    except (NotFoundError, UnicodeDecodeError) as error:
        raise NotFoundError(
            f"{source} has no export of quiesce: {exported.NAME} or {exported.DOMAIN} is missing or damaged",
            hint="an export that was interrupted has no manifest: export the checkpoint again",
        ) from error


def _require_free(host: Host, identity: domain_xml.Identity) -> None:
    for key in (identity.name, identity.uuid):
        if host.has(key):
            raise NameTakenError(f"there is a VM {key} on {host.name} already", hint="import it under another --name")


def _require_fitting(host: Host, xml: str) -> None:
    """Raises RefusedError if the host lacks anything that the VM needs; the message names all of it."""
    problems = host.what_does_not_fit(xml)
    if problems:
        raise RefusedError(f"{host.name} cannot run the exported VM: {'; '.join(problems)}", details={"problems": problems})


def _verify(context: Context, storage: Storage, source: str, export: Export) -> None:
    for file in export.files:
        phase = f"checksum of {file.name}"
        with context.phase(phase):
            if storage.sha256(storage.inside(source, file.name), context.progress(phase)) != file.sha256:
                raise QuiesceError(
                    f"{source}/{file.name} is damaged: its SHA-256 differs from the one in the manifest",
                    hint="copy the export again, or export the checkpoint again",
                )


def _copy_and_define(
    context: Context,
    host: Host,
    source: str,
    to: str,
    export: Export,
    xml: str,
    identity: domain_xml.Identity,
    journal: Journal,
    *,
    same: bool,
) -> None:
    storage = context.storage(host)
    needed = sum(file.bytes for file in export.files)
    present = storage.contents(to, make=True).keys()
    require_room(storage, to, needed, "the import")
    paths = {disk.target: storage.inside(to, f"{identity.name}.{disk.target}.qcow2") for disk in export.disks}
    nvram = storage.inside(to, f"{identity.name}.nvram.fd") if export.nvram else None
    if taken := present & {*paths.values(), *([nvram] if nvram else [])}:
        raise RefusedError(f"{min(taken)} exists already", hint="import into another directory, or under another --name")
    with storage.merger() as merger:
        for disk in export.disks:
            phase, path = f"copy {disk.target}", paths[disk.target]
            room = minding_room(storage, to, needed, "the import")
            with context.phase(phase), journal.step(CopyIn(path)), room:
                storage.make_flat(path, disk.capacity)
                merger.copy(storage.inside(source, disk.file), path, context.progress(phase))
    if nvram:
        with journal.step(CopyIn(nvram)):
            machine_files.copy(storage, storage.inside(source, str(export.nvram)), nvram)
    with context.phase("define"), journal.step(Define()):
        definition = domain_xml.imported(
            xml, identity=identity, generation=str(uuid.uuid4()), sources=paths, nvram=nvram, same=same
        )
        if export.tpm and (place := domain_xml.tpm_state(definition)):
            machine_files.copy(storage, storage.inside(source, export.tpm), place)
        host.define(definition)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    return undo_import(context, vm.host, vm.uuid, operation)
