"""What belongs to a machine besides its disks: UEFI variables and the state of an emulated TPM."""

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
    """As the files are now. A part that the VM does not have, or has not had yet because it was never started, is left out.

    Raises NotFoundError if a running VM's is not where it should be.
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
    """Makes a small file of this content, in a place that is there. Raises NoSpaceError."""
    require_room(storage, storage.place(path), len(content), "the machine's state")
    storage.write(path, content)


def keep(context: Context, vm: Vm, journal: Journal, role: Role, content: bytes, beside: str) -> str:
    """Makes a file of ours of a part of the machine, beside an image; returns its path."""
    path = images.note_new(context, vm, beside, "machine", role.value)
    with journal.step(WriteFile(path)):
        write_small_file(context.storage(vm.host), path, content)
    return path


def put_tpm(context: Context, vm: Vm, path: str) -> None:
    """Gives the VM, which is off, the TPM state kept in this file. libvirt gives it to the TPM's user at the next start."""
    place = domain_xml.tpm_state(vm.definition())
    assert place is not None  # the definition is that of the checkpoint the state belongs to
    copy(context.storage(vm.host), path, place)


def copy(storage: Storage, path: str, destination: str) -> None:
    """Copies a small file, into a place that is made if there is none."""
    storage.write(destination, storage.read(path), make_place=True)
