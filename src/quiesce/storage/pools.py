"""Images and the small files beside them, through libvirt's storage-volume API, so that remote hosts need nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import posixpath
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import libvirt

from quiesce.catalog import lock
from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.chains import Image
from quiesce.model.errors import BusyError, HypervisorError, NotFoundError, RefusedError
from quiesce.storage.port import MIN_FREE, Room, no_space, too_large

LEAST = 1024 * 1024
"""Space for the metadata of a small file, in bytes."""
CHUNK = 256 * 1024
LISTINGS = 20
"""Most reads of a directory in a row until no file appeared or vanished during one of them."""
PATIENCE_S = 60.0
"""Longest wait until nobody creates or writes a file in a pool, in seconds."""
POOL_PREFIX = "quiesce-pool-"
STAGING = "/run/quiesce/staging"
"""A directory of root's on the host of a system daemon."""


@dataclass(frozen=True)
class Directory:
    """A directory of images as an active storage pool."""

    path: str
    pool: libvirt.virStoragePool

    def room(self) -> tuple[int, int]:
        """(bytes free, bytes in all) when the directory was opened."""
        with translated(f"asking for the free space of {self.path}"):
            info = self.pool.info()
            return int(info[3]), int(info[1])

    def require_room(self, needed: int, what: str) -> None:
        """Raises NoSpaceError if less than `needed` bytes are free."""
        free, _ = self.room()
        if free < needed:
            raise no_space(self.path, free, needed, what)

    def volumes(self) -> list[Image]:
        """Every file in the directory that libvirt can read, all as of one time. Raises BusyError if files appear or vanish
        during each of LISTINGS reads.

        While somebody else refreshes the pool, libvirt's list may lack files that exist. So two lists, one before and one after
        reading the files, must have the same names.
        """
        with translated(f"listing {self.path}"):
            for _ in range(LISTINGS):
                found = {}
                for volume in self.pool.listAllVolumes():
                    with _unless_gone():
                        found[volume.name()] = storage_xml.volume(volume.XMLDesc(0))
                if found.keys() == set(self.pool.listVolumes()):
                    return list(found.values())
                _refresh(self.pool)  # until then, libvirt's list has files that were removed without libvirt
        raise BusyError(
            f"the files in {self.path} could not be listed: files appear or vanish all the time", hint="try again later"
        )

    def volume(self, name: str) -> Image:
        """Raises NotFoundError."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return storage_xml.volume(found.XMLDesc(0))

    def create_overlay(self, name: str, capacity: int, backing_path: str, backing_format: str) -> str:
        """Makes an overlay and returns its path. Raises NoSpaceError; then nothing is left of the overlay."""
        self.require_room(MIN_FREE, "an overlay")
        self._create(storage_xml.overlay_volume(name, capacity, backing_path, backing_format), name, MIN_FREE)
        return posixpath.join(self.path, name)

    def create_flat(self, name: str, capacity: int) -> str:
        """Makes an empty image without a backing file and returns its path."""
        self._create(storage_xml.flat_volume(name, capacity), name, LEAST)
        return posixpath.join(self.path, name)

    def upload(self, name: str, content: bytes) -> libvirt.virStorageVol:
        """Makes a small file. libvirt makes it and then opens it by its name: whoever may write in the directory could put a
        link in its place in between. Raises RefusedError if others than its owner may."""
        if self._writable_by_others():
            raise RefusedError(f"{self.path} is writable by others than its owner, so nothing is written into it")
        volume = self._create(storage_xml.raw_volume(name, len(content)), name, len(content) + LEAST)
        with translated(f"writing {self.path}/{name}"):
            stream = self.pool.connect().newStream(0)
            volume.upload(stream, 0, len(content), 0)
            view = memoryview(content)
            while view:
                view = view[stream.send(bytes(view[:CHUNK])) :]
            stream.finish()
        return volume

    def copy_in(self, name: str, volume: libvirt.virStorageVol, size: int) -> None:
        """Makes or replaces a small file with the content of `volume`. libvirt opens the new file once, with O_EXCL
        (storageBackendCreateRaw), so no link in the directory is followed."""
        self.delete(name)
        xml = storage_xml.raw_volume(name, size)
        self._create(xml, name, size + LEAST, volume)

    def read(self, name: str, most: int) -> bytes:
        """The content of a small file. Raises NotFoundError; RefusedError if it has more than `most` bytes."""
        pieces, length = [], 0
        for piece in self._download(name):
            length += len(piece)
            if length > most:
                raise too_large(f"{self.path}/{name}", most)
            pieces.append(piece)
        return b"".join(pieces)

    def _writable_by_others(self) -> bool:
        with translated(f"looking at the rights of {self.path}"):
            return bool(storage_xml.pool_mode(self.pool.XMLDesc(0)) & 0o022)

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return int(found.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])

    def sha256(self, name: str, progress: Callable[[int, int], None]) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal. Calls `progress` with (bytes read, bytes in all). Raises
        NotFoundError."""
        digest, done, size = hashlib.sha256(), 0, self.size(name)
        for piece in self._download(name):
            digest.update(piece)
            done += len(piece)
            progress(done, size)
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """Removes a file; does nothing if it does not exist. Raises BusyError if somebody else is writing it."""
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
            try:
                while piece := stream.recv(CHUNK):
                    yield piece
            except GeneratorExit:
                stream.abort()
                raise
            stream.finish()

    def _create(self, xml: str, name: str, needed: int, content: libvirt.virStorageVol | None = None) -> libvirt.virStorageVol:
        try:
            return self.pool.createXMLFrom(xml, content, 0) if content else self.pool.createXML(xml, 0)
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
    """The directory as a pool: an existing pool, or a transient one that exists while any process of ours uses it.

    `build`: makes the directory if it does not exist. An administrator's pool that was inactive is started, and stays active.
    Must not be used inside another such block. If the pool exists and is active, this waits for nobody.
    """
    with _directories(host, (path, build)) as (found,):
        yield found


