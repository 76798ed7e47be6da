"""Looks at the guest's files without being stuck where a filesystem does not answer: a program's own (FUSE), one on the
network, or one that is stored on either.

A system call that waits for such a filesystem cannot be ended from within. So a look at one is taken by a child process, which
is left behind if it does not answer. Files on the machine's own disks are looked at directly: they always answer, also while
somebody has them frozen. To be used by a process without other threads, and not while anything is held.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import select
import signal
import time
from typing import Any, Callable, Optional, TypeVar

from quiesce.agent import links, mountinfo
from quiesce.agent.mountinfo import Device, Mount

LIMIT_S = 2.0
"""Longest wait for one look, in seconds."""
TABLE_AGE_S = 1.0
_MAGIC = re.compile(r"(/proc/(\d+|self)/(root|cwd))(/.*)?")

T = TypeVar("T")

_hung: dict[Device, float] = {}
"""Filesystems that did not answer, with the time when that was found, CLOCK_MONOTONIC."""
PATIENCE_S = 20.0
"""Longest wait for all looks of one request, in seconds: anybody may mount a thousand filesystems (FUSE)."""
_patience_s = PATIENCE_S
HUNG_FOR_S = 30.0
"""How long a filesystem that did not answer is not asked again, in seconds."""


class NotAnsweringError(TimeoutError):
    """A filesystem does not answer. The message names its mount point."""

    def __init__(self, mount: Mount) -> None:
        self.message = f"the filesystem at {mount.mountpoint} ({mount.fstype}) does not answer"
        super().__init__(errno.ETIMEDOUT, self.message, mount.path)

    def __str__(self) -> str:
        return self.message


def at(path: str, look: Callable[..., T], *arguments: Any) -> T:
    """Returns what `look(*arguments)` returns, which looks at this path and at nothing outside its filesystem. Raises
    NotAnsweringError, and the OSError or ValueError that it raises.

    What it returns must be picklable. Example: `at(path, os.stat, path)`.
    """
    return _through(slow_mount(path), look, *arguments)


def at_executable(pid: int) -> os.stat_result:
    """The status of the process's program, wherever in its own mounts that is. Raises OSError, as TimeoutError."""
    descriptor = os.open(f"/proc/{pid}/exe", os.O_PATH | os.O_CLOEXEC)  # asks no filesystem
    try:
        own = mountinfo.mount_of(descriptor)
    finally:
        os.close(descriptor)
    mounts = mountinfo.read_mounts(str(pid), f"/proc/{pid}/root")
    if any(mount.id == own and not _may_not_answer(mount) for mount in mounts):
        return os.stat(f"/proc/{pid}/exe")
    answered, value = apart(lambda: os.stat(f"/proc/{pid}/exe"))
    if not answered:
        raise TimeoutError(errno.ETIMEDOUT, "the filesystem of its program does not answer")
    if isinstance(value, BaseException):
        raise value
    return value


def open_path(path: str) -> int:
    """A descriptor that only names what is at this path, itself and not where a link leads (O_PATH). Raises OSError, as
    NotAnsweringError."""
    at(path, os.lstat, path)
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def _through(mount: Optional[Mount], look: Callable[..., T], *arguments: Any) -> T:
    """As `at`. `mount`: the filesystem that may not answer; None: all do."""
    global _patience_s
    if mount is None:
        return look(*arguments)
    if _patience_s <= 0:
        raise NotAnsweringError(mount)
    if time.monotonic() - _hung.get(mount.device, -HUNG_FOR_S) < HUNG_FOR_S:
        raise NotAnsweringError(mount)
    started = time.monotonic()
    answered, value = apart(lambda: look(*arguments))
    _patience_s -= time.monotonic() - started
    if not answered:
        _hung[mount.device] = time.monotonic()
        raise NotAnsweringError(mount)
    if isinstance(value, BaseException):
        raise value
    return value


def renew_patience() -> None:
    """At the beginning of a request."""
    global _patience_s
    _patience_s = PATIENCE_S


def room(path: str) -> int:
    """Bytes that users other than root can still write there. Raises OSError, as NotAnsweringError."""
    found = at(path, os.statvfs, path)
    return found.f_bavail * found.f_frsize


def exists(path: str) -> bool:
    """Raises NotAnsweringError."""
    return at(path, os.path.exists, path)


