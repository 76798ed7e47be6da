"""Opens directories as libvirt's storage pools, and removes the pools again."""

from __future__ import annotations

import fcntl
import posixpath
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import libvirt

from quiesce.catalog import lock
from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.hypervisor.storage_xml import Rights
from quiesce.local.client import OTHERS_LIMIT_S
from quiesce.model.errors import HypervisorError
from quiesce.storage.directories import Directory, refresh

POOL_PREFIX = "quiesce-pool-"
_STAGING = "/quiesce/staging"
STAGING = f"/run{_STAGING}"
"""A directory of root's on the host of a system daemon. No other user can put anything there."""
STAGED = ".qcow2"


@contextmanager
def directory(host: Host, path: str, *, build: bool = False) -> Iterator[Directory]:
    """The directory as a pool: an existing pool, or a transient one that exists while any process of ours uses it.

    `build`: makes the directory if it does not exist. An administrator's pool that was inactive is started, and stays active.
    Must not be used inside another such block. If the pool exists and is active, this waits for nobody.
    """
    with directories(host, (path, build)) as (found,):
        yield found


@contextmanager
def directories(host: Host, *wanted: tuple[str, bool]) -> Iterator[tuple[Directory, ...]]:
    """Several directories at a time, each with its `build`, as `directory`."""
    wanted = tuple((host.spell(path), build) for path, build in wanted)
    with _lock_file() as file:
        lock.acquire(file, fcntl.LOCK_SH)
        while not all(pools := [_active_pool(host, path) for path, _ in wanted]):
            lock.acquire(file, fcntl.LOCK_EX)
            for path, build in wanted:
                _make_pool(host, path, build)
            lock.acquire(file, fcntl.LOCK_SH)  # between the two locks another process may remove a pool: look again
        try:
            found = tuple(Directory(path, pool) for (path, _), pool in zip(wanted, pools, strict=True))
            for each in found:
                with translated(f"reading the images in {each.path}"):
                    refresh(each.pool)
            yield found
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # if another process uses a pool, that process removes all
                _remove_pools(host)
                _remove_staged()


@contextmanager
def staging(host: Host) -> Iterator[Directory]:
    """A directory on this machine in which nobody but us makes files, whose names end with STAGED. What a killed process left
    there is removed by the next one."""
    with directory(host, _staging(), build=True) as found:
        yield found


def _staging() -> str:
    return f"{lock.directory_for_this_user()}/staging"


def _remove_staged() -> None:
    """To be called when no process of this user has a pool. Files without STAGED are left: processes of other machines put them
    there."""
    for file in Path(_staging()).glob(f"*{STAGED}"):
        file.unlink(missing_ok=True)


@contextmanager
def beside(host: Host, path: str, *, build: bool = False) -> Iterator[tuple[Directory, str]]:
    """The directory of this file, which may not exist yet, and the file's name in it; `build` as for `directory`."""
    place, name = split(path)
    with directory(host, place, build=build) as pool:
        yield pool, name


def remove_directory(host: Host, path: str) -> None:
    """Removes an empty directory that no storage pool has. Does nothing if that cannot be done."""
    path = host.spell(path)
    with _lock_file() as file:
        lock.acquire(file, fcntl.LOCK_EX)
        _remove_pools(host)
        with suppress(libvirt.libvirtError, HypervisorError):
            if not _find(host, path):
                xml = storage_xml.directory_pool(f"{POOL_PREFIX}{secrets.token_hex(4)}", path)
                pool = host.connection.storagePoolDefineXML(xml, 0)
                try:
                    pool.delete(0)
                finally:
                    pool.undefine()


@contextmanager
def _lock_file() -> Iterator[IO[str]]:
    """The lock file of this user's processes on this machine. A process that uses a pool has the lock shared; making and
    removing pools takes it exclusively, because libvirt does not allow two pools of one directory."""
    with lock.lock_file(lock.directory_for_this_user(), "pools") as file:
        yield file


def write(host: Host, path: str, content: bytes, *, build: bool = False, rights: Rights | None = None) -> None:
    """Makes or replaces a small file. `build` as for `directory`."""
    with _target(host, path, build) as (target, name, staging):
        target.delete(name)  # neither an upload nor a copy shortens an existing file
        _put(target, name, content, staging, rights)


def write_new(host: Host, path: str, content: bytes, *, build: bool = False) -> None:
    """Makes a small file. Raises NameTakenError. `build` as for `directory`."""
    with _target(host, path, build) as (target, name, staging):
        _put(target, name, content, staging)


@contextmanager
def _target(host: Host, path: str, build: bool) -> Iterator[tuple[Directory, str, Directory | None]]:
    """The directory of a file, the file's name, and where its content is put first.

    Images often lie in a directory in which another user may write (libvirt-qemu), and libvirt writes as root. So the content
    goes into a file in a directory of root's, from which libvirt copies it. A session daemon has no rights that the users of
    its directories lack: there the file is written in its place."""
    place, name = split(path)
    if host.session:
        with directory(host, place, build=build) as target:
            yield target, name, None
    else:
        with directories(host, (place, build), (STAGING, True)) as (target, staging):
            yield target, name, staging


def _put(target: Directory, name: str, content: bytes, staging: Directory | None, rights: Rights | None = None) -> None:
    if staging is None:
        target.fill(name, len(content), [content])
        return
    file = secrets.token_hex(8)
    try:
        target.copy_in(name, staging.fill(file, len(content), [content]), len(content), rights)
    finally:
        staging.delete(file)


def split(path: str) -> tuple[str, str]:
    """(directory, name) of a path on the host. The host may be another machine, so the path is taken as a POSIX path."""
    return posixpath.split(path)


def _active_pool(host: Host, path: str) -> libvirt.virStoragePool | None:
    pool = _find(host, path)
    with suppress(libvirt.libvirtError):
        return pool if pool and pool.isActive() else None
    return None


def _make_pool(host: Host, path: str, build: bool) -> None:
    with translated(f"opening the directory {path} as a storage pool"):
        pool = _find(host, path)
        if pool is None:
            mode = "0700" if path.endswith(_STAGING) else None
            xml = storage_xml.directory_pool(f"{POOL_PREFIX}{secrets.token_hex(4)}", path, mode)
            host.connection.storagePoolCreateXML(xml, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD if build else 0)
        elif not pool.isActive():
            pool.create()


def _find(host: Host, path: str) -> libvirt.virStoragePool | None:
    with translated("listing the storage pools"):
        others: dict[str, libvirt.virStoragePool] = {}
        for pool in host.connection.listAllStoragePools():
            with suppress(libvirt.libvirtError):
                if found := storage_xml.pool_directory(pool.XMLDesc(0)):
                    if found == path:
                        return pool
                    others[found] = pool
    if path.endswith(_STAGING):
        return None  # nobody gives it another name, and directories of others may not answer
    spelled = host.spell_together(others, OTHERS_LIMIT_S)
    return next((pool for found, pool in others.items() if spelled.get(found) == path), None)


def _remove_pools(host: Host) -> None:
    """Removes the pools that quiesce made, also those of killed processes."""
    with suppress(libvirt.libvirtError):
        for pool in host.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT):
            if str(pool.name()).startswith(POOL_PREFIX):
                with suppress(libvirt.libvirtError):
                    pool.destroy()
