"""Reads every inode and every directory of this machine's own filesystems, so that the kernel meets what is damaged there.

No file is opened: what is in files, where their extents are kept, and their attributes are not read. Nothing is written, not
even a time of access. To be used in a copy of a checkpoint: it takes the disks' time."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from quiesce.agent import looks
from quiesce.agent.inventory import open_mounted, sayable
from quiesce.agent.mountinfo import Mount, mount_of, read_mounts
from quiesce.agent.mounts import READ_ONLY, Found, find_filesystems

MAX_INODES = 100_000_000
MAX_DEPTH = 200
"""Directories in each other that are read. Each takes two descriptors and a buffer of 32 KiB; a service may have 1,024."""
MAX_NAMED = 20
"""After so many damaged ones the search ends."""
MAX_UNREAD = 4
MARGIN_S = 2.0
"""So much sooner than it must answer the search ends, in seconds; at most a tenth of its time."""
_DAMAGE = frozenset({errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.ENODATA, errno.ELOOP})
"""A wrong structure, a wrong checksum, a disk that does not give the block, a directory in itself."""
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR})
"""Removed or exchanged since it was listed: services run."""
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""Has nothing mounted, as a directory of autofs does when it is opened."""


@dataclass(frozen=True)
class InodesRead:
    """What came of it."""

    inodes: int
    filesystems: int
    damaged: tuple[str, ...]
    """Path, and what the kernel answered."""
    unread: tuple[str, ...]
    """What was not read, and why."""
    named: tuple[str, ...] = ()
    """Path of each inode that was asked for, with its number."""


def read_inodes(
    until_ns: int, filesystems: Optional[Iterable[Found]] = None, wanted: frozenset[tuple[str, int]] = frozenset()
) -> InodesRead:
    """Of these filesystems, or of all that are on the machine's disks and mounted, `/` last. Ends by `until_ns`,
    CLOCK_MONOTONIC: what was not read by then is told. What is hidden below another mount is not read. Never raises OSError.
    `wanted`: inodes that are to be named, by the device's name (`vda`) and their number.

    A child process does it, so that nobody waits for a filesystem that a user mounts meanwhile and that never answers."""
    left_s = max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
    own_ns = until_ns - int(min(MARGIN_S, left_s / 10) * 1e9)
    answered, found = looks.apart(lambda: _read_all(own_ns, filesystems, wanted), left_s)
    if isinstance(found, InodesRead):
        return found
    why = f"{found}" if answered else "a filesystem does not answer"
    return InodesRead(0, 0, (), (f"the inodes were not read: {why}",))


def _read_all(until_ns: int, filesystems: Optional[Iterable[Found]], wanted: frozenset[tuple[str, int]]) -> InodesRead:
    reader = _Reader(until_ns, wanted)
    found = [each for each in (find_filesystems() if filesystems is None else filesystems) if _ours(each)]
    for each in found:
        if not reader.over:
            reader.read(each)
    if reader.over:
        reader.unread.append(f"{reader.over} after {reader.inodes:,} inodes; the others were not read")
    return InodesRead(reader.inodes, len(found), tuple(reader.damaged), tuple(reader.unread), tuple(reader.named))


def _ours(found: Found) -> bool:
    return found.skip in (None, READ_ONLY) and not found.mount.fstype.startswith("fuse")


