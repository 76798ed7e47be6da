"""The interface of a storage.

An image has one identity, which is also its name: for files, the one spelling of the path. A *place* contains images: for
files, it is a directory. tests/unit/test_storage.py is the contract that every storage must fulfil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NoSpaceError, RefusedError, UsageError

MIN_FREE = 64 * 1024 * 1024
"""Least free space for making an overlay, in bytes. An overlay grows as the guest writes; with less, the storage could be full
before anybody can act."""

MAX_SMALL = 256 * 1024 * 1024
"""Most bytes of a file that is read as a whole. UEFI variables take up to 64 MiB."""
START = 64 * 1024
"""So many bytes at the beginning of a file tell what it is."""

ReportProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Room:
    """The space of a place, in bytes."""

    free: int
    size: int
    """Space in all; 0 if the storage does not tell."""
    read_only: bool = False
    """Whether the filesystem is mounted read-only, as far as the storage tells."""

    @property
    def usable(self) -> int:
        """Bytes that are surely free. libvirt's figure includes the blocks that a filesystem reserves for root, on ext4 a
        twentieth of the size."""
        return max(0, self.free - self.size // 20)


@dataclass(frozen=True)
class Listing:
    """Some images."""

    images: Mapping[str, Image]
    """By identity."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""

    @property
    def chains(self) -> Chains:
        return Chains({name: image.backing for name, image in self.images.items()})


@dataclass(frozen=True)
class Overlays:
    """Which images have a backing file."""

    below: Mapping[str, str]
    """The backing file of each image that has one, by identity."""
    named: Mapping[str, str]
    """The identity of each file of others that was asked for, by the name that was given."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Places of others that do not answer, and what was seen of them."""


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    size: int
    """In bytes."""
    sha256: str
    start: bytes
    """The first bytes, at most START."""


@dataclass(frozen=True)
class Aside:
    """A file in the quarantine of its place (storage/quarantine.py)."""

    path: str
    original: str
    """Where the file was."""
    since: datetime
    """UTC."""


class Merger(Protocol):
    """Commits and copies images that no running VM has open."""

    def commit_active(self, image: str, base: str, progress: ReportProgress, then: Callable[[], None] | None = None, /) -> None:
        """Commits `image`, the topmost of its chain, into `base`, an image in the chain. Calls `then` while both are still
        open, so that nobody can start a VM with them. Raises BusyError if somebody else has one of them open."""

    def commit(self, image: str, top: str, base: str, progress: ReportProgress, /) -> None:
        """Commits `top` into `base`, both in the chain of `image`. The overlay of `top` in this chain then has `base` as its
        backing file. Raises BusyError if somebody else has one of them open."""

    def copy(self, image: str, format: str, size: int, destination: str, progress: ReportProgress, /) -> None:
        """Copies the content of `image`, which has this format and this virtual size in bytes, backing files included, into the
        existing image `destination`. Raises BusyError if somebody else has one of them open."""

    def copy_top(
        self, image: str, destination: str, progress: ReportProgress, then: Callable[[], None] | None = None, /
    ) -> None:
        """Copies `image`, without its backing files, into the existing overlay `destination`, whose backing file has the same
        content as that of `image`. Calls `then` as `commit_active`. Raises BusyError as `copy`."""

    def pull(self, image: str, base: str | None, progress: ReportProgress, /) -> None:
        """Copies what the images between `image` and `base`, an image in its chain, have into `image`, which then has `base` as
        its backing file; None: no backing file. Only for an image that nobody needs yet: if the storage fails, the image may be
        worthless. When this returns, it is complete. Raises BusyError as `copy`."""


