"""Merges the images that deleted checkpoints leave between the images of other checkpoints.

A deleted checkpoint is only hidden at first. For each of its images, count the owned images that have it as their nearest owned
backing file:

    none            the image is removed
    one             that one is committed into the image (QEMU's block commit): in the running VM, if the VM has both open,
                    otherwise in a paused helper domain
    two or more     the image waits until only one of them is left

Example: `base <- a <- b <- now`, and checkpoint `a` is deleted. The image of `b` is committed into the image of `a`; from then
on checkpoint `b` has the file that `a` had, and the chain is `base <- b <- now`.

The committed image keeps its file and its content until it is removed: its backing file now has the same content. So every
other image that has the committed image as its backing file reads the right content, even if we are killed at any moment. Such
an image is a *branch*. It gets the merged image as its backing file by the same commit in its own chain: at once or, if the
running VM has the merged image open, when the VM is off.

A merge changes images whose fingerprints are recorded. Before it begins, the labels of checkpoints are lowered whose images
another program changed: afterwards that could not be told any more. The fingerprints are renewed within the step of the
journal, so that of a killed merge `conclude` does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import Forget, Merge, MoveBranch
from quiesce.context import Context
from quiesce.disks import fingerprints, images
from quiesce.disks.merge_plan import PlannedBranch, PlannedMerge, finished, planned_branches, planned_merges
from quiesce.disks.survey import Survey, look_around, survey
from quiesce.disks.unneeded import discard_unneeded
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import BusyError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.standing import Untouched
from quiesce.model.tree import Checkpoint
from quiesce.storage.port import Merger, Storage, minding_room, require_room


@dataclass(frozen=True)
class Waiting:
    """A merge that has to wait, and why."""

    name: str
    """Name of the checkpoint."""
    reason: str


_Todo = TypeVar("_Todo", PlannedMerge, PlannedBranch)


def _first(todo: list[_Todo], waiting: Mapping[tuple[str, str], Waiting]) -> _Todo | None:
    return next((item for item in todo if item.key not in waiting), None)


def merge_hidden(context: Context, vm: Vm, journal: Journal) -> tuple[Waiting, ...]:
    """Removes and merges the images of deleted checkpoints, as far as this is possible now. Returns the merges that have to
    wait.

    Can be interrupted at any moment and called again: every checkpoint that is not hidden keeps its content, and the VM its
    state. Raises NoSpaceError, HypervisorError; nothing is lost after them either.
    """
    with context.storage(vm.host).merger() as merger, keeping_untouched(context, vm):
        if not vm.active():
            vm.forget_chains(set(context.catalog.images.made_for(vm.key)))
        return _merge_hidden(context, vm, journal, merger)


@contextmanager
def keeping_untouched(context: Context, vm: Vm) -> Iterator[None]:
    """Renews the VM's record of untouched images around a merge or a copy. It writes to the images of a VM that is off, or
    gives the VM others, but does not change their content, so what was untouched before has the same worth afterwards, whatever
    checkpoint the VM is based on then. Meanwhile, and if it is killed, the images count as crash-consistent."""
    checkpoints, key = context.catalog.checkpoints, vm.key
    before, tree = checkpoints.untouched(key), checkpoints.tree(key)
    if before and vm.active():
        checkpoints.set_untouched(key, None)
    if not before or vm.active():
        yield
        return
    found = survey(context, vm)
    if not before.unchanged({path: image.stamp for path, image in found.images.items()}):
        checkpoints.set_untouched(key, None)  # the VM ran since
        yield
        return
    worth = before.value(tree.get(tree.head_parent)) or Consistency.CRASH
    if found.changed_for(before.written):
        worth = Consistency.CRASH
    targets = [target for target, path in vm.heads().items() if path in before.written]
    checkpoints.set_untouched(key, Untouched({}, Consistency.CRASH))
    yield
    if not vm.active():
        heads = vm.heads()
        left = images.untouched(context, vm, [heads[target] for target in targets], worth)
        checkpoints.set_untouched(key, left)


def _merge_hidden(context: Context, vm: Vm, journal: Journal, merger: Merger) -> tuple[Waiting, ...]:
    waiting: dict[tuple[str, str], Waiting] = {}
    known: set[str] = set()
    saved = images.saved_memory(vm)
    while True:
        found = survey(context, vm)
        found.require_complete_chains()
        if discard_unneeded(context, vm, journal, found):
            found = survey(context, vm)
        if node := finished(found):
            children = [child.id for child in found.tree.nodes if child.parent == node.id]
            owners = found.owners()  # an image that was merged into belongs to another checkpoint now, or to the VM
            files = sorted(path for path in node.paths() if owners.get(path, node) is node)
            with journal.step(Forget(node.id, tuple(children), tuple(files))):
                images.forget_checkpoint(context, vm, node)
        elif _first(planned_merges(found), waiting) and (
            todo := _first(planned_merges(found := look_around(context, vm, found)), waiting)
        ):
            if lower_changed(context, vm, journal, found, todo.images(found), known):
                continue
            if saved and todo.images(found) & found.chains.needed(found.head.values()):
                waiting[todo.key] = Waiting(todo.hidden.name, saved.message)
                continue
            others = found.chains.strangers(todo.base, todo.top, found.made - found.live)
            if others:
                reason = f"{min(others)}, which belongs to no checkpoint, has {todo.base} as a backing file"
                waiting[todo.key] = Waiting(todo.hidden.name, reason)
                continue
            try:
                _merge(context, vm, journal, merger, found, todo)
            except BusyError as error:
                fingerprints.renew(context, vm, todo.images(found))  # a part may have been written
                waiting[todo.key] = Waiting(todo.hidden.name, error.message)
        elif branch := _first(planned_branches(found), waiting):
            if saved and branch.images(found) & found.chains.needed(found.head.values()):
                waiting[branch.key] = Waiting(branch.owner, saved.message)
                continue
            if lower_changed(context, vm, journal, found, branch.images(found), known):
                continue
            try:
                _move(context, vm, journal, merger, branch)
            except BusyError as error:
                fingerprints.renew(context, vm, branch.images(found))
                reason = f"{branch.top} cannot be removed until {vm.name} is off: {error.message}"
                waiting[branch.key] = Waiting(branch.owner, reason)
        else:
            if unread := found.fingerprints.keys() - found.chains.needed(_owned(found)):
                context.catalog.fingerprints.forget(vm.key, unread)
            return tuple(waiting.values())


def _owned(found: Survey) -> list[str]:
    return [disk.path for node in found.tree.nodes for disk in node.disks]


def lower_changed(context: Context, vm: Vm, journal: Journal, found: Survey, changing: set[str], known: set[str]) -> bool:
    """Before quiesce changes the images `changing`, or copies what they have: lowers the labels of the checkpoints that read
    one which another program changed. Returns whether there were any. `known`: images for which that was done before; they are
    added to. A program may go on writing, and the deletion must end."""
    changed = {path: text for path, text in found.changed.items() if path in changing - known}
    known.update(changed)
    if changed:
        fingerprints.lower_for_good(context, vm, journal, found, changed)
    for text in changed.values():
        context.emit(Warned(text))
    return bool(changed)


def anything_to_do(found: Survey) -> bool:
    """Whether a deleted checkpoint could be merged or removed now."""
    return bool(finished(found) or planned_merges(found))


def can_move_branches(found: Survey) -> bool:
    """Whether an image still has a backing file that was merged. The image can get another one when the VM is off."""
    return bool(planned_branches(found))


def conclude(context: Context, vm: Vm, operation: Interrupted) -> None:
    """Finds out from the images' headers how the merges of an interrupted operation ended, and records those that were
    complete. Renews the fingerprints of the images that any of them may have changed. To be called after `Vm.cancel_merges`."""
    for step in operation.unfinished(Merge):
        found = look_around(context, vm, survey(context, vm))
        owner = found.tree.get(step.checkpoint)
        image = owner.image(step.target) if owner else None
        if image and image.path == step.top:
            done = any(found.chains.below.get(branch) == step.base for branch in step.branches)
        else:
            done = step.checkpoint is None and found.head.get(step.target) == step.base
        if done:
            _record(context, vm, found, owner, step)
        else:
            fingerprints.renew(context, vm, {step.top, step.base, *step.branches})
    for move in operation.unfinished(MoveBranch):
        fingerprints.renew(context, vm, {move.image, move.top, move.base})


def _merge(context: Context, vm: Vm, journal: Journal, merger: Merger, found: Survey, todo: PlannedMerge) -> None:
    owner = todo.owner.id if todo.owner else None
    sharing = tuple(node.id for node in found.tree.nodes if todo.top in node.paths())
    step = Merge(todo.top, todo.base, todo.target, todo.branches, sharing, owner)
    with _room(context.storage(vm.host), found, todo), journal.step(step):
        _commit(context, vm, merger, found, todo)
        _record(context, vm, found, todo.owner, step)


@contextmanager
def _room(storage: Storage, found: Survey, todo: PlannedMerge) -> Iterator[None]:
    """Raises NoSpaceError if the base has too little space to grow, before the block or from it. A block device does not
    grow."""
    if not storage.knows(todo.base):
        yield
        return
    place, needed = storage.place(todo.base), found.room_for_merge(todo.top, todo.base)
    require_room(storage, place, needed, "the merge")
    with minding_room(storage, place, needed, "the merge"):
        yield


def _commit(context: Context, vm: Vm, merger: Merger, found: Survey, todo: PlannedMerge) -> None:
    progress = context.progress("merge")
    if todo.owner is None:
        images.commit_head(context, vm, merger, todo.target, todo.base, found.format(todo.base), progress)
    elif vm.reads_through(todo.top):
        vm.commit(todo.top, todo.base, progress)
    elif todo.branches:
        merger.commit(todo.branches[0], todo.top, todo.base, progress)
    else:
        merger.commit_active(todo.top, todo.base, progress)


def _record(context: Context, vm: Vm, found: Survey, owner: Checkpoint | None, step: Merge) -> None:
    """Records that the owner has the image `base` from now on, instead of `top`. `owner`: a checkpoint; None: the VM. `found`:
    a survey in which a checkpoint has `base`."""
    top, base = step.top, step.base
    if owner is None:
        context.catalog.images.merged_by_vm(vm.host.id, top, base)
        context.catalog.fingerprints.forget(vm.key, [base])
        return
    renewed = fingerprints.now(context, vm, {top, base, *step.branches})
    for node in context.catalog.checkpoints.moved(vm.key, top, base, found.format(base), renewed):
        images.write_manifest(context, vm, node)
    fingerprints.write_manifests(context, vm, renewed)


def _move(context: Context, vm: Vm, journal: Journal, merger: Merger, branch: PlannedBranch) -> None:
    """Commits `top` into `base` once more, in the chain of the branch, so that the branch gets `base` as its backing file. The
    content of `base` does not change: it has the data of `top` already."""
    with journal.step(MoveBranch(branch.image, branch.top, branch.base)):
        if vm.reads_through(branch.top):
            vm.commit(branch.top, branch.base, context.progress("merge"))
        else:
            merger.commit(branch.image, branch.top, branch.base, context.progress("merge"))
        fingerprints.renew(context, vm, {branch.image, branch.top, branch.base})
