"""Makes and removes images. Removes an image only if quiesce made it and no other image has it as a backing file."""

from __future__ import annotations

import posixpath
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from quiesce.catalog import manifest
from quiesce.catalog.journal import Journal
from quiesce.catalog.manifest import Loaded, Manifest
from quiesce.catalog.steps import MakeOverlay, RemoveFile
from quiesce.context import Context
from quiesce.disks import places
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.grades import Consistency
from quiesce.model.names import file_stem
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint
from quiesce.storage.port import Aside, Merger, ReportProgress, Storage

NEARLY_FULL = 0.9
"""A checkpoint warns if at least this share of a filesystem is in use."""
_OURS = re.compile(r".+\.[0-9a-f]{12}\.(qcow2|nvram|tpm|memory)")


def _silent(_done: int, _total: int) -> None:
    pass


def new_path(storage: Storage, name: str, place: str, what: str, suffix: str) -> str:
    """A new path in this place. It contains the VM's `name` and `what`, so that people see what the file is."""
    return storage.inside(place, f"{file_stem(name)}.{what}.{secrets.token_hex(6)}.{suffix}")


def note_new(context: Context, vm: Vm, place: str, what: str, suffix: str) -> str:
    """A new path, recorded in the catalog as a file of ours. The caller makes the file next."""
    path = new_path(context.storage(vm.host), vm.name, place, what, suffix)
    context.catalog.images.note(vm.key, path)
    return path


def named_like_ours(path: str) -> bool:
    """Whether the path has the form of `new_path`. When a catalog is lost, nothing else tells that quiesce made a file."""
    return _OURS.fullmatch(posixpath.basename(path)) is not None


def made_by_us(storage: Storage, node: Checkpoint, directories: Collection[str]) -> set[str]:
    """Those of the checkpoint's own files that quiesce made, when a catalog is lost: they have a name of `new_path`, and are in
    one of these directories. No record lists them: who could write it, could have any file removed."""
    return {path for path in node.paths() if named_like_ours(path) and storage.place(path) in directories}


def make_overlay(
    context: Context,
    vm: Vm,
    journal: Journal,
    target: str,
    capacity: int,
    backing: str,
    format: str,
    path: str,
) -> str:
    """Makes an overlay at `path`, with the backing file `backing`, which has this format. Returns its path."""
    storage = context.storage(vm.host)
    context.catalog.images.note(vm.key, path)
    with journal.step(MakeOverlay(target, path, backing, format)):
        room = storage.room(storage.place(path))
        if room.size and room.free < room.size * (1 - NEARLY_FULL):
            context.emit(Warned(f"{storage.place(path)} is nearly full: {room.free} of {room.size} bytes are free"))
        storage.make_overlay(path, capacity, backing, format)
    return path


def untouched(context: Context, vm: Vm, paths: Iterable[str], worth: Consistency | None = None) -> Untouched:
    """A record of these images as they are now; `worth` as in Untouched. Raises NotFoundError if an image is gone. Block
    devices are left out, because nothing tells when they were last written: what is on them counts as crash-consistent."""
    storage = context.storage(vm.host)
    return Untouched({path: storage.image(path).stamp for path in paths if storage.knows(path)}, worth)


def discard(context: Context, vm: Vm, path: str, found: Survey | None = None, *, going: Collection[str] = ()) -> None:
    """Removes a file of ours. Raises RefusedError, and changes nothing, if quiesce did not make the file or if anything may
    still need it.

    `found`: a survey that looked around, made under the VM's lock. Since then nothing may have been done except to remove the
    files `going`, in the order of `Survey.orphans`.
    """
    _require_unneeded(context, vm, path, found, going)
    context.storage(vm.host).remove(path)
    context.catalog.images.forget(vm.host.id, path)


def set_aside(context: Context, vm: Vm, path: str, now: datetime) -> Aside:
    """Like `discard`, but moves the file into the quarantine beside it."""
    _require_unneeded(context, vm, path, None, ())
    aside = context.storage(vm.host).set_aside(path, now)
    context.catalog.images.forget(vm.host.id, path)
    return aside


def _require_unneeded(context: Context, vm: Vm, path: str, found: Survey | None, going: Collection[str]) -> None:
    if not context.catalog.images.has(vm.host.id, path):
        raise RefusedError(f"quiesce did not make {path}, so it does not remove it")
    users = context.catalog.checkpoints.with_file(vm.host.id, path)
    if users:
        raise RefusedError(f"{path} belongs to checkpoint {users[0]!r}, so it is not removed")
    found = found or look_around(context, vm, survey(context, vm))
    found.require_complete_chains()
    if path in found.chains.needed(found.named):
        raise RefusedError(f"{path} is in the backing chain of {vm.name}, so it is not removed")
    readers = found.chains.readers(path) - set(going)
    if readers:
        raise RefusedError(f"{path} is a backing file of {min(readers)}, so it is not removed")


def discard_or_warn(
    context: Context, vm: Vm, journal: Journal, path: str, found: Survey | None = None, *, going: Collection[str] = ()
) -> None:
    """Like `discard`, but only warns if the file cannot be removed: a file that is left over does no harm."""
    number = journal.intend(RemoveFile(path))
    try:
        discard(context, vm, path, found, going=going)
    except QuiesceError as error:
        context.emit(Warned(f"nothing needs {path} any more, but it was not removed: {error.message}"))
    else:
        journal.done(number)


