"""Puts a VM back to a checkpoint (Hyper-V: "apply")."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import PutBack, Stop
from quiesce.context import Context
from quiesce.disks import images, machine_files, merges
from quiesce.disks.survey import Survey, survey
from quiesce.guests import linux
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, DiskImage, Kind, MachineFile, Role, Tree
from quiesce.operations.delete import go_on
from quiesce.operations.divergence import require_agreement
from quiesce.recovery import journalled, operating
from quiesce.storage.port import Storage
from quiesce.taking import requirements

FLUSH_TIMEOUT_S = 30.0
"""Longest that a guest about to be powered off is given to write out what is dirty, in seconds."""


@dataclass(frozen=True)
class Restored:
    checkpoint: Checkpoint
    safety: Checkpoint | None
    """The state that was left, unless it was to be discarded."""
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
) -> Restored:
    """Stops the VM and makes it stand where the checkpoint was taken: disks, definition, UEFI variables, TPM state. Leaves
    it off unless `start`; a standard checkpoint is resumed with its memory in any case. Disks the checkpoint leaves out stay
    as they are.

    The state it leaves is kept as a safety checkpoint unless `discard_current`: the very images it wrote until it was powered
    off, so nothing it acknowledged is lost. What can fail for want of room or rights is done before the VM is stopped. A
    failure after that leaves the VM off: defined as before or, if the new definition was in effect, at the checkpoint; a
    warning says which.

    Raises DivergenceError, unless `accept_divergence`, if other servers of a group would disagree with it.
    """
    with operating(context, reference.vm, "restore") as vm:
        with context.phase("plan"):
            planned = plan_restore(context, vm, reference.checkpoint, discard_current=discard_current)
        if not accept_divergence:
            require_agreement(context, [planned.node])
        return restore_planned(context, vm, planned, start=start)


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do, before anything is touched."""

    facts: Facts
    found: Survey
    node: Checkpoint
    kept: tuple[str, ...]
    safety: Checkpoint | None


def plan_restore(context: Context, vm: Vm, checkpoint: str, *, discard_current: bool) -> RestorePlan:
    """For the checkpoint of this name or id. To be called under the VM's lock, when nothing is interrupted. Raises QuiesceError
    for whatever cannot work; changes nothing."""
    facts = vm.facts()
    found = survey(context, vm)
    node = found.tree.find(checkpoint)
    requirements.require_persistent(facts)
    requirements.require_no_saved_memory(facts)
    requirements.require_nothing_in_the_way(facts)
    _require_files(found, node)
    kept = _kept(context, vm, found, facts, node)
    _require_memory_fits(vm, node)
    safety = None if discard_current else _safety(vm, facts, found.tree, kept)
    if safety:
        found.require_known_chain({disk.target: disk.path for disk in safety.disks})
    return RestorePlan(facts, found, node, kept, safety)


def restore_planned(context: Context, vm: Vm, planned: RestorePlan, *, start: bool = False) -> Restored:
    """Does what `plan_restore` planned, under the same lock."""
    node, safety = planned.node, planned.safety
    if planned.facts.power is PowerState.RUNNING and safety:
        with context.phase("flush the guest"):
            _flush(context, vm, planned.facts)
    with journalled(context, vm, "restore") as journal:
        restored = _Restore(context, vm, planned, journal)
        restored.run()
    memory = node.file(Role.MEMORY)
    if memory:
        with context.phase("resume"):
            vm.resume_from(memory.path, restored.sources, restored.nvram)
    elif start:
        with context.phase("start"):
            vm.start()
    if merges.anything_to_do(survey(context, vm)):
        with context.phase("merge"):
            go_on(context, vm)
    return Restored(node, restored.safety, restored.generation, start or memory is not None)


class _Restore:
    """The steps that change something."""

    def __init__(self, context: Context, vm: Vm, planned: RestorePlan, journal: Journal) -> None:
        self.safety = planned.safety
        self.generation = str(uuid.uuid4())
        self.sources: dict[str, str] = {}
        self.nvram: str | None = None
        self._kept = planned.kept
        self._context = context
        self._vm = vm
        self._node = planned.node
        self._sizes = planned.found.images
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
        if self.safety:
            images.write_manifest(context, vm, self.safety)
        for path in survey(context, vm).orphans():
            images.discard_or_warn(context, vm, self._journal, path)

    def _make_files(self) -> None:
        for image in self._node.disks:
            size = self._sizes[image.path].capacity
            self.sources[image.target] = images.make_overlay(
                self._context, self._vm, self._journal, image.target, size, image.path, image.format
            )
        if variables := self._node.file(Role.NVRAM):
            self.nvram = self._write(self._context.storage(self._vm.host).read(variables.path), Role.NVRAM)

    def _write(self, content: bytes, role: Role) -> str:
        return machine_files.keep(self._context, self._vm, self._journal, role, content, self._node.disks[0].path)

    def _keep_state(self) -> None:
        """UEFI variables and TPM state as they are now that the VM is off. The former's file is not written again: the VM gets
        another one."""
        assert self.safety is not None
        state = machine_files.read(self._context, self._vm)
        files = [MachineFile(Role.TPM, self._write(state[Role.TPM], Role.TPM))] if Role.TPM in state else []
        if Role.NVRAM in state:
            variables = domain_xml.nvram(self._before) if self.nvram else self._write(state[Role.NVRAM], Role.NVRAM)
            files.append(MachineFile(Role.NVRAM, str(variables)))
        self.safety = replace(self.safety, files=tuple(files))

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
            vm.redefine(xml)
            if vm.active():
                raise RefusedError(f"{vm.name} was started by somebody else during the restore", hint="stop it and try again")
            _record(context, vm, step)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """A restore whose definition is in effect is completed: the guest may have run on it. Any other is undone: nothing but its
    new files has been made, and the VM at most powered off."""
    for step in operation.of(PutBack):
        made, running = set(step.sources.values()), set(vm.sources().values())
        if vm.active() and not made & running and made & set(vm.file_disks(next_start=True).values()):
            vm.redefine(step.before)  # somebody started it in between: it runs, and stays, where it was
            break
        found = survey(context, vm)
        if made & found.chains.needed(found.named):
            _record(context, vm, step)
            if step.safety:
                images.write_manifest(context, vm, step.safety)
            return "was completed"
    return "was undone; the VM is based on the checkpoint that it was based on before"


