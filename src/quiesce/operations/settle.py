"""Makes a checkpoint in which nothing is left to recover, out of another one, as VSS does with its auto-recovery: a copy of it
is booted aside, its applications recover, its guest shuts down, and what the copy wrote is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime

from quiesce.catalog.checkpoints import New
from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import MakeOverlay, Record
from quiesce.context import Context
from quiesce.disks import fingerprints, images, machine_files, places
from quiesce.disks.survey import Survey, survey
from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.events import LifecycleEvents, PowerChange
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import CancelledError, ConsistencyError, ProofError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.grades import Grade, Level, judge
from quiesce.model.names import CheckpointReference, check_checkpoint_name
from quiesce.model.proof import Proof, ProofState
from quiesce.model.reports import WriterReport, required_grades
from quiesce.model.starts import CHECK, FILESYSTEMS
from quiesce.model.tree import Checkpoint, DiskImage, Kind, MachineFile, Role
from quiesce.operations.copies import DEFAULT_TIMEOUT_S, Copy, Share, copied_onto, prove, require_sensible, turn
from quiesce.recovery import journalled, operating
from quiesce.repair.trials import clear_all
from quiesce.storage.port import MIN_FREE, require_room

SHUT_DOWN_S = 300.0
"""Longest wait until the guest has powered itself off, in seconds. systemd gives each service 90."""
ASK_AGAIN_S = 20.0
"""A guest that does not power itself off is asked again after so many seconds."""
LATE_EVENT_S = 5.0
"""How long libvirt's event may come after the copy is gone, in seconds."""
POLL_S = 0.5


