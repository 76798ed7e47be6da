"""Finds the filesystems of this machine, and freezes them in stacking order.

What is frozen is a superblock, once, however often and wherever it is mounted; so EBUSY always means that somebody else
froze it, which is an error: we could not know when they thaw.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Optional

from quiesce.agent import linux
from quiesce.agent.deadman import RCU_EXPEDITED, DeadMan
from quiesce.model.reports import Filesystem, FreezeState

Device = tuple[int, int]

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "glusterfs", "afs", "lustre", "gfs2", "ocfs2"})
NOT_OURS = "on the network or the host, not on this machine's disks"
ELSEWHERE = "on a network block device, not on this machine's disks"
HIDDEN = "hidden below another mount; cannot be reached"
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
WITHOUT_BLOCK_DEVICE_NUMBER = frozenset({"btrfs", "bcachefs"})
"""Live on block devices, but number themselves as anonymous devices."""


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
    """Where the mount's namespace can be reached from ours."""

    @property
    def path(self) -> str:
        return self.root_directory.rstrip("/") + self.mountpoint


@dataclass(frozen=True)
class Found:
    """A superblock and the mounts by which it can be reached."""

    mounts: tuple[Mount, ...]
    skip: Optional[str] = None
    """Why there is nothing to freeze, if so."""

    @property
    def mount(self) -> Mount:
        return self.mounts[0]


class FreezeError(Exception):
    """A filesystem could not be frozen. Those frozen before it were thawed again."""


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
    """One entry a superblock that holds somebody's files, in mount order; kernel and memory filesystems are left out."""
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
    """Filesystems in files of others first, then in reverse mount order, `/` last.

    `carriers`: for the device of a filesystem in a loop device, the devices of the filesystems its file is on.
    """

    def depth(device: Device, seen: frozenset[Device] = frozenset()) -> int:
        below = carriers.get(device, frozenset()) - seen - {device}
        return 1 + max(depth(carrier, seen | {device}) for carrier in below) if below else 0

    indexed = list(enumerate(found))
    indexed.sort(key=lambda item: (-depth(item[1].mount.device), item[1].mount.mountpoint == "/", -item[0]))
    return [item for _, item in indexed]


def discover() -> list[Found]:
    """The machine's filesystems in the order to freeze them, those of containers' mount namespaces included."""
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
    """Filesystems in files of one that is not on this machine's disks are not there either."""
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
    """Whether a disk below `device` comes to the guest over a network (iSCSI, NBD, RBD, NVMe over fabrics, DRBD): what is
    on it is not in the images of this machine."""
    base = os.path.realpath(f"{sysfs}/dev/block/{device[0]}:{device[1]}")
    for name in _listdir(f"{base}/slaves"):
        try:
            with open(f"{base}/slaves/{name}/dev") as file:
                major, _, minor = file.read().strip().partition(":")
            if on_the_network((int(major), int(minor)), sysfs):
                return True
        except (OSError, ValueError):
            continue  # it is gone
    return bool(re.search(r"/session\d+/|/nvme-fabrics/|/devices/rbd/|/block/(nbd|drbd)\d+", base + "/"))


def inventory() -> tuple[Filesystem, ...]:
    """What a freeze would do with each filesystem, without touching any."""
    return tuple(_report(item, FreezeState.SKIPPED if item.skip else FreezeState.FREEZABLE, item.skip) for item in discover())


