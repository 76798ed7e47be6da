"""Mends what killed operations left: finishes what had taken effect, undoes what had not, removes what nobody needs."""

from __future__ import annotations

from quiesce.catalog import exported, journal
from quiesce.catalog.journal import Interrupted
from quiesce.context import Context
from quiesce.disks import images, machine_files, merges
from quiesce.disks.survey import survey
from quiesce.hypervisor import domain_xml, volumes
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError
from quiesce.model.events import Warned
from quiesce.model.tree import Checkpoint
from quiesce.repair.imports import undo_import
from quiesce.wire.schema import from_wire


def recover(context: Context, vm: Vm) -> list[str]:
    """Brings catalog, definition and images of the VM to agree again, and returns what was done, a line each.

    To be called under the VM's lock: an operation that is unfinished then has no owner any more. Decided from what libvirt
    and the images say; the journal only tells what to look at. Can itself be killed and called again. Takes no long time:
    merges that were interrupted are brought to a known state, not finished. Raises QuiesceError if something cannot be
    mended; it stays journalled.
    """
    done: list[str] = []
    outcomes: list[str] = []
    interrupted = journal.interrupted(context.catalog, vm.host.name, vm.uuid)
    for operation in interrupted:
        merging = operation.details("merge") + operation.details("move-branch")
        bases = {step["base"] for step in merging} | {step["backing"] for step in operation.details("make-overlay")}
        vm.cancel_merges(bases, set(vm.sources()) if merging else set())
        if merging or operation.verb in ("export", "checkpoint"):
            vm.host.destroy_helpers(set(survey(context, vm, patient=True).own()))
        merges.settle(context, vm, operation)
        match operation.verb:
            case "checkpoint":
                vm.end_saving()
                outcome = _checkpoint(context, vm, operation)
            case "restore":
                outcome = _restore(context, vm, operation)
            case "delete":
                outcome = "goes on with the next deletion, or with `quiesce doctor --repair`"
            case "group restore":
                outcome = _group_restore(operation)
            case "export":
                outcome = _export(vm, operation)
            case "import":
                outcome = undo_import(vm.host, vm.uuid, operation)
            case _:
                outcome = "can be called again"
        for node in context.catalog.tree(vm.host.name, vm.uuid).nodes:
            if node.id in _described(operation):
                images.write_manifest(context, vm, node)
        outcomes.append(outcome)
    if interrupted:  # all are settled, so what nothing needs now, nothing will
        removed = images.discard_orphans(context, vm)
        for operation, outcome in zip(interrupted, outcomes, strict=True):
            journal.finish(context.catalog, operation.id, f"recovered: {outcome}")
            done.append(f"the {operation.verb} begun at {operation.started} was interrupted; it {outcome}")
        done += [f"{path}, which nothing needs, was removed" for path in removed]
    for line in done:
        context.emit(Warned(line))
    return done


def _described(operation: Interrupted) -> set[str]:
    """Checkpoints whose manifests may not have been written any more."""
    steps = [step for what in ("hide", "rename", "merge", "forget") for step in operation.unfinished(what)]
    return {str(step["checkpoint"]) for step in steps if step.get("checkpoint")} | {
        str(id) for step in steps for id in step.get("checkpoints", ())
    }


def _checkpoint(context: Context, vm: Vm, operation: Interrupted) -> str:
    if context.catalog.has(operation.id):
        images.write_manifest(context, vm, context.catalog.tree(vm.host.name, vm.uuid).find(operation.id))
        return "was complete"
    made = {step["target"]: (step["path"], step["backing"]) for step in operation.details("make-overlay")}
    if not operation.details("switch"):
        return "had not begun to switch"  # nothing was ever written to its overlays; they are removed with the orphans
    images.put_back(context, vm, made)
    return "was undone"


def _restore(context: Context, vm: Vm, operation: Interrupted) -> str:
    for step in operation.details("define"):
        made = set(step["sources"].values())
        if vm.active() and not made & set(vm.sources().values()) and made & set(vm.file_disks(next_start=True).values()):
            vm.redefine(step["before"])  # somebody started it in between: it runs, and stays, where it was
            break
        found = survey(context, vm)
        if made & found.chains.needed(found.named):
            context.catalog.set_live(vm.host.name, made, True)
            left = {disk.path for disk in domain_xml.disks(step["before"]) if disk.path} - set(vm.sources().values())
            context.catalog.set_live(vm.host.name, left, False)
            safety = from_wire(Checkpoint, step["safety"], own=True) if step["safety"] else None
            if step["tpm"] and not vm.active():
                machine_files.put_tpm(vm, step["tpm"])
            if safety and not context.catalog.has(safety.id):
                context.catalog.add(safety, step["before"], head_parent=step["checkpoint"], untouched=step["untouched"])
            else:
                context.catalog.set_head(vm.host.name, vm.uuid, step["checkpoint"], step["untouched"])
            if safety:
                images.write_manifest(context, vm, safety)
            return "was completed"
    return "was undone; the VM stands where it did"


def _group_restore(operation: Interrupted) -> str:
    """Whether to go on is its user's to say: meanwhile the members may have been started."""
    for step in operation.details("put back"):
        return f"may have put other servers back without this one; `quiesce group restore {step['reference']}` goes on"
    return "had not begun"


def _export(vm: Vm, operation: Interrupted) -> str:
    for step in operation.unfinished("export"):
        try:
            with volumes.directory(vm.host, step["directory"]) as pool:
                if pool.has(exported.NAME):
                    return "was complete"
        except HypervisorError:
            continue  # the directory is gone, with all that was in it
        machine_files.remove(vm.host, step["directory"], step["files"])
    return "was undone"
