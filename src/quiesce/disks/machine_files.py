"""The files of a VM besides its disks: UEFI variables and the state of an emulated TPM."""

from __future__ import annotations

from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import WriteFile
from quiesce.context import Context
from quiesce.disks import images
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.tree import Role
from quiesce.storage.port import Storage, require_room


def read(context: Context, vm: Vm) -> dict[Role, bytes]:
    """The content of these files now. Leaves out a file that the VM does not have, or does not have yet because it was never
    started.

    Raises NotFoundError if the VM runs and a file is not where it should be.
    """
    found, xml, storage = {}, vm.definition(), context.storage(vm.host)
    for role, path in ((Role.NVRAM, domain_xml.nvram(xml)), (Role.TPM, domain_xml.tpm_state(xml))):
        if path:
            try:
                found[role] = storage.read(path)
            except (NotFoundError, HypervisorError):
                if vm.active():
                    raise
    return found


def write_small_file(storage: Storage, path: str, content: bytes) -> None:
    """Writes a small file into a place that exists. Raises NoSpaceError."""
    require_room(storage, storage.place(path), len(content), "the machine's state")
    storage.write(path, content)


def keep(context: Context, vm: Vm, journal: Journal, role: Role, content: bytes, beside: str) -> str:
    """Writes `content` to a new file of ours beside an image. Returns its path."""
    path = images.note_new(context, vm, beside, "machine", role.value)
    with journal.step(WriteFile(path)):
        write_small_file(context.storage(vm.host), path, content)
    return path


def put_tpm(context: Context, vm: Vm, path: str) -> None:
    """Copies the TPM state in the file `path` to where the VM's TPM reads it. The VM must be off. libvirt changes the file's
    owner to the TPM's user at the next start."""
    place = domain_xml.tpm_state(vm.definition())
    assert place is not None  # the VM has the definition of the checkpoint, which has a TPM
    copy(context.storage(vm.host), path, place)


def copy(storage: Storage, path: str, destination: str) -> None:
    """Copies a small file. Makes the place of `destination` if it does not exist."""
    storage.write(destination, storage.read(path), make_place=True)
