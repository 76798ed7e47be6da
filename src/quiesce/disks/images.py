"""Making and removing images. Nothing is removed that we did not make, or that anything still stands on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.catalog.manifest import Manifest
from quiesce.context import Context
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.tree import Checkpoint

NEARLY_FULL = 0.9
"""Share of a filesystem in use from which on a checkpoint warns."""
_OURS = re.compile(r".+\.[0-9a-f]{12}\.(qcow2|nvram|tpm|memory)")


def new_path(name: str, beside: str, what: str, suffix: str) -> str:
    """A path for a file of the VM of this name. It says to a person where it came from."""
    directory, _ = volumes.split(beside)
    return f"{directory}/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{what}.{secrets.token_hex(6)}.{suffix}"


def note_new(context: Context, vm: Vm, beside: str, what: str, suffix: str) -> str:
    """A path for a file of ours that is about to be made, noted in the catalog first."""
    path = new_path(vm.name, beside, what, suffix)
    context.catalog.note_image(vm.host.name, vm.uuid, path)
    return path


def named_like_ours(path: str) -> bool:
    """Whether `new_path` may have made this path: all that is left to go by when a catalog is lost."""
    return _OURS.fullmatch(volumes.split(path)[1]) is not None


def make_overlay(
    context: Context,
    vm: Vm,
    journal: Journal,
    target: str,
    capacity: int,
    backing: str,
    format: str,
    path: str | None = None,
) -> str:
    """A differencing disk on `backing`, beside it unless `path` says where; returns its path."""
    path = path or new_path(vm.name, backing, target, "qcow2")
    context.catalog.note_image(vm.host.name, vm.uuid, path)
    step = journal.step("make-overlay", target=target, path=path, backing=backing)
    with step, volumes.beside(vm.host, path) as (pool, name):
        free, size = pool.room()
        if size and free < size * (1 - NEARLY_FULL):
            context.emit(Warned(f"{pool.path} is nearly full: {free} of {size} bytes are free"))
        return pool.create_overlay(name, capacity, backing, format)


def written(vm: Vm, paths: Iterable[str]) -> dict[str, str]:
    """When each of these files was last written."""
    found = {}
    for path in paths:
        with volumes.beside(vm.host, path) as (pool, name):
            found[path] = pool.volume(name).written
    return found


def discard(context: Context, vm: Vm, path: str, found: Survey | None = None) -> None:
    """Removes a file of ours. Raises RefusedError, and touches nothing, if it may still be needed or is not ours.

    `found`: a survey made under the VM's lock, after which nothing was done but to remove its orphans in their order.
    """
    if not context.catalog.made_image(vm.host.name, path):
        raise RefusedError(f"{path} was not made by quiesce; it is left alone")
    users = context.catalog.checkpoints_with(vm.host.name, path)
    if users:
        raise RefusedError(f"{path} belongs to checkpoint {users[0]!r}; it is left alone")
    found = found or survey(context, vm)
    found.require_whole()
    if path in found.chains.needed(found.named):
        raise RefusedError(f"{path} is in the chain of {vm.name}; it is left alone")
    readers = found.chains.readers(path) - set(found.orphans())
    if readers:
        raise RefusedError(f"{min(readers)} is based on {path}; it is left alone")
    with volumes.beside(vm.host, path) as (pool, name):
        pool.delete(name)
    context.catalog.forget_image(vm.host.name, path)


def discard_or_warn(context: Context, vm: Vm, journal: Journal, path: str, found: Survey | None = None) -> None:
    """Like `discard`, where an image left over does no harm."""
    number = journal.intend("remove-image", path=path)
    try:
        discard(context, vm, path, found)
    except QuiesceError as error:
        context.emit(Warned(f"{path} is no longer needed but was not removed: {error.message}"))
    else:
        journal.done(number)


def discard_orphans(context: Context, vm: Vm) -> list[str]:
    """Removes every file of ours that nothing needs, and forgets those that are gone already. Returns what was removed. Sure
    only under the VM's lock, with no operation unfinished."""
    found = survey(context, vm)
    removed = found.orphans()
    for path in removed:
        discard(context, vm, path, found)
    for path in found.made - found.volumes.keys() - found.needed():
        if not context.catalog.checkpoints_with(vm.host.name, path):
            context.catalog.forget_image(vm.host.name, path)
    return removed


def put_back(context: Context, vm: Vm, overlays: Mapping[str, tuple[str, str]]) -> None:
    """Brings the VM, running or off, back from overlays onto the images below them, with all it wrote, and removes the
    overlays. `overlays`: (overlay, image below) by target.

    Keeps the overlay, with a warning, of a disk that stands on neither: something may have been written to it.
    """
    sources, ahead = vm.sources(), vm.file_disks(next_start=True)
    wrong = {target: below for target, (overlay, below) in overlays.items() if ahead.get(target) == overlay}
    if wrong and vm.active() and all(sources.get(target) == below for target, below in wrong.items()):
        vm.redefine(domain_xml.with_sources(vm.definition(), wrong))  # it was started in between
    for target, (overlay, below) in overlays.items():
        if sources.get(target) == overlay:
            vm.commit_into_base(target, below)
    sources = vm.sources()
    for target, (overlay, below) in overlays.items():
        if sources.get(target) != below:
            context.catalog.set_live(vm.host.name, [overlay], True)
            context.emit(Warned(f"disk {target} of {vm.name} is no longer on {below}; {overlay} is left alone"))
            continue
        if context.catalog.made_image(vm.host.name, overlay):  # else it was removed before we were killed
            discard(context, vm, overlay)


def write_manifest(context: Context, vm: Vm, node: Checkpoint) -> None:
    """Beside the first image. The checkpoint stands without it, so a failure is only a warning."""
    content = manifest.dump(manifest_of(context, vm, node))
    try:
        with volumes.beside(vm.host, node.disks[0].path) as (pool, _):
            pool.write(manifest.name(node.id), content)
    except QuiesceError as error:
        context.emit(Warned(f"the manifest of {node.name!r} could not be written: {error.message}"))


def manifest_of(context: Context, vm: Vm, node: Checkpoint) -> Manifest:
    """As it should be."""
    made = node.paths() & set(context.catalog.images_made_for(vm.host.name, vm.uuid))
    return Manifest(node, context.catalog.domain_xml(node.id), tuple(sorted(made)))


def read_manifest(vm: Vm, node: Checkpoint) -> Manifest:
    """As it is. Raises QuiesceError if there is none that can be read."""
    with volumes.beside(vm.host, node.disks[0].path) as (pool, _):
        return manifest.load(pool.read(manifest.name(node.id)))


def forget(context: Context, vm: Vm, node: Checkpoint) -> None:
    """The checkpoint is gone from the catalog and from the manifests; its images are left."""
    with volumes.beside(vm.host, node.disks[0].path) as (pool, _):
        pool.delete(manifest.name(node.id))
    for child in context.catalog.remove(node):
        write_manifest(context, vm, child)
