"""Making and removing images. Nothing is removed that we did not make, or that anything still stands on."""

from __future__ import annotations

import posixpath
import re
import secrets
from collections.abc import Iterable, Mapping

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.catalog.manifest import Manifest
from quiesce.catalog.steps import MakeOverlay, RemoveFile
from quiesce.context import Context
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint
from quiesce.storage.port import Merger, ReportProgress, Storage

NEARLY_FULL = 0.9
"""Share of a filesystem in use from which on a checkpoint warns."""
_OURS = re.compile(r".+\.[0-9a-f]{12}\.(qcow2|nvram|tpm|memory)")


def _silent(_done: int, _total: int) -> None:
    pass


def new_path(storage: Storage, name: str, beside: str, what: str, suffix: str) -> str:
    """A path for a file of the VM of this name, beside another one. It tells a person where the file came from."""
    file = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{what}.{secrets.token_hex(6)}.{suffix}"
    return storage.inside(storage.place(beside), file)


def note_new(context: Context, vm: Vm, beside: str, what: str, suffix: str) -> str:
    """A path for a file of ours that is about to be made, noted in the catalog first."""
    path = new_path(context.storage(vm.host), vm.name, beside, what, suffix)
    context.catalog.images.note(vm.key, path)
    return path


def named_like_ours(path: str) -> bool:
    """Whether `new_path` may have made this path: all that is left to go by when a catalog is lost."""
    return _OURS.fullmatch(posixpath.basename(path)) is not None


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
    """An overlay on `backing`, beside it unless `path` says where; returns its path."""
    storage = context.storage(vm.host)
    path = path or new_path(storage, vm.name, backing, target, "qcow2")
    context.catalog.images.note(vm.key, path)
    with journal.step(MakeOverlay(target, path, backing)):
        room = storage.room(storage.place(path))
        if room.size and room.free < room.size * (1 - NEARLY_FULL):
            context.emit(Warned(f"{storage.place(path)} is nearly full: {room.free} of {room.size} bytes are free"))
        storage.make_overlay(path, capacity, backing, format)
    return path


def untouched(context: Context, vm: Vm, paths: Iterable[str], worth: Consistency | None = None) -> Untouched:
    """A record of these images as they are now; `worth` as in Untouched. Raises NotFoundError."""
    storage = context.storage(vm.host)
    return Untouched({path: storage.image(path).written for path in paths}, worth)


def discard(context: Context, vm: Vm, path: str, found: Survey | None = None) -> None:
    """Removes a file of ours. Raises RefusedError, and touches nothing, if it may still be needed or is not ours.

    `found`: a survey made under the VM's lock, after which nothing was done but to remove its orphans in their order.
    """
    if not context.catalog.images.has(vm.host.id, path):
        raise RefusedError(f"{path} was not made by quiesce; it is left alone")
    users = context.catalog.checkpoints.with_file(vm.host.id, path)
    if users:
        raise RefusedError(f"{path} belongs to checkpoint {users[0]!r}; it is left alone")
    found = found or survey(context, vm)
    found.require_whole()
    if path in found.chains.needed(found.named):
        raise RefusedError(f"{path} is in the chain of {vm.name}; it is left alone")
    readers = found.chains.readers(path) - set(found.orphans())
    if readers:
        raise RefusedError(f"{min(readers)} is based on {path}; it is left alone")
    context.storage(vm.host).remove(path)
    context.catalog.images.forget(vm.host.id, path)


def discard_or_warn(context: Context, vm: Vm, journal: Journal, path: str, found: Survey | None = None) -> None:
    """Like `discard`, where an image left over does no harm."""
    number = journal.intend(RemoveFile(path))
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
    for path in found.made - found.images.keys() - found.needed():
        if not context.catalog.checkpoints.with_file(vm.host.id, path):
            context.catalog.images.forget(vm.host.id, path)
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
    with context.storage(vm.host).merger() as merger:
        for target, (overlay, below) in overlays.items():
            if sources.get(target) == overlay:
                commit_head(vm, merger, target, below)
    sources = vm.sources()
    for target, (overlay, below) in overlays.items():
        if sources.get(target) != below:
            context.catalog.images.set_live(vm.host.id, [overlay], True)
            context.emit(Warned(f"disk {target} of {vm.name} is no longer on {below}; {overlay} is left alone"))
            continue
        if context.catalog.images.has(vm.host.id, overlay):  # else it was removed before we were killed
            discard(context, vm, overlay)


def commit_head(vm: Vm, merger: Merger, target: str, base: str, progress: ReportProgress = _silent) -> None:
    """Commits what the VM writes on a disk into the image `base` in its chain, which it then writes; running or off.

    After an error the VM still writes where it did, on a good chain. Raises BusyError if somebody else has an image open.
    """
    if vm.active():
        vm.commit_into_base(target, base, progress)
        return
    if vm.facts().managed_save:
        raise RefusedError(
            f"{vm.name} has a saved memory image, which names the disks as they are",
            hint=f"start it, or drop the saved memory: virsh managedsave-remove {vm.name}",
        )

    def define() -> None:
        vm.redefine(domain_xml.with_sources(vm.definition(), {target: base}))

    merger.commit_active(vm.sources()[target], base, progress, define)


def write_manifest(context: Context, vm: Vm, node: Checkpoint) -> None:
    """Beside the first image. The checkpoint stands without it, so a failure is only a warning."""
    content = manifest.dump(manifest_of(context, vm, node))
    try:
        context.storage(vm.host).write(manifest_path(context, vm, node), content)
    except QuiesceError as error:
        context.emit(Warned(f"the manifest of {node.name!r} could not be written: {error.message}"))


def manifest_of(context: Context, vm: Vm, node: Checkpoint) -> Manifest:
    """As it should be."""
    made = node.paths() & set(context.catalog.images.made_for(vm.key))
    return Manifest(node, context.catalog.checkpoints.domain_xml(node.id), tuple(sorted(made)))


def read_manifest(context: Context, vm: Vm, node: Checkpoint) -> Manifest:
    """As it is. Raises QuiesceError if there is none that can be read."""
    return manifest.load(context.storage(vm.host).read(manifest_path(context, vm, node)))


def manifest_path(context: Context, vm: Vm, node: Checkpoint) -> str:
    storage = context.storage(vm.host)
    return storage.inside(storage.place(node.disks[0].path), manifest.name(node.id))


def forget_checkpoint(context: Context, vm: Vm, node: Checkpoint) -> None:
    """The checkpoint is gone from the catalog and from the manifests; its images are left."""
    context.storage(vm.host).remove(manifest_path(context, vm, node))
    for child in context.catalog.checkpoints.remove(node):
        write_manifest(context, vm, child)
