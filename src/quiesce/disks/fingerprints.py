"""Records the fingerprints of the images of checkpoints, renews them when quiesce itself changes an image, and lowers labels
when another program changed one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from quiesce.catalog.journal import Journal, interrupted
from quiesce.catalog.steps import Merge, MoveBranch, Relabel
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import Survey, discrepancies, recorded_raw, with_tables
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Image
from quiesce.model.errors import HypervisorError, NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import Fingerprint, lowered, lowered_for_good
from quiesce.model.grades import Consistency
from quiesce.model.keys import VmKey
from quiesce.model.tree import Checkpoint, Tree
from quiesce.storage.port import Storage


def of_new_checkpoint(context: Context, vm: Vm, own: Iterable[str]) -> dict[str, Fingerprint]:
    """The fingerprints to record with a checkpoint whose own images are `own`. Nobody may write to them any more.

    Of the images below, those that earlier checkpoints read keep the fingerprint that is recorded: if it differs, the image was
    changed, and that must not be forgotten."""
    own, key = set(own), vm.key
    tree = context.catalog.checkpoints.tree(key)
    earlier = {disk.path for node in tree.nodes for disk in node.disks}
    storage = context.storage(vm.host)
    found = storage.look(own | earlier, vm.raw_images() | recorded_raw(tree))
    recorded = context.catalog.fingerprints.of(key)
    known = recorded.keys() & found.chains.needed(earlier)
    new = found.chains.needed(own) & found.images.keys() - (known - own)
    given = _given_away(storage, {path: found.images[path] for path in known & found.images.keys()}, recorded)
    return given | {path: taken(storage, found.images[path]) for path in sorted(new)}


def _given_away(storage: Storage, images: Mapping[str, Image], recorded: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """The fingerprints to record of images that are the same, except that libvirt gave them to another owner. From then on, the
    new owner explains no other time any more."""
    given = {}
    for path, image in sorted(images.items()):
        before = recorded[path]
        if before.access == image.access or before.changed == image.changed:
            continue
        now = taken(storage, image)
        if not before.difference(now):
            given[path] = before.known_as(now)
    return given


def taken(storage: Storage, image: Image) -> Fingerprint:
    """The fingerprint of an image as it was when `image` was read: whatever is written after that is seen as a difference.
    Without its tables if they cannot be read: no checkpoint is lost for that."""
    with suppress(HypervisorError, NotFoundError):
        image = replace(image, tables=image.tables or storage.tables(image.path, image.format))
    return Fingerprint.of(image)


def now(context: Context, vm: Vm, paths: Iterable[str]) -> dict[str, Fingerprint]:
    """The present fingerprints of those of the images that have a recorded one. Images that are gone are left out; one that is
    as it was recorded keeps the digest of its content."""
    storage, recorded = context.storage(vm.host), context.catalog.fingerprints.of(vm.key)
    raw = recorded_raw(context.catalog.checkpoints.tree(vm.key))
    found = {}
    for path in sorted(recorded.keys() & set(paths)):
        try:
            image = storage.image(path)
            new = taken(storage, image.as_raw() if path in raw else image)
        except NotFoundError:
            continue
        found[path] = recorded[path] if replace(recorded[path], content="") == new else new
    return found


def renew(context: Context, vm: Vm, paths: Iterable[str]) -> None:
    """Records the present fingerprints of images that quiesce itself changed, and writes the manifests that have them. To be
    called within the journalled step that changed the images."""
    renewed = now(context, vm, paths)
    context.catalog.fingerprints.put(vm.key, renewed)
    write_manifests(context, vm, renewed)


def vouch(context: Context, vm: Vm, image: Image, content: str) -> None:
    """Records that this image has the content that was checkpointed, and the digest of that content. To be called under the
    VM's lock. If it is killed, `doctor` writes the manifest again."""
    fingerprint = replace(taken(context.storage(vm.host), image), content=content)
    context.catalog.fingerprints.put(vm.key, {image.path: fingerprint})
    write_manifests(context, vm, [image.path])


def write_manifests(context: Context, vm: Vm, paths: Iterable[str]) -> None:
    """Writes the manifests of the checkpoints that have one of these images as their own."""
    for node in owners(context, vm, paths):
        images.write_manifest(context, vm, node)


def owners(context: Context, vm: Vm, paths: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints that are not hidden and have one of these images as their own."""
    own = set(paths)
    return [node for node in context.catalog.checkpoints.tree(vm.key).checkpoints if not own.isdisjoint(_own(node))]


def require_content(node: Checkpoint, changed: Mapping[str, str], what: str) -> None:
    """Raises RefusedError if the checkpoint is not known to have the content that was checkpointed. `changed`: as
    `Survey.changed_for` of its disks. `what`: of the checkpoint, for the message: "restored"."""
    if not changed and not node.spoilt:
        return
    reasons = list(changed.values())
    if node.spoilt:
        reasons.insert(0, f"it was found spoilt at {node.spoilt}, because of {', '.join(node.changed)}")
    raise RefusedError(
        f"checkpoint {node.name!r} cannot be {what} as what it was: {'; '.join(reasons)}",
        hint=f"if the files were only moved or copied, `quiesce verify {node.vm_name}@{node.name} --content` compares them with"
        " the digests that were recorded; or bring them back from a backup, or take what is there as a crash-consistent"
        " checkpoint: --accept-changed-images",
        details={"changed": sorted({*node.changed, *changed})},
    )


def lower_for_good(context: Context, vm: Vm, journal: Journal, found: Survey, changed: Mapping[str, str]) -> list[str]:
    """Records that these images of `found.changed` were changed: every checkpoint that reads one of them is spoilt from now on,
    and the disks of a VM that is off are crash-consistent. Records the present fingerprints, so that the next change is seen.
    Returns the names of the checkpoints that are not hidden. Can be killed and called again."""
    nodes, since = [], datetime.now(UTC).isoformat(timespec="seconds")
    for node in found.tree.nodes:
        if mine := {path: text for path, text in changed.items() if path in found.chains.needed(_own(node))}:
            nodes.append(lowered_for_good(node, mine, since))
    heads = vm.heads().values()
    if changed.keys() & found.chains.needed(heads):
        left = None if vm.active() else images.untouched(context, vm, heads, Consistency.CRASH)
        context.catalog.checkpoints.set_untouched(vm.key, left)
    with journal.step(Relabel(tuple(node.id for node in nodes))):
        context.catalog.checkpoints.update(*nodes)
        storage = context.storage(vm.host)
        present = {path: taken(storage, found.images[path]) for path in changed if path in found.fingerprints}
        context.catalog.fingerprints.put(vm.key, present)
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
        found = context.storage(vm.host).look([disk.path for node in tree.nodes for disk in node.disks], recorded_raw(tree))
    except QuiesceError as error:
        context.emit(Warned(f"it was not looked whether another program changed the images: {error.message}"))
        return tree
    for place, reason in found.unreadable.items():
        context.emit(Warned(f"it was not looked whether another program changed the images in {place}: {reason}"))
    after = _comparable(context, vm.key)
    same = {path: fingerprint for path, fingerprint in before.items() if after.get(path) == fingerprint}
    storage, writing = context.storage(vm.host), frozenset(vm.heads().values() if vm.active() else ())
    differing = discrepancies(tree, with_tables(storage, vm, found.images, same), same, writing)
    changed = {path: difference.of(path) for path, difference in differing.items()}
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
