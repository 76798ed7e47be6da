"""Mends what killed operations left: finishes what had taken effect, undoes what had not, removes what nobody needs."""

from __future__ import annotations

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted
from quiesce.hypervisor.vm import Vm
from quiesce.model.events import Warned
from quiesce.model.tree import Checkpoint
from quiesce.operations import images
from quiesce.operations.context import Context
from quiesce.wire.schema import from_wire


def recover(context: Context, vm: Vm, *, orphans: bool = False) -> list[str]:
    """Brings catalog, definition and images of the VM to agree again, and returns what was done, a line each. `orphans`:
    looks for images nothing needs even where no operation was interrupted.

    To be called under the VM's lock: an operation that is unfinished then has no owner any more. Decided from what libvirt and
    the images say; the journal only tells what to look at. Can itself be killed and called again. Raises QuiesceError if
    something cannot be mended; it stays journalled.
    """
    done = []
    for operation in journal.interrupted(context.catalog, vm.host.name, vm.uuid):
        bases = {step["base"] for step in operation.details("merge")}
        vm.cancel_merges(bases | {step["backing"] for step in operation.details("make-overlay")})
        match operation.verb:
            case "checkpoint":
                outcome = _checkpoint(context, vm, operation)
            case "restore":
                outcome = _restore(context, vm, operation)
            case _:
                outcome = "can be called again"
        journal.finish(context.catalog, operation.id, f"recovered: {outcome}")
        done.append(f"the {operation.verb} begun at {operation.started} was interrupted; it {outcome}")
    if done or orphans:
        for path in images.orphans(context, vm):
            images.discard(context, vm, path)
            done.append(f"{path}, which nothing needs, was removed")
    for line in done:
        context.emit(Warned(line))
    return done


def _checkpoint(context: Context, vm: Vm, operation: Interrupted) -> str:
    if context.catalog.has(operation.id):
        node = context.catalog.tree(vm.host.name, vm.uuid).find(operation.id)
        images.write_manifest(context, vm, node, context.catalog.domain_xml(node.id))
        return "was complete"
    made = {step["target"]: (step["path"], step["backing"]) for step in operation.details("make-overlay")}
    images.put_back(context, vm, made)
    return "was undone"


def _restore(context: Context, vm: Vm, operation: Interrupted) -> str:
    for step in operation.details("define"):
        if set(step["sources"].values()) & images.in_use(vm):
            safety = from_wire(Checkpoint, step["safety"], own=True) if step["safety"] else None
            if safety and not context.catalog.has(safety.id):
                context.catalog.add(safety, step["before"], head_parent=step["checkpoint"])
            else:
                context.catalog.set_head(vm.host.name, vm.uuid, step["checkpoint"])
            if safety:
                images.write_manifest(context, vm, safety, step["before"])
            return "was completed"
    return "was undone; the VM stands where it did"
