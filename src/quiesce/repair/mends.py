"""Carries out the plans of faults (repair/faults.py). Each function returns what it has done, or raises QuiesceError: then
the fault is left. A function claims nothing that it has not done, and can be killed and called again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import singledispatch

from quiesce.catalog.steps import Forget
from quiesce.context import Context
from quiesce.disks import fingerprints, images
from quiesce.disks.survey import survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import NotFoundError, RefusedError
from quiesce.recovery import journalled
from quiesce.repair.faults import (
    ChangedImage,
    Choice,
    ExpiredFile,
    Fault,
    LostFiles,
    OtherBase,
    Overwritten,
    Renamed,
    StrayManifest,
    UnexplainedFile,
    UnneededFile,
    WrongDefinition,
    WrongManifest,
)
from quiesce.repair.looks import listed, name_of, quarantined
from quiesce.storage.port import Aside


@singledispatch
def mend(fault: Fault, _context: Context, _vm: Vm, _choice: Choice | None) -> str:
    """Does what the plan of the fault says. `_choice`: what the user gave up; None: the plan loses nothing. To be called
    under the VM's lock."""
    raise TypeError(f"{fault.kind} has no plan that can be carried out")


@mend.register
def _definition(fault: WrongDefinition, context: Context, vm: Vm, choice: Choice | None) -> str:
    astray = fault.astray
    assert astray is not None
    if choice and choice.give_up == astray.last:
        moved = _aside(context, vm, astray.last)
        context.catalog.images.set_live(vm.key.host, [astray.named], True)
        return f"{vm.name} keeps {astray.named}; {moved}"
    if vm.active() and not astray.next_start:
        raise RefusedError(f"{vm.name} was started meanwhile")
    image = survey(context, vm, patient=True).images.get(astray.last)
    if image is None:
        raise NotFoundError(f"{astray.last} is gone")
    source = images.source(context.storage(vm.host), astray.last, image.format)
    vm.redefine(domain_xml.with_sources(vm.definition(), {astray.target: source}))
    context.catalog.images.set_live(vm.key.host, [astray.last], True)
    return f"disk {astray.target} of {vm.name} is {astray.last} again"


@mend.register
def _renamed(fault: Renamed, context: Context, vm: Vm, _choice: Choice | None) -> str:
    nodes = [
        replace(node, vm_name=vm.name) for node in context.catalog.checkpoints.tree(vm.key).nodes if node.vm_name != vm.name
    ]
    context.catalog.checkpoints.update(*nodes)
    for node in nodes:
        images.write_manifest(context, vm, node)
    return f"{len(nodes)} checkpoints were recorded under the name {vm.name}, not {fault.subject}"


@mend.register(LostFiles)
@mend.register(Overwritten)
def _give_up(fault: Fault, context: Context, vm: Vm, _choice: Choice | None) -> str:
    tree = context.catalog.checkpoints.tree(vm.key)
    node = next(node for node in tree.nodes if node.name == fault.subject)
    children = tuple(child.id for child in tree.nodes if child.parent == node.id)
    written = {*vm.heads().values(), *vm.heads(next_start=True).values()}
    files = tuple(sorted(node.paths() - written))  # the checkpoint is given up, and not what the VM writes
    with journalled(context, vm, "doctor") as operation, operation.step(Forget(node.id, children, files)):
        images.forget_checkpoint(context, vm, node)
        context.catalog.images.set_live(vm.key.host, sorted(node.paths() & written), True)
    return f"checkpoint {node.name!r} was removed from the catalog"


@mend.register
def _changed(fault: ChangedImage, context: Context, vm: Vm, _choice: Choice | None) -> str:
    found = survey(context, vm, patient=True)
    changed = {path: text for path, text in found.changed.items() if path == fault.subject}
    with journalled(context, vm, "doctor") as operation:
        names = fingerprints.lower_for_good(context, vm, operation, found, changed)
    return f"{listed(names)} recorded as spoilt, and crash-consistent at best"


@mend.register
def _base(fault: OtherBase, context: Context, vm: Vm, _choice: Choice | None) -> str:
    context.catalog.checkpoints.set_head(vm.key, fault.actual)
    tree = survey(context, vm, patient=True)
    return f"the catalog now records that {vm.name} is based on {name_of(tree, fault.actual)}"


@mend.register
def _manifest(fault: WrongManifest, context: Context, vm: Vm, _choice: Choice | None) -> str:
    for node in context.catalog.checkpoints.tree(vm.key).nodes:
        if node.name == fault.subject:
            images.put_manifest(context, vm, node)
    return f"the manifest of {fault.subject!r} was written anew"


@mend.register
def _stray(fault: StrayManifest, context: Context, vm: Vm, _choice: Choice | None) -> str:
    return _told(context.storage(vm.host).set_aside(fault.subject, datetime.now(UTC)), context, vm)


@mend.register(UnneededFile)
@mend.register(UnexplainedFile)
def _file(fault: Fault, context: Context, vm: Vm, _choice: Choice | None) -> str:
    return _aside(context, vm, fault.subject)


@mend.register
def _expired(fault: ExpiredFile, context: Context, vm: Vm, _choice: Choice | None) -> str:
    for aside in quarantined(context, vm, survey(context, vm, patient=True)):
        if aside.path == fault.subject:
            context.storage(vm.host).drop_aside(aside)
    return f"{fault.subject} was removed"


def _aside(context: Context, vm: Vm, path: str) -> str:
    """Moves a file of ours into the quarantine. Raises RefusedError if anything needs it."""
    return _told(images.set_aside(context, vm, path, datetime.now(UTC)), context, vm)


def _told(aside: Aside, context: Context, vm: Vm) -> str:
    until = aside.since + timedelta(days=context.catalog.settings.get(vm.key).quarantine_days)
    return f"{aside.original} was moved to {aside.path}, where it stays until {until:%Y-%m-%d}"
