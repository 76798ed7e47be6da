"""Images and small files beside them, through the storage-volume API, so that remote hosts need nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import libvirt

from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.chains import Image
from quiesce.model.errors import BusyError, HypervisorError, NotFoundError
from quiesce.storage.port import MIN_FREE, Room, no_space

LEAST = 1024 * 1024
"""Room for the metadata of a small file, in bytes."""
CHUNK = 256 * 1024
LISTINGS = 20
"""How often a directory is read anew until nothing came or went meanwhile."""
PATIENCE_S = 60.0
"""How long to wait until nobody has a file made or filled in a pool."""
POOL_PREFIX = "quiesce-pool-"


@dataclass(frozen=True)
class Directory:
    """A directory of images as a storage pool, active while this lives."""

    path: str
    pool: libvirt.virStoragePool

    def room(self) -> tuple[int, int]:
        """(free, in all) when the directory was opened, in bytes."""
        with translated(f"asking for the free space of {self.path}"):
            info = self.pool.info()
            return int(info[3]), int(info[1])

    def require_room(self, needed: int, what: str) -> None:
        """Raises NoSpaceError if less than `needed` bytes are free."""
        free, _ = self.room()
        if free < needed:
            raise no_space(self.path, free, needed, what)

    def volumes(self) -> list[Image]:
        """Every file in it that libvirt can read, as they were at one time. Raises BusyError if they do not stand still.

        While somebody else has libvirt read the directory anew, files may seem to be gone that are not; what is decided by
        a list must not be decided by such a one.
        """
        with translated(f"listing {self.path}"):
            for _ in range(LISTINGS):
                found = {}
                for volume in self.pool.listAllVolumes():
                    with _unless_gone():
                        found[volume.name()] = storage_xml.volume(volume.XMLDesc(0))
                if found.keys() == set(self.pool.listVolumes()):
                    return list(found.values())
                _refresh(self.pool)  # a file that was removed without libvirt stays on its list until then
        raise BusyError(f"the files in {self.path} come and go", hint="try again")

    def volume(self, name: str) -> Image:
        """Raises NotFoundError."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return storage_xml.volume(found.XMLDesc(0))

    def create_overlay(self, name: str, capacity: int, backing_path: str, backing_format: str) -> str:
        """Makes a differencing disk and returns its path. Raises NoSpaceError; then nothing is left of it."""
        self.require_room(MIN_FREE, "a differencing disk")
        self._create(storage_xml.overlay_volume(name, capacity, backing_path, backing_format), name, MIN_FREE)
        return posixpath.join(self.path, name)

    def create_flat(self, name: str, capacity: int) -> str:
        """Makes an empty image with nothing below it and returns its path."""
        self._create(storage_xml.flat_volume(name, capacity), name, LEAST)
        return posixpath.join(self.path, name)

    def write(self, name: str, content: bytes) -> str:
        """Makes or replaces a small file and returns its path."""
        self.delete(name)  # an upload does not shorten what is there
        volume = self._create(storage_xml.raw_volume(name, len(content)), name, len(content) + LEAST)
        with translated(f"writing {self.path}/{name}"):
            stream = self.pool.connect().newStream(0)
            volume.upload(stream, 0, len(content), 0)
            view = memoryview(content)
            while view:
                view = view[stream.send(bytes(view[:CHUNK])) :]
            stream.finish()
        return posixpath.join(self.path, name)

    def read(self, name: str) -> bytes:
        """All of a small file. Raises NotFoundError."""
        return b"".join(self._download(name))

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return int(found.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])

    def sha256(self, name: str, progress: Callable[[int, int], None]) -> str:
        """Of the file as it is. `progress` is called with how many bytes were read, and of how many. Raises NotFoundError."""
        digest, done, size = hashlib.sha256(), 0, self.size(name)
        for piece in self._download(name):
            digest.update(piece)
            done += len(piece)
            progress(done, size)
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens if there is none. Raises BusyError if somebody else is about to write it."""
        try:
            _patiently(lambda: self.pool.storageVolLookupByName(name).delete(0), "still in use", f"writes {self.path}/{name}")
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise HypervisorError(f"removing {self.path}/{name}: {error.get_error_message()}") from error

    def has(self, name: str) -> bool:
        try:
            self._lookup(name)
        except NotFoundError:
            return False
        return True

    def _lookup(self, name: str) -> libvirt.virStorageVol:
        try:
            return self.pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise NotFoundError(f"there is no {self.path}/{name}") from error
            raise HypervisorError(f"looking for {self.path}/{name}: {error.get_error_message()}") from error

    def _download(self, name: str) -> Iterator[bytes]:
        volume = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            stream = self.pool.connect().newStream(0)
            volume.download(stream, 0, 0, 0)
            while piece := stream.recv(CHUNK):
                yield piece
            stream.finish()

    def _create(self, xml: str, name: str, needed: int) -> libvirt.virStorageVol:
        try:
            return self.pool.createXML(xml, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                with suppress(HypervisorError):
                    self.delete(name)
            message = error.get_error_message() or str(error)
            if "No space left" in message:
                with suppress(libvirt.libvirtError):
                    self.pool.refresh(0)
                raise no_space(self.path, Room(*self.room()).usable, needed, name) from error
            raise HypervisorError(f"making {self.path}/{name}: {message}") from error


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


@contextmanager
def directory(host: Host, path: str, *, build: bool = False) -> Iterator[Directory]:
    """The directory as a pool: the pool that is there already, or one that lives as long as any of us uses it.

    `build`: makes the directory if there is none. An administrator's pool that was inactive stays
    active. Not to be used within another such block. Whoever needs no pool made waits for nobody.
    """
    path = host.spell(path)
    with _lock_file() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not (pool := _active_pool(host, path)):
            fcntl.flock(lock, fcntl.LOCK_EX)
            _make_pool(host, path, build)
            fcntl.flock(lock, fcntl.LOCK_SH)  # not at once: somebody may have been in between, and removed it
        try:
            with translated(f"reading the images in {path}"):
                _refresh(pool)
            yield Directory(path, pool)
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else whoever uses one still will remove them all
                _remove_pools(host)


@contextmanager
def beside(host: Host, path: str, *, build: bool = False) -> Iterator[tuple[Directory, str]]:
    """The directory that this file is or will be in, and the file's name there; `build` as for `directory`."""
    place, name = split(path)
    with directory(host, place, build=build) as pool:
        yield pool, name