def undo_switch(context: Context, vm: Vm, overlays: Iterable[MakeOverlay]) -> None:
    """Undoes a switch, of a VM that runs or is off: commits each overlay into its backing file, which the VM writes then, and
    removes the overlay. Nothing that the VM wrote is lost.

    If a disk has neither the overlay nor the backing file as its image, keeps the overlay and warns: the VM may have written to
    it.
    """
    sources, ahead = vm.sources(), vm.heads(next_start=True)
    made = {step.target: step for step in overlays}
    wrong = {target: step for target, step in made.items() if ahead.get(target) == step.path}
    if wrong and vm.active() and all(sources.get(target) == step.backing for target, step in wrong.items()):
        # Somebody started it before it was defined anew.
        sources_before = {
            target: source(context.storage(vm.host), step.backing, step.backing_format) for target, step in wrong.items()
        }
        vm.redefine(domain_xml.with_sources(vm.definition(), sources_before))
    with context.storage(vm.host).merger() as merger:
        for target, step in made.items():
            if sources.get(target) == step.path:
                commit_head(context, vm, merger, target, step.backing, step.backing_format)
    sources = vm.sources()
    for target, step in made.items():
        overlay, below = step.path, step.backing
        if sources.get(target) != below:
            context.catalog.images.set_live(vm.host.id, [overlay], True)
            text = f"disk {target} of {vm.name} has another image than {below} now; {overlay}, which it wrote before, is kept"
            context.emit(Warned(text))
            continue
        if context.catalog.images.has(vm.host.id, overlay):  # otherwise it was removed before we were killed
            discard(context, vm, overlay)


def saved_memory(vm: Vm) -> RefusedError | None:
    """Why no image in the chain of the VM can be merged now, if the VM is off and has a saved memory image."""
    if vm.active() or not vm.facts().managed_save:
        return None
    return RefusedError(
        f"{vm.name} has a saved memory image (virsh managedsave), which can only resume on its present images",
        hint=f"start the VM, or remove its saved memory: virsh managedsave-remove {vm.name}",
    )


def source(storage: Storage, path: str, format: str) -> domain_xml.Source:
    """How a definition names this image, a file or a block device."""
    return domain_xml.Source(path, format, device=not storage.knows(path))


def commit_head(
    context: Context, vm: Vm, merger: Merger, target: str, base: str, format: str, progress: ReportProgress = _silent
) -> None:
    """Commits the image that the VM writes on the disk `target` into `base`, an image in its chain, which has this format. The
    VM, which runs or is off, writes `base` then.

    After an error the VM still has the image that it had, with an intact chain. Raises BusyError if somebody else has an image
    open, RefusedError if the VM has a saved memory image.
    """
    if vm.active():
        vm.commit_into_base(target, base, progress)
        return
    if saved := saved_memory(vm):
        raise saved

    def define() -> None:
        vm.redefine(domain_xml.with_sources(vm.definition(), {target: source(context.storage(vm.host), base, format)}))

    merger.commit_active(vm.sources()[target], base, progress, define)


def put_manifest(context: Context, vm: Vm, node: Checkpoint) -> None:
    """Writes the manifest of a checkpoint into its place. Raises QuiesceError."""
    content = manifest.dump(manifest_of(context, vm, node), context.catalog.seal)
    context.storage(vm.host).write(manifest_path(context, vm, node), content)


def write_manifest(context: Context, vm: Vm, node: Checkpoint) -> None:
    """Like `put_manifest`. The catalog does not need the manifest, so a failure is only a warning."""
    try:
        put_manifest(context, vm, node)
    except QuiesceError as error:
        context.emit(Warned(f"the manifest of {node.name!r} could not be written: {error.message}"))


def manifest_of(context: Context, vm: Vm, node: Checkpoint) -> Manifest:
    """The manifest of a checkpoint, made from the catalog."""
    recorded = {} if node.hidden else context.catalog.fingerprints.of(vm.key)
    return described(node, context.catalog.checkpoints.domain_xml(node.id), recorded)


def described(node: Checkpoint, domain_xml: str, recorded: Mapping[str, Fingerprint]) -> Manifest:
    """The manifest of a checkpoint. `recorded`: the fingerprints that the catalog has, by path."""
    own = {disk.path: recorded[disk.path] for disk in node.disks if disk.path in recorded and not node.hidden}
    return Manifest(node, domain_xml, own)


def read_manifest(context: Context, host: Host, path: str) -> Loaded:
    """Raises QuiesceError if it is missing, cannot be read, or describes another checkpoint than its name says."""
    found = manifest.load(context.storage(host).read(path, manifest.MAX_BYTES), context.catalog.seal)
    if posixpath.basename(path) != manifest.name(found.manifest.checkpoint.id):
        raise QuiesceError("not a manifest: it describes another checkpoint than its name says")
    return found


def manifest_path(context: Context, vm: Vm, node: Checkpoint) -> str:
    return manifest_paths(context, vm, [node])[node.id]


def manifest_paths(context: Context, vm: Vm, nodes: Iterable[Checkpoint]) -> dict[str, str]:
    """By the checkpoint's id."""
    storage = context.storage(vm.host)
    names = {node.id: posixpath.join(places.of_checkpoint(storage, node), manifest.name(node.id)) for node in nodes}
    paths = storage.identities(names.values())
    return {id: paths[name] for id, name in names.items()}


def forget_checkpoint(context: Context, vm: Vm, node: Checkpoint) -> None:
    """Removes a checkpoint from the catalog, and its manifest. Its images stay."""
    head_parent = context.catalog.checkpoints.tree(vm.key).head_parent
    if head_parent == node.id:
        head_parent = survey(context, vm, patient=True).head_parent_without(node)
    context.storage(vm.host).remove(manifest_path(context, vm, node))
    for child in context.catalog.checkpoints.remove(node, head_parent):
        write_manifest(context, vm, child)
