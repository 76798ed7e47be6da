"""What must be true of a VM before it is checkpointed, restored or merged. Decided from facts, before anything changes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping

from quiesce.disks.shortening_plan import STARTABLE, length
from quiesce.disks.survey import Survey
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, PowerState
from quiesce.model.errors import BusyError, RefusedError, UsageError
from quiesce.model.grades import Consistency

LONGEST_BACKING_NAME = 1023
"""In bytes; docs/interop/qcow2.rst of QEMU, backing_file_size."""
_NUMBERED = re.compile(r"/dev/(sd|vd|hd|xvd|dm-|loop|nbd|zd|rbd|nvme|md)[a-z0-9]+$")


def require_running(facts: Facts) -> None:
    """Raises RefusedError if the VM does not run."""
    if facts.power is PowerState.OFF:
        raise RefusedError(f"{facts.name} is off", hint=f"start it first: virsh start {facts.name}")
    if facts.power is PowerState.PAUSED:
        raise RefusedError(
            f"{facts.name} is paused, so its guest cannot hold its applications",
            hint=f"resume it: virsh resume {facts.name}; or accept a crash-consistent checkpoint: --require crash",
        )
    if facts.power is PowerState.PANICKED:
        raise RefusedError(
            f"the guest of {facts.name} panicked, and libvirt keeps the VM as it is (on_crash preserve)",
            hint=f"end it, when you have examined it: virsh destroy {shlex.quote(facts.name)}; then its disks can be"
            " checkpointed with --require crash",
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


def lost_bitmaps(facts: Facts, after: str) -> str | None:
    """A warning if the VM has checkpoints of libvirt's own, whose bitmaps a new overlay does not have. `after`: what makes that
    overlay. While the VM runs, libvirt takes the bitmaps over into overlays; this is for all other overlays."""
    if not facts.checkpoints:
        return None
    names = ", ".join(facts.checkpoints)
    return (
        f"after {after}, the disks of {facts.name} do not have the bitmaps of libvirt's checkpoints {names}: an incremental"
        " backup since one of them fails (missing or broken bitmap). Remove their records (virsh checkpoint-delete"
        f" {shlex.quote(facts.name)} NAME --metadata), then make a full backup"
    )


def require_some_disk_left(facts: Facts, exclude: tuple[str, ...]) -> None:
    """Raises UsageError if the VM does not have a disk of `exclude`, or if no disk would be left."""
    unknown = set(exclude) - {disk.target for disk in facts.disks}
    if unknown:
        raise UsageError(
            f"{facts.name} has no disk {', '.join(sorted(unknown))} to exclude",
            hint=f"the targets of its disks: virsh domblklist {facts.name}",
        )
    disks = {disk.target for disk in facts.disks if not disk.removable}
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
        if disk.removable or disk.target in exclude:
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


def changing_names(disks: Iterable[Disk]) -> str | None:
    """A warning if a disk is a block device under a name that the kernel gives anew at each boot: then the overlay's header may
    name another device."""
    named = [f"{disk.target} ({disk.path})" for disk in disks if disk.path and _NUMBERED.match(disk.path)]
    if not named:
        return None
    return (
        f"disk {', '.join(named)}: after the next boot of the host this may be the name of another device; name it by"
        " /dev/disk/by-id/... or /dev/VG/LV in the definition, before the next checkpoint"
    )


def require_short_chains(overlaid: Mapping[str, str], found: Survey) -> None:
    """Raises RefusedError if a chain would have more than STARTABLE images after one more overlay. `overlaid`: the images that
    get the overlay, by target. operations/shorten.py has tried to make these chains shorter, and has warned of what is in the
    way."""
    for target, path in overlaid.items():
        images = length(found, path)
        if images >= STARTABLE:
            raise RefusedError(
                f"the backing chain of disk {target} has {images} images and could not be made shorter; libvirt may not be able"
                f" to start a VM with more than {STARTABLE}",
                hint=_shortening(found, path, images + 1 - STARTABLE),
                details={"disk": target, "images": images, "limit": STARTABLE},
            )


def require_short_paths(overlaid: Mapping[str, str]) -> None:
    """Raises RefusedError if the header of an overlay could not name one of these images. `overlaid`: as above."""
    for target, path in overlaid.items():
        if (length := len(os.fsencode(path))) > LONGEST_BACKING_NAME:
            raise RefusedError(
                f"the path of disk {target} has {length} bytes, and the header of an overlay holds {LONGEST_BACKING_NAME} at"
                f" most: {path[:100]}...",
                hint="while the VM is off, move the image into a directory with a shorter path, and name it in the definition"
                " (virsh edit); or leave the disk out: --exclude",
                details={"disk": target, "bytes": length, "limit": LONGEST_BACKING_NAME},
            )


def _shortening(found: Survey, path: str, number: int) -> str:
    """What to delete so that the chain of this image gets shorter by `number` images: the oldest checkpoints in it that can be
    merged at once."""
    owners = found.owners()
    owned = [owner for image in reversed(found.chains.chain(path)[1:]) if (owner := owners.get(image))]
    single = {
        node.id: node
        for node in owned
        if not node.hidden
        and all(len(found.chains.dependents(disk.path, owners)) == 1 for disk in node.disks if owners.get(disk.path) is node)
    }
    chosen = list(single.values())[:number]
    if len(chosen) < number:
        return (
            "delete branches first, then the checkpoints that they begin at (quiesce tree); or give the VM a disk of one image:"
            " qemu-img convert, or virsh blockcopy"
        )
    names = " ".join(shlex.quote(f"{node.vm_name}@{node.name}") for node in chosen)
    return f"delete the oldest checkpoint{'s' if number > 1 else ''} that it is based on: quiesce delete {names}"


def _problem(disk: Disk) -> str | None:
    if disk.device == "lun":
        return "it is a passed-through LUN; the host does not see what the guest writes to it"
    if disk.source_type == "volume" and disk.volume:
        pool, name = disk.volume
        return f"libvirt does not tell where the volume {name} of the pool {pool} is; start the pool: virsh pool-start {pool}"
    if disk.source_type not in ("file", "block") or disk.path is None:
        return f"its source is of type {disk.source_type}; only files and block devices can be checkpointed"
    if disk.read_only:
        return "it is read-only; make it writable, or attach it as a cdrom"
    if disk.shareable:
        return "it is shared between VMs; the other VMs would write to it during the checkpoint"
    if disk.transient:
        return "it is transient: what is written is gone when the VM is off"
    if disk.encrypted:
        return "it is encrypted; its overlay would not be, and the VM would not start with it"
    if disk.sliced:
        return "its image is a part of a file (<slices>), which an overlay cannot have as its backing file"
    if disk.format not in ("qcow2", "raw"):
        return f"its format is {disk.format}; convert it to qcow2 or raw: qemu-img convert -O qcow2"
    if disk.format == "qcow2" and disk.source_type == "block":
        return (
            "its format is qcow2 on a block device, which cannot grow when a checkpoint is merged; convert it to raw, or to a"
            " qcow2 file: qemu-img convert"
        )
    if disk.mirrored:
        return "a block job (copy or commit) is running on it"
    return None
