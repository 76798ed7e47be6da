"""Which image lies on which, and which of them may be merged. Pure.

Every image is one of these:
- owned: a disk of a checkpoint, or what the VM writes now (its head);
- merged: once an owned image, whose content has since been committed into the owned image below it. It says the same as that
  one as long as it is there, so whatever still lies on it reads right;
- foreign: not ours. Somebody may have made a clone, or a snapshot with virsh.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """A file as the storage tells it."""

    path: str
    format: str
    backing: str | None
    """Path of the backing file, by the image's header."""
    capacity: int
    """Virtual size, in bytes."""
    allocation: int
    """What it takes on the disk, in bytes."""
    written: str
    """When it was last written: seconds since 1970, with nanoseconds, as text."""


@dataclass(frozen=True)
class Chains:
    """Of each image there is, the one below it by its header."""

    below: Mapping[str, str | None]

    def chain(self, path: str | None) -> tuple[str, ...]:
        """The image and all below it, nearest first."""
        found: list[str] = []
        while path is not None and path not in found:
            found.append(path)
            path = self.below.get(path)
        return tuple(found)

    def needed(self, paths: Iterable[str]) -> set[str]:
        """These images and all below them."""
        return {image for path in paths for image in self.chain(path)}

    def readers(self, path: str) -> set[str]:
        """The images that read through this one."""
        return {image for image in self.below if image != path and path in self.chain(image)}

    def directly_on(self, path: str) -> list[str]:
        return sorted(image for image, below in self.below.items() if below == path)

    def base(self, path: str, owned: Iterable[str]) -> str | None:
        """The nearest owned image below this one."""
        among = set(owned)
        return next((image for image in self.chain(path)[1:] if image in among), None)

    def dependents(self, path: str, owned: Iterable[str]) -> list[str]:
        """The owned images whose nearest owned image below is this one."""
        among = set(owned)
        return sorted(image for image in among if self.base(image, among) == path)

    def strangers(self, base: str, top: str, passed: Container[str]) -> set[str]:
        """The images that would read something else if `top` were committed into `base`: those that read `base` past `top`,
        and those between the two, but for the ones that may be passed over."""
        between = self.chain(top)[1:]
        past = {image for image in self.readers(base) if image not in between and top not in self.chain(image)}
        return past | {image for image in between[: between.index(base)] if image not in passed}
