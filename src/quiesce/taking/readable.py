"""Whether a VM could be started with a chain of images, when its definition names the topmost one only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from quiesce.context import Context
from quiesce.disks.survey import Survey
from quiesce.hypervisor.named_chain import NamedChain, named_chains
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError

INSTEAD_OF_ENCRYPTED = (
    "encrypt in the guest, or the filesystem that has the images, instead (qemu-img convert writes a plain image); or leave the"
    " disk out: --exclude"
)


def require_readable_chains(context: Context, vm: Vm, found: Survey, disks: Mapping[str, str]) -> None:
    """Raises RefusedError, naming the image, if one of these images, or of their backing files, is encrypted, or if the header
    of one does not record the format of its backing file: libvirt refuses to guess it. `disks`: path by target.

    Images that quiesce made record the format, and are as their backing files are."""
    problems: dict[str, str] = {}
    for target, path in disks.items():
        for image in found.chains.chain(path):
            if problem := _problem(context, vm, found, image):
                problems.setdefault(f"disk {target}: {problem[0]}", problem[1])
    if problems:
        raise RefusedError(
            f"{vm.name} could not be started with an overlay of these images: {'; '.join(problems)}",
            hint="; ".join(dict.fromkeys(problems.values())),
            details={"disks": list(problems)},
        )


def _problem(context: Context, vm: Vm, found: Survey, path: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) with one image; None: nothing."""
    image = found.images.get(path)
    if image is None:
        return None
    if image.encrypted:
        return f"{path} is encrypted, and an overlay of it would not be", INSTEAD_OF_ENCRYPTED
    if image.backing is None or path in found.made or image.backing_format == "raw":
        return None
    if context.storage(vm.host).backing_format(path):
        return None
    below = found.images.get(image.backing)
    format = below.format if below else image.backing_format  # what is declared, or else libvirt's guess
    return (
        f"{path} does not record the format of its backing file {image.backing}",
        f"while the VM is off: qemu-img rebase -u -f {image.format} -F {format} -b {image.backing} {path}",
    )


def require_named_chains_agree(context: Context, vm: Vm, found: Survey, disks: Mapping[str, str]) -> None:
    """Raises RefusedError if the definition gives a disk another backing chain than the images' headers, or says that a backing
    file is of another format: as raw, a qcow2 image is another disk. `disks`: path by target."""
    for target, chain in named_chains(vm.definition()).items():
        if target not in disks:
            continue
        named, headers = chain.spelled(vm.host.spell), found.chains.chain(disks[target])[1:]
        _require_formats_agree(context, vm, found, target, named, [disks[target], *headers])
        if named.contradicts(headers, found.made):
            raise RefusedError(
                f"the definition of {vm.name} gives disk {target} other backing files"
                f" ({', '.join(path or 'no file' for path in named.paths) or 'none'}) than the images' headers"
                f" ({', '.join(headers) or 'none'})",
                hint="make both agree while the VM is off: `qemu-img rebase -u` changes a header; without the disk's"
                f" <backingStore> (virsh edit {vm.name}) the headers count",
                details={"disk": target},
            )


def _require_formats_agree(
    context: Context, vm: Vm, found: Survey, target: str, named: NamedChain, chain: Sequence[str]
) -> None:
    for above, below in itertools.pairwise(chain):
        image, format = found.images.get(above), named.format(below)
        if image is None or image.backing is None or above in found.made or format is None:
            continue
        recorded = context.storage(vm.host).backing_format(above)
        if recorded not in (None, format):
            raise RefusedError(
                f"the definition of {vm.name} says that {below}, below disk {target}, is {format}, and the header of {above}"
                f" says that it is {recorded}; the guest would see another disk after a checkpoint",
                hint=f"the definition counts now; to make the header agree while the VM is off: qemu-img rebase -u -f"
                f" {image.format} -F {format} -b {below} {above}",
                details={"disk": target},
            )
