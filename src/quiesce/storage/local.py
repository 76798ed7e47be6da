"""Images that are files of this machine, for a process that has the rights of libvirt's daemon.

No storage pool is made in the directories of images: libvirt reads every file in a pool, and lists no pool at all while one of
them does not answer. What an operation costs so depends on its own chains alone. libvirt makes the images all the same: in a
directory of ours, from which they are copied."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from quiesce.hypervisor import merge
from quiesce.hypervisor.connection import Host
from quiesce.local.changing import Rights
from quiesce.local.client import LIMIT_S, OTHERS_LIMIT_S, TaskFailed, files
from quiesce.local.headers import backing_format
from quiesce.model.chains import Image, as_declared
from quiesce.model.errors import HypervisorError, NameTakenError, NotFoundError, QuiesceError, SilentStorageError
from quiesce.storage import pools, quarantine, tables
from quiesce.storage.backing import named_file
from quiesce.storage.digests import ContentDigest
from quiesce.storage.directories import Directory, require_own
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
    require_room,
    too_large,
)

_Below = tuple[str, bool]
"""The backing file of an image, and whether the header says that it is raw."""


class LocalStorage:
    """A quiesce.storage.port.Storage."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def identity(self, name: str) -> str:
        return self._host.spell(name)

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        wanted = list(names)
        self._host.spell_together(wanted, LIMIT_S)  # all in one question to the worker
        return {name: self.identity(name) for name in wanted}

    def knows(self, name: str) -> bool:
        return name.startswith("/") and not self._host.is_device(name)

    def place(self, image: str) -> str:
        return posixpath.dirname(self._host.spell(image))

    def inside(self, place: str, name: str) -> str:
        return self._host.spell(posixpath.join(place, name))

    def look(self, images: Iterable[str], raw: Iterable[str] = ()) -> Listing:
        wanted, declared = ({self.identity(name) for name in names} for names in (images, raw))
        found = Listing({}, {})
        seen: set[str] = set()
        ahead = {name for name in wanted if self.knows(name)}
        while ahead:
            new, unreadable = self._described(ahead)
            found = Listing({**found.images, **new}, {**found.unreadable, **unreadable})
            found = replace(found, images=as_declared(found.images, wanted, declared))
            seen |= ahead
            ahead = {name for name in found.chains.needed(wanted) if self.knows(name)} - seen
        return replace(found, images=as_declared(self._with_guesses(found.images), wanted, declared))

    def _described(self, paths: Iterable[str]) -> tuple[dict[str, Image], dict[str, str]]:
        """Those of the images that are there; and the places that cannot be read, and why."""
        images: dict[str, Image] = {}
        unreadable: dict[str, str] = {}
        by_place = _by_place(paths)
        for (place, names), answer in zip(by_place.items(), files().each("describe", list(by_place.items())), strict=True):
            if isinstance(answer, (TaskFailed, SilentStorageError)):
                unreadable[place] = _why(place, answer).message
            else:
                images |= self._images(place, zip(names, answer, strict=True))
        return images, unreadable

    def _images(self, place: str, described: Iterable[tuple[str, Any]]) -> dict[str, Image]:
        read = {posixpath.join(place, name): fields for name, fields in described if fields}
        spelled = self._below(place, {backing for *_, backing, _, _ in read.values() if backing})
        found = {}
        for path, (size, allocation, written, changed, access, *header) in read.items():
            kind, capacity, backing, backing_format, encrypted = header
            found[path] = Image(
                path,
                kind,
                spelled.get(backing),
                size if capacity is None else capacity,
                allocation,
                written,
                size,
                changed,
                access,
                backing_format=backing_format,
                encrypted=encrypted,
            )
        return found

    def _with_guesses(self, images: Mapping[str, Image]) -> dict[str, Image]:
        """With the format that libvirt would guess of each backing file of which no header records it."""
        unclear = [image for image in images.values() if image.backing and not image.backing_format]
        guesses = files().each("format", [(str(image.backing),) for image in unclear])
        guessed = {image.path: guess for image, guess in zip(unclear, guesses, strict=True) if isinstance(guess, str)}
        return {path: replace(image, backing_format=guessed.get(path, image.backing_format)) for path, image in images.items()}

    def _below(self, place: str, backing: Iterable[str]) -> dict[str, str]:
        """The identity of each of these backing files, as headers in the place name them. One whose storage does not answer
        keeps the name that the header has."""
        meant = {text: named_file(text, place) for text in backing}
        spelled = self._host.spell_together(meant.values(), OTHERS_LIMIT_S)
        return {text: spelled.get(path, path) for text, path in meant.items()}

    def overlays(
        self, places: Iterable[str], others: Iterable[str], raw: Iterable[str] = (), *, again: bool = False
    ) -> Overlays:
        found: dict[str, _Below] = {}
        unreadable: dict[str, str] = {}
        linked: set[str] = set()
        wanted = sorted({self.identity(place) for place in places})
        for place, answer in zip(wanted, _each("overlays", [(place, again) for place in wanted]), strict=True):
            if isinstance(answer, (TaskFailed, SilentStorageError)):
                unreadable[place] = _why(place, answer).message
                continue
            by_backing, links = answer
            spelled = self._below(place, [text for (text, _), _ in by_backing])
            inside = f"{place.rstrip('/')}/"
            for (text, is_raw), names in by_backing:
                found |= dict.fromkeys([inside + name for name in names], (spelled[text], is_raw))
            linked |= {inside + name for name in links}
        asked = {name for name in {*others, *linked} if name.startswith("/")}
        named = self._host.spell_together(asked, OTHERS_LIMIT_S)
        silent = {posixpath.dirname(name): "its storage does not answer" for name in asked - named.keys()}
        named = {name: path for name, path in named.items() if self.knows(name)}
        declared = {named[name] for name in raw if name in named}
        self._follow(named.values(), found, declared, silent)
        below = {path: backing for path, (backing, _) in found.items() if path not in declared}
        return Overlays(below, {name: path for name, path in named.items() if name not in linked}, unreadable, silent)

    def _follow(self, paths: Iterable[str], found: dict[str, _Below], declared: set[str], silent: dict[str, str]) -> None:
        """Adds to `found` the backing file of each of these images of others, and of their backing files; to `declared`, what
        the headers of these say is raw, whose own first bytes a guest may have written; and to `silent`."""
        ahead, seen = set(paths) - declared, set[str]()
        while ahead:
            seen |= ahead
            by_place = _by_place(ahead - found.keys())
            answers = files().each("backing_files", list(by_place.items()), limit=OTHERS_LIMIT_S)
            for (place, names), answer in zip(by_place.items(), answers, strict=True):
                if isinstance(answer, SilentStorageError):
                    silent[place] = answer.message
                elif not isinstance(answer, TaskFailed):  # it is not there, or not for us: its owner cares for it
                    read = {posixpath.join(place, name): below for name, below in zip(names, answer, strict=True) if below}
                    spelled = self._below(place, [text for text, _ in read.values()])
                    found |= {path: (spelled[text], is_raw) for path, (text, is_raw) in read.items()}
            backing = [found[path] for path in ahead & found.keys()]
            declared |= {path for path, is_raw in backing if is_raw}
            ahead = {path for path, _ in backing if self.knows(path)} - seen - declared

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        place = self.identity(place)
        with _translated(place, HypervisorError):
            if make:
                files().one("make_directory", place)
                place = self.identity(place)
            return self._images(place, files().one("listing", place, progress=_silent))

    def names(self, place: str, prefix: str, suffix: str) -> Sequence[str]:
        place = self.identity(place)
        with _translated(place, HypervisorError):
            return [posixpath.join(place, name) for name in files().one("names", place, prefix, suffix)]

    def room(self, place: str) -> Room:
        place = self.identity(place)
        with _translated(place, HypervisorError):
            return Room(*files().one("room", place))

    def image(self, name: str) -> Image:
        path = self.identity(name)
        images, unreadable = self._described([path])
        for reason in unreadable.values():
            raise HypervisorError(reason)
        if path not in images:
            raise NotFoundError(f"there is no {path}")
        return images[path]

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str) -> None:
        require_room(self, self.place(name), MIN_FREE, "an overlay")
        rights = self._rights(backing)
        self._made(
            name, MIN_FREE, lambda staging, file: staging.create_overlay(file, capacity, backing, backing_format), rights
        )

    def make_flat(self, name: str, capacity: int) -> None:
        self._made(name, 0, lambda staging, file: staging.create_flat(file, capacity))

    def _made(self, name: str, needed: int, make: Callable[[Directory, str], str], rights: Rights | None = None) -> None:
        """Has libvirt make an image in a directory of ours, and copies it to `name`. Raises NameTakenError."""
        path, file = self.identity(name), f"{secrets.token_hex(8)}{pools.STAGED}"
        if self.has(path):
            raise NameTakenError(f"{path} exists already")
        with pools.staging(self._host) as staging:
            try:
                made = make(staging, file)
                with _translated(path, HypervisorError), self._minding_room(path, needed):
                    files().one("put", path, made, rights)
            finally:
                staging.delete(file)

    def _rights(self, name: str) -> Rights | None:
        """Those of a file or device, for another one; None if it is not there. Whoever makes the other one can always write it.
        A session daemon can give away nothing."""
        if not name.startswith("/") or not (found := self._host.rights(name)):
            return None
        owner, group, mode = found
        if self._host.session:
            return -1, -1, mode | 0o600, b""
        access_list = b""
        with suppress(OSError):  # it is gone by now
            access_list = files().one("access_list", name)
        return owner, group, mode | 0o600, access_list

    @contextmanager
    def _minding_room(self, path: str, needed: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = self.place(path)
                usable = self.room(place).usable
                raise no_space(place, usable, max(needed, usable + 1), posixpath.basename(path)) from error
            raise

    def merger(self) -> AbstractContextManager[Merger]:
        return merge.Helper(self._host)

    def remove(self, name: str) -> None:
        path = self.identity(name)
        with _translated(path, HypervisorError):
            files().one("remove", path)

    def set_aside(self, name: str, now: datetime) -> Aside:
        return quarantine.isolate(self.identity(name), now)

    def aside(self, place: str) -> list[Aside]:
        return quarantine.files_in(self.identity(place))

    def drop_aside(self, aside: Aside) -> None:
        quarantine.drop(aside)

    def has(self, name: str) -> bool:
        try:
            self.image(name)
        except NotFoundError:
            return False
        return True

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        path = self.identity(name)
        with _translated(path):
            content: bytes = files().one("read", path, most + 1)
        if len(content) > most:
            raise too_large(path, most)
        return content

    def read_each(self, names: Sequence[str], most: int) -> Mapping[str, bytes]:
        wanted = _by_place(map(self.identity, names))
        answers = files().each("read_each", [(place, files_, most + 1) for place, files_ in wanted.items()])
        found: dict[str, bytes] = {}
        for (place, files_), answer in zip(wanted.items(), answers, strict=True):
            if not isinstance(answer, (TaskFailed, SilentStorageError)):
                contents = zip(files_, answer, strict=True)
                found |= {
                    posixpath.join(place, name): content for name, content in contents if content and len(content) <= most
                }
        return found

    def start(self, name: str) -> bytes:
        path = self.identity(name)
        with _translated(path):
            return bytes(files().one("read", path, START))

    def backing_format(self, name: str) -> str | None:
        return backing_format(self.start(name))

    def write(self, name: str, content: bytes, *, make_place: bool = False, like: str | None = None) -> None:
        self._small("write", name, content, self._rights(like) if like else None, make_place=make_place)

    def create(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        self._small("create", name, content, make_place=make_place)

    def _small(self, task: str, name: str, *arguments: Any, make_place: bool) -> None:
        path = self.identity(name)
        with _translated(path, HypervisorError), self._minding_room(path, len(arguments[0])):
            if make_place:
                files().one("make_directory", posixpath.dirname(path))
            files().one(task, path, *arguments)

    def copy_file(self, name: str, destination: str, size: int, progress: ReportProgress) -> Copied:
        path, new = self.identity(name), self.identity(destination)
        self.size(path)  # if it is not there, nothing is made
        with _translated(new, HypervisorError), self._minding_room(new, size):
            place = posixpath.dirname(new)
            owner, _, mode = files().one("rights", place)
            require_own(place, owner, mode)
            return Copied(*files().one("copy", new, path, size, START, progress=progress))

    def remove_place(self, place: str) -> None:
        files().one("remove_directory", self.identity(place))

    def size(self, name: str) -> int:
        return self.image(name).size

    def tables(self, name: str, format: str) -> str:
        path = self.identity(name)
        with _translated(path):
            size = int(files().one("length", path))
            return tables.digest(lambda offset, length: bytes(files().one("read_at", path, offset, length)), size, format)

    def content(self, name: str, progress: ReportProgress) -> str:
        path, found = self.identity(name), ContentDigest()
        with _translated(path):
            size = int(files().one("length", path))
            while True:
                begin, piece = files().one("data_after", path, found.length)
                found.hole(begin - found.length)
                if not piece:
                    return found.hexdigest()
                found.data(piece)
                progress(found.length, size)

    def sha256(self, name: str, progress: ReportProgress) -> str:
        path = self.identity(name)
        with _translated(path):
            return str(files().one("sha256", path, progress=progress))


def _by_place(paths: Iterable[str]) -> dict[str, list[str]]:
    """The names of these files, by their directories."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        place, name = posixpath.split(path)
        found.setdefault(place, []).append(name)
    return found


def _silent(_done: int, _total: int) -> None:
    pass


def _each(task: str, wanted: Sequence[tuple[Any, ...]]) -> list[Any]:
    return files().each(task, wanted, progress=_silent)


def _why(path: str, found: TaskFailed | SilentStorageError) -> QuiesceError:
    return found if isinstance(found, SilentStorageError) else _error(path, found.error())


def _error(path: str, error: OSError) -> QuiesceError:
    if error.errno == errno.EEXIST:
        return NameTakenError(f"{path} exists already")
    return HypervisorError(f"{path}: {os.strerror(error.errno or errno.EIO)}")


@contextmanager
def _translated(path: str, gone: type[QuiesceError] = NotFoundError) -> Iterator[None]:
    """Turns an error of the block, which looks at or makes this file, into one of ours. `gone`: if it, or its place, is not
    there."""
    try:
        yield
    except FileNotFoundError as error:
        raise gone(f"there is no {path}") from error
    except OSError as error:
        raise _error(path, error) from error
