"""Images that are files in directories of a libvirt host, local or remote."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from quiesce.hypervisor import merge, storage_xml
from quiesce.hypervisor.connection import Host
from quiesce.model.chains import Image
from quiesce.model.errors import HypervisorError
from quiesce.storage import pools
from quiesce.storage.directories import copy_between
from quiesce.storage.port import MAX_SMALL, Copied, Listing, Merger, ReportProgress, Room


class FileStorage:
    """A quiesce.storage.port.Storage. It uses libvirt's storage pools and, for merges, a helper domain
    (hypervisor/merge.py)."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def identity(self, name: str) -> str:
        return self._host.spell(name)

    def knows(self, name: str) -> bool:
        return name.startswith("/") and not storage_xml.is_device(name)

    def place(self, image: str) -> str:
        return posixpath.dirname(self._host.spell(image))

    def inside(self, place: str, name: str) -> str:
        return self._host.spell(posixpath.join(place, name))

    def look(self, images: Iterable[str]) -> Listing:
        wanted = {self.identity(name) for name in images}
        found = Listing({}, {})
        seen: set[str] = set()
        ahead = {self.place(name) for name in wanted if self.knows(name)}
        while ahead:
            for place in sorted(ahead):
                found = self._with(found, place)
            seen |= ahead
            below = found.chains.needed(wanted)
            ahead = {self.place(name) for name in below if name not in found.images and self.knows(name)} - seen
        return found

    def _with(self, found: Listing, place: str) -> Listing:
        try:
            return replace(found, images={**found.images, **self.contents(place)})
        except HypervisorError as error:
            return replace(found, unreadable={**found.unreadable, place: error.message})

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        with pools.directory(self._host, place, build=make) as directory:
            return {image.path: image for image in map(self._spelled, directory.volumes())}

    def room(self, place: str) -> Room:
        with pools.directory(self._host, place) as directory:
            return Room(*directory.room())

    def image(self, name: str) -> Image:
        with pools.beside(self._host, name) as (directory, file):
            return self._spelled(directory.volume(file))

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str) -> None:
        with pools.beside(self._host, name) as (directory, file):
            directory.create_overlay(file, capacity, backing, backing_format)

    def make_flat(self, name: str, capacity: int) -> None:
        with pools.beside(self._host, name) as (directory, file):
            directory.create_flat(file, capacity)

    def merger(self) -> AbstractContextManager[Merger]:
        return merge.Helper(self._host)

    def remove(self, name: str) -> None:
        with pools.beside(self._host, name) as (directory, file):
            directory.delete(file)

    def has(self, name: str) -> bool:
        with pools.beside(self._host, name) as (directory, file):
            return directory.has(file)

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        with pools.beside(self._host, name) as (directory, file):
            return directory.read(file, most)

    def start(self, name: str) -> bytes:
        with pools.beside(self._host, name) as (directory, file):
            return directory.start(file)

    def write(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        pools.write(self._host, name, content, build=make_place)

    def create(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        pools.write_new(self._host, name, content, build=make_place)

    def copy_file(self, name: str, destination: str, size: int, progress: ReportProgress) -> Copied:
        (place, file), (other, new) = pools.split(name), pools.split(destination)
        with pools.directories(self._host, (place, False), (other, False)) as (source, target):
            return copy_between(source, file, target, new, size, progress)

    def remove_place(self, place: str) -> None:
        pools.remove_directory(self._host, place)

    def size(self, name: str) -> int:
        with pools.beside(self._host, name) as (directory, file):
            return directory.size(file)

    def sha256(self, name: str, progress: ReportProgress) -> str:
        with pools.beside(self._host, name) as (directory, file):
            return directory.sha256(file, progress)

    def _spelled(self, image: Image) -> Image:
        backing = self.identity(image.backing) if image.backing else None
        return replace(image, path=self.identity(image.path), backing=backing)
