"""Which image has which backing file, and which images may be merged. Pure.

Every image is one of these:
- owned: a disk of a checkpoint, or the image that the VM writes now (its head);
- merged: an image that was owned until it was committed into its backing file. While its file exists, it has the same content
  as that backing file, so every overlay of it still reads the right content;
- foreign: an image that quiesce did not make, as a clone, or a snapshot made with virsh.

Example: `base <- a <- b`, and `b` was committed into `a`. Now `b` is merged: an overlay whose backing file is `b` reads what an
overlay of `a` would read.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Image:
    """A file, as the storage describes it."""

    path: str
    format: str
    backing: str | None
    """Path of the backing file that the image's header names."""
    capacity: int
    """Virtual size, in bytes."""
    allocation: int
    """Space that the file takes in the storage, in bytes."""
    written: str
    """When the file was last written: seconds since 1970, with nanoseconds, as text."""
    size: int = 0
    """Length of the file, in bytes; 0 if the storage does not tell."""
    changed: str = ""
    """When the file's inode was last changed (ctime), written as `written`; empty if the storage does not tell. No program can
    set it: it follows every write, and every change of the times, the owner, the rights, the name and the links."""
    access: str = ""
    """The owner, the rights and the label of the file. libvirt changes them when a VM is started."""
    tables: str = ""
    """As quiesce.storage.tables; empty if they were not read."""
    backing_format: str | None = None
    """The format of the backing file: the one that the image's header records or else, on a libvirt host, what libvirt guesses
    from the backing file's first bytes."""
    encrypted: bool = False

    @property
    def stamp(self) -> str:
        """Another one after every write, whoever set the time back."""
        return f"{self.written} {self.changed}".rstrip()

    def as_raw(self) -> Image:
        """The image as it is if it is raw, whatever its first bytes look like."""
        return replace(self, format="raw", backing=None, backing_format=None, capacity=self.size, encrypted=False)


def as_declared(images: Mapping[str, Image], wanted: Iterable[str], raw: Iterable[str]) -> dict[str, Image]:
    """The images with the formats that are declared, for those in the backing chains of `wanted`.

    A storage finds out the format from a file's first bytes, and the guest writes these in a raw image: it could write the
    header of a qcow2 image there, which names any file of the host as its backing file. So raw is what somebody declares raw:
    a definition or a record of ours (`raw`), or the header of an overlay in such a chain, which no guest can write."""
    found, declared = dict(images), set(raw)
    for name in wanted:
        seen: set[str] = set()
        following: str | None = name
        while following in found and following not in seen:
            seen.add(following)
            if following in declared:
                found[following] = found[following].as_raw()
            image = found[following]
            if image.backing and image.backing_format == "raw":
                declared.add(image.backing)
            following = image.backing
    return found


@dataclass(frozen=True)
class Chains:
    """The backing file of each image, by the image's header."""

    below: Mapping[str, str | None]

    def chain(self, path: str | None) -> tuple[str, ...]:
        """The image and all its backing files, nearest first."""
        found: list[str] = []
        while path is not None and path not in found:
            found.append(path)
            path = self.below.get(path)
        return tuple(found)

    def circle(self, path: str) -> tuple[str, ...]:
        """The images in the chain of this one whose backing files lead back to themselves; nearly always none."""
        found = self.chain(path)
        again = self.below.get(found[-1])
        return found[found.index(again) :] if again in found else ()

    def needed(self, paths: Iterable[str]) -> set[str]:
        """These images and all their backing files."""
        return {image for path in paths for image in self.chain(path)}

    def readers(self, path: str) -> set[str]:
        """The images that have this one as a backing file, directly or through others."""
        return {image for image in self.below if image != path and path in self.chain(image)}

    def directly_on(self, path: str) -> list[str]:
        return sorted(image for image, below in self.below.items() if below == path)

    def base(self, path: str, owned: Iterable[str]) -> str | None:
        """The nearest backing file of this image that is owned."""
        among = set(owned)
        return next((image for image in self.chain(path)[1:] if image in among), None)

    def dependents(self, path: str, owned: Iterable[str]) -> list[str]:
        """The owned images whose nearest owned backing file is this one."""
        among = set(owned)
        return sorted(image for image in among if self.base(image, among) == path)

    def strangers(self, base: str, top: str, passed: Container[str]) -> set[str]:
        """The images whose content would change if `top` were committed into `base`: images that have `base` in their chain but
        not `top`, and the images between the two, except those in `passed`.

        Example: `base <- a <- top` and `base <- clone`. A commit of `top` into `base` changes what `clone` and `a` read; with
        `a` in `passed` (nothing needs it), only `clone` is returned."""
        between = self.chain(top)[1:]
        past = {image for image in self.readers(base) if image not in between and top not in self.chain(image)}
        return past | {image for image in between[: between.index(base)] if image not in passed}


class Readers:
    """The overlays of each image, found by index: among those of a whole host, say."""

    def __init__(self, below: Mapping[str, str] | None = None) -> None:
        """`below`: the backing file of each image that has one."""
        self._above: dict[str, set[str]] = {}
        self.add(below or {})

    def add(self, below: Mapping[str, str]) -> None:
        for image, backing in below.items():
            self._above.setdefault(backing, set()).add(image)

    def of(self, images: Iterable[str]) -> set[str]:
        """The images that have one of these as a backing file, directly or through others."""
        found: set[str] = set()
        ahead = list(images)
        while ahead:
            new = self._above.get(ahead.pop(), set()) - found
            found |= new
            ahead += new
        return found
