"""The interface of a storage.

An image has one identity, which is also its name: for files, the one spelling of the path. A *place* contains images: for
files, it is a directory. tests/unit/test_storage.py is the contract that every storage must fulfil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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

    @property
    def usable(self) -> int:
        """Bytes that are surely free. libvirt's figure includes the blocks that a filesystem reserves for root, on ext4 a
        twentieth of the size."""
        return max(0, self.free - self.size // 20)


@dataclass(frozen=True)
class Listing:
    """The content of some places."""

    images: Mapping[str, Image]
    """Every image and every other file in the places, by identity."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""

    @property
    def chains(self) -> Chains:
        return Chains({name: image.backing for name, image in self.images.items()})


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    size: int
    """In bytes."""
    sha256: str
    start: bytes
    """The first bytes, at most START."""


class Merger(Protocol):
    """Commits and copies images that no running VM has open."""

    def commit_active(self, image: str, base: str, progress: ReportProgress, then: Callable[[], None] | None = None, /) -> None:
        """Commits `image`, the topmost of its chain, into `base`, an image in the chain. Calls `then` while both are still
        open, so that nobody can start a VM with them. Raises BusyError if somebody else has one of them open."""

    def commit(self, image: str, top: str, base: str, progress: ReportProgress, /) -> None:
        """Commits `top` into `base`, both in the chain of `image`. The overlay of `top` in this chain then has `base` as its
        backing file. Raises BusyError if somebody else has one of them open."""

    def copy(self, image: str, destination: str, progress: ReportProgress, /) -> None:
        """Copies the content of `image`, backing files included, into the existing image `destination`. Raises BusyError if
        somebody else has one of them open."""


class Storage(Protocol):
    """Every method raises HypervisorError for a place that cannot be read or written."""

    def identity(self, name: str) -> str:
        """The one name of an image. Two names of the same image have the same identity; names of different images do not.
        Example: /a//vda.qcow2 and /b/vda.qcow2 are the same image if /b is a symbolic link to /a."""

    def knows(self, name: str) -> bool:
        """Whether the name can be that of an image in this storage. At an image that the storage does not know, for example an
        NBD export, a chain ends for quiesce."""

    def place(self, image: str) -> str:
        """The place of the image, which may not exist yet."""

    def inside(self, place: str, name: str) -> str:
        """The identity of the image called `name` in the place. The image may not exist yet."""

    def look(self, images: Iterable[str]) -> Listing:
        """Everything in the places of these images and of all their backing files."""

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        """Everything in one place. `make`: makes the place if it does not exist. Raises BusyError if files appear or vanish
        meanwhile."""

    def room(self, place: str) -> Room: ...

    def image(self, name: str) -> Image:
        """Raises NotFoundError."""

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str, /) -> None:
        """Makes an overlay of `backing`. `capacity`: virtual size, in bytes. Raises NoSpaceError if less than MIN_FREE bytes
        are free; then nothing is left of the overlay."""

    def make_flat(self, name: str, capacity: int) -> None:
        """Makes an empty image without a backing file. `capacity`: virtual size, in bytes."""

    def merger(self) -> AbstractContextManager[Merger]: ...

    def remove(self, name: str) -> None:
        """Removes a file; does nothing if it does not exist. Raises BusyError if somebody else is writing it."""

    def has(self, name: str) -> bool: ...

    def read(self, name: str, most: int = MAX_SMALL) -> bytes:
        """The content of a small file. Raises NotFoundError; RefusedError if the file has more than `most` bytes."""

    def start(self, name: str) -> bytes:
        """The first START bytes of a file, or all. Raises NotFoundError."""

    def write(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        """Makes or replaces a small file, whoever may write in its place: never writes through a symbolic link, nor into a file
        that somebody else made. `make_place`: makes the place if it does not exist."""

    def create(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        """Makes a small file. Raises NameTakenError if something has this name; then nothing was changed."""

    def copy_file(self, name: str, destination: str, size: int, progress: ReportProgress) -> Copied:
        """Copies a file, byte by byte, into the new file `destination`. Reads `size` bytes at most. Raises NotFoundError, and
        NameTakenError if something has the name `destination`; then nothing was changed."""

    def remove_place(self, place: str) -> None:
        """Removes a place if it is empty. Does nothing if it does not exist, or cannot be removed."""

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format. Raises NotFoundError."""

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
