"""Images in memory, for tests: blocks by number, and backing files. They behave as those of QEMU and libvirt, as far as the
contract says (tests/unit/test_storage.py runs the contract on this storage and on real files)."""

from __future__ import annotations

import hashlib
import posixpath
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from quiesce.model.chains import Image, as_declared
from quiesce.model.errors import BusyError, HypervisorError, NameTakenError, NotFoundError
from quiesce.storage.port import (
    MAX_SMALL,
    MIN_FREE,
    START,
    Aside,
    Copied,
    Listing,
    Merger,
    Overlays,
    ReportProgress,
    Room,
    no_space,
    too_large,
)
from quiesce.storage.quarantine import path_in_quarantine, read_path

CAPACITY = 2**30
BLOCK = 65536


@dataclass
class File:
    blocks: dict[int, str] = field(default_factory=dict)
    """The image's own data, without its backing file's."""
    below: str | None = None
    """Path of the backing file."""
    format: str = "qcow2"
    content: bytes = b""
    """The content of a file that is not an image, or of an image whose bytes matter."""
    written: int = 0
    changed: int = 0
    access: str = ""
    capacity: int = CAPACITY
    below_format: str | None = None

    def bytes(self) -> bytes:
        """The content; for an image, the header that QEMU writes, its tables, and the blocks in some form."""
        if self.content or self.format != "qcow2":
            return self.content
        entries = -(-self.capacity // 2**29)
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQIIQQ", b"QFI\xfb", 3, int(bool(self.below)), 0, 16, self.capacity, 0, entries, 3 * BLOCK, BLOCK,
            1, 0, 0, 0, 0, 0, 4, 112, 0, 0,
        )  # fmt: skip
        return header.ljust(4 * BLOCK, b"\0") + (repr(sorted(self.blocks.items())).encode() if self.blocks else b"")


