"""Images and small files beside them, through the storage-volume API, so that remote hosts need nothing else."""

from __future__ import annotations

import fcntl
import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.connection import Host, translated
from quiesce.model.errors import HypervisorError, NoSpaceError

MIN_FREE = 64 * 1024 * 1024
"""Least room an overlay is made with, in bytes. An overlay grows with what the guest writes; this much keeps it from running
full before anybody can act."""


@dataclass(frozen=True)
class Directory:
    """A directory of images as a storage pool, active while this lives."""

    path: str
    pool: libvirt.virStoragePool

    def free(self) -> int:
        """Room left when the directory was opened, in bytes."""
        with translated(f"asking for the free space of {self.path}"):
            return int(self.pool.info()[3])

    def create_overlay(self, name: str, capacity: int, backing_path: str, backing_format: str) -> str:
        """Makes a differencing disk and returns its path. Raises NoSpaceError; then nothing is left of it."""
        free = self.free()
        if free < MIN_FREE:
            raise NoSpaceError(
                f"{self.path} has {free} bytes free, {MIN_FREE - free} less than the {MIN_FREE} a differencing disk needs",
                hint="free space there, or delete checkpoints: `quiesce tree VM`",
                details={"directory": self.path, "free": free, "missing": MIN_FREE - free},
            )
        self._create(domain_xml.overlay_volume(name, capacity, backing_path, backing_format), name)
        return posixpath.join(self.path, name)

    def write(self, name: str, content: bytes) -> str:
        """Makes or replaces a small file and returns its path."""
        self.delete(name)
        volume = self._create(domain_xml.raw_volume(name, len(content)), name)
        with translated(f"writing {self.path}/{name}"):
            stream = self.pool.connect().newStream(0)
            volume.upload(stream, 0, len(content), 0)
            view = memoryview(content)
            while view:
                view = view[stream.send(bytes(view[:65536])) :]
            stream.finish()
        return posixpath.join(self.path, name)

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens if there is none."""
        try:
            self.pool.storageVolLookupByName(name).delete(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                raise HypervisorError(f"removing {self.path}/{name}: {error.get_error_message()}") from error

    def has(self, name: str) -> bool:
        try:
            self.pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                return False
            raise HypervisorError(f"looking for {self.path}/{name}: {error.get_error_message()}") from error
        return True

    def capacity(self, name: str) -> int:
        """Virtual size in bytes."""
        with translated(f"reading {self.path}/{name}"):
            return int(self.pool.storageVolLookupByName(name).info()[1])

    def backing(self, name: str) -> str | None:
        """Path of the image below this one, by its header; None if there is none, or no such file."""
        if not self.has(name):
            return None
        with translated(f"reading {self.path}/{name}"):
            return domain_xml.volume_backing(self.pool.storageVolLookupByName(name).XMLDesc(0))

    def _create(self, xml: str, name: str) -> libvirt.virStorageVol:
        try:
            return self.pool.createXML(xml, 0)
        except libvirt.libvirtError as error:
            with suppress(HypervisorError):
                self.delete(name)
            message = error.get_error_message() or str(error)
            if "No space left" in message:
                raise NoSpaceError(f"no space left in {self.path} for {name}", hint="free space there") from error
            raise HypervisorError(f"making {self.path}/{name}: {message}") from error


@contextmanager
def directory(host: Host, path: str) -> Iterator[Directory]:
    """The directory as a pool: the pool that is there already, or one that lives only as long as the block."""
    with _alone():
        pool, ours = _find_or_make(host, path)
        try:
            with translated(f"reading the images in {path}"):
                pool.refresh(0)
            yield Directory(path, pool)
        finally:
            if ours:
                with suppress(libvirt.libvirtError):
                    pool.destroy()


@contextmanager
def _alone() -> Iterator[None]:
    """One of this user's processes on this machine at a time: two pools of one directory exclude each other. Not reentrant."""
    directory = "/run/lock" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())
    with (Path(directory) / f"quiesce-pools-{os.geteuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def split(path: str) -> tuple[str, str]:
    """(directory, name) of an image path on the host, which may not be this machine."""
    return posixpath.split(path)


def _find_or_make(host: Host, path: str) -> tuple[libvirt.virStoragePool, bool]:
    with translated(f"opening the directory {path} as a storage pool"):
        for pool in host.connection.listAllStoragePools():
            with suppress(libvirt.libvirtError):
                if domain_xml.pool_directory(pool.XMLDesc(0)) == path:
                    if pool.isActive():
                        return pool, False
                    pool.create()
                    return pool, True
        xml = domain_xml.directory_pool(f"quiesce-{secrets.token_hex(4)}", path)
        return host.connection.storagePoolCreateXML(xml, 0), True
