"""Records the fingerprints of the images of checkpoints, renews them when quiesce itself changes an image, and lowers labels
when another program changed one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from quiesce.catalog.journal import Journal, interrupted
from quiesce.catalog.steps import Merge, MoveBranch, Relabel
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import Survey, changed_images
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NotFoundError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import Fingerprint, lowered
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, Tree


def of_new_checkpoint(context: Context, vm: Vm, own: Iterable[str]) -> dict[str, Fingerprint]:
    """The fingerprints to record with a checkpoint whose own images are `own`. Nobody may write to them any more.

    Of the images below, those that earlier checkpoints read keep the fingerprint that is recorded: if it differs, the image was
    changed, and that must not be forgotten."""
    own, key = set(own), vm.key
    earlier = {disk.path for node in context.catalog.checkpoints.tree(key).nodes for disk in node.disks}
    found = context.storage(vm.host).look(own | earlier)
    known = context.catalog.fingerprints.of(key).keys() & found.chains.needed(earlier)
    new = found.chains.needed(own) & found.images.keys() - (known - own)
    return {path: Fingerprint.of(found.images[path]) for path in sorted(new)}


def now(context: Context, vm: Vm, paths: Iterable[str]) -> dict[str, Fingerprint]:
    """The present fingerprints of those of the images that have a recorded one. Images that are gone are left out."""
    storage, recorded = context.storage(vm.host), context.catalog.fingerprints.of(vm.key)
    found = {}
    for path in sorted(recorded.keys() & set(paths)):
        try:
            found[path] = Fingerprint.of(storage.image(path))
        except NotFoundError:
            continue
    return found


def renew(context: Context, vm: Vm, paths: Iterable[str]) -> None:
    """Records the present fingerprints of images that quiesce itself changed, and writes the manifests that have them. To be
    called within the journalled step that changed the images."""
    renewed = now(context, vm, paths)
    context.catalog.fingerprints.put(vm.key, renewed)
    write_manifests(context, vm, renewed)


def write_manifests(context: Context, vm: Vm, paths: Iterable[str]) -> None:
    """Writes the manifests of the checkpoints that have one of these images as their own."""
    for node in owners(context, vm, paths):
        images.write_manifest(context, vm, node)


def owners(context: Context, vm: Vm, paths: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints that are not hidden and have one of these images as their own."""
    own = set(paths)
    return [node for node in context.catalog.checkpoints.tree(vm.key).checkpoints if not own.isdisjoint(_own(node))]


def lower_for_good(context: Context, vm: Vm, journal: Journal, found: Survey, changed: Mapping[str, str]) -> list[str]:
    """Records that these images of `found.changed` were changed: every checkpoint that reads one of them is crash-consistent
    from now on, and so are the disks of a VM that is off. Records the present fingerprints, so that the next change is seen.
    Returns the names of the checkpoints that are not hidden. Can be killed and called again."""
    nodes = []
    for node in found.tree.nodes:
        if mine := {path: text for path, text in changed.items() if path in found.chains.needed(_own(node))}:
            nodes.append(lowered(node, mine))
    heads = vm.file_disks().values()
    if changed.keys() & found.chains.needed(heads):
        left = None if vm.active() else images.untouched(context, vm, heads, Consistency.CRASH)
        context.catalog.checkpoints.set_untouched(vm.key, left)
    with journal.step(Relabel(tuple(node.id for node in nodes))):
        context.catalog.checkpoints.update(*nodes)
        context.catalog.fingerprints.put(vm.key, {path: Fingerprint.of(found.images[path]) for path in changed})
        for node in nodes:
            images.write_manifest(context, vm, node)
    return [node.name for node in nodes if not node.hidden]


def tree_as_it_is(context: Context, vm: Vm) -> Tree:
    """The VM's checkpoints with the labels that their images deserve now. Changes nothing, and needs no lock: while quiesce
    merges images, or if a merge was interrupted, the images that it changes are not compared. Leaves out checkpoints whose
    records cannot be read, and warns."""
    before = _comparable(context, vm.key)
    tree, wrong = context.catalog.checkpoints.readable(vm.key)
    for text in wrong:
        context.emit(Warned(text))
    if not before:
        return tree
    try:
        found = context.storage(vm.host).look(disk.path for node in tree.nodes for disk in node.disks)
    except QuiesceError as error:
        context.emit(Warned(f"it was not looked whether another program changed the images: {error.message}"))
        return tree
    for place, reason in found.unreadable.items():
        context.emit(Warned(f"it was not looked whether another program changed the images in {place}: {reason}"))
    after = _comparable(context, vm.key)
    same = {path: fingerprint for path, fingerprint in before.items() if after.get(path) == fingerprint}
    changed = changed_images(tree, found.images, same)
    return replace(tree, nodes=tuple(_as_it_is(node, found.chains.needed(_own(node)), changed) for node in tree.nodes))


def _as_it_is(node: Checkpoint, read: set[str], changed: Mapping[str, str]) -> Checkpoint:
    return lowered(node, {path: text for path, text in changed.items() if path in read})


def _comparable(context: Context, key: VmKey) -> dict[str, Fingerprint]:
    """The recorded fingerprints, without those of images that an unfinished operation of ours changes."""
    changing: set[str] = set()
    for operation in interrupted(context.catalog, key):
        for step in operation.unfinished(Merge):
            changing |= {step.top, step.base, *step.branches}
        for move in operation.unfinished(MoveBranch):
            changing |= {move.image, move.top, move.base}
    recorded = context.catalog.fingerprints.of(key)
    return {path: fingerprint for path, fingerprint in recorded.items() if path not in changing}


def _own(node: Checkpoint) -> list[str]:
    return [disk.path for disk in node.disks]
