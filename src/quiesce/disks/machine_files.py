"""What belongs to a machine besides its disks: UEFI variables and the state of an emulated TPM."""

from __future__ import annotations

from quiesce.catalog.journal import Journal
from quiesce.context import Context
from quiesce.disks import images
from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.tree import Role


def read(vm: Vm) -> dict[Role, bytes]:
    """As the files are now. A part that the VM does not have, or has not had yet for it was never started, is left out.

    Raises NotFoundError if a running VM's is not where it should be.
    """
    found, xml = {}, vm.definition()
    for role, path in ((Role.NVRAM, domain_xml.nvram(xml)), (Role.TPM, domain_xml.tpm_state(xml))):
        if path:
            try:
                found[role] = content(vm.host, path)
            except (NotFoundError, HypervisorError):
                if vm.active():
                    raise
    return found


def content(host: Host, path: str) -> bytes:
    """All of a small file. Raises NotFoundError."""
    with volumes.beside(host, path) as (pool, name):
        return pool.read(name)


def write(host: Host, path: str, content: bytes) -> None:
    """Makes a small file of this content, in a directory that is there. Raises NoSpaceError."""
    with volumes.beside(host, path) as (pool, name):
        pool.require_room(len(content), "the machine's state")
        pool.write(name, content)


def keep(context: Context, vm: Vm, journal: Journal, role: Role, content: bytes, beside: str) -> str:
    """Makes a file of ours of a part of the machine, beside an image; returns its path."""
    path = images.note_new(context, vm, beside, "machine", role.value)
    with journal.step("write-file", path=path):
        write(vm.host, path, content)
    return path


def put_tpm(vm: Vm, path: str) -> None:
    """Gives the VM, which is off, the TPM state kept in this file. libvirt gives it to the TPM's user at the next start."""
    place = domain_xml.tpm_state(vm.definition())
    assert place is not None  # the definition is that of the checkpoint the state belongs to
    copy(vm.host, path, place)


def copy(host: Host, path: str, place: str) -> None:
    """Copies a small file, into a directory that is made if there is none."""
    found = content(host, path)
    with volumes.beside(host, place, build=True) as (pool, name):
        pool.write(name, found)


def remove(host: Host, directory: str, names: list[str]) -> None:
    """Removes those of these files that are there."""
    with volumes.directory(host, directory) as pool:
        for name in names:
            pool.delete(name)