def _record(context: Context, vm: Vm, step: PutBack) -> None:
    """The VM, which is defined on the restored images, gets the rest: the TPM's state, and its place in the catalog."""
    checkpoints, catalog_images = context.catalog.checkpoints, context.catalog.images
    if step.tpm and not vm.active():
        machine_files.put_tpm(context, vm, step.tpm)
    made = step.sources.values()
    if step.safety and not checkpoints.has(step.safety.id):
        checkpoints.add(step.safety, step.before, head_parent=step.checkpoint, untouched=step.untouched, live=made)
        return
    checkpoints.set_head(vm.key, step.checkpoint, step.untouched)
    catalog_images.set_live(vm.key.host, made, True)
    left = {disk.path for disk in vm.host.disks(step.before) if disk.path} - set(vm.sources().values())
    catalog_images.set_live(vm.key.host, left, False)


def _require_files(found: Survey, node: Checkpoint) -> None:
    """Raises NotFoundError if a file of the checkpoint, or one below, is gone."""
    missing = found.missing(node)
    if missing:
        raise NotFoundError(
            f"checkpoint {node.name!r} cannot be restored: {', '.join(missing)} is gone", hint="`quiesce doctor` says more"
        )


def _kept(context: Context, vm: Vm, found: Survey, facts: Facts, node: Checkpoint) -> tuple[str, ...]:
    """The disks the checkpoint leaves out and the VM has: they stay as they are."""
    present = {disk.target for disk in facts.disks}
    recorded = {disk.target: disk.path for disk in vm.host.disks(context.catalog.checkpoints.domain_xml(node.id))}
    for target in node.excluded:
        if target in present:
            context.emit(Warned(f"disk {target} is not part of {node.name!r}; it stays as it is now"))
        elif (path := recorded.get(target)) and not _is_free(context.storage(vm.host), found, path):
            raise RefusedError(
                f"disk {target} is not part of {node.name!r}, and the VM no longer has it; what it was on then, {path}, is"
                " gone, or belongs to a checkpoint or another VM now",
                hint="attach a disk under that name first: virsh attach-disk",
            )
    return tuple(target for target in node.excluded if target in present)


def _is_free(storage: Storage, found: Survey, path: str) -> bool:
    """Whether a VM can be put on this image: it is still there, as far as we can see, and nobody else reads or writes it."""
    looked_at = {storage.place(known) for known in found.images}
    there = path in found.images or storage.place(path) not in looked_at
    taken = path in found.owners() or path in found.merged or path in found.others or found.chains.readers(path)
    return there and not taken


def _require_memory_fits(vm: Vm, node: Checkpoint) -> None:
    """Raises RefusedError if saved memory is of a VM of another name: libvirt would refuse it with the VM stopped already."""
    memory, identity = node.file(Role.MEMORY), domain_xml.Identity(vm.name, vm.uuid)
    saved = vm.saved_identity(memory.path) if memory else identity
    if saved != identity:
        raise RefusedError(
            f"the memory of {node.name!r} is that of {saved.name} ({saved.uuid}), and libvirt resumes it under no other name",
            hint=f"virsh domrename {vm.name} {saved.name}",
        )


def _safety(vm: Vm, facts: Facts, tree: Tree, excluded: tuple[str, ...]) -> Checkpoint:
    """The present images as a checkpoint. Nobody will have held the applications when the VM is powered off."""
    now = datetime.now(UTC)
    return Checkpoint(
        id=uuid.uuid4().hex,
        host=vm.key.host,
        vm_uuid=vm.uuid,
        vm_name=vm.name,
        name=f"before restore {now:%Y-%m-%dT%H.%M.%S.%f}Z",
        created=now.isoformat(timespec="milliseconds"),
        kind=Kind.SAFETY,
        consistency=Consistency.CRASH,
        required=Consistency.CRASH,
        disks=tuple(
            DiskImage(disk.target, str(disk.path), disk.format) for disk in requirements.disks_to_switch(facts, excluded)
        ),
        parent=tree.head_parent,
        excluded=excluded,
    )


def _flush(context: Context, vm: Vm, facts: Facts) -> None:
    """Has the guest write out what it can, as in any preparation, so that powering it off loses least. It may well be the
    guest's ruin that is the reason for the restore, so no failure of it is one of ours."""
    try:
        linux.require_agent_port(facts)
        with context.guest(vm, facts) as found:
            found.prepare(1000, False, FLUSH_TIMEOUT_S)
    except QuiesceError as error:
        context.emit(Warned(f"the guest was not flushed before it was powered off: {error.message}"))
