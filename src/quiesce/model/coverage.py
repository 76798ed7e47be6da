"""Which files of a guest are in its checkpoint: the disks that the guest uses, compared with those of the checkpoint. Pure.

Examples. A tablespace is on vdb, and the checkpoint leaves vdb out: the cluster in it is not whole, so the writer held it for
nothing. A volume group spans vda and vdb: its filesystem is not whole. A database is on an NVMe drive that was passed through:
libvirt lists no such disk, so no checkpoint has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quiesce.model.grades import Grade
from quiesce.model.reports import Filesystem, FreezeState, GuestDisk, WriterReport

SERIAL_LENGTH = 20
"""How much of a serial a guest sees, in characters; VIRTIO_BLK_ID_BYTES of linux/virtio_blk.h, the shortest of the buses."""
SECTOR = 512


@dataclass(frozen=True)
class HostDisk:
    """A disk of the VM, as libvirt lists it."""

    target: str
    size: int
    """In bytes."""
    serial: str
    """Empty if the VM's definition gives it none."""
    included: bool
    """Whether the checkpoint has it."""


def why_absent(disk: GuestDisk, listed: Sequence[HostDisk]) -> str:
    """Why a disk of the guest is not known to be in the checkpoint; the empty string if it is.

    A guest's names are not libvirt's: its `vdb` may be libvirt's `vdc`. So a disk is recognised by its serial, or else by its
    size.
    """
    same = [each for each in listed if each.serial and each.serial[:SERIAL_LENGTH] == disk.serial[:SERIAL_LENGTH]]
    if not same:
        unknown = (each for each in listed if not each.serial or not disk.serial)
        same = [each for each in unknown if -(-each.size // SECTOR) == -(-disk.size // SECTOR)]
    if not same:
        return f"disk {disk.name} of the guest, which libvirt does not list"
    absent = [each.target for each in same if not each.included]
    if not absent:
        return ""
    if len(absent) == len(same):
        return f"disk {', '.join(absent)}, which is left out"
    return (
        f"disk {disk.name} of the guest, which may be {', '.join(absent)}, which is left out"
        " (give the VM's disks a <serial> to tell them apart)"
    )


def not_whole(filesystems: Sequence[Filesystem], listed: Sequence[HostDisk]) -> dict[str, str]:
    """By mount point, the filesystems that are not, or not as a whole, in the checkpoint, and why. A filesystem whose disks the
    guest does not know counts as whole."""
    found = {}
    for each in filesystems:
        if each.state is FreezeState.SKIPPED:
            continue  # it is not frozen either, so its applications are *crash* already; it may be a CD
        absent = [why for disk in each.disks or () if (why := why_absent(disk, listed))]
        if absent:
            found[each.mountpoint] = f"on {' and on '.join(absent)}"
    return found


def broken(filesystems: Sequence[Filesystem], listed: Sequence[HostDisk]) -> list[str]:
    """Mount points of filesystems of which the checkpoint has only a part. Nothing in them can be restored from it."""
    return [
        each.mountpoint
        for each in filesystems
        if each.disks
        and each.state is not FreezeState.SKIPPED
        and 0 < sum(bool(why_absent(disk, listed)) for disk in each.disks) < len(each.disks)
    ]


def covered(writers: Sequence[WriterReport], absent: dict[str, str]) -> tuple[WriterReport, ...]:
    """The reports, with *crash* for each application of whose files the checkpoint does not have all. `absent`: what
    `not_whole` returned."""
    return tuple(_covered(writer, absent) for writer in writers)


def _covered(writer: WriterReport, absent: dict[str, str]) -> WriterReport:
    lost = [f"{mountpoint} is {absent[mountpoint]}" for mountpoint in writer.filesystems or () if mountpoint in absent]
    if not lost or writer.stateless or not writer.grade.vouched:
        return writer
    return replace(writer, grade=Grade.CRASH, reason=f"the checkpoint does not have all its files: {'; '.join(lost)}")