def settle(
    context: Context,
    reference: CheckpointReference,
    *,
    name: str | None = None,
    memory: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Checkpoint:
    """Boots a copy of the checkpoint as `verify` does, has its guest shut down when all applications have started, and records
    the copy's disks as a new checkpoint, a child of the old one. Returns it. `name`: of the new checkpoint; None: that of the
    old one and "settled". `memory`, `timeout_s`: as of `verify`.

    The VM is locked meanwhile, and runs. The old checkpoint and what the VM is based on stay as they are. If the operation
    fails, or is killed, nothing is left. Raises ProofError if an application of the copy does not start or is damaged;
    ConsistencyError if the guest does not shut itself down; RefusedError if the images are not known to have what was
    checkpointed; NameTakenError, NoSpaceError, NotFoundError, BusyError, AgentError."""
    require_sensible(timeout_s)
    if name is not None:
        check_checkpoint_name(name)
    with (
        turn(context, f"quiesce settle {reference.vm}@{reference.checkpoint}") as host,
        operating(context, reference.vm, "settle") as vm,
    ):
        with context.phase("plan"):
            found = survey(context, vm)
            node = found.tree.find(reference.checkpoint)
            fingerprints.require_content(node, found.changed_for(disk.path for disk in node.disks), "settled")
            name = _name(vm, found, node, name)
        with journalled(context, vm, "settle") as journal:
            overlays = _make_overlays(context, vm, journal, found, node)
            with copied_onto(context, host, vm, node, Share(memory), overlays) as copy:
                with context.phase("boot the copy"):
                    proof = prove(context, copy, time.monotonic() + timeout_s)
                if proof.state is ProofState.FAILED:
                    raise _failed(node, proof)
                state = _state(context, host, copy)
                with context.phase("shut the copy down"):
                    _shut_down(context, copy)
                state |= _variables(context, host, copy)
            with context.phase("record"):
                return _record(context, vm, journal, node, name, overlays, copy, proof, state)


def _name(vm: Vm, found: Survey, node: Checkpoint, wanted: str | None) -> str:
    name = wanted or check_checkpoint_name(f"{node.name} settled")
    found.tree.require_free_name(name, vm.name, hint="choose another name: --name NAME")
    return name


def _failed(node: Checkpoint, proof: Proof) -> ProofError:
    lines = [f"{each.id} {each.text}" for each in proof.writers if each.state is ProofState.FAILED]
    return ProofError(
        f"checkpoint {node.name!r} of {node.vm_name} cannot be settled: {'; '.join(lines) or proof.text}",
        hint=f"nothing was kept; `quiesce verify {node.vm_name}@{node.name}` records the evidence",
        details={"checkpoint": node.id},
    )


def _make_overlays(context: Context, vm: Vm, journal: Journal, found: Survey, node: Checkpoint) -> dict[str, str]:
    """Where other overlays of the VM go. Path by target."""
    storage = context.storage(vm.host)
    overlays = {}
    with context.phase("make overlays"):
        at = places.for_overlays(storage, node, context.catalog.settings.get(vm.key).overlays)
        for disk in node.disks:
            path = images.new_path(storage, vm.name, at[disk.target], disk.target, "qcow2")
            size = found.images[disk.path].capacity
            overlays[disk.target] = images.make_overlay(context, vm, journal, disk.target, size, disk.path, disk.format, path)
    return overlays


# -- the end of the copy


def _shut_down(context: Context, copy: Copy) -> None:
    """Returns when the guest has powered itself off. What it wrote is then in the overlays."""
    with closing(context.power_changes()) as events, context.vm(copy.identity.uuid) as vm:
        deadline, gone, ask = time.monotonic() + SHUT_DOWN_S, None, 0.0
        while not _heard(events, copy):
            now = time.monotonic()
            if context.cancelled():
                raise CancelledError("the settling was cancelled")
            power = _power(vm)
            if power is PowerState.PAUSED:
                require_room(context.storage(vm.host), copy.place, MIN_FREE, "a copy that is booted")
                raise _not_down(copy, "it was paused, because of an error of the storage")
            if power is None:
                gone = gone or now
                if now > gone + LATE_EVENT_S:
                    raise _not_down(copy, "it ended, and not by itself")
            elif now >= deadline:
                raise _not_down(copy, f"it still runs after {SHUT_DOWN_S:g} s")
            elif now >= ask:
                vm.shut_down()
                ask = now + ASK_AGAIN_S


def _heard(events: LifecycleEvents, copy: Copy) -> bool:
    """Whether libvirt says that the guest powered the copy off."""
    while event := events.next(POLL_S):
        if event.uuid == copy.identity.uuid and event.change is PowerChange.SHUT_DOWN:
            return True
    return False


def _power(vm: Vm) -> PowerState | None:
    """None: the copy is gone."""
    with suppress(QuiesceError):
        power = vm.facts().power
        return None if power is PowerState.OFF else power
    return None


def _not_down(copy: Copy, why: str) -> ConsistencyError:
    return ConsistencyError(
        f"the copy of {copy.node.vm_name}@{copy.node.name} did not shut down cleanly: {why}",
        hint="nothing was kept; a guest shuts down when qemu-guest-agent or systemd-logind tells it to",
    )


# -- the new checkpoint


def _state(context: Context, host: Host, copy: Copy) -> dict[Role, bytes]:
    """The TPM's state, which libvirt removes with the copy."""
    path = host.tpm_state(copy.trial.xml)
    with suppress(QuiesceError):
        return {Role.TPM: context.storage(host).read(path)} if path else {}
    return {}


def _variables(context: Context, host: Host, copy: Copy) -> dict[Role, bytes]:
    with suppress(QuiesceError):
        return {Role.NVRAM: context.storage(host).read(copy.files.nvram)} if domain_xml.nvram(copy.trial.xml) else {}
    return {}


def _record(
    context: Context,
    vm: Vm,
    journal: Journal,
    node: Checkpoint,
    name: str,
    overlays: Mapping[str, str],
    copy: Copy,
    proof: Proof,
    state: Mapping[Role, bytes],
) -> Checkpoint:
    """The VM stays on what it is based on."""
    storage, checkpoints = context.storage(vm.host), context.catalog.checkpoints
    place = storage.place(overlays[node.disks[0].target])
    files = tuple(
        MachineFile(role, machine_files.keep(context, vm, journal, role, content, place)) for role, content in state.items()
    )
    writers = (*(_settled(writer, proof) for writer in node.writers), *_found(node, proof))
    settled = replace(
        node,
        id=journal.id,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        kind=Kind.SETTLED,
        consistency=judge(frozen_unbroken=True, writer_grades=required_grades(writers)),
        disks=tuple(DiskImage(disk.target, overlays[disk.target], "qcow2", copy.sizes[disk.target]) for disk in node.disks),
        parent=node.id,
        off=True,
        place=place,
        files=files,
        stall_us=0,
        writers=writers,
        filesystems=(),
        phases_us={},
        guest_clock_ns={},
        warnings=(f"settled from {node.name!r}, which is of {node.created}: a copy of it had started, and was shut down",),
        group=None,
        proof=None,
    )
    head = checkpoints.tree(vm.key).head_parent
    prints = fingerprints.of_new_checkpoint(context, vm, overlays.values())
    with journal.step(Record(settled.id)):
        checkpoints.add_together(
            [New(settled, checkpoints.domain_xml(node.id), head, checkpoints.untouched(vm.key), (), prints)]
        )
    images.write_manifest(context, vm, settled)
    return settled


def _settled(writer: WriterReport, proof: Proof) -> WriterReport:
    """What the application will do when it starts on the new checkpoint. Its position is another one now, and nobody asked for
    it. One of which nothing told how it started keeps its grade: nobody knows either what it left when it was stopped."""
    if writer.role == "down":
        return writer
    found = next((each for each in proof.writers if each.id == writer.id), None)
    if found is None or found.state is ProofState.UNTRIED or writer.grade is Grade.REFUSED:
        return replace(writer, position={}, timings_us={})
    return replace(
        writer, grade=Grade.CLEAN, position={}, timings_us={}, reason=f"it {found.text}, then it was shut down", last_error=None
    )


def _found(node: Checkpoint, proof: Proof) -> Iterator[WriterReport]:
    """Applications that the old checkpoint knows nothing of, as one that was taken without the guest's agent."""
    known = {writer.id for writer in node.writers}
    for each in proof.writers:
        if each.id not in known and each.id != FILESYSTEMS and not each.id.startswith(CHECK):
            grade = Grade.CRASH if each.state is ProofState.UNTRIED else Grade.CLEAN
            reason = f"it {each.text}, then it was shut down"
            application = each.id.partition(":")[0]
            yield WriterReport(each.id, application, "unknown", Level.BACK_END, grade, reason, required=each.required)


def recover(context: Context, vm: Vm, operation: Interrupted) -> str:
    """Undoes a settling that was not recorded: ends the copy, and removes what it wrote."""
    if context.catalog.checkpoints.has(operation.id):
        images.write_manifest(context, vm, context.catalog.checkpoints.tree(vm.key).find(operation.id))
        return "was complete"
    for done in clear_all(context, vm.host):
        context.emit(Warned(done))
    for step in operation.of(MakeOverlay):
        if context.catalog.images.has(vm.host.id, step.path):  # otherwise it was removed before we were killed
            images.discard(context, vm, step.path)
    return "was undone"
