"""Making and removing images. Nothing is removed that we did not make, or that anything still stands on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.hypervisor import volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.tree import Checkpoint, DiskImage, Tree
from quiesce.operations.context import Context


def make_overlay(context: Context, vm: Vm, journal: Journal, target: str, capacity: int, backing: str, format: str) -> str:
    """A differencing disk on `backing`, beside it; returns its path. Its name says to a person where it came from; to us it
    means nothing."""
    directory, _ = volumes.split(backing)
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', vm.name)}.{target}.{secrets.token_hex(6)}.qcow2"
    path = f"{directory}/{name}"
    context.catalog.note_image(vm.host.name, vm.uuid, path)
    with journal.step("make-overlay", target=target, path=path, backing=backing), volumes.directory(vm.host, directory) as pool:
        return pool.create_overlay(name, capacity, backing, format)


def discard(context: Context, vm: Vm, path: str) -> None:
    """Removes an image of ours. Raises RefusedError, and touches nothing, if it may still be needed or is not ours."""
    if not context.catalog.made_image(vm.host.name, path):
        raise RefusedError(f"{path} was not made by quiesce; it is left alone")
    users = context.catalog.checkpoints_with(vm.host.name, path)
    if users:
        raise RefusedError(f"{path} belongs to checkpoint {users[0]!r}; it is left alone")
    if path in in_use(vm):
        raise RefusedError(f"{path} is in the chain of {vm.name}; it is left alone")
    directory, name = volumes.split(path)
    with volumes.directory(vm.host, directory) as pool:
        pool.delete(name)
    context.catalog.forget_image(vm.host.name, path)


def discard_or_warn(context: Context, vm: Vm, journal: Journal, path: str) -> None:
    """Like `discard`, where an image left over does no harm."""
    number = journal.intend("remove-image", path=path)
    try:
        discard(context, vm, path)
    except QuiesceError as error:
        context.emit(Warned(f"{path} is no longer needed but was not removed: {error.message}"))
    else:
        journal.done(number)


def put_back(context: Context, vm: Vm, overlays: Mapping[str, tuple[str, str]]) -> None:
    """Brings the VM, running or off, back from overlays onto the images below them, with all it wrote, and removes the
    overlays. `overlays`: (overlay, image below) by target.

    Raises RefusedError, and keeps the overlay, for a disk that stands on neither: something may have been written to it.
    """
    sources = vm.sources()
    for target, (overlay, below) in overlays.items():
        if sources.get(target) == overlay:
            vm.commit_into_base(target, below)
    sources = vm.sources()
    for target, (overlay, below) in overlays.items():
        if sources.get(target) != below:
            raise RefusedError(f"disk {target} of {vm.name} is no longer on {below}; {overlay} is left alone")
        discard(context, vm, overlay)


def orphans(context: Context, vm: Vm) -> list[str]:
    """Every image made for this VM that nothing stands on. Sure only under the VM's lock, with no operation unfinished."""
    nodes = context.catalog.tree(vm.host.name, vm.uuid).checkpoints
    needed = with_backing(vm, vm.chain() | {image.path for node in nodes for image in node.disks})
    return [
        path
        for path in context.catalog.images_made_for(vm.host.name, vm.uuid)
        if path not in needed and not context.catalog.checkpoints_with(vm.host.name, path)
    ]


def in_use(vm: Vm) -> set[str]:
    """Every image the VM reads or would read when started: its sources and all below them, by the running VM's own account
    and by the images' headers."""
    return with_backing(vm, vm.chain())


def with_backing(vm: Vm, paths: set[str]) -> set[str]:
    """These images and all below them, by their headers."""
    found, frontier = set(paths), set(paths)
    while frontier:
        frontier = {below for path in frontier if (below := backing(vm, path))} - found
        found |= frontier
    return found


def require_known_base(vm: Vm, disks: tuple[DiskImage, ...], tree: Tree) -> None:
    """Raises RefusedError if a disk does not lie on the checkpoint it should: somebody changed the chain."""
    parent = tree.get(tree.head_parent)
    for disk in disks:
        base = parent.image(disk.target) if parent else None
        if parent and base and backing(vm, disk.path) != base.path:
            raise RefusedError(
                f"somebody changed the chain of disk {disk.target}: checkpoint {parent.name!r} has it based on {base.path}",
                hint="qemu-img info --backing-chain shows it as it is; --discard-current restores regardless",
            )


def backing(vm: Vm, path: str) -> str | None:
    """The image below this one, by its header."""
    directory, name = volumes.split(path)
    with volumes.directory(vm.host, directory) as pool:
        return pool.backing(name)


def write_manifest(context: Context, vm: Vm, node: Checkpoint, xml: str) -> None:
    """Beside the first image. The checkpoint stands without it, so a failure is only a warning."""
    directory, _ = volumes.split(node.disks[0].path)
    try:
        with volumes.directory(vm.host, directory) as pool:
            pool.write(manifest.name(node.id), manifest.dump(node, xml))
    except QuiesceError as error:
        context.emit(Warned(f"the manifest of {node.name!r} could not be written: {error.message}"))


def remove_manifest(vm: Vm, node: Checkpoint) -> None:
    with volumes.directory(vm.host, volumes.split(node.disks[0].path)[0]) as pool:
        pool.delete(manifest.name(node.id))
