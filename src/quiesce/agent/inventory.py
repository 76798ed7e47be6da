"""The filesystems of this machine, as they are reported: what a freeze would do with each, its disks, whose files are on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Optional

from quiesce.agent import looks
from quiesce.agent.mountinfo import Device, mount_of
from quiesce.agent.mounts import Found, find_filesystems
from quiesce.agent.stored import stored_on
from quiesce.model.reports import Filesystem, FreezeState, GuestDisk

ABSENT = ".quiesce-no-such-file"


class FilesystemList:
    """What a freeze would do with each filesystem. Changes none."""

    def __init__(self) -> None:
        self._found = find_filesystems()
        disks = disks_of(self._found)
        listed = []
        for item in self._found:
            state = FreezeState.SKIPPED if item.skip else FreezeState.FREEZABLE
            report = report_of(item, state, noted_skip(item) or why_stuck(item) or None)
            listed.append(replace(report, disks=disks.get(item.mount.device)))
        self.report: tuple[Filesystem, ...] = tuple(listed)
        """A filesystem that can be frozen and has a reason nevertheless stands in the way of every checkpoint."""

    def mount_points(self, paths: Iterable[str]) -> tuple[str, ...]:
        """As the function of this name."""
        return mount_points(self._found, paths)

    def why_unwritable(self, paths: Iterable[str]) -> str:
        """Why an application with these directories cannot write at present; the empty string if nothing is known to stand in
        its way."""
        stuck = {each.mountpoint: each.reason for each in self.report if each.state is FreezeState.FREEZABLE and each.reason}
        there = self.mount_points(paths) if stuck else ()
        return next((reason for name in there if (reason := stuck.get(name))), "")


def mount_points(listed: Sequence[Found], paths: Iterable[str]) -> tuple[str, ...]:
    """The filesystems that have these paths, each by the mount point that is reported of it. A filesystem may be mounted more
    than once, as a subvolume is: the path need not be below that mount point. Paths that cannot be reached are left out."""
    known = {mount.id: sayable(found.mount.path) for found in listed for mount in found.mounts}
    there = {}
    for path in paths:
        try:
            name = known.get(mount_id(path))
        except OSError:
            continue
        if name:
            there[name] = True
    return tuple(there)


def disks_of(listed: Sequence[Found]) -> dict[Device, tuple[GuestDisk, ...]]:
    """The disks of each filesystem that has any."""
    mounts = {found.mount.device: found.mount for found in listed}
    disks = {device: stored_on(mount, mounts) for device, mount in mounts.items()}
    return {device: found for device, found in disks.items() if found}


def open_mounted(found: Found) -> Optional[int]:
    """A descriptor that is checked to be on this superblock: a path may lead to another mount on top of it."""
    for mount in found.mounts:
        try:
            looks.at(mount.path, os.stat, mount.path)
            descriptor = os.open(mount.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        if mount_of(descriptor) == mount.id:
            return descriptor
        os.close(descriptor)
    return None


def why_stuck(found: Found) -> str:
    """Why nobody can write to a filesystem that is to be frozen; the empty string if somebody can.

    Tried by removing a file that does not exist: the kernel waits for the end of a freeze before it looks for the file
    (mnt_want_write in do_unlinkat of fs/namei.c), and then changes nothing.
    """
    if found.skip:
        return ""
    answered, _ = looks.apart(lambda: _remove_nothing(found))
    if answered:
        return ""
    where = sayable(found.mount.mountpoint)
    return f"nobody can write to {where}: somebody has frozen it (fsfreeze --unfreeze {where}), or its disk does not answer"


def _remove_nothing(found: Found) -> None:
    descriptor = open_mounted(found)
    if descriptor is not None:
        os.unlink(ABSENT, dir_fd=descriptor)


def noted_skip(found: Found) -> Optional[str]:
    """Why a filesystem is not frozen, and whether it answers."""
    try:
        if found.skip:
            looks.at(found.mount.path, os.statvfs, found.mount.path)
    except looks.NotAnsweringError:
        return f"{found.skip}; it does not answer"
    except OSError:
        pass
    return found.skip


def mount_id(path: str) -> int:
    looks.at(path, os.stat, path)
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_of(descriptor)
    finally:
        os.close(descriptor)


def report_of(found: Found, state: FreezeState, reason: Optional[str], freeze_us: Optional[int] = None) -> Filesystem:
    mount = found.mount
    return Filesystem(sayable(mount.path), mount.fstype, sayable(mount.source), state, reason, freeze_us)


def sayable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")[:1000]
