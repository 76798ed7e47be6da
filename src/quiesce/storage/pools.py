"""Opens directories as libvirt's storage pools, and removes the pools again."""

from __future__ import annotations

import fcntl
import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import libvirt

from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.errors import HypervisorError
from quiesce.storage.directories import Directory, refresh

POOL_PREFIX = "quiesce-pool-"


@contextmanager
def directory(host: Host, path: str, *, build: bool = False) -> Iterator[Directory]:
    """The directory as a pool: an existing pool, or a transient one that exists while any process of ours uses it.

    `build`: makes the directory if it does not exist. An administrator's pool that was inactive is started, and stays active.
    Must not be used inside another such block. If the pool exists and is active, this waits for nobody.
    """
    with directories(host, path, build=build) as (found,):
        yield found


@contextmanager
def directories(host: Host, *paths: str, build: bool = False) -> Iterator[tuple[Directory, ...]]:
    """Several directories at a time, as `directory`."""
    spelled = [host.spell(path) for path in paths]
    with _lock_file() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not all(pools := [_active_pool(host, path) for path in spelled]):
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in spelled:
                _make_pool(host, path, build)
            fcntl.flock(lock, fcntl.LOCK_SH)  # between the two locks another process may remove the pool: look again
        try:
            found = tuple(Directory(path, pool) for path, pool in zip(spelled, pools, strict=True))
            for each in found:
                with translated(f"reading the images in {each.path}"):
                    refresh(each.pool)
            yield found
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # if another process uses a pool, that process removes all
                _remove_pools(host)


@contextmanager
def beside(host: Host, path: str, *, build: bool = False) -> Iterator[tuple[Directory, str]]:
    """The directory of this file, which may not exist yet, and the file's name in it; `build` as for `directory`."""
    place, name = split(path)
    with directory(host, place, build=build) as pool:
        yield pool, name


def remove_directory(host: Host, path: str) -> None:
    """Removes an empty directory that no storage pool has. Does nothing if that cannot be done."""
    path = host.spell(path)
    with _lock_file() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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
    directory = "/run/lock" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with (Path(directory) / f"quiesce-pools-{os.geteuid()}.lock").open("a") as file:
        yield file


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
            xml = storage_xml.directory_pool(f"{POOL_PREFIX}{secrets.token_hex(4)}", path)
            host.connection.storagePoolCreateXML(xml, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD if build else 0)
        elif not pool.isActive():
            pool.create()


def _find(host: Host, path: str) -> libvirt.virStoragePool | None:
    with translated("listing the storage pools"):
        for pool in host.connection.listAllStoragePools():
            with suppress(libvirt.libvirtError):
                found = storage_xml.pool_directory(pool.XMLDesc(0))
                if found and host.spell(found) == path:
                    return pool
    return None


def _remove_pools(host: Host) -> None:
    """Removes the pools that quiesce made, also those of killed processes."""
    with suppress(libvirt.libvirtError):
        for pool in host.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT):
            if str(pool.name()).startswith(POOL_PREFIX):
                with suppress(libvirt.libvirtError):
                    pool.destroy()
