"""Deletes checkpoints. Merges those of their images that other checkpoints or the VM need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import Hide
from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.merge_plan import require_possible
from quiesce.disks.merges import Waiting, merge_hidden
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
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

    The checkpoints of all VMs are deleted together. An error before that changes nothing: NotFoundError if a reference matches
    no checkpoint; RefusedError if some parts of a group's checkpoint would be deleted and others stay, unless `break_group`, or
    if saved memory (virsh managedsave) needs the images as they are; NoSpaceError if there is no room for a merge;
    HypervisorError if the images cannot be looked at. The message of an error after that, in a merge, says so.
    """
    patterns = _patterns(context, references)
    if not break_group or dry_run:
        chosen = _choose_all(context, patterns, subtree)
        if not break_group:
            _require_all_parts(context, chosen)
        if dry_run:
            return Deleted(tuple(chosen), ())
    with ExitStack() as stack:
        parts: list[_Part] = []
        with context.phase("plan"):
            for uuid, wanted in patterns.items():
                vm = stack.enter_context(operating(context, uuid, "delete"))
                chosen = _choose(context.catalog.checkpoints.tree(vm.key), wanted, subtree)
                _require_deletable(context, vm, chosen)
                parts.append(_Part(vm, tuple(chosen)))
        begun = [(part, stack.enter_context(journalled(context, part.vm, "delete"))) for part in parts]
        _hide(context, begun)
        with context.phase("merge"), _telling_what_is_left(parts):
            waiting = [item for part, journal in begun for item in merge_hidden(context, part.vm, journal)]
    return Deleted(tuple(node for part in parts for node in part.chosen), tuple(waiting))


def _patterns(context: Context, references: Sequence[CheckpointReference]) -> dict[str, list[str]]:
    """The names and patterns of checkpoints, by the UUID of the VM."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(reference.vm for reference in references):
        with context.vm(name) as vm:
            found.setdefault(vm.uuid, []).extend(reference.checkpoint for reference in references if reference.vm == name)
    return found


def _choose_all(context: Context, patterns: Mapping[str, Sequence[str]], subtree: bool) -> list[Checkpoint]:
    chosen: list[Checkpoint] = []
    for uuid, wanted in patterns.items():
        with context.vm(uuid) as vm:
            chosen += _choose(context.catalog.checkpoints.tree(vm.key), wanted, subtree)
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


@dataclass(frozen=True)
class _Part:
    """The deletion of checkpoints of one VM."""

    vm: Vm
    chosen: tuple[Checkpoint, ...]


def _require_deletable(context: Context, vm: Vm, chosen: Sequence[Checkpoint]) -> None:
    """Raises QuiesceError for whatever is known to keep the images from being merged. Changes nothing."""
    require_nothing_in_the_way(vm.facts())
    found = survey(context, vm)
    found.require_no_overwriting(vm.heads(next_start=True), chosen)
    require_possible(context.storage(vm.host), found, chosen, images.saved_memory(vm))


def _hide(context: Context, parts: Sequence[tuple[_Part, Journal]]) -> None:
    """Takes all these checkpoints out of the trees of their VMs, or none of them."""
    hidden = [[replace(node, hidden=True, files=()) for node in part.chosen] for part, _ in parts]
    with ExitStack() as steps:
        for (part, journal), nodes in zip(parts, hidden, strict=True):
            files = tuple(file.path for node in part.chosen for file in node.files)
            steps.enter_context(journal.step(Hide(tuple(node.id for node in nodes), files)))
        context.catalog.checkpoints.update(*(node for nodes in hidden for node in nodes))
        for (part, _), nodes in zip(parts, hidden, strict=True):
            for node in nodes:
                images.write_manifest(context, part.vm, node)


@contextmanager
def _telling_what_is_left(parts: Sequence[_Part]) -> Iterator[None]:
    """Says of an error of the block that the checkpoints are deleted all the same, and how the merge goes on."""
    try:
        yield
    except QuiesceError as error:
        names = ", ".join(f"{part.vm.name}@{node.name}" for part in parts for node in part.chosen)
        repairs = "; ".join(f"quiesce doctor {part.vm.name} --repair" for part in parts)
        raise type(error)(
            f"deleted {names}, but not all of the images could be merged: {error.message}",
            hint=f"{error.hint + '; then ' if error.hint else ''}go on with the merge: {repairs}",
            details=error.details,
        ) from error


def go_on(context: Context, vm: Vm) -> tuple[Waiting, ...]:
    """Goes on with the merges that earlier deletions left. To be called under the VM's lock."""
    with journalled(context, vm, "delete") as journal:
        return merge_hidden(context, vm, journal)


def recover(_context: Context, _vm: Vm, _operation: Interrupted) -> str:
    """Nothing to do: recovery.py has brought an interrupted merge to a known state. The merge itself may take hours, so it is
    left to the next deletion."""
    return "goes on with the next deletion, or with `quiesce doctor --repair`"