class _Directory:
    """One that is being read."""

    def __init__(self, descriptor: int, name: str, device: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.device = device
        try:
            self.entries = os.scandir(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def close(self) -> None:
        self.entries.close()
        os.close(self.descriptor)


class _Reader:
    def __init__(self, until_ns: int, wanted: frozenset[tuple[str, int]]) -> None:
        self.inodes = 0
        self.named: list[str] = []
        self.damaged: list[str] = []
        self.unread: list[str] = []
        self.over = ""
        """Why nothing more is to be read."""
        self._until_ns = until_ns
        self._wanted = wanted
        self._numbers: frozenset[int] = frozenset()
        """Those of the filesystem that is being read."""
        self._mounted: frozenset[str] = frozenset()
        """Names under which something is mounted in the directories that are read."""
        self._trees: set[int] = set()
        """Device numbers, as stat has them, of what was read: each subvolume of btrfs has one of its own."""

    def read(self, found: Found) -> None:
        """A filesystem may be mounted often: each of its trees is read once."""
        device_name = _device_name(found.mount)
        self._numbers = frozenset(number for name, number in self._wanted if name == device_name)
        reached = False
        for mount in found.mounts:
            descriptor = open_mounted(Found((mount,)))
            if descriptor is None:
                continue
            reached = True
            try:
                device = os.fstat(descriptor).st_dev
                if device not in self._trees:
                    self._trees.add(device)
                    self._mounted = _names_of_mounts(mount.root_directory)
                    self._walk(_Directory(os.open(".", _READ, dir_fd=descriptor), "", device), mount)
            except OSError as error:
                self._met(error, mount, ())
            finally:
                os.close(descriptor)
            if self.over:
                return
        if not reached:
            self._leave_out(f"{sayable(found.mount.path)}: it cannot be reached")

    def _walk(self, top: _Directory, mount: Mount) -> None:
        stack = [top]
        try:
            while stack and not self._is_over():
                entry = self._next(stack, mount)
                if entry is None:
                    stack.pop().close()
                    continue
                try:
                    below = self._look(entry, stack, mount)
                except OSError as error:
                    self._met(error, mount, (*(each.name for each in stack[1:]), entry.name))
                else:
                    stack += [below] if below else []
        finally:
            for directory in stack:
                directory.close()

    def _next(self, stack: Sequence[_Directory], mount: Mount) -> Optional[os.DirEntry[str]]:
        """None at the end of the last directory, or where it cannot be read."""
        try:
            return next(stack[-1].entries, None)
        except OSError as error:
            self._met(error, mount, [each.name for each in stack[1:]])
            return None

    def _look(self, entry: os.DirEntry[str], stack: Sequence[_Directory], mount: Mount) -> Optional[_Directory]:
        """The directory that is to be read next; None if the entry is none, or another filesystem is mounted there."""
        above = stack[-1]
        if entry.name in self._mounted and not _is_on(mount, entry.name, above):
            return None  # not asked for its status: its filesystem may not answer
        found = entry.stat(follow_symlinks=False)
        self.inodes += 1
        if found.st_ino in self._numbers and len(self.named) < MAX_NAMED:
            self.named.append(f"{_path(mount, [*(each.name for each in stack[1:]), entry.name])} is inode #{found.st_ino}")
        if not stat.S_ISDIR(found.st_mode):
            return None
        if found.st_dev != above.device and not self._is_subvolume(entry.name, found.st_dev, above, mount):
            return None
        if len(stack) >= MAX_DEPTH:
            self._leave_out(
                f"{_path(mount, [each.name for each in stack[1:]])}: more than {MAX_DEPTH} directories in each other"
            )
            return None
        below = _Directory(os.open(entry.name, _READ, dir_fd=above.descriptor), entry.name, found.st_dev)
        opened = os.fstat(below.descriptor)
        if (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino):
            return below
        below.close()  # something was mounted there just now
        return None

    def _is_subvolume(self, name: str, device: int, above: _Directory, mount: Mount) -> bool:
        """Whether it is another tree of the same filesystem, and was not read."""
        if device in self._trees or not _is_on(mount, name, above):
            return False
        self._trees.add(device)
        return True

    def _is_over(self) -> bool:
        if len(self.damaged) >= MAX_NAMED:
            self.over = f"{MAX_NAMED} are damaged; the search ended"
        elif self.inodes >= MAX_INODES:
            self.over = "there are more than are looked at: it ended"
        elif time.monotonic_ns() >= self._until_ns:
            self.over = "the time was over"
        return bool(self.over)

    def _met(self, error: OSError, mount: Mount, names: Sequence[str]) -> None:
        text = f"{_path(mount, names)}: {os.strerror(error.errno or 0)}"
        if error.errno in _DAMAGE:
            self.damaged.append(text)
        elif error.errno not in _GONE:
            self._leave_out(text)

    def _leave_out(self, text: str) -> None:
        if len(self.unread) < MAX_UNREAD:
            self.unread.append(text)


def _is_on(mount: Mount, name: str, above: _Directory) -> bool:
    descriptor = os.open(name, _LOOK, dir_fd=above.descriptor)
    try:
        return mount_of(descriptor) == mount.id
    finally:
        os.close(descriptor)


def _device_name(mount: Mount) -> str:
    """As the kernel's log has it."""
    return os.path.basename(os.path.realpath("/sys/dev/block/{}:{}".format(*mount.device)))


def _names_of_mounts(root_directory: str) -> frozenset[str]:
    """The last parts of all mount points that are reached from there."""
    pid = "self" if root_directory == "/" else root_directory.split("/")[2]
    return frozenset(os.path.basename(mount.mountpoint) for mount in read_mounts(pid, root_directory))


def _path(mount: Mount, names: Sequence[str]) -> str:
    return sayable("/".join([mount.mountpoint.rstrip("/"), *names]) or "/")
