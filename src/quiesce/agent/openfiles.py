"""Which processes write which files on this machine's disks: files that are open for writing, or mapped shared and writable.

Nothing here opens a file of anybody's; only /proc is read, and the status of files on this machine's own disks. Even that can
hang: /proc/PID/maps waits for a process that waits for a FUSE program while it changes its own memory. So a child looks, tells
what it found of each process, and is left behind with the process at which it hangs.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from quiesce.agent import identity, linux, processes
from quiesce.agent.mountinfo import Device
from quiesce.agent.mounts import Found, find_filesystems
from quiesce.codec import decode, encode

HUNG_S = 3.0
"""A child that tells nothing for this long, in seconds, hangs at the process that it looks at."""
MAX_FILES = 200
"""Most files of one process that are told. A server that has more open is found by these."""
MAX_TOLD = 32 * 1024 * 1024
"""Most bytes that one look may tell. Anybody may start many processes that have many files open."""
MAX_USERS = 2000
USERS_NS = 4_000_000_000
"""Most processes of login users that are looked at, and the longest time for that, in nanoseconds."""
MAX_PATH = 1000
MAX_MAPS = 16 * 1024 * 1024
_STANDARD_OUTPUT = (1, 2)
_LOG = re.compile(r"/logs?/|\.(log|out|err)$")
_MAPPED = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ [r-]w[x-]s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) +(/[^\n]*)$", re.MULTILINE)
"""A mapping that is writable and shared; proc_pid_maps(5)."""
_FDINFO = re.compile(r"^(flags|mnt_id):\s*([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True)
class WrittenFile:
    id: str
    """Device and inode. The same file has the same id at every look."""
    path: str
    """As the process sees it, which may be in a container."""
    log: bool = False
    """The process writes to it as to a log: as its standard output, or only at the end of a file that is named like one."""


@dataclass(frozen=True)
class WritingProcess:
    pid: int
    executable: str
    cgroup: str
    """Below /sys/fs/cgroup, as `/system.slice/nginx.service`; empty without cgroup v2."""
    container: bool
    """Whether it has another root directory than the agent."""
    files: tuple[WrittenFile, ...]
    users: bool = False
    """A login user started it (identity.why_users)."""


class IncompleteError(Exception):
    """The time was up before every process was looked at."""


class _HangsError(Exception):
    pass


@dataclass(frozen=True)
class Disks:
    """The mounts and devices of the filesystems whose files are on this machine's disks."""

    mounts: dict[int, Device]
    devices: frozenset[Device]

    @classmethod
    def of(cls, found: Iterable[Found]) -> Disks:
        """An overlay counts: what is written to it goes to a filesystem below, as in a container."""
        ours = [item for item in found if not item.skip or item.mount.fstype == "overlay"]
        mounts = {mount.id: mount.device for item in ours for mount in item.mounts}
        return cls(mounts, frozenset(mounts.values()))


def look(deadline_ns: int, hung: set[int]) -> list[WritingProcess]:
    """Every process that writes files on this machine's disks, but for those in `hung`. Adds to `hung` the processes that
    cannot be looked at: of login users' processes, which come last, also those for which no time was left. Raises
    IncompleteError if others are among these."""
    disks = Disks.of(find_filesystems())
    own: list[int] = []
    users: list[int] = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid not in hung and pid != os.getpid():
            (users if _is_users(pid) else own).append(pid)
    found = _look_at_all(own, disks, deadline_ns, hung)
    try:
        found += _look_at_all(users[:MAX_USERS], disks, min(deadline_ns, time.monotonic_ns() + USERS_NS), hung)
    except IncompleteError:
        hung.update(users)
    hung.update(users[MAX_USERS:])
    return found


def _is_users(pid: int) -> bool:
    try:
        return bool(identity.why_users(processes.owner(pid), processes.cgroup(pid)))
    except OSError:
        return False  # it ended


def _look_at_all(left: list[int], disks: Disks, deadline_ns: int, hung: set[int]) -> list[WritingProcess]:
    found: list[WritingProcess] = []
    told = 0
    while left:
        child, pipe = _start_child(left, disks)
        try:
            for line in _lines(pipe, child, deadline_ns):
                told += len(line)
                if told > MAX_TOLD:
                    raise IncompleteError
                found += [decode(WritingProcess, each) for each in json.loads(line)]
                left.pop(0)
        except _HangsError:
            hung.add(left.pop(0))
            continue
        finally:
            os.close(pipe)
            os.kill(child, signal.SIGKILL)
            _reap(child)
        if left:  # the child ended before its time, or the deadline passed
            raise IncompleteError
    return found