class Freezer:
    """Freezes and thaws the filesystems found when it was made. Holds a descriptor on each until `close`."""

    def __init__(self) -> None:
        self._mounts = _MountWatch()  # before looking, so that no mount falls in between
        self._items: list[_Item] = []
        for found in discover():
            item = _Item(found, FreezeState.SKIPPED if found.skip else FreezeState.FREEZABLE, found.skip)
            if not found.skip:
                item.descriptor = _open(found)
                if item.descriptor is None:
                    item.state, item.reason = FreezeState.SKIPPED, HIDDEN
            self._items.append(item)
        self._freezable = [item for item in self._items if item.descriptor is not None]
        self._rcu_previous: Optional[int] = None

    @property
    def descriptors(self) -> list[int]:
        return [item.descriptor for item in self._freezable if item.descriptor is not None]

    @property
    def frozen(self) -> bool:
        return any(item.state is FreezeState.FROZEN for item in self._freezable)

    def report(self) -> tuple[Filesystem, ...]:
        return tuple(_report(item.found, item.state, item.reason, item.freeze_us) for item in self._items)

    def flush(self) -> None:
        """Writes out dirty pages while the applications run: once for the mass, once for what came meanwhile."""
        for _ in range(2):
            for descriptor in self.descriptors:
                linux.syncfs(descriptor)

    def freeze(self, deadline_ns: int, deadman: DeadMan) -> None:
        """Freezes all. Raises FreezeError, after thawing what it froze, if one is refused or the deadline passes."""
        appeared = self._appeared()
        if appeared:
            raise FreezeError(f"{appeared} was mounted since the preparation; try again")
        hidden = next((item.found.mount.mountpoint for item in self._items if item.reason == HIDDEN), "")
        if hidden:
            raise FreezeError(f"{hidden} is hidden below another mount and cannot be frozen; unmount it")
        self._expedite_rcu(deadman)
        try:
            for index, item in enumerate(self._freezable):
                if time.monotonic_ns() >= deadline_ns:
                    raise FreezeError(f"the deadline passed before {item.found.mount.mountpoint} was frozen")
                self._freeze_one(index, item, deadman)
        except FreezeError:
            self.thaw(deadman)
            raise

    def thaw(self, deadman: DeadMan) -> bool:
        """Thaws what `freeze` froze, `/` first. False if one of them was no longer frozen: somebody else thawed it.

        Never raises; what cannot be thawed is left to the dead-man.
        """
        unbroken = True
        for index, item in reversed(list(enumerate(self._freezable))):
            if item.state is not FreezeState.FROZEN or item.descriptor is None:
                continue
            try:
                fcntl.ioctl(item.descriptor, linux.FITHAW, 0)
            except OSError as error:
                unbroken = False
                if error.errno != errno.EINVAL:  # EINVAL: not frozen, so somebody else thawed it
                    continue
            item.state = FreezeState.THAWED
            _ignoring_death(deadman.thawed, index)
        self._unexpedite_rcu(deadman)
        return unbroken and not self._appeared()

    def why_not_frozen(self, paths: Iterable[str]) -> str:
        """Why files below one of these paths are not held still by a freeze, or the empty string."""
        sure = {FreezeState.FREEZABLE, FreezeState.FROZEN, FreezeState.THAWED}
        states = {mount.id: item for item in self._items for mount in item.found.mounts}
        for path in paths:
            try:
                mount = _mount_id(path)
            except OSError as error:
                return f"its files in {path} cannot be reached: {error.strerror}"
            item = states.get(mount)
            if item is None or item.state not in sure:
                return f"its files in {path} are on a filesystem that is not frozen" + (f": {item.reason}" if item else "")
        return ""

    def _appeared(self) -> str:
        """A filesystem with files of its own that is mounted now and was not when this was made, or the empty string."""
        if not self._mounts.changed():
            return ""
        known = {item.found.mount.device for item in self._items if not item.found.skip}
        return next((item.mount.mountpoint for item in discover() if not item.skip and item.mount.device not in known), "")

    def close(self) -> None:
        self._mounts.close()
        for item in self._freezable:
            if item.descriptor is not None:
                os.close(item.descriptor)
                item.descriptor = None
        self._freezable = []

    def _freeze_one(self, index: int, item: _Item, deadman: DeadMan) -> None:
        assert item.descriptor is not None  # the freezable ones have one
        mountpoint = item.found.mount.mountpoint
        started = time.monotonic_ns()
        try:
            deadman.freezing(index)
            fcntl.ioctl(item.descriptor, linux.FIFREEZE, 0)
        except OSError as error:
            deadman.not_ours(index)
            if error.errno == errno.EBUSY:
                raise FreezeError(f"{mountpoint} is already frozen by somebody else") from None
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise FreezeError(f"{mountpoint} cannot be frozen: {error.strerror}") from None
            linux.syncfs(item.descriptor)
            item.state = FreezeState.FLUSHED
            item.reason = f"{item.found.mount.fstype} cannot be frozen; it was flushed"
        except Exception as error:  # noqa: BLE001 - a dead dead-man: no window without it
            raise FreezeError(f"the dead-man: {error}") from None
        else:
            item.state = FreezeState.FROZEN
        item.freeze_us = (time.monotonic_ns() - started) // 1000

    def _expedite_rcu(self, deadman: DeadMan) -> None:
        """FIFREEZE waits for three RCU grace periods, 60 ms of 85 where it was measured; expedited, 12 to 17 ms."""
        try:
            with open(RCU_EXPEDITED, "r+") as file:
                previous = int(file.read())
                _ignoring_death(deadman.rcu_set, previous)
                file.seek(0)
                file.write("1")
            self._rcu_previous = previous
        except (OSError, ValueError):
            pass  # a kernel without it freezes more slowly

    def _unexpedite_rcu(self, deadman: DeadMan) -> None:
        if self._rcu_previous is None:
            return
        try:
            with open(RCU_EXPEDITED, "w") as file:
                file.write(str(self._rcu_previous))
        except OSError:
            return
        self._rcu_previous = None
        _ignoring_death(deadman.rcu_back)


@dataclass
class _Item:
    found: Found
    state: FreezeState
    reason: Optional[str] = None
    descriptor: Optional[int] = None
    freeze_us: Optional[int] = None


def _open(found: Found) -> Optional[int]:
    """A descriptor that is surely on this superblock: the path of a mount below another one leads elsewhere."""
    for mount in found.mounts:
        try:
            descriptor = os.open(mount.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        if _mount_of(descriptor) == mount.id:
            return descriptor
        os.close(descriptor)
    return None


def _mount_id(path: str) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _mount_of(descriptor)
    finally:
        os.close(descriptor)


def _mount_of(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        match = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    return int(match.group(1)) if match else -1


class _MountWatch:
    """Tells whether anything was mounted or unmounted since it was last asked; proc(5), mountinfo and poll."""

    def __init__(self) -> None:
        self._file = open("/proc/self/mountinfo", "rb")  # noqa: SIM115 - kept until close
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self.changed()

    def changed(self) -> bool:
        return bool(self._poll.poll(0))

    def close(self) -> None:
        self._file.close()


def _report(found: Found, state: FreezeState, reason: Optional[str], freeze_us: Optional[int] = None) -> Filesystem:
    mount = found.mount
    return Filesystem(_sayable(mount.path), mount.fstype, _sayable(mount.source), state, reason, freeze_us)


def _sayable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")[:1000]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _ignoring_death(tell: object, *arguments: int) -> None:
    """Going on without the dead-man is right only on the way out of the window."""
    try:
        tell(*arguments)  # type: ignore[operator]
    except Exception:  # noqa: BLE001
        pass