class Storage(Protocol):
    """Every method raises HypervisorError for a place that cannot be read or written."""

    def identity(self, name: str) -> str:
        """The one name of an image. Two names of the same image have the same identity; names of different images do not.
        Example: /a//vda.qcow2 and /b/vda.qcow2 are the same image if /b is a symbolic link to /a."""

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        """The identity of each, by name."""

    def knows(self, name: str) -> bool:
        """Whether the name can be that of an image in this storage. At an image that the storage does not know, for example an
        NBD export, a chain ends for quiesce."""

    def place(self, image: str) -> str:
        """The place of the image, which may not exist yet."""

    def inside(self, place: str, name: str) -> str:
        """The identity of the image called `name` in the place. The image may not exist yet."""

    def look(self, images: Iterable[str], raw: Iterable[str] = ()) -> Listing:
        """Those of these images, and of all their backing files, that are there. `raw`: images that are declared raw, whatever
        their first bytes look like (model.chains.as_declared)."""

    def overlays(
        self, places: Iterable[str], others: Iterable[str], raw: Iterable[str] = (), *, again: bool = False
    ) -> Overlays:
        """The images in these places that have a backing file, and the chains of `others`: files of other VMs, as definitions
        name them. `raw`: those that are declared raw, and so have no backing file. Has as many files to read as there are in
        the places, so only what removes or merges images, or examines the whole host, asks for it. `again`: it was asked a
        moment ago, and only new files need be read."""

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        """Everything in one place. `make`: makes the place if it does not exist. Raises BusyError if files appear or vanish
        meanwhile."""

    def names(self, place: str, prefix: str, suffix: str) -> Sequence[str]:
        """The identity of everything in the place whose name begins and ends so."""

    def room(self, place: str) -> Room: ...

    def image(self, name: str) -> Image:
        """Raises NotFoundError."""

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str, /) -> None:
        """Makes an overlay of `backing`, with the owner, group and mode of `backing`. `capacity`: virtual size, in bytes.
        Raises NoSpaceError if less than MIN_FREE bytes are free; then nothing is left of the overlay."""

    def make_flat(self, name: str, capacity: int) -> None:
        """Makes an empty image without a backing file. `capacity`: virtual size, in bytes."""

    def merger(self) -> AbstractContextManager[Merger]: ...

    def remove(self, name: str) -> None:
        """Removes a file; does nothing if it does not exist. Raises BusyError if somebody else is writing it."""

    def set_aside(self, name: str, now: datetime) -> Aside:
        """Moves a file into the quarantine of its place. Raises NotFoundError; RefusedError if this storage cannot move
        files."""

    def aside(self, place: str) -> list[Aside]:
        """The files in the quarantine of the place, oldest first."""

    def drop_aside(self, aside: Aside) -> None:
        """Removes a file from the quarantine."""

    def has(self, name: str) -> bool: ...

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        """The content of a small file. Raises NotFoundError; RefusedError if the file has more than `most` bytes."""

    def read_each(self, names: Sequence[str], most: int) -> Mapping[str, bytes]:
        """The content of those of these small files that can be read and have at most `most` bytes."""

    def start(self, name: str) -> bytes:
        """The first START bytes of a file, or all. Raises NotFoundError."""

    def backing_format(self, name: str) -> str | None:
        """The format of the backing file, if the image records it. libvirt lists the one that it guesses. Raises
        NotFoundError."""

    def write(self, name: str, content: bytes, *, make_place: bool = False, like: str | None = None) -> None:
        """Makes or replaces a small file, whoever may write in its place: never writes through a symbolic link, nor into a file
        that somebody else made. `make_place`: makes the place if it does not exist. `like`: a file whose owner,
        group and mode the new one gets; otherwise it is its maker's alone."""

    def create(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        """Makes a small file. Raises NameTakenError if something has this name; then nothing was changed."""

    def copy_file(self, name: str, destination: str, size: int, progress: ReportProgress) -> Copied:
        """Copies a file, byte by byte, into the new file `destination`. Reads `size` bytes at most. Raises NotFoundError, and
        NameTakenError if something has the name `destination`; then nothing was changed."""

    def remove_place(self, place: str) -> None:
        """Removes a place if it is empty. Does nothing if it does not exist, or cannot be removed."""

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format. Raises NotFoundError."""

    def tables(self, name: str, format: str) -> str:
        """A digest of what the file says about where its data is, as quiesce.storage.tables: cheap, and another one after the
        image got, lost or moved data. `format`: what the image is, as it is declared. Raises NotFoundError."""

    def content(self, name: str, progress: ReportProgress) -> str:
        """A digest of all bytes of the file, as quiesce.storage.digests; reads all of them. Raises NotFoundError."""

    def sha256(self, name: str, progress: ReportProgress) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal. Raises NotFoundError."""


def plain(storage: Storage, place: str, name: str) -> str:
    """The identity of a file in a place where strangers may have put something. Raises UsageError if it is a link to another
    file. On a remote host, links are not seen."""
    path = storage.inside(place, name)
    if path != storage.inside(storage.place(storage.inside(place, "-")), name) or not path.endswith(f"/{name}"):
        raise UsageError(f"{place}/{name} is a link")
    return path


def require_room(storage: Storage, place: str, needed: int, what: str) -> None:
    """Raises NoSpaceError if less than `needed` bytes are free in the place. `what`: who needs them, for the message."""
    free = storage.room(place).free
    if free < needed:
        raise no_space(place, free, needed, what)


@contextmanager
def minding_room(storage: Storage, place: str, needed: int, what: str) -> Iterator[None]:
    """The block writes up to `needed` bytes into a place. If it raises HypervisorError and less than `needed` bytes are free,
    raises NoSpaceError instead: lack of space is the probable cause."""
    try:
        yield
    except HypervisorError as error:
        usable = storage.room(place).usable
        if usable < needed:
            raise no_space(place, usable, needed, what) from error
        raise


def too_large(name: str, most: int) -> RefusedError:
    return RefusedError(f"{name} has more than {most} bytes, so it is not what it should be")


def no_space(place: str, free: int, needed: int, what: str) -> NoSpaceError:
    missing = max(0, needed - free)
    return NoSpaceError(
        f"{place} has {free} bytes free, {missing} less than the {needed} that {what} may need",
        hint="free space there, for example by deleting checkpoints: quiesce tree VM, quiesce delete VM@CHECKPOINT",
        details={"directory": place, "free": free, "needed": needed, "missing": missing},
    )