def _start_child(pids: list[int], disks: Disks) -> tuple[int, int]:
    """Returns the child's number, and a pipe from which one line can be read for each process, in their order."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor != writing:  # left behind, it must keep neither a session nor the port open
                with suppress(OSError):
                    os.close(descriptor)
        linux.die_with_service()
        own_root = os.stat("/proc/self/root")
        for pid in pids:
            found = [encode(each) for each in _look_at(pid, disks, own_root)]
            _write(writing, json.dumps(found).encode() + b"\n")
    finally:
        os._exit(0)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _lines(pipe: int, child: int, deadline_ns: int) -> Iterator[bytes]:
    """Lines until the child ends or the deadline passes. Raises _HangsError."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    rest = b""
    while True:
        left_ms = (deadline_ns - time.monotonic_ns()) / 1e6
        if left_ms <= 0:
            return
        if not poll.poll(min(HUNG_S * 1000, left_ms)):
            if left_ms > HUNG_S * 1000 and processes.state(child) != "R":  # a busy machine may have given it no processor
                raise _HangsError
            continue
        data = os.read(pipe, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _reap(child: int) -> None:
    """Waits for the killed child for a moment. One that waits without end in the kernel is left to init."""
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.005)


def _look_at(pid: int, disks: Disks, own_root: os.stat_result) -> Iterator[WritingProcess]:
    """The process, if it writes such files and has not ended."""
    files: dict[str, WrittenFile] = {}
    with suppress(OSError, ValueError):
        for file in chain(_open_for_writing(pid, disks), _mapped(pid, disks)):
            if file.id not in files or not file.log:
                files[file.id] = file
            if len(files) >= MAX_FILES:
                break
    if not files:
        return
    try:
        root = os.stat(f"/proc/{pid}/root")
        executable = processes.executable(pid)
    except OSError:
        return
    yield WritingProcess(
        pid,
        executable[:MAX_PATH],
        processes.cgroup(pid),
        (root.st_dev, root.st_ino) != (own_root.st_dev, own_root.st_ino),
        tuple(files.values()),
        _is_users(pid),
    )


def _open_for_writing(pid: int, disks: Disks) -> Iterator[WrittenFile]:
    directory = f"/proc/{pid}/fd"
    for descriptor in sorted(os.listdir(directory), key=int):
        link = f"{directory}/{descriptor}"
        try:
            # The link's own mode tells how the file is open (proc_pid_fd(5)), and spares reading fdinfo of most.
            if not os.lstat(link).st_mode & stat.S_IWUSR:
                continue
            path = os.readlink(link)
            if not path.startswith("/") or path.startswith("/dev/"):
                continue
            with open(f"/proc/{pid}/fdinfo/{descriptor}") as file:
                flags, mount = parse_fdinfo(file.read())
            if flags & os.O_ACCMODE == os.O_RDONLY or mount not in disks.mounts:
                continue
            status = os.stat(link)  # on this machine's own disk, so that it does not wait for a server or a FUSE program
        except (OSError, ValueError):
            continue  # closed meanwhile
        # An empty file is a lock. A file without a name is gone after a restart.
        if not stat.S_ISREG(status.st_mode) or not status.st_size or not status.st_nlink:
            continue
        yield WrittenFile(_id(disks.mounts[mount], status.st_ino), path[:MAX_PATH], log=is_log(int(descriptor), flags, path))


def parse_fdinfo(text: str) -> tuple[int, int]:
    """Flags of open(2), and the mount. Raises ValueError."""
    found = dict(_FDINFO.findall(text))
    if len(found) != 2:
        raise ValueError("no fdinfo")
    return int(found["flags"], 8), int(found["mnt_id"])


def is_log(descriptor: int, flags: int, path: str) -> bool:
    """See `WrittenFile.log`. A database's log is none: the database reads it again, or keeps other files open with it."""
    if flags & os.O_ACCMODE != os.O_WRONLY:
        return False
    return descriptor in _STANDARD_OUTPUT or bool(flags & os.O_APPEND and _LOG.search(path))


def _mapped(pid: int, disks: Disks) -> Iterator[WrittenFile]:
    with open(f"/proc/{pid}/maps", "rb") as file:
        yield from parse_maps(file.read(MAX_MAPS), disks)


def parse_maps(text: bytes, disks: Disks) -> Iterator[WrittenFile]:
    """The files that are mapped shared and writable."""
    for match in _MAPPED.finditer(text):
        device = int(match[1], 16), int(match[2], 16)
        path = os.fsdecode(match[4])
        if device in disks.devices and not path.endswith(" (deleted)") and not path.startswith("/dev/"):
            yield WrittenFile(_id(device, int(match[3])), path[:MAX_PATH])


def _id(device: Device, inode: int) -> str:
    return f"{device[0]}:{device[1]}:{inode}"
