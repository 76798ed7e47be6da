"""Merges what deleted checkpoints leave between those that stay.

A deleted checkpoint is only hidden at first. A disk of it that one image still lies on is merged with that image; one that
two or more lie on waits until one of them is left; one that nothing lies on is removed. Every merge puts the later image's
data into the earlier image's file (QEMU's block commit), in the running VM where it reads through both, else in a paused
helper domain.

The later image's old file keeps its content all the while, and after it: it lies on the merged image and says nothing else than
that one. So whatever else lies on the old file reads right whenever we are killed, and can be put on the merged image later, by
the same commit in its own chain: at once, or, where the running VM has the merged image open, when it is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.store import WORTH
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import merge, volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import BusyError
from quiesce.model.grades import Consistency
from quiesce.model.tree import Checkpoint


@dataclass(frozen=True)
class Waiting:
    """What could not be merged yet, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Merge:
    top: str
    base: str
    owner: Checkpoint | None
    """Whose `top` is: a checkpoint's, or the VM's own."""
    target: str
    branches: tuple[str, ...]
    """The images right on `top`, each the topmost of a chain the merge can be done in; none if `top` is the topmost itself."""
    hidden: Checkpoint
    """The deleted checkpoint whose disk this is."""

    @property
    def key(self) -> tuple[str, str]:
        return self.top, self.base


@dataclass(frozen=True)
class _Branch:
    """An image that lies on a merged one, and could lie on the owned image below that."""

    image: str
    top: str
    base: str
    owner: str

    @property
    def key(self) -> tuple[str, str]:
        return self.image, self.top


_Todo = TypeVar("_Todo", _Merge, _Branch)


def _first(todo: list[_Todo], waiting: Mapping[tuple[str, str], Waiting]) -> _Todo | None:
    return next((item for item in todo if item.key not in waiting), None)


def merge_hidden(context: Context, vm: Vm, journal: Journal) -> tuple[Waiting, ...]:
    """Removes and merges whatever deleted checkpoints left, as far as it can be now; returns what has to wait.

    Can be interrupted at any moment and called again; every checkpoint that is not hidden keeps its content, and the VM its
    state. Raises NoSpaceError, HypervisorError; then, too, nothing is lost.
    """
    with merge.Helper(vm.host) as helper, _untouched(context, vm):
        if not vm.active():
            vm.forget_chains(set(context.catalog.images_made_for(vm.host.name, vm.uuid)))
        return _merge_hidden(context, vm, journal, helper)


def go_on(context: Context, vm: Vm) -> tuple[Waiting, ...]:
    """`merge_hidden` as an operation of its own, after deletions that could not merge everything."""
    journal = Journal(context.catalog, vm.host.name, vm.uuid, "delete")
    waiting = merge_hidden(context, vm, journal)
    journal.finish("done")
    return waiting


@contextmanager
def _untouched(context: Context, vm: Vm) -> Iterator[None]:
    """A merge writes to images of a VM that is off, though not to its content: what was untouched before is so afterwards,
    and worth what it was, whatever checkpoint the VM is based on then. If it is killed, nobody can tell any more."""
    catalog, host = context.catalog, vm.host.name
    before, tree = catalog.untouched(host, vm.uuid), catalog.tree(host, vm.uuid)
    if before and vm.active():
        catalog.set_untouched(host, vm.uuid, {})
    if not before or vm.active():
        yield
        return
    now = survey(context, vm).volumes
    if not all(path in now and now[path].written == written for path, written in before.items() if path != WORTH):
        catalog.set_untouched(host, vm.uuid, {})  # it ran since
        yield
        return
    parent = tree.get(tree.head_parent)
    worth = before.get(WORTH) or (parent.consistency.value if parent else Consistency.CRASH.value)
    targets = [target for target, path in vm.file_disks().items() if path in before]
    catalog.set_untouched(host, vm.uuid, {WORTH: Consistency.CRASH.value})
    yield
    if not vm.active():
        heads = vm.file_disks()
        written = images.written(vm, [heads[target] for target in targets])
        catalog.set_untouched(host, vm.uuid, {WORTH: worth, **written})


def _merge_hidden(context: Context, vm: Vm, journal: Journal, helper: merge.Helper) -> tuple[Waiting, ...]:
    waiting: dict[tuple[str, str], Waiting] = {}
    while True:
        found = survey(context, vm)
        found.require_whole()
        if orphans := found.orphans():
            for path in orphans:
                images.discard_or_warn(context, vm, journal, path, found)
            found = survey(context, vm)
        if node := _finished(found):
            children = [child.id for child in found.tree.nodes if child.parent == node.id]
            with journal.step("forget", checkpoint=node.id, checkpoints=children):
                images.forget(context, vm, node)
        elif todo := _first(_merges(found), waiting):
            others = found.chains.strangers(todo.base, todo.top, found.made - found.live)
            if others:
                reason = f"{min(others)}, which is no checkpoint's, is based on {todo.base}"
                waiting[todo.key] = Waiting(todo.hidden.name, reason)
                continue
            try:
                _merge(context, vm, journal, helper, found, todo)
            except BusyError as error:
                waiting[todo.key] = Waiting(todo.hidden.name, error.message)
        elif branch := _first(_branches(found), waiting):
            try:
                _move(context, vm, journal, helper, branch)
            except BusyError as error:
                waiting[branch.key] = Waiting(branch.owner, f"{branch.top} stays until {vm.name} is off: {error.message}")
        else:
            return tuple(waiting.values())


