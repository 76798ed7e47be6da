"""Finds the filesystems of this machine, what each of them is stored on, and the order in which they must be frozen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Optional

from quiesce.agent import looks
from quiesce.agent.mountinfo import (
    MEMORY,
    WITHOUT_BLOCK_DEVICE_NUMBER,
    Device,
    Mount,
    backing_files,
    on_the_network,
    read_mounts,
)

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "glusterfs", "afs", "lustre", "gfs2", "ocfs2"})
NOT_OURS = "on the network or the host, not on this machine's disks"
MAX_USERS, USERS_S = 400, 2.0
"""Most filesystems that are looked for in users' own namespaces, and the longest time for that, in seconds."""
ELSEWHERE = "on a network block device, not on this machine's disks"
READ_ONLY = "read-only"


@dataclass(frozen=True)
class Found:
    """A superblock, and the mounts through which it can be reached."""

    mounts: tuple[Mount, ...]
    skip: Optional[str] = None
    """Why it is not frozen; None if it is."""

    @property
    def mount(self) -> Mount:
        return self.mounts[0]


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
            skip = READ_ONLY
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
    own, users = _namespaces()
    for pid in own:
        with suppress(OSError):  # the process ended
            mounts += read_mounts(pid, "/" if pid == "1" else f"/proc/{pid}/root")
    mounts += _only_there(users, {mount.device for mount in mounts})
    found = [
        replace(item, skip=ELSEWHERE) if not item.skip and on_the_network(item.mount.device) else item
        for item in classify(mounts)
    ]
    carriers = {item.mount.device: carrying_filesystems(item.mount.device) for item in found}
    return freeze_order(skip_carried_elsewhere(found, carriers), carriers)


def _namespaces() -> tuple[list[str], list[str]]:
    """A process of each mount namespace: in the agent's user namespace, process 1 first; and in others, which anybody makes."""
    own: dict[str, str] = {}
    users: dict[str, str] = {}
    agents = os.readlink("/proc/self/ns/user")
    for pid in ["1", *sorted(filter(str.isdigit, os.listdir("/proc")), key=int)]:
        with suppress(OSError):  # it ended
            there = own if os.readlink(f"/proc/{pid}/ns/user") == agents else users
            there.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
    return list(own.values()), [pid for namespace, pid in users.items() if namespace not in own]


def _only_there(pids: list[str], known: set[Device]) -> list[Mount]:
    """One mount of each filesystem that is in users' namespaces alone, as of a container without root. A user mounts as many
    as he is allowed, but no disk: so there is an end to the search."""
    found: dict[Device, Mount] = {}
    give_up = time.monotonic() + USERS_S
    for pid in pids:
        if time.monotonic() > give_up or len(found) >= MAX_USERS:
            break
        with suppress(OSError):
            for mount in read_mounts(pid, f"/proc/{pid}/root"):
                if mount.device not in known and len(found) < MAX_USERS:
                    found.setdefault(mount.device, mount)
    return list(found.values())


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
    found = set()
    for path in backing_files(device, sysfs):
        if slow := looks.slow_mount(path):
            found.add(slow.device)
            continue
        try:
            backing = os.stat(path).st_dev
        except OSError:
            continue
        found.add((os.major(backing), os.minor(backing)))
    return frozenset(found)
