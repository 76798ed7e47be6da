"""The files of a VM besides its disks: UEFI variables and the state of an emulated TPM."""

from __future__ import annotations

from collections.abc import Mapping

from quiesce.catalog.journal import Journal
from quiesce.catalog.steps import WriteFile
from quiesce.context import Context
from quiesce.disks import images
from quiesce.hypervisor import domain_xml, tpm
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, NotFoundError
from quiesce.model.tree import Role
from quiesce.storage.port import Storage, require_room

NAMES = {Role.NVRAM: "UEFI variables", Role.TPM: "TPM state"}


def read(context: Context, vm: Vm) -> dict[Role, bytes]:
    """The content of these files now. Leaves out a file that the VM does not have, or does not have yet because it was never
    started.

    Raises NotFoundError if the VM runs and a file is not where it should be.
    """
    found, storage = {}, context.storage(vm.host)
    for role, path in _paths(vm).items():
        try:
            found[role] = storage.read(path)
        except (NotFoundError, HypervisorError):
            if vm.active():
                raise
    return found


def left_out(vm: Vm, state: Mapping[Role, bytes]) -> list[str]:
    """What belongs to the machine and is not in `state`, the result of `read`: a warning for each."""
    xml = vm.definition()
    never = [f"{what}, is not in the checkpoint" for what in tpm.never_kept(xml, vm.host.tpm_places)]
    return never + [
        f"the checkpoint has no {NAMES[role]}: there is no {path} that can be read; a VM that was never started has none"
        for role, path in _paths(vm).items()
        if role not in state
    ]


def _paths(vm: Vm) -> dict[Role, str]:
    xml = vm.definition()
    return {role: path for role, path in ((Role.NVRAM, domain_xml.nvram(xml)), (Role.TPM, vm.host.tpm_state(xml))) if path}


def write_small_file(storage: Storage, path: str, content: bytes, like: str | None = None) -> None:
    """Writes a small file into a place that exists. `like` as in Storage.write. Raises NoSpaceError."""
    require_room(storage, storage.place(path), len(content), "the machine's state")
    storage.write(path, content, like=like)


def keep(context: Context, vm: Vm, journal: Journal, role: Role, content: bytes, place: str, like: str | None = None) -> str:
    """Writes `content` to a new file of ours in this place. Returns its path. `like` as in Storage.write."""
    path = images.note_new(context, vm, place, "machine", role.value)
    with journal.step(WriteFile(path)):
        write_small_file(context.storage(vm.host), path, content, like)
    return path


def put_tpm(context: Context, vm: Vm, path: str) -> None:
    """Copies the TPM state in the file `path` to where the VM's TPM reads it. The VM must be off. libvirt changes the file's
    owner to the TPM's user at the next start."""
    place = vm.host.tpm_state(vm.definition())
    assert place is not None  # the VM has the definition of the checkpoint, which has a TPM
    copy(context.storage(vm.host), path, place)


def copy(storage: Storage, path: str, destination: str) -> None:
    """Copies a small file. Makes the place of `destination` if it does not exist; if the file exists, its rights stay."""
    storage.write(destination, storage.read(path), make_place=True, like=destination)
