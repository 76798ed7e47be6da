"""What the rest of quiesce asks of a storage.

An image has one identity, which is also its name here: for files, the one spelling of the path. A *place* is what images are
beside each other in: for files, a directory. tests/unit/test_storage.py is the contract that every storage is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NoSpaceError

MIN_FREE = 64 * 1024 * 1024
"""Least room an overlay is made with, in bytes. An overlay grows with what the guest writes; this much keeps the storage from
running full before anybody can act."""

ReportProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Room:
    """In bytes."""

    free: int
    size: int
    """In all; 0 where the storage does not tell."""

    @property
    def usable(self) -> int:
        """What is surely free: libvirt also counts what a filesystem keeps for root, on ext4 a twentieth."""
        return max(0, self.free - self.size // 20)


@dataclass(frozen=True)
class Listing:
    """What was found in some places."""

    images: Mapping[str, Image]
    """Every image and every other file in them, by identity."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""

    @property
    def chains(self) -> Chains:
        return Chains({name: image.backing for name, image in self.images.items()})


class Merger(Protocol):
    """Commits and copies images that no running VM has open."""

    def commit_active(self, image: str, base: str, progress: ReportProgress, then: Callable[[], None] | None = None, /) -> None:
        """Commits `image`, the topmost of its chain, into `base` in the chain. `then` is called while both are still open, so
        that nobody can start a VM on them. Raises BusyError if somebody has one of them open."""

    def commit(self, image: str, top: str, base: str, progress: ReportProgress, /) -> None:
        """Commits `top` into `base`, both in the chain of `image`. The image right above `top` has the backing file `base`
        then. Raises BusyError as above."""

    def copy(self, image: str, destination: str, progress: ReportProgress, /) -> None:
        """Writes the content of `image`, backing files included, into another image, which is there. Raises BusyError."""


class Storage(Protocol):
    """Raises HypervisorError for a place that cannot be read or written, on every method."""

    def identity(self, name: str) -> str:
        """The one name of the image. Two names have one identity exactly if they lead to one image. Example: /a//vda.qcow2 and,
        through the symbolic link /b to /a, /b/vda.qcow2."""

    def knows(self, name: str) -> bool:
        """Whether this could be an image of this storage. Another one, as an NBD export, ends the part of a chain that is
        ours."""

    def place(self, image: str) -> str:
        """The place the image is in, or would be made in."""

    def inside(self, place: str, name: str) -> str:
        """The image of this name in the place."""

    def look(self, images: Iterable[str]) -> Listing:
        """Everything in the places of these images and of all images below them."""

    def contents(self, place: str, *, make: bool = False) -> Mapping[str, Image]:
        """Everything in one place. `make`: makes the place if there is none. Raises BusyError if files come and go
        meanwhile."""

    def room(self, place: str) -> Room: ...

    def image(self, name: str) -> Image:
        """Raises NotFoundError."""

    def make_overlay(self, name: str, capacity: int, backing: str, backing_format: str, /) -> None:
        """Makes an empty image with a backing file. `capacity`: virtual size, in bytes. Raises NoSpaceError if less than
        MIN_FREE is free; nothing is left of it then."""

    def make_flat(self, name: str, capacity: int) -> None:
        """Makes an empty image without a backing file."""

    def merger(self) -> AbstractContextManager[Merger]: ...

    def remove(self, name: str) -> None:
        """Nothing happens if there is none. Raises BusyError if somebody else is about to write it."""

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """All of a small file. Raises NotFoundError."""

    def write(self, name: str, content: bytes, *, make_place: bool = False) -> None:
        """Makes or replaces a small file. `make_place`: makes the place if there is none."""

    def size(self, name: str) -> int:
        """Length of a file in bytes, whatever its format. Raises NotFoundError."""

    def sha256(self, name: str, progress: ReportProgress) -> str:
        """Of the file's bytes. Raises NotFoundError."""


def require_room(storage: Storage, place: str, needed: int, what: str) -> None:
    """Raises NoSpaceError if less than `needed` bytes are free."""
    free = storage.room(place).free
    if free < needed:
        raise no_space(place, free, needed, what)


@contextmanager
def minding_room(storage: Storage, place: str, needed: int, what: str) -> Iterator[None]:
    """For work that writes up to `needed` bytes into a place: if the work fails, and there is less room, raises
    NoSpaceError."""
    try:
        yield
    except HypervisorError as error:
        usable = storage.room(place).usable
        if usable < needed:
            raise no_space(place, usable, needed, what) from error
        raise


def no_space(place: str, free: int, needed: int, what: str) -> NoSpaceError:
    missing = max(0, needed - free)
    return NoSpaceError(
        f"{place} has {free} bytes free, {missing} less than the {needed} that {what} may need",
        hint="free space there, or delete checkpoints: `quiesce tree VM`",
        details={"directory": place, "free": free, "needed": needed, "missing": missing},
    )
