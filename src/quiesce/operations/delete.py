"""Deletes checkpoints. Merges those of their images that other checkpoints or the VM need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import Hide
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.merges import Waiting, merge_hidden
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree
from quiesce.recovery import journalled, operating
from quiesce.taking.requirements import require_nothing_in_the_way


@dataclass(frozen=True)
class Deleted:
    checkpoints: tuple[Checkpoint, ...]
    waiting: tuple[Waiting, ...]
    """The merges that have to wait, and why: these checkpoints still take space."""


def delete(
    context: Context,
    references: Sequence[CheckpointReference],
    *,
    subtree: bool = False,
    dry_run: bool = False,
    break_group: bool = False,
) -> Deleted:
    """Deletes checkpoints of one or more VMs, each named exactly or by a shell pattern. `subtree`: also all checkpoints that
    are based on them. `dry_run`: only returns the checkpoints that would be deleted.

    All other checkpoints keep their content, and the VM its state, running or off. The deleted checkpoints leave the tree at
    once. Then their images are merged or removed. That may take long, and can be interrupted; the next deletion, or `doctor
    --repair`, goes on with it. An image that two or more other images are based on is merged when only one of them is left.

    Raises NotFoundError, and deletes nothing of a VM, if a reference matches none of its checkpoints. Raises RefusedError, and
    deletes nothing, if some parts of a group's checkpoint would be deleted and others stay, unless `break_group`.
    """
    if not break_group:
        _require_all_parts(context, _choose_all(context, references, subtree))
    deleted: list[Checkpoint] = []
    waiting: list[Waiting] = []
    for name in dict.fromkeys(reference.vm for reference in references):
        patterns = [reference.checkpoint for reference in references if reference.vm == name]
        if dry_run:
            with context.vm(name) as vm, context.locked(vm, "delete"):
                deleted += _choose(context.catalog.checkpoints.tree(vm.key), patterns, subtree)
        else:
            with operating(context, name, "delete") as vm:
                chosen = _choose(context.catalog.checkpoints.tree(vm.key), patterns, subtree)
                deleted += chosen
                waiting += _delete(context, vm, chosen)
    return Deleted(tuple(deleted), tuple(waiting))


def _choose_all(context: Context, references: Sequence[CheckpointReference], subtree: bool) -> list[Checkpoint]:
    chosen: list[Checkpoint] = []
    for name in dict.fromkeys(reference.vm for reference in references):
        with context.vm(name) as vm:
            tree = context.catalog.checkpoints.tree(vm.key)
        chosen += _choose(tree, [reference.checkpoint for reference in references if reference.vm == name], subtree)
    return chosen


def _require_all_parts(context: Context, chosen: list[Checkpoint]) -> None:
    going = {node.id for node in chosen}
    for node in chosen:
        staying = (
            [part for part in context.catalog.checkpoints.parts(node.group.id) if part.id not in going] if node.group else []
        )
        if node.group and staying:
            whole = f"{node.group.group}@{node.group.name}"
            raise RefusedError(
                f"{node.vm_name}@{node.name} is part of the group checkpoint {whole}, which could not be restored without it;"
                f" {', '.join(f'{part.vm_name}@{part.name}' for part in staying)} would stay",
                hint=f"delete all parts: quiesce group delete {whole}; or only this one, with --break-group",
            )


def _choose(tree: Tree, patterns: Sequence[str], subtree: bool) -> list[Checkpoint]:
    roots = [node for pattern in patterns for node in tree.match(pattern)]
    chosen = [node for root in roots for node in (tree.subtree(root) if subtree else (root,))]
    return list({node.id: node for node in chosen}.values())


def _delete(context: Context, vm: Vm, chosen: list[Checkpoint]) -> tuple[Waiting, ...]:
    with context.phase("plan"):
        require_nothing_in_the_way(vm.facts())
    with journalled(context, vm, "delete") as journal:
        hidden = [replace(node, hidden=True, files=()) for node in chosen]
        with journal.step(Hide(tuple(node.id for node in hidden))):
            context.catalog.checkpoints.update(*hidden)
            for node in hidden:
                images.write_manifest(context, vm, node)
        with context.phase("merge"):
            return merge_hidden(context, vm, journal)


def go_on(context: Context, vm: Vm) -> tuple[Waiting, ...]:
    """Goes on with the merges that earlier deletions left. To be called under the VM's lock."""
    with journalled(context, vm, "delete") as journal:
        return merge_hidden(context, vm, journal)


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: recovery.py has brought an interrupted merge to a known state. The merge itself may take hours, so it is
    left to the next deletion."""
    return "goes on with the next deletion, or with `quiesce doctor --repair`"
