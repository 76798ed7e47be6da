"""The frame of every operation on a VM: its lock, what earlier operations left, its journal, and what is undone when it fails.

The rule: an operation that raises and an operation that is killed are mended by the same code. Every module of an operation has
a function `recover(context, vm, operation)`, which brings catalog, definition and images to agree again. It decides from what
libvirt and the images say; the journal only tells what to look at. It can itself be killed and called again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import Forget, Hide, MakeOverlay, Merge, MoveBranch, Rename, Switch, WriteExport
from quiesce.context import Context
from quiesce.disks import images, merges
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NotFoundError, OutcomeUnknownError, QuiesceError, RefusedError
from quiesce.model.events import Warned

VERBS = {
    "checkpoint": "quiesce.operations.checkpoint",
    "restore": "quiesce.operations.restore",
    "delete": "quiesce.operations.delete",
    "rename": "quiesce.operations.rename",
    "export": "quiesce.operations.export",
    "import": "quiesce.operations.import_",
    "group restore": "quiesce.operations.group_restore",
    "define": "quiesce.repair.lost",
}
"""The module that has each journalled verb's `recover`. A verb that is not here stays open: see `recover_all`."""

Recover = Callable[[Context, Vm, Interrupted], str]
"""Returns what became of the operation, as the end of a sentence: "was undone"."""


@contextmanager
def operating(context: Context, vm_name: str, verb: str) -> Iterator[Vm]:
    """The VM, under its lock, with nothing interrupted. Raises NotFoundError, BusyError, and what `recover_all` raises."""
    with context.vm(vm_name) as vm, context.locked(vm, verb):
        recover_all(context, vm)
        yield vm


@contextmanager
def journalled(context: Context, vm: Vm, verb: str) -> Iterator[Journal]:
    """One operation in the journal. If the block raises, what it did is mended as after a kill; what cannot be mended now stays
    journalled, and the next operation on the VM tries again."""
    assert verb in VERBS
    journal = Journal(context.catalog, vm.key, verb)
    try:
        yield journal
    except OutcomeUnknownError as error:
        context.emit(Warned(f"the failed {verb} is not undone yet: {error.message}"))
        raise
    except BaseException:
        _give_up(context, vm, journal, verb)
        raise
    journal.finish("done")


def _give_up(context: Context, vm: Vm, journal: Journal, verb: str) -> None:
    try:
        outcome = _recover_one(context, vm, journal.read())
        _discard_orphans(context, vm)
        journal.finish(f"failed: it {outcome}")
    except QuiesceError as error:
        context.emit(Warned(f"the failed {verb} could not be undone: {error.message}"))


def recover_all(context: Context, vm: Vm) -> list[str]:
    """Mends what killed operations left on the VM: finishes what had taken effect, undoes what had not, removes what nobody
    needs. Returns what was done, a line each.

    To be called under the VM's lock: an operation that is unfinished then has no owner any more. Takes no long time: merges
    that were interrupted are brought to a known state, not finished. Raises QuiesceError if something cannot be mended, and
    RefusedError for an operation of a newer quiesce, which this one does not understand; both stay journalled."""
    left = journal.interrupted(context.catalog, vm.key)
    outcomes = [_recover_one(context, vm, operation) for operation in left]
    done: list[str] = []
    if left:  # all are mended, so what nothing needs now, nothing will
        removed = _discard_orphans(context, vm)
        for operation, outcome in zip(left, outcomes, strict=True):
            journal.finish(context.catalog, operation.id, f"recovered: {outcome}")
            done.append(f"the {operation.verb} begun at {operation.started} was interrupted; it {outcome}")
        done += [f"{path}, which nothing needs, was removed" for path in removed]
    for line in done:
        context.emit(Warned(line))
    return done


def _recover_one(context: Context, vm: Vm, operation: Interrupted) -> str:
    recover = recovery_of(operation)
    merging: list[Merge | MoveBranch] = []
    merging += operation.of(Merge)
    merging += operation.of(MoveBranch)
    overlays = operation.of(MakeOverlay)
    if merging or overlays:
        bases = {step.base for step in merging} | {step.backing for step in overlays}
        vm.cancel_merges(bases, set(vm.sources()) if merging else set())
    if merging or any(isinstance(step, (Switch, WriteExport)) for step, _ in operation.steps):
        vm.host.destroy_helpers(set(survey(context, vm, patient=True).own()))
    merges.conclude(context, vm, operation)
    outcome = recover(context, vm, operation)
    described = _described(operation)
    for node in context.catalog.checkpoints.tree(vm.key).nodes:
        if node.id in described:
            images.write_manifest(context, vm, node)
    return outcome


def recovery_of(operation: Interrupted) -> Recover:
    """Raises RefusedError for an operation that this quiesce does not understand."""
    if operation.verb not in VERBS or operation.unknown:
        unknown = f" (steps {', '.join(operation.unknown)})" if operation.unknown else ""
        raise RefusedError(
            f"the {operation.verb} begun at {operation.started} was interrupted, and this quiesce does not know how to mend"
            f" it{unknown}",
            hint="use the quiesce that began it: a newer one",
        )
    recover: Recover = importlib.import_module(VERBS[operation.verb]).recover
    return recover


def _described(operation: Interrupted) -> set[str]:
    """Checkpoints whose manifests may not have been written any more."""
    found: set[str] = set()
    for hide in operation.unfinished(Hide):
        found.update(hide.checkpoints)
    for rename in operation.unfinished(Rename):
        found.add(rename.checkpoint)
    for merge in operation.unfinished(Merge):
        found.update(merge.checkpoints, (merge.checkpoint,) if merge.checkpoint else ())
    for forget in operation.unfinished(Forget):
        found.update(forget.children, (forget.checkpoint,))
    return found


def _discard_orphans(context: Context, vm: Vm) -> list[str]:
    """Not where an image is gone: nobody then knows what is needed; `doctor` says more."""
    with suppress(NotFoundError):
        return images.discard_orphans(context, vm)
    return []
