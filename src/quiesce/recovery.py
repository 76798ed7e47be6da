"""The frame of every operation on a VM: the VM's lock, the recovery of earlier operations, the journal, and the recovery of
this operation if it fails.

The rule: the same code recovers an operation that raised and an operation that was killed. Every module of an operation has a
function `recover(context, vm, operation)`, which makes catalog, VM definition and images agree again. It decides from what
libvirt reports and from the images' headers; the journal only tells it where to look. It can itself be killed, and called
again.

Example: a checkpoint raises, or is killed, after the switch and before the record. `recover` of operations/checkpoint.py finds
the step `Switch` in the journal and no such checkpoint in the catalog: it commits the overlays into their backing files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import (
    Forget,
    Hide,
    MakeOverlay,
    Merge,
    MoveBranch,
    Prove,
    Record,
    Relabel,
    Rename,
    Shorten,
    Switch,
    WriteExport,
)
from quiesce.context import Context
from quiesce.disks import images, merges, shortening
from quiesce.disks.survey import survey
from quiesce.disks.unneeded import discard_orphans
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NotFoundError, OutcomeUnknownError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.keys import VmKey

VERBS = {
    "checkpoint": "quiesce.operations.checkpoint",
    "restore": "quiesce.operations.restore",
    "delete": "quiesce.operations.delete",
    "shortening": "quiesce.operations.shorten",
    "rename": "quiesce.operations.rename",
    "export": "quiesce.operations.export",
    "import": "quiesce.operations.import_",
    "group restore": "quiesce.operations.group_restore",
    "define": "quiesce.repair.lost",
    "doctor": "quiesce.operations.doctor",
    "verify": "quiesce.operations.verify",
    "settle": "quiesce.operations.settle",
    "content": "quiesce.operations.content",
}
"""The module with the function `recover` of each journalled verb. An operation of another verb stays open: see
`recover_all`."""

Recover = Callable[[Context, Vm, Interrupted], str]
"""Returns what became of the operation, as the end of a sentence: "was undone"."""


@contextmanager
def operating(context: Context, vm_name: str, verb: str) -> Iterator[Vm]:
    """The VM, locked, after the recovery of all unfinished operations on it. Raises NotFoundError, BusyError, and the errors of
    `recover_all`."""
    with context.vm(vm_name) as vm, context.locked(vm, verb):
        recover_all(context, vm)
        yield vm


@contextmanager
def journalled(context: Context, vm: Vm, verb: str) -> Iterator[Journal]:
    """One operation on the VM in the journal. If the block raises, recovers the operation as after a kill. If that fails, too,
    the operation stays open in the journal, and the next operation on the VM tries again."""

    def undo(operation: Interrupted) -> str:
        outcome = _recover_one(context, vm, operation)
        _discard_orphans(context, vm, [operation])
        return outcome

    with journalled_with(context, vm.key, verb, undo) as journal:
        yield journal


@contextmanager
def journalled_with(context: Context, key: VmKey, verb: str, undo: Callable[[Interrupted], str]) -> Iterator[Journal]:
    """Like `journalled`, for a VM that libvirt may not know. `undo`: the verb's recovery."""
    assert verb in VERBS
    journal = Journal(context.catalog, key, verb)
    try:
        yield journal
    except OutcomeUnknownError as error:
        context.emit(Warned(f"the failed {verb} is not undone yet: {error.message}"))
        raise
    except BaseException:
        try:
            journal.finish(f"failed: it {undo(journal.read())}")
        except QuiesceError as error:
            context.emit(Warned(f"the failed {verb} could not be undone: {error.message}"))
        raise
    journal.finish("done")


def recover_all(context: Context, vm: Vm) -> list[str]:
    """Recovers the unfinished operations on the VM: completes those that had taken effect, undoes the others, and removes files
    that nothing needs. Returns what was done, a line each, and emits the lines as warnings.

    To be called under the VM's lock: then the processes of unfinished operations are gone. It does not take long: it brings
    interrupted merges to a known state and does not complete them. Raises QuiesceError if an operation cannot be recovered, and
    RefusedError for an operation of a newer quiesce, which this one does not understand; such operations stay in the
    journal."""
    left = journal.interrupted(context.catalog, vm.key)
    outcomes = [_recover_one(context, vm, operation) for operation in left]
    done: list[str] = []
    if left:  # all are recovered: no recovery will need the files that nothing needs now
        removed = _discard_orphans(context, vm, left)
        for operation, outcome in zip(left, outcomes, strict=True):
            journal.finish(context.catalog, operation.id, f"recovered: {outcome}")
            done.append(f"the {operation.verb} begun at {operation.started} was interrupted; it {outcome}")
        done += [f"{path}, which nothing needs, was removed" for path in removed]
    for line in done:
        context.emit(Warned(line))
    return done


def _recover_one(context: Context, vm: Vm, operation: Interrupted) -> str:
    recover = recovery_of(operation)
    merging: list[Merge | MoveBranch] = [*operation.of(Merge), *operation.of(MoveBranch)]
    overlays = operation.of(MakeOverlay)
    if merging or overlays:
        bases = {step.base for step in merging} | {step.backing for step in overlays}
        bases |= {step.overlay for step in operation.of(Shorten) if step.overlay}
        vm.cancel_merges(bases, set(vm.sources()) if merging else set())
    if merging or any(isinstance(step, (Switch, WriteExport, Shorten)) for step, _ in operation.steps):
        vm.host.destroy_helpers(set(survey(context, vm, patient=True).own()))
    merges.conclude(context, vm, operation)
    shortening.conclude_copies(context, vm, operation)
    outcome = recover(context, vm, operation)
    described = _described(operation)
    for node in context.catalog.checkpoints.tree(vm.key).nodes:
        if node.id in described:
            images.write_manifest(context, vm, node)
    return outcome


def recovery_of(operation: Interrupted) -> Recover:
    """The function that recovers this operation. Raises RefusedError for an operation that this quiesce does not understand."""
    if operation.verb not in VERBS or operation.unknown:
        unknown = f" (steps {', '.join(operation.unknown)})" if operation.unknown else ""
        raise RefusedError(
            f"the {operation.verb} begun at {operation.started} was interrupted, and this quiesce cannot recover it: a newer"
            f" quiesce began it{unknown}",
            hint="use the newer quiesce on this VM",
        )
    recover: Recover = importlib.import_module(VERBS[operation.verb]).recover
    return recover


def _described(operation: Interrupted) -> set[str]:
    """Ids of the checkpoints whose manifests the operation may not have written."""
    found: set[str] = set()
    for hide in operation.unfinished(Hide):
        found.update(hide.checkpoints)
    for relabel in operation.unfinished(Relabel):
        found.update(relabel.checkpoints)
    for record in operation.of(Record):
        found.update(record.earlier)
    found.update(prove.checkpoint for prove in operation.unfinished(Prove))
    for rename in operation.unfinished(Rename):
        found.add(rename.checkpoint)
    for merge in operation.unfinished(Merge):
        found.update(merge.checkpoints, (merge.checkpoint,) if merge.checkpoint else ())
    for shorten in operation.unfinished(Shorten):
        found.update((shorten.owner, shorten.hidden))
    for forget in operation.unfinished(Forget):
        found.update(forget.children, (forget.checkpoint,))
    return found


def _discard_orphans(context: Context, vm: Vm, recovered: Collection[Interrupted]) -> list[str]:
    """Removes files that may go (disks/unneeded.py), unless an image in a chain is gone: then it is unknown what is needed, and
    `doctor` reports it."""
    with suppress(NotFoundError):
        return discard_orphans(context, vm, recovered)
    return []
