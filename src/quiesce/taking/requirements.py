"""What must be true of a VM before it is checkpointed, restored or merged: decided from facts, before anything is touched."""

from __future__ import annotations

from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.chains import Chains
from quiesce.model.errors import BusyError, RefusedError, UsageError
from quiesce.model.events import Emit, Warned
from quiesce.model.grades import Consistency

MAX_CHAIN = 190
"""libvirt itself stops at 200 images in a chain (VIR_DOMAIN_STORAGE_CHAIN_MAX in src/conf/storage_source_conf.c)."""
LONG_CHAIN = 30


def require_running(facts: Facts) -> None:
    """Raises RefusedError for a VM that does not run."""
    if facts.power is PowerState.OFF:
        raise RefusedError(f"{facts.name} is off", hint=f"start it first: virsh start {facts.name}")
    if facts.power is PowerState.PAUSED:
        raise RefusedError(
            f"{facts.name} is paused; its guest cannot be asked to come to rest",
            hint=f"virsh resume {facts.name}, or --require crash",
        )
    if facts.power is not PowerState.RUNNING:
        raise RefusedError(f"{facts.name} is neither running nor off", hint=f"virsh domstate {facts.name}")


def require_answering(facts: Facts, required: Consistency) -> None:
    """Raises RefusedError for a VM whose guest cannot be asked, unless nobody wants to ask it."""
    if not (facts.power is PowerState.PAUSED and required is Consistency.CRASH):
        require_running(facts)


def require_no_saved_memory(facts: Facts) -> None:
    if facts.managed_save:
        raise RefusedError(
            f"{facts.name} has a saved memory image, which does not fit other disks than it was saved with",
            hint=f"start it, or drop the saved memory: virsh managedsave-remove {facts.name}",
        )


def require_persistent(facts: Facts) -> None:
    if not facts.persistent:
        raise RefusedError(f"{facts.name} is transient: libvirt forgets it when it stops", hint="virsh define it first")


def require_nothing_in_the_way(facts: Facts) -> None:
    """Raises RefusedError, BusyError for what libvirt itself is doing with the VM or keeps of it."""
    if facts.job:
        raise BusyError(f"{facts.name} has {facts.job} running", hint="wait for it to end: virsh domjobinfo, virsh blockjob")
    if facts.snapshots:
        raise RefusedError(
            f"{facts.name} has {facts.snapshots} snapshot(s) of libvirt's own, which would break with ours",
            hint=f"see `virsh snapshot-list {facts.name}`; delete them, or only their records with --metadata",
        )


def require_some_disk_left(facts: Facts, exclude: tuple[str, ...]) -> None:
    """Raises UsageError if a disk to exclude is none of the VM's, or if no disk would be left."""
    unknown = set(exclude) - {disk.target for disk in facts.disks}
    if unknown:
        raise UsageError(
            f"{facts.name} has no disk {', '.join(sorted(unknown))} to exclude", hint=f"virsh domblklist {facts.name}"
        )
    disks = {disk.target for disk in facts.disks if disk.device not in ("cdrom", "floppy")}
    if disks and disks <= set(exclude):
        raise UsageError(f"nothing of {facts.name} would be left to checkpoint", hint="--type disabled forbids checkpoints")


def disks_to_switch(facts: Facts, exclude: tuple[str, ...] = ()) -> tuple[Disk, ...]:
    """The disks a checkpoint consists of. Raises RefusedError naming every disk that cannot take part, UsageError as
    `require_some_disk_left` does."""
    require_some_disk_left(facts, exclude)
    problems: list[str] = [f"{device}: its state is outside any image" for device in facts.passthrough]
    chosen = []
    for disk in facts.disks:
        if disk.device in ("cdrom", "floppy") or disk.target in exclude:
            continue
        problem = _problem(disk)
        if not problem and facts.persistent and facts.next_sources.get(disk.target) != disk.path:
            problem = "it is not the disk the VM will have when it is started next; make the change permanent, or undo it"
        if problem:
            problems.append(f"disk {disk.target}: {problem}")
        else:
            chosen.append(disk)
    if problems:
        raise RefusedError(
            f"{facts.name} cannot be checkpointed: " + "; ".join(problems),
            hint="a disk can be left out with --exclude",
            details={"disks": problems},
        )
    if not chosen:
        raise RefusedError(f"{facts.name} has no disk to checkpoint")
    return tuple(chosen)


def require_short_chains(disks: tuple[Disk, ...], chains: Chains, emit: Emit) -> None:
    """Raises RefusedError for a chain that libvirt would not take another image on."""
    for disk in disks:
        length = len(chains.chain(disk.path))
        if length >= MAX_CHAIN:
            raise RefusedError(f"disk {disk.target} has a chain of {length} images; delete checkpoints first")
        if length >= LONG_CHAIN:
            emit(Warned(f"disk {disk.target} has a chain of {length} images; reads slow down with its length"))


def _problem(disk: Disk) -> str | None:
    if disk.device == "lun":
        return "a passed-through LUN; the host does not see what is written to it"
    if disk.source_type != "file" or disk.path is None:
        return f"its source is of type {disk.source_type}; only image files can be checkpointed"
    if disk.read_only:
        return "it is read-only; make it writable, or attach it as a cdrom"
    if disk.shareable:
        return "it is shared between VMs; a checkpoint of one of them would be torn"
    if disk.format != "qcow2":
        return f"its format is {disk.format}; convert it: qemu-img convert -O qcow2"
    if disk.mirrored:
        return "a block job (copy or commit) is running on it"
    return None
