"""Restores a VM to a checkpoint (Hyper-V: "apply")."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import PutBack, Stop
from quiesce.context import Context
from quiesce.disks import fingerprints, images, machine_files, merges
from quiesce.disks.survey import Survey, survey
from quiesce.disks.unneeded import discard_unneeded
from quiesce.guests import linux
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.needs import emptied
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import HypervisorError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, MachineFile, Role
from quiesce.operations.delete import go_on
from quiesce.operations.divergence import require_agreement
from quiesce.operations.restore_plan import RestorePlan, plan_restore
from quiesce.operations.shorten import keep_short, make_room_on
from quiesce.recovery import journalled, operating
from quiesce.wire.messages import Prepare

FLUSH_TIMEOUT_S = 30.0
"""Longest time for the guest to write out its dirty pages before the VM is powered off, in seconds."""


@dataclass(frozen=True)
class Restored:
    checkpoint: Checkpoint
    safety: Checkpoint | None
    """The state before the restore; None if it was discarded."""
    generation: str
    """The VM's new generation ID."""
    started: bool


def restore(
    context: Context,
    reference: CheckpointReference,
    *,
    start: bool = False,
    discard_current: bool = False,
    accept_divergence: bool = False,
    accept_changed: bool = False,
) -> Restored:
    """Stops the VM and gives it the disks, definition, UEFI variables and TPM state of the checkpoint. Leaves it off unless
    `start`; a standard checkpoint always resumes with its memory. Disks that the checkpoint leaves out stay as they are.

    Keeps the state before the restore as a safety checkpoint unless `discard_current`: the images that the VM wrote until it
    was powered off, so nothing that it acknowledged is lost. Does everything that can fail for lack of space or rights before
    it stops the VM. A failure after that leaves the VM off: as it was before or, if the new definition was in effect, at the
    checkpoint. A warning tells which.

    Raises DivergenceError, unless `accept_divergence`, if other servers of a group would disagree with the restored VM. Raises
    RefusedError, unless `accept_changed`, if the checkpoint is spoilt, or an image of it, or one of its backing files, is not
    known to have what was checkpointed.
    """
    with operating(context, reference.vm, "restore") as vm:
        make_room_on(context, vm, reference.checkpoint)
        with context.phase("plan"):
            planned = plan_restore(
                context,
                vm,
                reference.checkpoint,
                start=start,
                discard_current=discard_current,
                accept_changed=accept_changed,
            )
        if not accept_divergence:
            require_agreement(context, [planned.node])
        restored = restore_planned(context, vm, planned, start=start)
        keep_short(context, vm)
    return restored


def restore_planned(context: Context, vm: Vm, planned: RestorePlan, *, start: bool = False) -> Restored:
    """Does what `plan_restore` planned, under the same lock."""
    node, safety = planned.node, planned.safety
    for text in planned.changed.values():
        context.emit(Warned(text))
    if planned.facts.power is PowerState.RUNNING and safety:
        with context.phase("flush the guest"):
            _flush(context, vm, planned.facts)
    with journalled(context, vm, "restore") as journal:
        if planned.changed:
            fingerprints.lower_for_good(context, vm, journal, planned.found, planned.changed)
        restored = _Restore(context, vm, planned, journal)
        restored.run()
    memory = node.file(Role.MEMORY)
    if memory:
        with context.phase("resume"):
            with _telling_the_way_back(vm, restored):
                vm.resume_from(memory.path, restored.sources, restored.nvram, planned.empty)
            _set_clock(context, vm, node)
    elif start:
        with context.phase("start"), _telling_the_way_back(vm, restored):
            vm.start()
    if merges.anything_to_do(survey(context, vm)):
        with context.phase("merge"):
            go_on(context, vm)
    return Restored(node, restored.safety, restored.generation, start or memory is not None)


@contextmanager
def _telling_the_way_back(vm: Vm, restored: _Restore) -> Iterator[None]:
    """If the VM does not start with the restored definition: where it stands, and how to get back the state that was left."""
    try:
        yield
    except HypervisorError as error:
        safety = restored.safety
        back = f"quiesce restore {shlex.quote(f'{vm.name}@{safety.name}')} --start" if safety else "it was discarded"
        raise type(error)(
            f"{vm.name} was restored and is off, because it did not start: {error.message}",
            hint=f"when the cause is gone: virsh start {shlex.quote(vm.name)}; back to the state from before: {back}",
            details=error.details,
        ) from error


