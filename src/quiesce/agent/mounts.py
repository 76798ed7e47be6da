"""Finds the filesystems of this machine, what each of them is stored on, and the order in which they must be frozen."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Optional

Device = tuple[int, int]

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "glusterfs", "afs", "lustre", "gfs2", "ocfs2"})
NOT_OURS = "on the network or the host, not on this machine's disks"
ELSEWHERE = "on a network block device, not on this machine's disks"
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
WITHOUT_BLOCK_DEVICE_NUMBER = frozenset({"btrfs", "bcachefs"})
"""Filesystems on block devices whose device number is that of an anonymous device."""


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo; proc_pid_mountinfo(5)."""

    id: int
    device: Device
    mountpoint: str
    fstype: str
    source: str
    super_read_only: bool
    root_directory: str = "/"
    """The directory under which the mount's namespace is reached from the agent's, as `/proc/PID/root`."""

    @property
    def path(self) -> str:
        return self.root_directory.rstrip("/") + self.mountpoint


@dataclass(frozen=True)
class Found:
    """A superblock, and the mounts through which it can be reached."""

    mounts: tuple[Mount, ...]
    skip: Optional[str] = None
    """Why it is not frozen; None if it is."""

    @property
    def mount(self) -> Mount:
        return self.mounts[0]


def parse_mountinfo(text: str, root_directory: str = "/") -> list[Mount]:
    mounts = []
    for line in text.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        mounts.append(
            Mount(
                id=int(fields[0]),
                device=(int(major), int(minor)),
                mountpoint=_unescape(fields[4]),
                fstype=tail[0],
                source=_unescape(tail[1]),
                super_read_only="ro" in tail[2].split(","),
                root_directory=root_directory,
            )
        )
    return mounts


def classify(mounts: Iterable[Mount]) -> list[Found]:
    """One entry for each superblock that holds files, in mount order. The kernel's and memory filesystems are left out."""
    by_device: dict[Device, list[Mount]] = {}
    for mount in mounts:
        by_device.setdefault(mount.device, []).append(mount)
    found = []
    for group in by_device.values():
        mount = group[0]
        block_backed = mount.device[0] != 0 or (
            mount.fstype in WITHOUT_BLOCK_DEVICE_NUMBER and mount.source.startswith("/dev/")
        )
        skip = None
        if mount.fstype in MEMORY:
            continue
        if mount.fstype in NETWORK:
            skip = NOT_OURS
        elif mount.fstype == "overlay":
            skip = "carried by the filesystems below it"
        elif mount.fstype.startswith("fuse.") and not block_backed:
            skip = "a program's own (FUSE), not on this machine's disks"
        elif not block_backed and mount.fstype != "zfs":
            continue
        elif mount.super_read_only:
            skip = "read-only"
        found.append(Found(tuple(group), skip))
    return found


def freeze_order(found: Iterable[Found], carriers: dict[Device, frozenset[Device]]) -> list[Found]:
    """First filesystems that are stored in files of other filesystems, then the rest in reverse mount order, `/` last.

    `carriers`: for the device of a filesystem on a loop device, the devices of the filesystems that hold the loop file.
    """

    def depth(device: Device, seen: frozenset[Device] = frozenset()) -> int:
        below = carriers.get(device, frozenset()) - seen - {device}
        return 1 + max(depth(carrier, seen | {device}) for carrier in below) if below else 0

    indexed = list(enumerate(found))
    indexed.sort(key=lambda item: (-depth(item[1].mount.device), item[1].mount.mountpoint == "/", -item[0]))
    return [item for _, item in indexed]


def find_filesystems() -> list[Found]:
    """The machine's filesystems in the order in which to freeze them, with those of containers' mount namespaces."""
    mounts: list[Mount] = []
    seen_namespaces = set()
    for pid in ["1", *sorted(filter(str.isdigit, os.listdir("/proc")), key=int)]:
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen_namespaces:
                continue
            seen_namespaces.add(namespace)
            with open(f"/proc/{pid}/mountinfo", errors="surrogateescape", newline="\n") as file:
                mounts += parse_mountinfo(file.read(), "/" if pid == "1" else f"/proc/{pid}/root")
        except OSError:
            continue  # the process ended
    found = [
        replace(item, skip=ELSEWHERE) if not item.skip and on_the_network(item.mount.device) else item
        for item in classify(mounts)
    ]
    carriers = {item.mount.device: carrying_filesystems(item.mount.device) for item in found}
    return freeze_order(skip_carried_elsewhere(found, carriers), carriers)


def skip_carried_elsewhere(found: list[Found], carriers: dict[Device, frozenset[Device]]) -> list[Found]:
    """Skips filesystems that are stored in files of a filesystem that is not on this machine's disks."""
    elsewhere = {item.mount.device for item in found if item.skip in (ELSEWHERE, NOT_OURS)}
    while True:
        more = {device for device, below in carriers.items() if below & elsewhere} - elsewhere
        if not more:
            return [
                replace(item, skip=ELSEWHERE) if item.mount.device in elsewhere and not item.skip else item for item in found
            ]
        elsewhere |= more


def carrying_filesystems(device: Device, sysfs: str = "/sys") -> frozenset[Device]:
    """The filesystems that hold the files behind `device`, through partitions, device-mapper, RAID and loop devices."""
    base = os.path.realpath(f"{sysfs}/dev/block/{device[0]}:{device[1]}")
    if not os.path.isdir(base):
        return frozenset()
    result = set()
    try:
        with open(f"{base}/loop/backing_file", errors="surrogateescape", newline="\n") as file:
            backing = os.stat(file.read().rstrip("\n")).st_dev
        result.add((os.major(backing), os.minor(backing)))
    except OSError:
        pass
    below = [f"{base}/slaves/{name}/dev" for name in _listdir(f"{base}/slaves")]
    if os.path.exists(f"{base}/partition"):
        below.append(f"{os.path.dirname(base)}/dev")
    for path in below:
        try:
            with open(path) as file:
                major, _, minor = file.read().strip().partition(":")
            result |= carrying_filesystems((int(major), int(minor)), sysfs)
        except (OSError, ValueError):
            pass
    return frozenset(result)


def on_the_network(device: Device, sysfs: str = "/sys") -> bool:
    """Whether a disk below `device` comes to the guest over a network (iSCSI, NBD, RBD, NVMe over fabrics, DRBD). If so, its
    content is not in this machine's images."""
    base = os.path.realpath(f"{sysfs}/dev/block/{device[0]}:{device[1]}")
    for name in _listdir(f"{base}/slaves"):
        try:
            with open(f"{base}/slaves/{name}/dev") as file:
                major, _, minor = file.read().strip().partition(":")
            if on_the_network((int(major), int(minor)), sysfs):
                return True
        except (OSError, ValueError):
            continue  # the device is gone
    return bool(re.search(r"/session\d+/|/nvme-fabrics/|/devices/rbd/|/block/(nbd|drbd)\d+", base + "/"))


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
