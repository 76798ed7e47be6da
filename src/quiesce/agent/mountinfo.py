"""The mounts of a process, and what a block device is stored on: read from /proc and /sys, so that no filesystem is touched."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

Device = tuple[int, int]

MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
WITHOUT_BLOCK_DEVICE_NUMBER = frozenset({"btrfs", "bcachefs"})
"""Filesystems on block devices whose device number is that of an anonymous device."""
MAX_MOUNTINFO = 64 << 20
"""Most of it that is read, in characters. The kernel allows 100,000 mounts (fs.mount-max), of some 200 each."""
KERNEL = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "devpts", "securityfs", "debugfs", "tracefs", "configfs", "mqueue", "bpf"),
        *("pstore", "efivarfs", "binfmt_misc", "fusectl", "selinuxfs", "nsfs"),
    }
)
"""Filesystems that the kernel answers for."""


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


def mount_of(descriptor: int) -> int:
    """The id of the mount on which a file is that this process has open; -1 if the kernel does not tell."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        match = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    return int(match.group(1)) if match else -1


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


def read_mounts(pid: str, root_directory: str) -> list[Mount]:
    """The mounts that a process sees. Raises OSError if it ended."""
    with open(f"/proc/{pid}/mountinfo", errors="surrogateescape", newline="\n") as file:
        return parse_mountinfo(file.read(MAX_MOUNTINFO), root_directory)


def backing_files(device: Device, sysfs: str = "/sys") -> list[str]:
    """The files behind `device`, through partitions, device-mapper, RAID and loop devices."""
    base = os.path.realpath(f"{sysfs}/dev/block/{device[0]}:{device[1]}")
    if not os.path.isdir(base):
        return []
    found = []
    try:
        with open(f"{base}/loop/backing_file", errors="surrogateescape", newline="\n") as file:
            found.append(file.read().rstrip("\n"))
    except OSError:
        pass
    for below in _below(base):
        found += backing_files(below, sysfs)
    return found


def disk_names(device: Device, sysfs: str = "/sys") -> frozenset[str]:
    """Names of the disks below `device`, as `vda`, through partitions, device-mapper and RAID."""
    base = os.path.realpath(f"{sysfs}/dev/block/{device[0]}:{device[1]}")
    if not os.path.isdir(base):
        return frozenset()
    below = _below(base)
    if not below:
        return frozenset({os.path.basename(base)})
    return frozenset().union(*(disk_names(each, sysfs) for each in below))


def _below(base: str) -> list[Device]:
    """The devices that the device of this sysfs directory is stored on."""
    paths = [f"{base}/slaves/{name}/dev" for name in _listdir(f"{base}/slaves")]
    if os.path.exists(f"{base}/partition"):
        paths.append(f"{os.path.dirname(base)}/dev")
    found = []
    for path in paths:
        try:
            with open(path) as file:
                major, _, minor = file.read().strip().partition(":")
            found.append((int(major), int(minor)))
        except (OSError, ValueError):
            continue  # the device is gone
    return found


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
