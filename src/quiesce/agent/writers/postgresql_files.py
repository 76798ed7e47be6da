"""Finds PostgreSQL's clusters in a machine, and reads their files without asking a server."""

from __future__ import annotations

import errno
import glob
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional

from quiesce.agent import files, identity, looks, processes

MAX_CONFIGURATION = 1024 * 1024
NAMES = ("postgres", "postmaster")


@dataclass(frozen=True)
class Postmaster:
    pid: int
    uid: int
    directory: str
    port: int
    socket_directory: str
    container: bool
    problem: str = ""
    """Why nothing else is known of it: its filesystem does not answer."""


def running_postmasters() -> Iterator[Postmaster]:
    """Postmasters: a server process whose working directory's postmaster.pid names it."""
    unread: set[str] = set()
    for process in identity.applications(*NAMES):
        try:
            directory = os.readlink(f"/proc/{process.pid}/cwd")
            try:
                lines = files.read_text(f"/proc/{process.pid}/cwd/postmaster.pid", uid=process.uid).splitlines()
            except looks.NotAnsweringError as error:
                if directory not in unread:  # its processes all have this working directory
                    unread.add(directory)
                    yield Postmaster(process.pid, 0, directory, 0, "", process.container, str(error))
                continue
            if not process.container and lines[0].strip() != processes.own_pid(process.pid):
                continue
            if process.container and processes.kernel_name(processes.parent(process.pid)) in NAMES:
                continue
            sockets = [path for path in lines[4].split(",") if path] or ["/tmp"]  # noqa: S108 - PostgreSQL's default
            yield Postmaster(process.pid, process.uid, directory, int(lines[3]), sockets[0], process.container)
        except (OSError, ValueError, IndexError):
            continue  # the process ended, or is no postmaster


def data_directories() -> Iterator[str]:
    """Data directories: where distributions put them, and where Debian's configuration files say they are."""
    for pattern in ("/var/lib/postgresql/*/*", "/var/lib/pgsql/*/data", "/var/lib/pgsql/data"):
        for directory in looks.at(os.path.dirname(pattern.partition("*")[0]), glob.glob, pattern):
            if _is_cluster(directory):
                yield directory
    for path in glob.glob("/etc/postgresql/*/*/postgresql.conf"):
        with suppress(OSError):
            text = files.read_text(path, MAX_CONFIGURATION, links=True)
            match = re.search(r"^\s*data_directory\s*=\s*'([^']+)'", text, re.MULTILINE)
            directory = match.group(1) if match else "/var/lib/postgresql/"
            elsewhere = not directory.startswith("/var/lib/postgresql/")
            if elsewhere and _is_cluster(directory):
                yield directory


def _is_cluster(directory: str) -> bool:
    """True as well where the filesystem does not answer: one that is not looked at is not known to be none."""
    try:
        return looks.exists(os.path.join(directory, "global", "pg_control"))
    except looks.NotAnsweringError:
        return True


def cluster_id(directory: str) -> str:
    """The writer's id: with Debian's `17/main` where the directory has that form, else with the directory itself."""
    match = re.fullmatch(r"/var/lib/postgresql/([0-9.]+/[^/]+)", directory)
    return f"postgresql:{match.group(1) if match else directory}"


def paths_of(directory: str) -> list[str]:
    """The directories that hold all files of a cluster: its data directory, its log, its tablespaces."""
    tablespaces = looks.at(directory, glob.glob, os.path.join(glob.escape(directory), "pg_tblspc", "*"))
    return [looks.real(path) for path in (directory, os.path.join(directory, "pg_wal"), *tablespaces)]


def unlogged_databases(directory: str) -> set[str]:
    """The databases, by OID, that have unlogged tables: those have a file for what a recovery leaves of them. Source:
    PostgreSQL's documentation, "The Initialization Fork"."""
    forks = (os.path.join("base", "*"), os.path.join("pg_tblspc", "*", "PG_*", "*"))
    return {
        os.path.basename(os.path.dirname(path))
        for pattern in forks
        for path in glob.iglob(os.path.join(glob.escape(directory), pattern, "*_init"))
    }


def read_control_file(directory: str, uid: Optional[int] = None) -> tuple[int, int, int, int]:
    """(system identifier, state, checkpoint LSN, redo LSN); catalog/pg_control.h, this part unchanged since 11. Raises OSError,
    also if the file is too short."""
    path = os.path.join(directory, "global", "pg_control")
    data = files.read_bytes(path, 48, uid)
    if len(data) < 48:
        raise OSError(errno.ENODATA, "it is too short for a control file", path)
    system, _control_version, _catalog_version, state = struct.unpack_from("=QIIi", data)
    checkpoint, redo = struct.unpack_from("=QQ", data, 32)
    return system, state, checkpoint, redo


def read_version(directory: str) -> str:
    """The major version, from the cluster's own PG_VERSION; "unknown" if it cannot be read."""
    try:
        return files.read_text(os.path.join(directory, "PG_VERSION"), 100).partition("\n")[0].strip()
    except OSError:
        return "unknown"
