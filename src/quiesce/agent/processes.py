"""The processes of this machine, from /proc."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass

from quiesce.agent import links, looks

MAX_ARGUMENTS = 256 * 1024


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    """The kernel's name of the process, at most 15 characters."""
    uid: int
    container: bool
    """Whether it has another root directory than the agent."""


def running(*names: str) -> Iterator[Process]:
    """Every process, or those of these names."""
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        try:
            with open(f"/proc/{pid}/comm", errors="replace") as file:
                name = file.read().strip()
            if names and name not in names:
                continue
            uid = os.stat(f"/proc/{pid}").st_uid
            container = has_other_root(pid)
        except OSError:
            continue  # it ended, or is a kernel thread
        yield Process(pid, name, uid, container)


def has_other_root(pid: int) -> bool:
    """Whether the process has another root directory than the agent. Raises OSError if it ended."""
    own = os.stat("/proc/self/root")
    try:
        root = looks.at(f"/proc/{pid}/root", os.stat, f"/proc/{pid}/root")
    except looks.NotAnsweringError:
        return True  # the agent's own answers
    return (root.st_dev, root.st_ino) != (own.st_dev, own.st_ino)


def shares_mounts(pid: int) -> bool:
    """Whether a path means the same file to the process as to the agent, as far as mounts decide that. Raises OSError if the
    process ended."""
    return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt") and not has_other_root(pid)


def inside(pid: int, path: str, owners: Container[int] = ()) -> str:
    """A path by which the agent reaches what the process has at this absolute path. Symbolic links are followed in the
    process's own mounts. `owners`: as for links.walk. Raises OSError, as NoWayError."""
    top = f"/proc/{pid}/root"
    *_, place = links.walk(path, top, owners)
    return top + place


def sees_the_same(pid: int, path: str) -> bool:
    """Whether the process has the same file at this path as the agent. Raises OSError, as NotAnsweringError, if either cannot
    be looked at."""
    if shares_mounts(pid):
        return True
    theirs = inside(pid, path)
    mine, its = looks.at(path, os.stat, path), looks.at(theirs, os.stat, theirs)
    return (mine.st_dev, mine.st_ino) == (its.st_dev, its.st_ino)


def executable(pid: int) -> str:
    """The path of its program, as the process has it. Raises OSError if it ended, or is a kernel thread."""
    return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")  # it was upgraded, and not restarted yet


def owner(pid: int) -> int:
    """The process's user. Raises OSError if it ended."""
    return os.stat(f"/proc/{pid}").st_uid


def user_name(uid: int) -> str:
    """By /etc/passwd alone: a directory of users may not answer, or be held."""
    try:
        with open("/etc/passwd", errors="replace") as file:
            return next((line.partition(":")[0] for line in file if line.split(":")[2:3] == [str(uid)]), str(uid))
    except OSError:
        return str(uid)


def command_line(pid: int) -> list[str]:
    """The process's arguments, MAX_ARGUMENTS characters of them; empty if it ended."""
    try:
        with open(f"/proc/{pid}/cmdline", errors="surrogateescape") as file:
            return file.read(MAX_ARGUMENTS).rstrip("\0").split("\0")
    except OSError:
        return []


def kernel_name(pid: int) -> str:
    """The kernel's name of the process; empty if it ended."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """The process's parent; 0 if it has none, or ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def state(pid: int) -> str:
    """`R` if it runs or waits for a processor, `S` or `D` if it waits for something else; empty if it ended. Source:
    proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def ancestors(pid: int) -> Iterator[int]:
    """The process's parent, the parent's parent, and so on."""
    seen = {pid}
    while (pid := parent(pid)) and pid not in seen:
        seen.add(pid)
        yield pid


def session(pid: int) -> int:
    """The process's session; 0 if it ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def own_pid(pid: int) -> str:
    """The process's number in its own process namespace, as its own files name it; empty if it ended. Example: a service with
    systemd's PrivatePIDs= is process 1, or 2, to itself. Source: proc_pid_status(5), NSpid."""
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            match = re.search(r"^NSpid:((?:\s+\d+)+)$", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return match.group(1).split()[-1] if match else str(pid)


def cgroup(pid: int) -> str:
    """The process's control group below /sys/fs/cgroup, as `/system.slice/nginx.service`; empty if it ended, or without
    cgroup v2."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            match = re.search(r"^0::(/.*)$", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return match.group(1) if match else ""


def unit(pid: int) -> str:
    """The system service that the process belongs to, as `nginx.service`; empty if to none."""
    return unit_of(cgroup(pid))


def unit_of(group: str) -> str:
    """The system service of a control group, as `unit`."""
    # The first name that is no slice, as systemd's cg_path_get_unit has it. Groups below are the unit's own, as a container's.
    match = re.match(r"/system\.slice/(?:[^/]+\.slice/)*([^/]+\.service)(?:/|$)", group)
    return match.group(1) if match else ""


def open_files(pid: int) -> Iterator[str]:
    """What the process has open, as /proc shows it: paths of files, `socket:[INODE]`."""
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return
    for descriptor in descriptors:
        try:
            yield os.readlink(f"{directory}/{descriptor}")
        except OSError:
            continue  # closed meanwhile


def writes_to(pid: int, path: str) -> bool:
    """Whether the process has this path open for writing. The file itself is not touched."""
    directory = f"/proc/{pid}/fd"
    try:
        links = [f"{directory}/{descriptor}" for descriptor in os.listdir(directory)]
        return any(os.readlink(link) == path and os.lstat(link).st_mode & stat.S_IWUSR for link in links)
    except OSError:
        return False


def _sockets(pid: int) -> set[str]:
    """Inodes of the sockets that the process has open."""
    return {path[8:-1] for path in open_files(pid) if path.startswith("socket:[")}


def listening_ports(pid: int) -> list[int]:
    """TCP ports on which the process listens at 127.0.0.1 or at every address, lowest first."""
    sockets = _sockets(pid)
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}") as file:
                rows = [line.split() for line in file.read().splitlines()[1:]]
        except OSError:
            continue
        for row in rows:
            address, _, port = row[1].rpartition(":")
            if row[3] == "0A" and row[9] in sockets and (address.endswith("00007F") or set(address) == {"0"}):
                ports.add(int(port, 16))
    return sorted(ports)


def accepted(pid: int, port: int, other: int) -> bool:
    """Whether the process has the end at `port` of the connection from `other`, both TCP ports of 127.0.0.1."""
    sockets = _sockets(pid)
    ends = (f"0100007F:{port:04X}", f"0100007F:{other:04X}")
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}") as file:
                for line in file:
                    row = line.split()
                    if row[9:10] and row[9] in sockets and row[1].endswith(ends[0]) and row[2].endswith(ends[1]):
                        return True
        except OSError:
            continue
    return False


def listening_paths(pid: int) -> list[str]:
    """Paths of the Unix sockets on which the process listens."""
    sockets = _sockets(pid)
    try:
        with open(f"/proc/{pid}/net/unix") as file:
            rows = [line.split(None, 7) for line in file.read().splitlines()[1:]]
    except OSError:
        return []
    listening = "00010000"  # __SO_ACCEPTCON
    return sorted(row[7] for row in rows if len(row) == 8 and row[6] in sockets and row[3] == listening and row[7][0] == "/")
