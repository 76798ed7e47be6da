"""What belongs to a machine besides its disks: UEFI variables and the state of an emulated TPM."""

from __future__ import annotations

from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.tree import Role


def read(vm: Vm) -> dict[Role, bytes]:
    """As the files are now. A part that the VM does not have, or has not had yet for it was never started, is left out.

    Raises NotFoundError if a running VM's is not where it should be.
    """
    found = {}
    for role, path in ((Role.NVRAM, domain_xml.nvram(vm.definition())), (Role.TPM, domain_xml.tpm_state(vm.definition()))):
        if path:
            try:
                found[role] = content(vm, path)
            except (NotFoundError, HypervisorError):
                if vm.active():
                    raise
    return found


def content(vm: Vm, path: str) -> bytes:
    """Of a file `write` made. Raises NotFoundError."""
    directory, name = volumes.split(path)
    with volumes.directory(vm.host, directory) as pool:
        return pool.read(name)


def put_tpm(vm: Vm, path: str) -> None:
    """Gives the VM, which is off, the TPM state kept in this file. libvirt gives it to the TPM's user at the next start."""
    place = domain_xml.tpm_state(vm.definition())
    assert place is not None  # the definition is that of the checkpoint the state belongs to
    copy(vm.host, path, place)


def copy(host: Host, path: str, place: str) -> None:
    """Copies a small file, into a directory that is made if there is none."""
    directory, name = volumes.split(path)
    with volumes.directory(host, directory) as pool:
        found = pool.read(name)
    directory, name = volumes.split(place)
    with volumes.directory(host, directory, build=True) as pool:
        pool.write(name, found)


def write(vm: Vm, path: str, content: bytes) -> None:
    """Makes a file of this content beside the images."""
    directory, name = volumes.split(path)
    with volumes.directory(vm.host, directory) as pool:
        pool.require_room(len(content), "the machine's state")
        pool.write(name, content)


def remove(host: Host, directory: str, names: list[str]) -> None:
    """Removes those of these files that are there."""
    with volumes.directory(host, directory) as pool:
        for name in names:
            pool.delete(name)
