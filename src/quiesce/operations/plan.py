"""What can be checkpointed, and what cannot and why: decided from facts, before anything is touched."""

from __future__ import annotations

from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import BusyError, RefusedError
from quiesce.model.events import Emit, Warned
from quiesce.model.tree import Tree

MAX_CHAIN = 190
"""libvirt itself stops at 200 images in a chain (notes/libvirt-qemu.md 1.2)."""
LONG_CHAIN = 30


def require_running(facts: Facts) -> None:
    """Raises RefusedError for a VM whose guest cannot be asked."""
    if facts.power is PowerState.OFF:
        raise RefusedError(f"{facts.name} is off", hint=f"start it first: virsh start {facts.name}")
    if facts.power is PowerState.PAUSED:
        raise RefusedError(
            f"{facts.name} is paused; its guest cannot be asked to come to rest", hint=f"virsh resume {facts.name}"
        )
    if facts.power is not PowerState.RUNNING:
        raise RefusedError(f"{facts.name} is neither running nor off", hint=f"virsh domstate {facts.name}")


def require_nothing_in_the_way(facts: Facts) -> None:
    """Raises RefusedError, BusyError for what libvirt itself is doing with the VM or keeps of it."""
    if facts.job:
        raise BusyError(f"{facts.name} has {facts.job} running", hint="wait for it to end: virsh domjobinfo, virsh blockjob")
    if facts.snapshots:
        raise RefusedError(
            f"{facts.name} has {facts.snapshots} snapshot(s) of libvirt's own, which would break with ours",
            hint=f"see `virsh snapshot-list {facts.name}`; delete them, or only their records with --metadata",
        )


def disks_to_switch(facts: Facts) -> tuple[Disk, ...]:
    """The disks a checkpoint consists of. Raises RefusedError naming every disk that cannot take part."""
    problems: list[str] = [f"{device}: its state is outside any image" for device in facts.passthrough]
    chosen = []
    for disk in facts.disks:
        if disk.device in ("cdrom", "floppy"):
            continue
        problem = _problem(disk)
        if not problem and facts.persistent and facts.next_sources.get(disk.target) != disk.path:
            problem = "it is not the disk the VM will have when it is started next; make the change permanent, or undo it"
        if problem:
            problems.append(f"disk {disk.target}: {problem}")
        else:
            chosen.append(disk)
    if problems:
        raise RefusedError(f"{facts.name} cannot be checkpointed: " + "; ".join(problems), details={"disks": problems})
    if not chosen:
        raise RefusedError(f"{facts.name} has no disk to checkpoint")
    return tuple(chosen)


def require_known_chain(disks: tuple[Disk, ...], tree: Tree, emit: Emit) -> None:
    """Raises RefusedError if the VM's disks do not lie on the checkpoint they should: somebody changed the chain."""
    parent = tree.get(tree.head_parent)
    if parent and parent.id in tree.deleting:
        raise RefusedError(
            f"the deletion of {parent.name!r}, on which the VM stands, was interrupted",
            hint=f"finish it: quiesce delete {parent.vm_name}@{parent.name}",
        )
    for disk in disks:
        base = parent.image(disk.target) if parent else None
        if parent and base and (not disk.chain or disk.chain[0] != base.path):
            raise RefusedError(
                f"somebody changed the chain of disk {disk.target}: checkpoint {parent.name!r} has it based on {base.path}",
                hint="virsh domblklist and virsh dumpxml show the chain as it is",
            )
        if len(disk.chain) >= MAX_CHAIN:
            raise RefusedError(f"disk {disk.target} has a chain of {len(disk.chain)} images; delete checkpoints first")
        if len(disk.chain) >= LONG_CHAIN:
            emit(Warned(f"disk {disk.target} has a chain of {len(disk.chain)} images; reads slow down with its length"))


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
