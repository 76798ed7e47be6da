"""What must be true of a VM before it is checkpointed, restored or merged. Decided from facts, before anything changes."""

from __future__ import annotations

from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.chains import Chains
from quiesce.model.errors import BusyError, RefusedError, UsageError
from quiesce.model.events import Emit, Warned
from quiesce.model.grades import Consistency

MAX_CHAIN = 190
"""Most images in a chain. libvirt's own limit is 200 (VIR_DOMAIN_STORAGE_CHAIN_MAX in src/conf/storage_source_conf.c)."""
LONG_CHAIN = 30
"""A checkpoint warns if a chain has at least this many images."""


def require_running(facts: Facts) -> None:
    """Raises RefusedError if the VM does not run."""
    if facts.power is PowerState.OFF:
        raise RefusedError(f"{facts.name} is off", hint=f"start it first: virsh start {facts.name}")
    if facts.power is PowerState.PAUSED:
        raise RefusedError(
            f"{facts.name} is paused, so its guest cannot hold its applications",
            hint=f"resume it: virsh resume {facts.name}; or accept a crash-consistent checkpoint: --require crash",
        )
    if facts.power is not PowerState.RUNNING:
        raise RefusedError(
            f"{facts.name} is neither running nor off", hint=f"see its state: virsh domstate {facts.name} --reason"
        )


def require_answering(facts: Facts, required: Consistency) -> None:
    """Raises RefusedError if the VM does not run. A paused VM is enough if a crash-consistent checkpoint is."""
    if not (facts.power is PowerState.PAUSED and required is Consistency.CRASH):
        require_running(facts)


def require_no_saved_memory(facts: Facts) -> None:
    if facts.managed_save:
        raise RefusedError(
            f"{facts.name} has a saved memory image (virsh managedsave), which can only resume on its present disks",
            hint=f"start the VM, or remove its saved memory: virsh managedsave-remove {facts.name}",
        )


def require_persistent(facts: Facts) -> None:
    if not facts.persistent:
        raise RefusedError(
            f"{facts.name} is transient: libvirt forgets it when it stops", hint="make it persistent first: virsh define"
        )


def require_nothing_in_the_way(facts: Facts) -> None:
    """Raises BusyError if libvirt runs a job on the VM, RefusedError if the VM has snapshots of libvirt's own."""
    if facts.job:
        raise BusyError(
            f"{facts.job} is running on {facts.name}",
            hint="wait until it has ended; `virsh domjobinfo` and `virsh blockjob` show it",
        )
    if facts.snapshots:
        raise RefusedError(
            f"{facts.name} has {facts.snapshots} snapshot(s) of libvirt's own, which would not work after a checkpoint",
            hint=f"see `virsh snapshot-list {facts.name}`; delete them, or only their records with --metadata",
        )


def require_some_disk_left(facts: Facts, exclude: tuple[str, ...]) -> None:
    """Raises UsageError if the VM does not have a disk of `exclude`, or if no disk would be left."""
    unknown = set(exclude) - {disk.target for disk in facts.disks}
    if unknown:
        raise UsageError(
            f"{facts.name} has no disk {', '.join(sorted(unknown))} to exclude",
            hint=f"the targets of its disks: virsh domblklist {facts.name}",
        )
    disks = {disk.target for disk in facts.disks if disk.device not in ("cdrom", "floppy")}
    if disks and disks <= set(exclude):
        raise UsageError(
            f"a checkpoint of {facts.name} would have no disk: all are excluded",
            hint=f"exclude fewer; or forbid checkpoints: quiesce settings {facts.name} --type disabled",
        )


def disks_to_switch(facts: Facts, exclude: tuple[str, ...] = ()) -> tuple[Disk, ...]:
    """The disks of a checkpoint. Raises RefusedError, naming every disk that cannot be checkpointed, and UsageError as
    `require_some_disk_left`."""
    require_some_disk_left(facts, exclude)
    problems: list[str] = [f"{device}: no image has its state" for device in facts.passthrough]
    chosen = []
    for disk in facts.disks:
        if disk.device in ("cdrom", "floppy") or disk.target in exclude:
            continue
        problem = _problem(disk)
        if not problem and facts.persistent and facts.next_sources.get(disk.target) != disk.path:
            problem = "at its next start the VM will have another image; make the change permanent (--config), or undo it"
        if problem:
            problems.append(f"disk {disk.target}: {problem}")
        else:
            chosen.append(disk)
    if problems:
        raise RefusedError(
            f"{facts.name} cannot be checkpointed: " + "; ".join(problems),
            hint="--exclude leaves a disk out",
            details={"disks": problems},
        )
    if not chosen:
        raise RefusedError(f"{facts.name} has no disk to checkpoint", hint=f"virsh domblklist {facts.name}")
    return tuple(chosen)


def require_short_chains(disks: tuple[Disk, ...], chains: Chains, emit: Emit) -> None:
    """Raises RefusedError if a chain has MAX_CHAIN images or more: libvirt would refuse another overlay. Warns from LONG_CHAIN
    on."""
    for disk in disks:
        length = len(chains.chain(disk.path))
        if length >= MAX_CHAIN:
            raise RefusedError(
                f"the backing chain of disk {disk.target} has {length} images; libvirt takes no more than 200",
                hint="delete checkpoints first: quiesce tree, quiesce delete",
            )
        if length >= LONG_CHAIN:
            emit(Warned(f"the backing chain of disk {disk.target} has {length} images; reads get slower with each"))


def _problem(disk: Disk) -> str | None:
    if disk.device == "lun":
        return "it is a passed-through LUN; the host does not see what the guest writes to it"
    if disk.source_type != "file" or disk.path is None:
        return f"its source is of type {disk.source_type}; only image files can be checkpointed"
    if disk.read_only:
        return "it is read-only; make it writable, or attach it as a cdrom"
    if disk.shareable:
        return "it is shared between VMs; the other VMs would write to it during the checkpoint"
    if disk.format != "qcow2":
        return f"its format is {disk.format}; convert it to qcow2: qemu-img convert -O qcow2"
    if disk.mirrored:
        return "a block job (copy or commit) is running on it"
    return None
