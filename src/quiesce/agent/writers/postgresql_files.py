"""Finds PostgreSQL's clusters in a machine, and reads their files without asking a server."""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from quiesce.agent import processes


@dataclass(frozen=True)
class Postmaster:
    pid: int
    uid: int
    directory: str
    port: int
    socket_directory: str
    container: bool


def running_postmasters() -> Iterator[Postmaster]:
    """Postmasters: a server process whose working directory's postmaster.pid names it."""
    own_root = os.stat("/proc/self/root")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", errors="replace") as file:
                if file.read().strip() not in ("postgres", "postmaster"):
                    continue
            root = os.stat(f"/proc/{pid}/root")
            directory = os.readlink(f"/proc/{pid}/cwd")
            lines = processes.read_file(f"/proc/{pid}/cwd/postmaster.pid").splitlines()
            container = (root.st_dev, root.st_ino) != (own_root.st_dev, own_root.st_ino)
            if not container and lines[0].strip() != processes.own_pid(int(pid)):
                continue
            if container and _parent_is_server(pid):
                continue
            uid = os.stat(f"/proc/{pid}").st_uid
            sockets = [path for path in lines[4].split(",") if path] or ["/tmp"]  # noqa: S108 - PostgreSQL's default
            yield Postmaster(int(pid), uid, directory, int(lines[3]), sockets[0], container)
        except (OSError, ValueError, IndexError):
            continue  # the process ended, or is no postmaster


def _parent_is_server(pid: str) -> bool:
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        parent = file.read().rpartition(")")[2].split()[1]
    try:
        with open(f"/proc/{parent}/comm", errors="replace") as file:
            return file.read().strip() in ("postgres", "postmaster")
    except OSError:
        return False


def data_directories() -> Iterator[str]:
    """Data directories: where distributions put them, and where Debian's configuration files say they are."""
    for pattern in ("/var/lib/postgresql/*/*", "/var/lib/pgsql/*/data", "/var/lib/pgsql/data"):
        for directory in glob.glob(pattern):
            if os.path.exists(os.path.join(directory, "global", "pg_control")):
                yield directory
    for path in glob.glob("/etc/postgresql/*/*/postgresql.conf"):
        with suppress(OSError), open(path, errors="replace") as file:
            match = re.search(r"^\s*data_directory\s*=\s*'([^']+)'", file.read(), re.MULTILINE)
            directory = match.group(1) if match else "/var/lib/postgresql/"
            elsewhere = not directory.startswith("/var/lib/postgresql/")
            if elsewhere and os.path.exists(os.path.join(directory, "global", "pg_control")):
                yield directory


def cluster_id(directory: str) -> str:
    """The writer's id: with Debian's `17/main` where the directory has that form, else with the directory itself."""
    match = re.fullmatch(r"/var/lib/postgresql/([0-9.]+/[^/]+)", directory)
    return f"postgresql:{match.group(1) if match else directory}"


def paths_of(directory: str) -> list[str]:
    """The directories that hold all files of a cluster: its data directory, its log, its tablespaces."""
    linked = [os.path.join(directory, "pg_wal"), *glob.glob(os.path.join(glob.escape(directory), "pg_tblspc", "*"))]
    return [os.path.realpath(path) for path in (directory, *linked)]


def unlogged_databases(directory: str) -> set[str]:
    """The databases, by OID, that have unlogged tables: those have a file for what a recovery leaves of them. Source:
    PostgreSQL's documentation, "The Initialization Fork"."""
    forks = (os.path.join("base", "*"), os.path.join("pg_tblspc", "*", "PG_*", "*"))
    return {
        os.path.basename(os.path.dirname(path))
        for pattern in forks
        for path in glob.iglob(os.path.join(glob.escape(directory), pattern, "*_init"))
    }


def read_control_file(directory: str) -> tuple[int, int, int, int]:
    """(system identifier, state, checkpoint LSN, redo LSN); catalog/pg_control.h, this part unchanged since 11."""
    with open(os.path.join(directory, "global", "pg_control"), "rb") as file:
        data = file.read(48)
    system, _control_version, _catalog_version, state = struct.unpack_from("=QIIi", data)
    checkpoint, redo = struct.unpack_from("=QQ", data, 32)
    return system, state, checkpoint, redo


def read_version(directory: str) -> str:
    """The major version, from the cluster's own PG_VERSION; "unknown" if it cannot be read."""
    try:
        return processes.read_file(os.path.join(directory, "PG_VERSION")).partition("\n")[0].strip()
    except OSError:
        return "unknown"