@contextmanager
def _lock_file() -> Iterator[IO[str]]:
    """Shared by those of this user's processes on this machine that use a pool, exclusive for making and removing pools: two
    pools of one directory exclude each other."""
    directory = "/run/lock" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with (Path(directory) / f"quiesce-pools-{os.geteuid()}.lock").open("a") as file:
        yield file


def split(path: str) -> tuple[str, str]:
    """(directory, name) of an image path on the host, which may not be this machine."""
    return posixpath.split(path)


def _refresh(pool: libvirt.virStoragePool) -> None:
    """Reads the directory anew. libvirt does not while anybody has a file made or filled in it. Raises BusyError."""
    _patiently(lambda: pool.refresh(0), "asynchronous jobs running", f"has files made in the storage pool {pool.name()}")


def _patiently(do: Callable[[], object], passing: str, what: str) -> None:
    """Does it again as long as libvirt refuses it with these words, for PATIENCE_S. Raises BusyError, libvirtError."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            do()
        except libvirt.libvirtError as error:
            if passing not in (error.get_error_message() or ""):
                raise
            if time.monotonic() > deadline:
                raise BusyError(f"somebody {what}", hint="try again when that is done") from error
            time.sleep(0.02)
        else:
            return


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
    """Those we made; also those of a process that was killed."""
    with suppress(libvirt.libvirtError):
        for pool in host.connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT):
            if str(pool.name()).startswith(POOL_PREFIX):
                with suppress(libvirt.libvirtError):
                    pool.destroy()
