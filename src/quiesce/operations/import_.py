"""Makes a VM from an export: a new VM, or the exported one again."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import CopyIn, Define, MakePlace
from quiesce.context import Context
from quiesce.disks.needs import look_for_needs_of_new
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.definition_of_import import Files, imported
from quiesce.hypervisor.domain_xml import Identity
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NameTakenError, RefusedError, UsageError
from quiesce.model.events import Warned
from quiesce.model.keys import VmKey
from quiesce.model.names import check_directory, check_vm_name, file_stem
from quiesce.model.proof import Proof
from quiesce.operations import import_checks
from quiesce.operations.import_checks import Checked
from quiesce.recovery import journalled_with
from quiesce.repair.imports import undo_import
from quiesce.storage.port import Storage, minding_room, plain, require_room


@dataclass(frozen=True)
class Imported:
    vm: str
    uuid: str
    directory: str
    started: bool
    proof: Proof | None = None
    """What came of the checkpoint when it was booted aside, by the word of the export."""


@dataclass(frozen=True)
class _Plan:
    """What an import makes."""

    directory: str
    new: tuple[str, ...]
    """The directories that do not exist yet, outermost first."""
    files: Files
    xml: str
    tpm: str | None
    of_others: set[str] = field(default_factory=set)
    """Files that somebody else made after the check."""


def import_vm(
    context: Context,
    source: str,
    *,
    to: str,
    name: str | None = None,
    same: bool = False,
    start: bool = False,
    accept: Collection[str] = (),
) -> Imported:
    """Copies the disks of the export in the directory `source` into the directory `to`, both on the host, and defines a VM with
    them.

    By default the VM is a new one, called `name`, with a new UUID, MAC addresses and generation ID. With `same` it is the
    exported VM again, with its name, UUID and addresses, which must be free. The export may be a stranger's: all of it is
    checked before anything is changed (import_checks.py), and it stays as it is. `accept`: elements of the definition that the
    check would refuse. After an error, nothing is left. Raises UsageError, NotFoundError, NameTakenError, RefusedError,
    NoSpaceError, and QuiesceError for a damaged export.
    """
    source, to = check_directory(source), check_directory(to)
    if same == (name is not None):
        raise UsageError("give either --name for a new VM, or --same for the exported one")
    if name is not None:
        check_vm_name(name)
    with context.host() as host:
        with context.phase("check the export"):
            checked = import_checks.check_export(context, host, source, accept)
            identity = import_checks.check_identity(checked, name=name, uuid=str(uuid.uuid4()))
            _require_free(host, identity)
            plan = _plan(context, host, checked, identity, to, accept, same=same)
            _look_at_the_rest(context, host, checked, plan, identity.name, accept, start=start)
            _verify(context, context.storage(host), checked)
        key = VmKey(host.id, identity.uuid)
        undo = partial(undo_import, context, host, key.uuid, of_others=plan.of_others)
        with (
            context.locked_key(key, f"quiesce import {identity.name}"),
            context.locked_directory(host.id, to, "quiesce import to"),
            journalled_with(context, key, "import", undo) as journal,
        ):
            _copy_and_define(context, host, checked, plan, journal)
            if context.catalog.checkpoints.tree(key).nodes:
                context.catalog.checkpoints.set_head(key, None)  # the same VM again: its new disks are based on no checkpoint
    with context.vm(identity.uuid) as vm:
        if start:
            with context.phase("start"):
                vm.start()
    return Imported(identity.name, identity.uuid, to, start, checked.export.checkpoint.proof)


def _require_free(host: Host, identity: Identity) -> None:
    for key in (identity.name, identity.uuid):
        if host.has(key):
            raise NameTakenError(f"there is a VM {key} on {host.name} already", hint="import it under another --name")


def _plan(
    context: Context, host: Host, checked: Checked, identity: Identity, to: str, accept: Collection[str], *, same: bool
) -> _Plan:
    """Raises RefusedError if a file of the new VM exists already, NoSpaceError if the directory exists and is too full."""
    storage, stem, export = context.storage(host), file_stem(identity.name), checked.export
    if storage.place(storage.inside(to, "-")) == storage.place(storage.inside(checked.source, "-")):
        raise UsageError("the images must not go into the directory of the export")
    disks = {disk.target: plain(storage, to, f"{stem}.{disk.target}.qcow2") for disk in export.disks}
    files = Files(disks, plain(storage, to, f"{stem}.nvram.fd"), storage.inside(to, f"{stem}."))
    xml = imported(
        checked.root,
        identity=identity,
        generation=str(uuid.uuid4()),
        files=files,
        boot=checked.boot,
        emulator=checked.emulator,
        same=same,
        accepted=accept,
    )
    tpm = host.tpm_state(xml) if checked.tpm is not None else None
    new = _missing(storage, to)
    if not new:
        present = storage.contents(to).keys()
        if taken := present & {*disks.values(), *files.others}:
            raise RefusedError(f"{min(taken)} exists already", hint="import into another directory, or under another --name")
        require_room(storage, to, sum(file.bytes for file in export.files), "the import")
    if tpm is not None:
        place = storage.place(tpm)
        missing = _missing(storage, place)
        if not missing and storage.contents(place):
            raise RefusedError(f"{place} has the state of a TPM already", hint="remove it if the VM that it belongs to is gone")
        new = (*new, *(missing and (place.rpartition("/")[0], place)))
    return _Plan(to, new, files, xml, tpm)


def _look_at_the_rest(
    context: Context, host: Host, checked: Checked, plan: _Plan, name: str, accept: Collection[str], *, start: bool
) -> None:
    """Raises RefusedError if the VM is to be started and the host lacks something for that."""
    made = {plan.directory, *plan.files.disks.values(), plan.files.nvram, *plan.files.others}
    look_for_needs_of_new(context, host, name, plan.xml, targets=plan.files.disks.keys(), made=made, starts=start)
    emulators = {(element.text or "").strip() for element in checked.root.iterfind("./devices/emulator")}
    if "emulator" not in accept:
        for other in sorted(emulators - {checked.emulator}):
            context.emit(
                Warned(f"{name} gets the emulator {checked.emulator}, not {other} as in the export; --accept emulator keeps it")
            )


def _missing(storage: Storage, place: str) -> tuple[str, ...]:
    """The place, if it does not exist."""
    try:
        storage.contents(place)
    except HypervisorError:
        return (place,)
    return ()


def _verify(context: Context, storage: Storage, checked: Checked) -> None:
    """Compares the disks with their checksums before they are copied, so that a damaged export is found before anything is
    changed. What is copied is compared again."""
    for disk in checked.export.disks:
        phase = f"checksum of {disk.file}"
        with context.phase(phase):
            path = plain(storage, checked.source, disk.file)
            sha256 = storage.sha256(path, context.progress(phase))
            import_checks.require_sum(checked.source, checked.export, disk.file, storage.size(path), sha256)


def _copy_and_define(context: Context, host: Host, checked: Checked, plan: _Plan, journal: Journal) -> None:
    storage, export = context.storage(host), checked.export
    for place in plan.new:
        journal.intend(MakePlace(place))
    needed = sum(file.bytes for file in export.files)
    storage.contents(plan.directory, make=True)
    require_room(storage, plan.directory, needed, "the import")
    with minding_room(storage, plan.directory, needed, "the import"):
        for disk in export.disks:
            phase, path = f"copy {disk.target}", plan.files.disks[disk.target]
            with context.phase(phase), _copying_in(journal, plan, path):
                copied = storage.copy_file(
                    plain(storage, checked.source, disk.file),
                    path,
                    export.file(disk.file).bytes,
                    context.progress(phase),
                )
                import_checks.require_sum(checked.source, export, disk.file, copied.size, copied.sha256)
                import_checks.check_image(export, disk, copied.start)
        if checked.nvram is not None:
            with _copying_in(journal, plan, plan.files.nvram):
                storage.create(plan.files.nvram, checked.nvram)
    if plan.tpm is not None and checked.tpm is not None:
        with _copying_in(journal, plan, plan.tpm):
            storage.create(plan.tpm, checked.tpm, make_place=True)
    with context.phase("define"), journal.step(Define()):
        host.define(plan.xml)


@contextmanager
def _copying_in(journal: Journal, plan: _Plan, path: str) -> Iterator[None]:
    """The block makes the file `path`. If somebody else has made it meanwhile, the undo leaves it alone."""
    with journal.step(CopyIn(path)):
        try:
            yield
        except NameTakenError:
            plan.of_others.add(path)
            raise


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    return undo_import(context, vm.host, vm.uuid, operation)