@contextmanager
def _directories(host: Host, *wanted: tuple[str, bool]) -> Iterator[list[Directory]]:
    """Several of them at once, each with its `build`.

    A process that uses a pool has the lock shared; making and removing pools takes it exclusively, because libvirt does not
    allow two pools of one directory."""
    wanted = tuple((host.spell(path), build) for path, build in wanted)
    with lock.lock_file(lock.directory_for_this_user(), "pools") as file:
        lock.acquire(file, fcntl.LOCK_SH)
        while None in (found := [_active_pool(host, path) for path, _ in wanted]):
            lock.acquire(file, fcntl.LOCK_EX)
            for path, build in wanted:
                _make_pool(host, path, build)
            lock.acquire(file, fcntl.LOCK_SH)  # between the two locks another process may remove a pool: look again
        try:
            for pool, (path, _) in zip(found, wanted, strict=True):
                with translated(f"reading the images in {path}"):
                    _refresh(pool)
            yield [Directory(path, pool) for pool, (path, _) in zip(found, wanted, strict=True)]
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # if another process uses a pool, that process removes all
                _remove_pools(host)


@contextmanager
def beside(host: Host, path: str, *, build: bool = False) -> Iterator[tuple[Directory, str]]:
    """The directory of this file, which may not exist yet, and the file's name in it; `build` as for `directory`."""
    place, name = split(path)
    with directory(host, place, build=build) as pool:
        yield pool, name


def write(host: Host, path: str, content: bytes, *, build: bool = False) -> None:
    """Makes or replaces a small file. `build` as for `directory`.

    Images often lie in a directory in which another user may write (libvirt-qemu), and libvirt writes as root. So the content
    goes into a file in a directory of root's first, from which libvirt copies it. A session daemon has no rights that the
    users of its directories lack: there the file is written in its place."""
    place, name = split(path)
    if host.session:
        with directory(host, place, build=build) as target:
            target.delete(name)  # an upload does not shorten an existing file
            target.upload(name, content)
        return
    with _directories(host, (place, build), (STAGING, True)) as (target, staging):
        file = secrets.token_hex(8)
        try:
            target.copy_in(name, staging.upload(file, content), len(content))
        finally:
            staging.delete(file)


def split(path: str) -> tuple[str, str]:
    """(directory, name) of a path on the host. The host may be another machine, so the path is taken as a POSIX path."""
    return posixpath.split(path)


def _refresh(pool: libvirt.virStoragePool) -> None:
    """Has libvirt read the directory again. libvirt refuses that while anybody creates or writes a volume in the pool. Raises
    BusyError after PATIENCE_S."""
    _patiently(lambda: pool.refresh(0), "asynchronous jobs running", f"creates files in the storage pool {pool.name()}")


def _patiently(do: Callable[[], object], passing: str, what: str) -> None:
    """Calls `do` again and again while libvirt refuses with a message that contains `passing`, at most for PATIENCE_S. Then
    raises BusyError with the message `what`. Other errors of libvirt pass through as libvirtError."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            do()
        except libvirt.libvirtError as error:
            if passing not in (error.get_error_message() or ""):
                raise
            if time.monotonic() > deadline:
                raise BusyError(f"somebody else {what}, for {PATIENCE_S:g} s by now", hint="try again when it ended") from error
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
            mode = "0700" if path == STAGING else None
            xml = storage_xml.directory_pool(f"{POOL_PREFIX}{secrets.token_hex(4)}", path, mode)
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
