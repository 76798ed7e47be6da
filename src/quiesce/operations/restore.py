"""Restores a VM to a checkpoint (Hyper-V: "apply")."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import PutBack, Stop
from quiesce.context import Context
from quiesce.disks import fingerprints, images, machine_files, merges
from quiesce.disks.survey import Survey, survey
from quiesce.guests import linux
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.vm import Facts, PowerState, Vm
from quiesce.model.errors import NotFoundError, QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.fingerprints import lowered
from quiesce.model.grades import Consistency
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, DiskImage, Kind, MachineFile, Role, Tree
from quiesce.operations.delete import go_on
from quiesce.operations.divergence import require_agreement
from quiesce.recovery import journalled, operating
from quiesce.storage.port import Storage
from quiesce.taking import requirements
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
    RefusedError, unless `accept_changed`, if another program changed an image of the checkpoint, or one of its backing files.
    """
    with operating(context, reference.vm, "restore") as vm:
        with context.phase("plan"):
            planned = plan_restore(
                context, vm, reference.checkpoint, discard_current=discard_current, accept_changed=accept_changed
            )
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
    changed: Mapping[str, str]
    """Images of the checkpoint that another program changed: a sentence for each path."""


def plan_restore(context: Context, vm: Vm, checkpoint: str, *, discard_current: bool, accept_changed: bool) -> RestorePlan:
    """For the checkpoint of this name or id. To be called under the VM's lock, when nothing is interrupted. Raises QuiesceError
    for whatever cannot work; changes nothing."""
    facts = vm.facts()
    found = survey(context, vm)
    node = found.tree.find(checkpoint)
    requirements.require_persistent(facts)
    requirements.require_no_saved_memory(facts)
    requirements.require_nothing_in_the_way(facts)
    _require_files(found, node)
    changed = found.changed_for(disk.path for disk in node.disks)
    if changed and not accept_changed:
        raise _changed_error(node, changed)
    kept = _kept(context, vm, found, facts, node)
    _require_memory_fits(vm, node)
    safety = None if discard_current else _safety(vm, facts, found.tree, kept)
    if safety:
        found.require_known_chain({disk.target: disk.path for disk in safety.disks})
        safety = lowered(safety, found.changed_for(disk.path for disk in safety.disks))
    return RestorePlan(facts, found, lowered(node, changed), kept, safety, changed)


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
            vm.resume_from(memory.path, restored.sources, restored.nvram)
    elif start:
        with context.phase("start"):
            vm.start()
    if merges.anything_to_do(survey(context, vm)):
        with context.phase("merge"):
            go_on(context, vm)
    return Restored(node, restored.safety, restored.generation, start or memory is not None)


class _Restore:
    """The steps of a restore that change something."""

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
        """Adds the UEFI variables and the TPM state to the safety checkpoint, as they are now that the VM is off. The file of
        the UEFI variables becomes the safety checkpoint's own: the VM gets another one."""
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
                raise RefusedError(f"somebody started {vm.name} during the restore", hint="stop it and try again")
            _record(context, vm, step)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Completes a restore whose definition is in effect: the guest may have run with it. Undoes any other: that restore has
    made only new files, and has powered the VM off at most."""
    for step in operation.of(PutBack):
        made, running = set(step.sources.values()), set(vm.sources().values())
        if vm.active() and not made & running and made & set(vm.file_disks(next_start=True).values()):
            vm.redefine(step.before)  # somebody started it before the new definition: it runs on the images from before
            break
        found = survey(context, vm)
        if made & found.chains.needed(found.named):
            _record(context, vm, step)
            if step.safety:
                images.write_manifest(context, vm, step.safety)
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


def _require_files(found: Survey, node: Checkpoint) -> None:
    """Raises NotFoundError if a file of the checkpoint, or a backing file, is gone."""
    missing = found.missing(node)
    if missing:
        raise NotFoundError(
            f"checkpoint {node.name!r} cannot be restored: {', '.join(missing)} is gone",
            hint="bring the file back from a backup; `quiesce doctor --repair` gives the checkpoint up",
        )


def _changed_error(node: Checkpoint, changed: Mapping[str, str]) -> RefusedError:
    return RefusedError(
        f"the content of checkpoint {node.name!r} is not what was checkpointed: {'; '.join(changed.values())}",
        hint="bring the file back from a backup that keeps its time, or restore what is there as a crash-consistent checkpoint:"
        " --accept-changed-images",
        details={"changed": sorted(changed)},
    )


def _kept(context: Context, vm: Vm, found: Survey, facts: Facts, node: Checkpoint) -> tuple[str, ...]:
    """Targets of the disks that the checkpoint leaves out and the VM has; they stay as they are. Raises RefusedError if the VM
    no longer has a disk that the checkpoint leaves out, and the disk's image of that time cannot be used."""
    present = {disk.target for disk in facts.disks}
    recorded = {disk.target: disk.path for disk in vm.host.disks(context.catalog.checkpoints.domain_xml(node.id))}
    for target in node.excluded:
        if target in present:
            context.emit(Warned(f"disk {target} is not part of {node.name!r}; it stays as it is now"))
        elif (path := recorded.get(target)) and not _is_free(context.storage(vm.host), found, path):
            raise RefusedError(
                f"{node.name!r} leaves out disk {target}, which the VM no longer has; the disk's image at that time, {path}, is"
                " gone, or belongs to a checkpoint or another VM now",
                hint=f"attach a disk named {target} first: virsh attach-disk --config",
            )
    return tuple(target for target in node.excluded if target in present)


def _is_free(storage: Storage, found: Survey, path: str) -> bool:
    """Whether a VM can have this image as its disk: the image exists, as far as the survey shows, and nobody else reads or
    writes it."""
    looked_at = {storage.place(known) for known in found.images}
    there = path in found.images or storage.place(path) not in looked_at
    taken = path in found.owners() or path in found.merged or path in found.others or found.chains.readers(path)
    return there and not taken


def _require_memory_fits(vm: Vm, node: Checkpoint) -> None:
    """Raises RefusedError if the checkpoint's memory was saved under another name of the VM: libvirt would refuse to resume it,
    when the VM is stopped already."""
    memory, identity = node.file(Role.MEMORY), domain_xml.Identity(vm.name, vm.uuid)
    saved = vm.saved_identity(memory.path) if memory else identity
    if saved != identity:
        raise RefusedError(
            f"the memory of {node.name!r} was saved when the VM was named {saved.name} ({saved.uuid}); libvirt does not resume"
            f" it as {vm.name} ({vm.uuid})",
            hint=f"rename the VM first: virsh domrename {vm.name} {saved.name}",
        )


def _safety(vm: Vm, facts: Facts, tree: Tree, excluded: tuple[str, ...]) -> Checkpoint:
    """The VM's present images as a safety checkpoint. It is crash-consistent: no writer holds when the VM is powered off."""
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
    """Has the guest write out its dirty pages, as before any checkpoint, so that the power-off loses as little as possible. A
    failure is only a warning: the guest may be so broken that the user restores the VM for that reason."""
    try:
        linux.require_agent_port(facts)
        with context.guest(vm, facts) as found:
            found.prepare(Prepare(window_ms=1000, insist=False), FLUSH_TIMEOUT_S)
    except QuiesceError as error:
        context.emit(Warned(f"the guest was not flushed before it was powered off: {error.message}"))