def anything_to_do(found: Survey) -> bool:
    """Whether a deleted checkpoint could be merged or removed now."""
    return bool(_finished(found) or _merges(found))


def can_move_branches(found: Survey) -> bool:
    """Whether an image still lies on one that was merged away; it can be moved when the VM is off."""
    return bool(_branches(found))


def settle(context: Context, vm: Vm, operation: Interrupted) -> None:
    """Finds out how a merge ended whose owner was killed, and records it. The VM's own merges have been cancelled before."""
    for step in operation.unfinished("merge"):
        found = survey(context, vm)
        owner = found.tree.get(step["checkpoint"])
        base, top, target = step["base"], step["top"], step["target"]
        image = owner.image(target) if owner else None
        if image and image.path == top:
            done = any(found.chains.below.get(branch) == base for branch in step["branches"])
        else:
            done = step["checkpoint"] is None and found.head.get(target) == base
        if done:
            _record(context, vm, owner, top, base)


def _finished(found: Survey) -> Checkpoint | None:
    """A hidden checkpoint of which nothing is needed any more."""
    owners = found.owners()
    for node in found.tree.nodes:
        if node.hidden and not any(
            owners.get(disk.path) is node and found.chains.dependents(disk.path, owners) for disk in node.disks
        ):
            return node
    return None


def _merges(found: Survey) -> list[_Merge]:
    """The disks of hidden checkpoints that one image lies on, the lowest first, so that no data are moved twice."""
    owners, merges = found.owners(), []
    for node in sorted(found.tree.nodes, key=lambda node: len(found.tree.ancestors(node.id))):
        for disk in node.disks if node.hidden else ():
            dependents = found.chains.dependents(disk.path, owners) if owners.get(disk.path) is node else []
            if len(dependents) == 1:
                (top,) = dependents
                target = _target(found, owners[top], top)
                branches = tuple(found.chains.directly_on(top))
                merges.append(_Merge(top, disk.path, owners[top], target, branches, node))
    return merges


def _target(found: Survey, owner: Checkpoint | None, path: str) -> str:
    if owner is None:
        return next(target for target, head in found.head.items() if head == path)
    return next(disk.target for disk in owner.disks if disk.path == path)


def _merge(context: Context, vm: Vm, journal: Journal, helper: merge.Helper, found: Survey, todo: _Merge) -> None:
    directory, _ = volumes.split(todo.base)
    needed = found.room_for_merge(todo.top, todo.base)
    with volumes.directory(vm.host, directory) as pool:
        pool.require_room(needed, "the merge")
    owner = todo.owner.id if todo.owner else None
    names = [node.id for node in found.tree.nodes if todo.top in node.paths()]
    details = {"top": todo.top, "base": todo.base, "target": todo.target, "branches": list(todo.branches)}
    with journal.step("merge", checkpoint=owner, checkpoints=names, **details):
        with volumes.minding_room(vm.host, directory, needed, "the merge"):
            _commit(vm, helper, todo, context.progress("merge"))
        _record(context, vm, todo.owner, todo.top, todo.base)


def _commit(vm: Vm, helper: merge.Helper, todo: _Merge, progress: merge.ReportProgress) -> None:
    if todo.owner is None:
        vm.commit_into_base(todo.target, todo.base, progress=progress, helper=helper)
    elif vm.reads_through(todo.top):
        vm.commit(todo.top, todo.base, progress)
    elif todo.branches:
        helper.commit(todo.branches[0], todo.top, todo.base, progress)
    else:
        helper.commit_active(todo.top, todo.base, progress)


def _record(context: Context, vm: Vm, owner: Checkpoint | None, top: str, base: str) -> None:
    """The image of the checkpoint, or of the VM itself, is `base` from now on."""
    if owner is None:
        context.catalog.set_live(vm.host.name, [top], False)
        context.catalog.set_live(vm.host.name, [base], True)
        return
    for node in context.catalog.moved(vm.host.name, vm.uuid, top, base):
        images.write_manifest(context, vm, node)


def _branches(found: Survey) -> list[_Branch]:
    owners, needed = found.owners(), found.needed()
    branches = []
    for top in sorted(found.merged & needed):
        base = found.chains.base(top, owners)
        for image in found.chains.directly_on(top):
            if base and image in needed and image not in found.merged:
                owner = owners.get(image)
                branches.append(_Branch(image, top, base, owner.name if owner else "now"))
    return branches


def _move(context: Context, vm: Vm, journal: Journal, helper: merge.Helper, branch: _Branch) -> None:
    """The same commit once more, in the chain of the image that is to be moved; it changes nothing in the image below."""
    with journal.step("move-branch", image=branch.image, top=branch.top, base=branch.base):
        if vm.reads_through(branch.top):
            vm.commit(branch.top, branch.base, context.progress("merge"))
        else:
            helper.commit(branch.image, branch.top, branch.base, context.progress("merge"))
