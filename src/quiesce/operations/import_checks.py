"""The validator of an import: reads the export, which a stranger may have made, and checks it before anything is changed."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from collections.abc import Collection
from dataclasses import dataclass

from quiesce.catalog import exported
from quiesce.catalog.exported import Export, ExportedDisk
from quiesce.context import Context
from quiesce.hypervisor import definition, domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.domain_xml import Identity
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError, UsageError
from quiesce.model.names import check_uuid, check_vm_name
from quiesce.storage import qcow2
from quiesce.storage.port import Storage, plain

MAX_STATE = 64 * 2**20
"""Size of the UEFI variables, or of a TPM's state. 64 MiB is a whole flash of a machine for ARM."""


@dataclass(frozen=True)
class Checked:
    """An export that passed."""

    source: str
    export: Export
    root: ET.Element
    """Its definition."""
    identity: Identity
    """In the definition; only the root's tags are checked until `check_identity`."""
    boot: Boot
    emulator: str
    nvram: bytes | None
    tpm: bytes | None


def check_export(context: Context, host: Host, source: str, accepted: Collection[str]) -> Checked:
    """Reads the export in the directory `source`, except the data of its disks, and checks it. Raises UsageError, QuiesceError,
    NotFoundError, RefusedError."""
    storage = context.storage(host)
    export, xml = _read(storage, source)
    root = definition.parse_definition(xml)
    identity = domain_xml.identity(xml.decode())
    for disk in export.disks:
        check_image(export, disk, storage.start(plain(storage, source, disk.file)))
    # Twice: what the host is asked comes from the definition.
    definition.require_allowed(root, {disk.target for disk in export.disks}, None, accepted)
    text = xml.decode()
    if problems := host.what_does_not_fit(text):
        raise RefusedError(f"{host.name} cannot run the exported VM: {'; '.join(problems)}", details={"problems": problems})
    emulator, boot = host.boot(text)
    definition.require_allowed(root, {disk.target for disk in export.disks}, boot, accepted)
    nvram, tpm = (_state(storage, source, export, name) for name in (export.nvram, export.tpm))
    if nvram is not None:
        _check_nvram(export, root, nvram)
    if tpm is not None and host.tpm_state(text) is None:
        raise UsageError("the manifest has the state of a TPM, the definition has no emulated TPM")
    return Checked(source, export, root, identity, boot, emulator, nvram, tpm)


def _read(storage: Storage, source: str) -> tuple[Export, bytes]:
    try:
        export = exported.load(_small(storage, source, exported.NAME, exported.MAX_BYTES))
        xml = _small(storage, source, exported.DOMAIN, definition.MAX_BYTES)
    except NotFoundError as error:
        raise NotFoundError(
            f"{source} has no export of quiesce: {exported.NAME} or {exported.DOMAIN} is missing",
            hint="an export that was interrupted has no manifest: export the checkpoint again",
        ) from error
    require_sum(source, export, exported.DOMAIN, len(xml), hashlib.sha256(xml).hexdigest())
    for file in export.files:
        size = storage.size(plain(storage, source, file.name))
        if size != file.bytes:
            raise damaged(source, file.name, f"it has {size} bytes, the manifest says {file.bytes}")
    return export, xml


def _small(storage: Storage, source: str, name: str, most: int) -> bytes:
    try:
        return storage.read(plain(storage, source, name), most)
    except RefusedError as error:
        raise UsageError(str(error)) from error


def check_image(export: Export, disk: ExportedDisk, start: bytes) -> None:
    """Raises UsageError if the image that begins with `start` is not as an export has it."""
    size = export.file(disk.file).bytes
    if not 0 < disk.capacity <= qcow2.MAX_CAPACITY or size > qcow2.largest_file(disk.capacity):
        raise UsageError(f"disk {disk.target} has an impossible size: {disk.capacity} bytes, in a file of {size}")
    qcow2.check_header(disk.file, start, size=size, capacity=disk.capacity)


def require_sum(source: str, export: Export, name: str, size: int, sha256: str) -> None:
    """Raises QuiesceError if size or checksum of a file differ from the manifest."""
    file = export.file(name)
    if (size, sha256) != (file.bytes, file.sha256):
        raise damaged(source, name, "its SHA-256 differs from the one in the manifest")


def damaged(source: str, name: str, how: str) -> QuiesceError:
    hint = "copy the export again, or export the checkpoint again"
    return QuiesceError(f"{source}/{name} is damaged: {how}", hint=hint)


def _state(storage: Storage, source: str, export: Export, name: str | None) -> bytes | None:
    if name is None:
        return None
    content = _small(storage, source, name, MAX_STATE)
    require_sum(source, export, name, len(content), hashlib.sha256(content).hexdigest())
    return content


def _check_nvram(export: Export, root: ET.Element, content: bytes) -> None:
    place = root.find("./os/nvram")
    if place is None:
        raise UsageError("the manifest has UEFI variables, the definition has no <nvram>")
    if place.get("format") == "qcow2":
        qcow2.check_header(str(export.nvram), content, size=len(content), capacity=qcow2.capacity(content))


def check_identity(checked: Checked, *, name: str | None, uuid: str) -> Identity:
    """The identity of the new VM: `name` and `uuid`; without a name, that of the exported VM. Raises UsageError."""
    if name is not None:
        return Identity(name, uuid)
    return Identity(check_vm_name(checked.identity.name), check_uuid(checked.identity.uuid))
