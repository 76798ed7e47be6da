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
from dataclasses import dataclass


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