class MemoryStorage:
    """A quiesce.storage.port.Storage. It calls `on_step` before every change; a test that raises there kills the operation at
    that point."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        """Directories that are symbolic links, and the directories that they point to."""
        self.unreadable: dict[str, str] = {}
        """Places that cannot be read, and why."""
        self.free = 2**40
        self.on_step: Callable[[], None] = lambda: None
        self.open_by_others: Callable[[], Iterable[str]] = lambda: ()
        """The topmost images that running VMs have open."""
        self._clock = 0

    # -- for tests

    def make(self, path: str, below: str | None = None, blocks: dict[int, str] | None = None, format: str = "qcow2") -> str:
        self.files[path] = File(dict(blocks or {}), below, format, below_format=self.format(below))
        self.touch(path)
        return path

    def format(self, path: str | None) -> str | None:
        return self.files[path].format if path in self.files else None

    def touch(self, path: str) -> None:
        self._clock += 1
        self.files[path].written = self.files[path].changed = self._clock

    def chain(self, path: str | None) -> list[str]:
        found: list[str] = []
        while path is not None and path not in found:
            found.append(path)
            path = self.files[path].below if path in self.files else None
        return found

    def blocks(self, path: str) -> dict[int, str]:
        """The data that a guest reads from this image, backing files included."""
        found: dict[int, str] = {}
        for image in reversed(self.chain(path)):
            found |= self.files[image].blocks
        return found

    def above(self, top: str, base: str) -> dict[int, str]:
        """The data of the images from `top` down to the overlay of `base`."""
        chain = self.chain(top)
        found: dict[int, str] = {}
        for image in reversed(chain[: chain.index(base)]):
            found |= self.files[image].blocks
        return found

    def commit(self, top: str, base: str, *, opener: str | None, between: Callable[[], None] = lambda: None) -> None:
        """Writes the data of `top` and of all images between into `base`. `opener`: the topmost image of the VM that does it;
        None: no VM does."""
        self.require_unlocked(base, opener)
        for block, value in sorted(self.above(top, base).items()):
            self.on_step()
            self.files[base].blocks[block] = value
            self.touch(base)
            between()

    def rebase(self, opener: str, top: str, base: str) -> None:
        """Gives the overlay of `top` in the chain of `opener` the backing file `base`. No other chain changes."""
        chain = self.chain(opener)
        above = chain[chain.index(top) - 1]
        self.files[above].below, self.files[above].below_format = base, self.format(base)
        self.touch(above)

    def copy_top(self, image: str, destination: str) -> None:
        self.files[destination].blocks = dict(self.files[image].blocks)
        self.touch(destination)

    def require_unlocked(self, path: str, opener: str | None) -> None:
        """QEMU's image locks: raises BusyError if somebody else has the image open."""
        for other in set(self.open_by_others()) - {opener}:
            if path in self.chain(other):
                raise BusyError(f"a VM or program uses {path}")

    # -- the port

    def identity(self, name: str) -> str:
        if not name.startswith("/"):
            return name
        name = "/" + posixpath.normpath(name).lstrip("/")
        directory, file = posixpath.split(name)
        return posixpath.join(self.links.get(directory, directory), file)

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.identity(name) for name in names}

    def knows(self, name: str) -> bool:
        return name.startswith("/") and not name.startswith("/dev/")

    def place(self, image: str) -> str:
        return posixpath.dirname(self.identity(image))

    def inside(self, place: str, name: str) -> str:
        return self.identity(posixpath.join(place, name))

    def look(self, images: Iterable[str], raw: Iterable[str] = ()) -> Listing:
        names, declared = ({self.identity(name) for name in names} for names in (images, raw))
        readable = {path: self.image(path) for path in self.files if self.place(path) not in self.unreadable}
        found = Listing(as_declared(readable, names, declared), self.unreadable)
        needed = {path for path in found.chains.needed(names) if self.knows(path)}
        places = {self.place(path) for path in needed} & self.unreadable.keys()
        images = {path: image for path, image in found.images.items() if path in needed}
        return Listing(images, {place: self.unreadable[place] for place in places})

    def overlays(
        self, places: Iterable[str], others: Iterable[str], raw: Iterable[str] = (), *, again: bool = False
    ) -> Overlays:
        del again
        places, declared = set(map(self.identity, places)), set(map(self.identity, raw))
        named = {name: self.identity(name) for name in others if self.knows(name)}
        read = {path for path in self.files if self.place(path) in places - self.unreadable.keys()} - declared
        for path in named.values():
            for image in self.chain(path):
                if image in declared or image not in self.files or self.place(image) in self.unreadable:
                    break
                read.add(image)
        below = {path: backing for path in read if (backing := self.files[path].below)}
        return Overlays(below, named, {place: self.unreadable[place] for place in places & self.unreadable.keys()})

    def names(self, place: str, prefix: str, suffix: str) -> Sequence[str]:
        names = [(path, posixpath.basename(path)) for path in self.contents(place)]
        return [path for path, name in names if name.startswith(prefix) and name.endswith(suffix)]

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        del make  # every place exists
        place = self.identity(place)
        self._require_readable(place)
        return {path: self.image(path) for path in self.files if posixpath.dirname(path) == place}

    def room(self, place: str) -> Room:
        self._require_readable(self.identity(place))
        return Room(self.free, 2**40)

    def image(self, name: str) -> Image:
        path, file = self._file(name)
        size = max(file.blocks, default=0) * BLOCK
        taken, times = len(file.blocks) * BLOCK, (str(file.written), str(file.changed))
        found = Image(path, file.format, file.below, file.capacity, taken, times[0], size, times[1], file.access)
        return replace(found, backing_format=file.below_format)

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str) -> None:
        path = self.identity(name)
        self._require_absent(path)
        self.on_step()
        if self.free < MIN_FREE:
            raise no_space(self.place(path), self.free, MIN_FREE, "an overlay")
        self.make(path, self.identity(backing))
        self.files[path].capacity, self.files[path].below_format = capacity, backing_format

    def make_flat(self, name: str, capacity: int) -> None:
        path = self.identity(name)
        self._require_absent(path)
        self.on_step()
        self.make(path)
        self.files[path].capacity = capacity

    @contextmanager
    def _merger(self) -> Iterator[Merger]:
        yield MemoryMerger(self)

    def merger(self) -> AbstractContextManager[Merger]:
        return self._merger()

    def remove(self, name: str) -> None:
        path = self.identity(name)
        self._require_readable(self.place(path))
        if path in self.files:
            self.on_step()
            del self.files[path]

    def set_aside(self, name: str, now: datetime) -> Aside:
        path, _ = self._file(name)
        aside = read_path(path_in_quarantine(path, now))
        assert aside is not None  # the name is ours
        self.on_step()
        self.files[aside.path] = self.files.pop(path)
        return aside

    def aside(self, place: str) -> list[Aside]:
        place = self.identity(place)
        return [aside for path in sorted(self.files) if (aside := read_path(path)) and self.place(aside.original) == place]

    def drop_aside(self, aside: Aside) -> None:
        self.remove(aside.path)

    def has(self, name: str) -> bool:
        self._require_readable(self.place(name))
        return self.identity(name) in self.files

    def create(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        del make_place  # every place exists
        self._require_absent(self.identity(name))
        self.write(name, content)

    def copy_file(self, name: str, destination: str, size: int, progress: ReportProgress) -> Copied:
        _, file = self._file(name)
        path = self.identity(destination)
        self._require_absent(path)
        self.on_step()
        self.make(path)
        progress(0, size)
        self.files[path] = replace(file, blocks=dict(file.blocks))
        self.touch(path)
        content = self.files[path].bytes()[:size]
        return Copied(len(content), hashlib.sha256(content).hexdigest(), content[:START])

    def remove_place(self, place: str) -> None:
        """Every place exists."""

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        content = self._file(name)[1].bytes()
        if len(content) > most:
            raise too_large(name, most)
        return content

    def read_each(self, names: Sequence[str], most: int) -> Mapping[str, bytes]:
        there = [path for path in map(self.identity, names) if path in self.files and self.place(path) not in self.unreadable]
        found = {path: self.files[path].bytes() for path in there}
        return {path: content for path, content in found.items() if len(content) <= most}

    def start(self, name: str) -> bytes:
        return self._file(name)[1].bytes()[:START]

    def backing_format(self, name: str) -> str | None:
        return self._file(name)[1].below_format

    def write(self, name: str, content: bytes, *, make_place: bool = False, like: str | None = None) -> None:
        del make_place, like  # every place exists
        self.remove(name)
        self.on_step()
        path = self.make(self.identity(name), format="raw")
        self.files[path].content = content
        self.files[path].capacity = len(content)

    def size(self, name: str) -> int:
        return len(self.read(name))

    def tables(self, name: str, format: str) -> str:
        file = self._file(name)[1]
        known = sorted(file.blocks) if format == "qcow2" else (file.blocks, file.content)
        return hashlib.sha256(repr((file.capacity, file.below, known)).encode()).hexdigest()

    def content(self, name: str, progress: ReportProgress) -> str:
        return self.sha256(name, progress)

    def sha256(self, name: str, progress: ReportProgress) -> str:
        content = self.read(name)
        progress(len(content), len(content))
        return hashlib.sha256(content).hexdigest()

    def _file(self, name: str) -> tuple[str, File]:
        path = self.identity(name)
        self._require_readable(self.place(path))
        if path not in self.files:
            raise NotFoundError(f"there is no {path}")
        return path, self.files[path]

    def _require_readable(self, place: str) -> None:
        if place in self.unreadable:
            raise HypervisorError(self.unreadable[place])

    def _require_absent(self, path: str) -> None:
        self._require_readable(self.place(path))
        if path in self.files:
            raise NameTakenError(f"{path} exists already")


class MemoryMerger:
    """A quiesce.storage.port.Merger."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    def commit_active(self, image: str, base: str, _progress: ReportProgress, then: Callable[[], None] | None = None) -> None:
        self._storage.require_unlocked(image, None)
        self._storage.commit(image, base, opener=None)
        self._storage.on_step()
        if then:
            then()

    def commit(self, image: str, top: str, base: str, _progress: ReportProgress) -> None:
        if top not in self._storage.chain(image)[1:]:
            raise HypervisorError(f"{top} is not in the chain of {image}")
        self._storage.require_unlocked(image, None)
        self._storage.commit(top, base, opener=None)
        self._storage.on_step()
        self._storage.rebase(image, top, base)

    def copy(self, image: str, _format: str, _size: int, destination: str, _progress: ReportProgress) -> None:
        self._storage.require_unlocked(destination, None)
        self._storage.on_step()
        self._storage.files[destination].blocks = self._storage.blocks(image)
        self._storage.touch(destination)

    def copy_top(self, image: str, destination: str, _progress: ReportProgress, then: Callable[[], None] | None = None) -> None:
        self._storage.require_unlocked(image, None)
        self._storage.require_unlocked(destination, None)
        self._storage.on_step()
        self._storage.copy_top(image, destination)
        self._storage.on_step()
        if then:
            then()

    def pull(self, image: str, base: str | None, _progress: ReportProgress) -> None:
        self._storage.require_unlocked(image, None)
        file = self._storage.files[image]
        below = self._storage.blocks(image) if base is None else self._storage.above(image, base)
        for block, value in sorted(below.items()):
            self._storage.on_step()
            file.blocks[block] = value
        self._storage.on_step()
        file.below, file.below_format = base, self._storage.format(base)
        self._storage.touch(image)