class _Restore:
    """The steps of a restore that change something."""

    def __init__(self, context: Context, vm: Vm, planned: RestorePlan, journal: Journal) -> None:
        self.safety = planned.safety
        self.generation = str(uuid.uuid4())
        self.sources: dict[str, str] = {}
        self.nvram: str | None = None
        self._kept = planned.kept
        self._empty = planned.empty
        self._context = context
        self._vm = vm
        self._node = planned.node
        self._sizes = planned.found.images
        self._places = planned.places
        self._place = planned.places[self._node.disks[0].target]
        self._before = vm.definition()
        self._journal = journal

    def run(self) -> None:
        context, vm = self._context, self._vm
        with context.phase("make overlays"):
            self._make_files()
        with context.phase("stop"), self._journal.step(Stop()):
            vm.power_off()
        if self.safety:
            self._keep_state()
        with context.phase("define"):
            self._define()
        found = survey(context, vm)
        if self.safety:
            _write_manifests(context, vm, found, self.safety)
        discard_unneeded(context, vm, self._journal, found)

    def _make_files(self) -> None:
        storage = self._context.storage(self._vm.host)
        for image in self._node.disks:
            size = self._sizes[image.path].capacity
            path = images.new_path(storage, self._vm.name, self._places[image.target], image.target, "qcow2")
            self.sources[image.target] = images.make_overlay(
                self._context, self._vm, self._journal, image.target, size, image.path, image.format, path
            )
        if variables := self._node.file(Role.NVRAM):
            content = self._context.storage(self._vm.host).read(variables.path)
            self.nvram = self._write(content, Role.NVRAM, like=domain_xml.nvram(self._before) or self._node.disks[0].path)

    def _write(self, content: bytes, role: Role, like: str | None = None) -> str:
        return machine_files.keep(self._context, self._vm, self._journal, role, content, self._place, like)

    def _keep_state(self) -> None:
        """Adds the UEFI variables and the TPM state to the safety checkpoint, as they are now that the VM is off. The file of
        the UEFI variables becomes the safety checkpoint's own: the VM gets another one."""
        assert self.safety is not None
        state = machine_files.read(self._context, self._vm)
        self.safety = replace(self.safety, warnings=(*self.safety.warnings, *machine_files.left_out(self._vm, state)))
        files = [MachineFile(Role.TPM, self._write(state[Role.TPM], Role.TPM))] if Role.TPM in state else []
        if Role.NVRAM in state:
            variables = domain_xml.nvram(self._before) if self.nvram else self._write(state[Role.NVRAM], Role.NVRAM)
            files.append(MachineFile(Role.NVRAM, str(variables)))
        self.safety = replace(self.safety, files=tuple(files), place=self._place)

    def _define(self) -> None:
        context, vm, node = self._context, self._vm, self._node
        tpm = node.file(Role.TPM)
        step = PutBack(
            checkpoint=node.id,
            sources=self.sources,
            before=self._before,
            safety=self.safety,
            untouched=images.untouched(context, vm, self.sources.values()),
            tpm=tpm.path if tpm else None,
        )
        with self._journal.step(step):
            xml = domain_xml.restored(
                domain_xml.with_disks_of(context.catalog.checkpoints.domain_xml(node.id), self._before, self._kept),
                identity=domain_xml.Identity(vm.name, vm.uuid),
                generation=self.generation,
                sources=self.sources,
                nvram=self.nvram,
            )
            vm.redefine(emptied(xml, self._empty))
            if vm.active():
                raise RefusedError(f"somebody started {vm.name} during the restore", hint="stop it and try again")
            _record(context, vm, step)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Completes a restore whose definition is in effect: the guest may have run with it. Undoes any other: that restore has
    made only new files, and has powered the VM off at most."""
    for step in operation.of(PutBack):
        made, running = set(step.sources.values()), set(vm.sources().values())
        if vm.active() and not made & running and made & set(vm.heads(next_start=True).values()):
            vm.redefine(step.before)  # somebody started it before the new definition: it runs on the images from before
            break
        found = survey(context, vm)
        if made & found.chains.needed(found.named):
            _record(context, vm, step)
            if step.safety:
                _write_manifests(context, vm, found, step.safety)
            return "was completed"
    return "was undone; the VM is based on the checkpoint that it was based on before"


def _record(context: Context, vm: Vm, step: PutBack) -> None:
    """Does the rest for a VM that has the restored definition: copies the TPM's state, and records the restore."""
    checkpoints, catalog_images = context.catalog.checkpoints, context.catalog.images
    if step.tpm and not vm.active():
        machine_files.put_tpm(context, vm, step.tpm)
    made = step.sources.values()
    if step.safety and not checkpoints.has(step.safety.id):
        new = fingerprints.of_new_checkpoint(context, vm, [disk.path for disk in step.safety.disks])
        checkpoints.add(
            step.safety, step.before, head_parent=step.checkpoint, untouched=step.untouched, live=made, fingerprints=new
        )
        return
    checkpoints.set_head(vm.key, step.checkpoint, step.untouched)
    catalog_images.set_live(vm.key.host, made, True)
    left = {disk.path for disk in vm.host.disks(step.before) if disk.path} - set(vm.sources().values())
    catalog_images.set_live(vm.key.host, left, False)


def _write_manifests(context: Context, vm: Vm, found: Survey, safety: Checkpoint) -> None:
    """Of the safety checkpoint, and of the checkpoints below it: their images may have new fingerprints with it."""
    fingerprints.write_manifests(context, vm, found.chains.needed(disk.path for disk in safety.disks))


def _set_clock(context: Context, vm: Vm, node: Checkpoint) -> None:
    """A guest that goes on with its old memory goes on with its old time. A failure is only a warning: the guest runs."""
    try:
        vm.set_time(time.time())
    except QuiesceError as error:
        context.emit(
            Warned(
                f"the clock of the guest of {vm.name} may still be at {node.created}, the time of the checkpoint, and could not"
                f" be set ({error.message}): set it in the guest, before its applications write (chronyc makestep)"
            )
        )


def _flush(context: Context, vm: Vm, facts: Facts) -> None:
    """Has the guest write out its dirty pages, as before any checkpoint, so that the power-off loses as little as possible. A
    failure is only a warning: the guest may be so broken that the user restores the VM for that reason."""
    try:
        linux.require_agent_port(facts)
        with context.guest(vm, facts) as found:
            found.prepare(Prepare(window_ms=1000, insist=False), FLUSH_TIMEOUT_S)
    except QuiesceError as error:
        context.emit(Warned(f"the guest was not flushed before it was powered off: {error.message}"))
