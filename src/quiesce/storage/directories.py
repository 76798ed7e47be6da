"""Images and the small files beside them, through libvirt's storage-volume API, so that remote hosts need nothing else."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

import libvirt

from quiesce.hypervisor import storage_xml
from quiesce.hypervisor.connection import translated
from quiesce.hypervisor.storage_xml import Rights
from quiesce.model.chains import Image
from quiesce.model.errors import BusyError, HypervisorError, NameTakenError, NotFoundError, RefusedError
from quiesce.storage import tables
from quiesce.storage.digests import ContentDigest
from quiesce.storage.port import MIN_FREE, START, Copied, ReportProgress, Room, no_space, too_large

LEAST = 1024 * 1024
"""Space for the metadata of a small file, in bytes."""
CHUNK = 256 * 1024
HOLE = -3
"""What virStreamRecvFlags returns at a hole."""
LISTINGS = 20
"""Most reads of a directory in a row until no file appeared or vanished during one of them."""
PATIENCE_S = 60.0
"""Longest wait until nobody creates or writes a file in a pool, in seconds."""


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
        """Every file in the directory that libvirt can read, all as of one time. Leaves out files whose names are not UTF-8:
        quiesce makes none, and a definition cannot name them. Raises BusyError if files appear or vanish during each of
        LISTINGS reads.

        While somebody else refreshes the pool, libvirt's list may lack files that exist. So two lists, one before and one after
        reading the files, must have the same names.
        """
        with translated(f"listing {self.path}"):
            for _ in range(LISTINGS):
                found = {}
                for name, volume in self._named():
                    with _unless_gone():
                        found[name] = _described(volume)
                if found.keys() == {name for name, _ in self._named()}:
                    return list(found.values())
                refresh(self.pool)  # until then, libvirt's list has files that were removed without libvirt
        raise BusyError(
            f"the files in {self.path} could not be listed: files appear or vanish all the time", hint="try again later"
        )

    def _named(self) -> Iterator[tuple[str, libvirt.virStorageVol]]:
        for volume in self.pool.listAllVolumes():
            with suppress(UnicodeDecodeError):
                yield volume.name(), volume

    def volume(self, name: str) -> Image:
        """Raises NotFoundError."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return _described(found)

    def create_overlay(
        self, name: str, capacity: int, backing_path: str, backing_format: str, rights: Rights | None = None
    ) -> str:
        """Makes an overlay and returns its path. Raises NoSpaceError; then nothing is left of the overlay."""
        self._create(storage_xml.overlay_volume(name, capacity, backing_path, backing_format, rights), name, MIN_FREE)
        return posixpath.join(self.path, name)

    def create_flat(self, name: str, capacity: int) -> str:
        """Makes an empty image without a backing file and returns its path."""
        volume = self._create(storage_xml.flat_volume(name, capacity), name, LEAST)
        if capacity % storage_xml.KIB:
            with translated(f"making {self.path}/{name} as large as the disk"):
                volume.resize(capacity, libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK)
        return posixpath.join(self.path, name)

    def fill(self, name: str, size: int, pieces: Iterable[bytes]) -> libvirt.virStorageVol:
        """Makes a file of this size, with the content `pieces`. Raises NameTakenError.

        The file has all its space from the start: libvirtd 11.3 dies of an upload into a full filesystem. libvirt makes it and
        then opens it by its name: whoever may write in the directory could put a link in its place in between. Raises
        RefusedError if others than root, or this user, may."""
        with translated(f"looking at the rights of {self.path}"):
            owner, mode = storage_xml.pool_rights(self.pool.XMLDesc(0))
        require_own(self.path, owner, mode)
        volume = self._create(storage_xml.raw_volume(name, size), name, size + LEAST)
        with self._stream(f"writing {self.path}/{name}") as stream:
            volume.upload(stream, 0, size, 0)
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[stream.send(bytes(view[:CHUNK])) :]
        return volume

    def rights(self, name: str) -> Rights | None:
        """None if there is no such file, or libvirt does not tell."""
        with suppress(libvirt.libvirtError):
            return storage_xml.rights(self.pool.storageVolLookupByName(name).XMLDesc(0))
        return None

    def copy_in(self, name: str, volume: libvirt.virStorageVol, size: int, rights: Rights | None = None) -> None:
        """Makes a small file with the content of `volume`. libvirt opens the new file once, with O_EXCL
        (storageBackendCreateRaw), so no link in the directory is followed. Raises NameTakenError."""
        self._create(storage_xml.raw_volume(name, size, rights), name, size + LEAST, volume)

    @contextmanager
    def _stream(self, what: str) -> Iterator[libvirt.virStream]:
        with translated(what):
            stream = self.pool.connect().newStream(0)
            try:
                yield stream
            except BaseException:
                with suppress(libvirt.libvirtError):
                    stream.abort()
                raise
            stream.finish()

    def read(self, name: str, most: int) -> bytes:
        """The content of a small file. Raises NotFoundError; RefusedError if it has more than `most` bytes."""
        content = b"".join(self.pieces(name, most + 1))
        if len(content) > most:
            raise too_large(f"{self.path}/{name}", most)
        return content

    def start(self, name: str) -> bytes:
        """The first START bytes of a file, or all. Raises NotFoundError."""
        return b"".join(self.pieces(name, START))

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format."""
        found = self._lookup(name)
        with translated(f"reading {self.path}/{name}"):
            return int(found.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])

    def sha256(self, name: str, progress: Callable[[int, int], None]) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal. Calls `progress` with (bytes read, bytes in all). Raises
        NotFoundError."""
        digest, done, size = hashlib.sha256(), 0, self.size(name)
        for piece in self.pieces(name):
            digest.update(piece)
            done += len(piece)
            progress(done, size)
        return digest.hexdigest()

    def tables(self, name: str, format: str) -> str:
        """As quiesce.storage.port.Storage.tables."""
        volume, size = self._lookup(name), self.size(name)

        def read(offset: int, length: int) -> bytes:
            # libvirt refuses an offset at the end, and takes the length 0 for all that follows.
            length = max(0, min(length, size - offset))
            return b"".join(self._received(name, volume, offset, length)) if length else b""

        return tables.digest(read, size, format)

    def content(self, name: str, progress: Callable[[int, int], None]) -> str:
        """As quiesce.storage.port.Storage.content. libvirt sends the file without its holes."""
        volume, size = self._lookup(name), self.size(name)
        found = ContentDigest()
        with self._stream(f"reading {self.path}/{name}") as stream:
            volume.download(stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
            while True:
                piece = stream.recvFlags(CHUNK, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
                if isinstance(piece, bytes) and piece:
                    found.data(piece)
                elif piece == HOLE:
                    found.hole(stream.recvHole())
                else:
                    break
                progress(found.length, size)
        return found.hexdigest()

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

    def pieces(self, name: str, length: int = 0) -> Iterator[bytes]:
        """The first `length` bytes of the file; 0: all."""
        return self._received(name, self._lookup(name), 0, length)

    def _received(self, name: str, volume: libvirt.virStorageVol, offset: int, length: int) -> Iterator[bytes]:
        with self._stream(f"reading {self.path}/{name}") as stream:
            volume.download(stream, offset, length, 0)
            while piece := stream.recv(CHUNK):
                yield piece

    def _create(self, xml: str, name: str, needed: int, content: libvirt.virStorageVol | None = None) -> libvirt.virStorageVol:
        try:
            return self.pool.createXMLFrom(xml, content, 0) if content else self.pool.createXML(xml, 0)
        except libvirt.libvirtError as error:
            message = error.get_error_message() or str(error)
            taken = message.endswith((os.strerror(errno.EEXIST), "already in use."))  # by createXMLFrom
            if taken or error.get_error_code() == libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                raise NameTakenError(f"{self.path}/{name} exists already") from error
            with suppress(HypervisorError):
                self.delete(name)
            if "No space left" in message:
                with suppress(libvirt.libvirtError):
                    self.pool.refresh(0)
                raise no_space(self.path, Room(*self.room()).usable, needed, name) from error
            raise HypervisorError(f"making {self.path}/{name}: {message}") from error


def require_own(path: str, owner: int, mode: int) -> None:
    """Raises RefusedError if others than root, or this user, may write to the directory: they could replace what is made in
    it. `mode`: its rights."""
    if owner not in (0, os.geteuid()) or mode & 0o022:
        raise RefusedError(
            f"other users can put links into {path}, which belongs to user {owner} and has mode {mode:o}",
            hint="take a directory that belongs to root, and that nobody else can write to",
        )


def _described(volume: libvirt.virStorageVol) -> Image:
    """A file. If the name of its backing file cannot be in XML, no QEMU of ours wrote its header: it is a raw image in which a
    guest wrote it, or a file that is no concern of quiesce's."""
    try:
        return storage_xml.volume(volume.XMLDesc(0))
    except (UnicodeDecodeError, ParseError):
        _, _, allocation = volume.info()
        size = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])
        return Image(str(volume.path()), "raw", None, size, int(allocation), "", size)


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def copy_between(source: Directory, name: str, target: Directory, new: str, size: int, progress: ReportProgress) -> Copied:
    """Copies the file `name`, at most `size` bytes, into the new file `new`. Raises NotFoundError, NameTakenError."""
    digest, start, done = hashlib.sha256(), b"", 0

    def read() -> Iterator[bytes]:
        nonlocal start, done
        for piece in source.pieces(name, size):
            digest.update(piece)
            start += piece[: START - len(start)]
            done += len(piece)
            progress(done, size)
            yield piece

    source.size(name)  # if it is not there, nothing is made
    target.fill(new, size, read())
    return Copied(done, digest.hexdigest(), start)


def refresh(pool: libvirt.virStoragePool) -> None:
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
