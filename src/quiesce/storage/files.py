"""Images that are files in directories of a libvirt host on which this process has no rights of its own: a remote one, or one
whose daemon runs as another user. libvirt opens the directories as storage pools, and reads every file in them."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime

from quiesce.hypervisor import merge
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.storage_xml import Rights
from quiesce.local.headers import backing_format
from quiesce.model.chains import Image, as_declared
from quiesce.model.errors import HypervisorError, QuiesceError, RefusedError
from quiesce.storage import pools, quarantine
from quiesce.storage.directories import copy_between
from quiesce.storage.port import MAX_SMALL, MIN_FREE, Aside, Copied, Listing, Merger, Overlays, ReportProgress, Room


class FileStorage:
    """A quiesce.storage.port.Storage. It uses libvirt's storage pools and, for merges, a helper domain
    (hypervisor/merge.py)."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def identity(self, name: str) -> str:
        return self._host.spell(name)

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.identity(name) for name in names}

    def knows(self, name: str) -> bool:
        return name.startswith("/") and not self._host.is_device(name)

    def place(self, image: str) -> str:
        return posixpath.dirname(self._host.spell(image))

    def inside(self, place: str, name: str) -> str:
        return self._host.spell(posixpath.join(place, name))

    def look(self, images: Iterable[str], raw: Iterable[str] = ()) -> Listing:
        wanted, declared = ({self.identity(name) for name in names} for names in (images, raw))
        found = self._followed(Listing({}, {}), wanted, declared)
        needed = found.chains.needed(wanted)
        return replace(found, images={path: image for path, image in found.images.items() if path in needed})

    def _followed(self, found: Listing, wanted: set[str], declared: set[str]) -> Listing:
        """With everything in the places of the wanted images and of all their backing files."""
        seen: set[str] = set()
        ahead = {self.place(name) for name in wanted if name not in found.images and self.knows(name)}
        while True:
            for place in sorted(ahead):
                found = self._with(found, place)
            found = replace(found, images=as_declared(found.images, wanted, declared))
            seen |= ahead
            below = found.chains.needed(wanted)
            ahead = {self.place(name) for name in below if name not in found.images and self.knows(name)} - seen
            if not ahead:
                return found

    def overlays(
        self, places: Iterable[str], others: Iterable[str], raw: Iterable[str] = (), *, again: bool = False
    ) -> Overlays:
        """libvirt reads all files anew, whatever `again` is."""
        del again
        found = Listing({}, {})
        for place in sorted(set(places)):
            found = self._with(found, place)
        unreadable = found.unreadable
        named, declared = {name: self.identity(name) for name in others if self.knows(name)}, set(map(self.identity, raw))
        images = self._followed(found, set(named.values()), declared).images
        below = {path: image.backing for path, image in images.items() if image.backing and path not in declared}
        return Overlays(below, named, unreadable)

    def names(self, place: str, prefix: str, suffix: str) -> Sequence[str]:
        names = [(path, posixpath.basename(path)) for path in self.contents(place)]
        return [path for path, name in names if name.startswith(prefix) and name.endswith(suffix)]

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
        rights = self._rights(backing)
        with pools.beside(self._host, name) as (directory, file):
            directory.require_room(MIN_FREE, "an overlay")
            directory.create_overlay(file, capacity, backing, backing_format, rights)

    def make_flat(self, name: str, capacity: int) -> None:
        with pools.beside(self._host, name) as (directory, file):
            directory.create_flat(file, capacity)

    def merger(self) -> AbstractContextManager[Merger]:
        return merge.Helper(self._host)

    def remove(self, name: str) -> None:
        with pools.beside(self._host, name) as (directory, file):
            directory.delete(file)

    def set_aside(self, name: str, now: datetime) -> Aside:
        path = self.identity(name)
        if not self._host.local:
            moved = quarantine.path_in_quarantine(path, now)
            raise RefusedError(
                f"libvirt cannot move {path} on the host {self._host.name}, so it stays",
                hint=f"on that host: mkdir -p {shlex.quote(self.place(moved))} && mv {shlex.quote(path)} {shlex.quote(moved)}",
            )
        return quarantine.isolate(path, now)

    def aside(self, place: str) -> list[Aside]:
        return quarantine.files_in(place) if self._host.local else []

    def drop_aside(self, aside: Aside) -> None:
        quarantine.drop(aside)

    def has(self, name: str) -> bool:
        with pools.beside(self._host, name) as (directory, file):
            return directory.has(file)

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        with pools.beside(self._host, name) as (directory, file):
            return directory.read(file, most)

    def read_each(self, names: Sequence[str], most: int) -> Mapping[str, bytes]:
        found = {}
        for name in names:
            with suppress(QuiesceError):
                found[self.identity(name)] = self.read(name, most)
        return found

    def start(self, name: str) -> bytes:
        with pools.beside(self._host, name) as (directory, file):
            return directory.start(file)

    def backing_format(self, name: str) -> str | None:
        return backing_format(self.start(name))

    def write(self, name: str, content: bytes, *, make_place: bool = False, like: str | None = None) -> None:
        pools.write(self._host, name, content, build=make_place, rights=self._rights(like) if like else None)

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

    def tables(self, name: str, format: str) -> str:
        with pools.beside(self._host, name) as (directory, file):
            return directory.tables(file, format)

    def content(self, name: str, progress: ReportProgress) -> str:
        with pools.beside(self._host, name) as (directory, file):
            return directory.content(file, progress)

    def sha256(self, name: str, progress: ReportProgress) -> str:
        with pools.beside(self._host, name) as (directory, file):
            return directory.sha256(file, progress)

    def _rights(self, name: str) -> Rights | None:
        """Those of a file; None if it does not exist. A session daemon can give away nothing."""
        here = self._host.rights(name) if self._host.local else None
        found = Rights(*here) if here else None
        if not found and self.knows(name):
            with suppress(HypervisorError), pools.beside(self._host, name) as (directory, file):
                found = directory.rights(file)
        return Rights(None, None, found.mode) if found and self._host.session else found

    def _spelled(self, image: Image) -> Image:
        backing = self.identity(image.backing) if image.backing else None
        return replace(image, path=self.identity(image.path), backing=backing)