def is_directory(path: str) -> bool:
    """True as well for a path on a filesystem that does not answer: what is there is not known to be nothing."""
    try:
        return at(path, os.path.isdir, path)
    except NotAnsweringError:
        return True


def real(path: str) -> str:
    """The path without symbolic links, as os.path.realpath; where a filesystem does not answer, the path itself."""
    try:
        return at(path, os.path.realpath, path)
    except NotAnsweringError:
        return path


def apart(look: Callable[[], Any], limit_s: Optional[float] = None) -> tuple[bool, Any]:
    """Runs `look` in a child process. Returns whether it answered within so many seconds (None: LIMIT_S), and what it returned
    or raised. A child that does not answer is killed, which takes effect when its system call returns, and left behind."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _close_all_but(send)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                value = look()
            except (OSError, ValueError) as error:
                value = OSError(error.errno, error.strerror) if isinstance(error, OSError) else error
            with os.fdopen(send, "wb") as file:
                pickle.dump(value, file)
        finally:
            os._exit(0)
    os.close(send)
    try:
        data = _read_until(receive, time.monotonic() + (LIMIT_S if limit_s is None else limit_s))
    finally:
        os.close(receive)
        os.kill(child, signal.SIGKILL)
    if data is None:
        return False, None
    os.waitpid(child, 0)
    return True, pickle.loads(data) if data else OSError(errno.EIO, "the look ended without an answer")  # noqa: S301 - our own


def _read_until(descriptor: int, give_up: float) -> Optional[bytes]:
    """All that comes until the other end is closed; None if it is not closed in time."""
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0, (give_up - time.monotonic()) * 1000)):
        more = os.read(descriptor, 1 << 16)
        if not more:
            return data
        data += more
    return None


def _close_all_but(descriptor: int) -> None:
    """So that a child that is left behind keeps no lock, no port and no session."""
    keep = sorted({0, 1, 2, descriptor})
    for low, high in zip(keep, [*keep[1:], os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low + 1, high)


# -- which filesystem a path is on


def slow_mount(path: str) -> Optional[Mount]:
    """The first filesystem on the way to this path that may not answer; None if there is none. Touches only those that do.

    Symbolic links are followed as far as they lie on filesystems that answer. `/proc/PID/root` and `/proc/PID/cwd` are followed
    into the process's own mounts. Raises OSError if the process ended.
    """
    top, table = "", _table("self")
    if match := _MAGIC.match(path):
        table, top = _table(match.group(2)), f"/proc/{match.group(2)}/root"
        start = os.readlink(match.group(1)) if match.group(3) == "cwd" else ""
        path = start + (match.group(4) or "")
    try:
        for place in links.walk(path, top):
            mount = table.get(place)
            if mount and _may_not_answer(mount):
                return mount
    except links.NoWayError:
        pass
    return None


_tables: dict[tuple[str, str], tuple[float, dict[str, Mount]]] = {}
"""By mount namespace and root directory, with the time when the table was read."""


def _table(pid: str) -> dict[str, Mount]:
    """The process's mounts, by mount point. Where several are mounted on each other, the last one is what a path leads to."""
    key = os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root")
    read_at, table = _tables.get(key, (-TABLE_AGE_S, {}))
    if time.monotonic() - read_at < TABLE_AGE_S:
        return table
    root = "/" if pid == "self" else f"/proc/{pid}/root"
    table = {mount.mountpoint: mount for mount in mountinfo.read_mounts(pid, root)}
    _tables[key] = (time.monotonic(), table)
    return table


_answers: dict[Device, bool] = {}


def _may_not_answer(mount: Mount) -> bool:
    if mount.device not in _answers:
        _answers[mount.device] = True  # for a loop device whose file is on itself
        _answers[mount.device] = not _is_slow(mount)
    return not _answers[mount.device]


def _is_slow(mount: Mount) -> bool:
    """Whether anything but this machine's own disks and memory has to answer."""
    if mount.fstype in mountinfo.MEMORY | mountinfo.KERNEL or mount.fstype in ("overlay", "zfs"):
        return False
    if mount.device[0] == 0:
        return mount.fstype not in mountinfo.WITHOUT_BLOCK_DEVICE_NUMBER
    if mount.fstype == "fuseblk" or mountinfo.on_the_network(mount.device):
        return True
    return any(slow_mount(path) for path in mountinfo.backing_files(mount.device))
