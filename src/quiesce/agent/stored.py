"""Which disks of the machine a filesystem is stored on, with what identifies each to the host."""

from __future__ import annotations

import glob
import os
import re
from typing import Optional

from quiesce.agent.mountinfo import WITHOUT_BLOCK_DEVICE_NUMBER, Device, Mount, disk_names
from quiesce.agent.mounts import carrying_filesystems
from quiesce.model.reports import GuestDisk

SECTOR = 512
"""The unit of a disk's size in /sys, whatever the disk's own sectors are; Documentation/ABI/stable/sysfs-block."""
_LOOP = re.compile(r"loop\d+")


def stored_on(mount: Mount, mounts: dict[Device, Mount], sysfs: str = "/sys") -> Optional[tuple[GuestDisk, ...]]:
    """The disks; None if they are not known, as for ZFS. `mounts`: a mount of each filesystem, for those in files of others."""
    names = _names(mount, mounts, sysfs, frozenset())
    return tuple(guest_disk(name, sysfs) for name in sorted(names)) if names else None


def _names(mount: Mount, mounts: dict[Device, Mount], sysfs: str, seen: frozenset[Device]) -> frozenset[str]:
    found: set[str] = set()
    for device in _devices(mount, sysfs):
        found |= disk_names(device, sysfs)
        for below in carrying_filesystems(device, sysfs) - seen:
            if below in mounts:
                found |= _names(mounts[below], mounts, sysfs, seen | {mount.device, below})
    return frozenset(name for name in found if not _LOOP.match(name))


def _devices(mount: Mount, sysfs: str) -> list[Device]:
    """The block devices of a filesystem: of btrfs and bcachefs all, whose number in mountinfo is none of theirs."""
    if mount.device[0] != 0:
        return [mount.device]
    if mount.fstype not in WITHOUT_BLOCK_DEVICE_NUMBER:
        return []
    names = [os.path.basename(os.path.realpath(path)) for path in mount.source.split(":")]
    for name in list(names):
        for path in glob.glob(f"{sysfs}/fs/btrfs/*/devices/{name}"):
            names += os.listdir(os.path.dirname(path))
    found = []
    for name in dict.fromkeys(names):
        try:
            with open(f"{sysfs}/class/block/{name}/dev") as file:
                major, _, minor = file.read().strip().partition(":")
            found.append((int(major), int(minor)))
        except (OSError, ValueError):
            continue  # the device is gone
    return found


def guest_disk(name: str, sysfs: str = "/sys") -> GuestDisk:
    base = f"{sysfs}/class/block/{name}"
    sectors = _read(f"{base}/size").strip()
    # virtio-blk has it in `serial`, NVMe in `device/serial`, SCSI in page 0x80 of the vital product data, after four bytes.
    serial = _read(f"{base}/serial") or _read(f"{base}/device/serial") or _read(f"{base}/device/vpd_pg80")[4:]
    return GuestDisk(name, int(sectors or 0) * SECTOR, serial.strip().strip("\0"))


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(300)
    except OSError:
        return ""
