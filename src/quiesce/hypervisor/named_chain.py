"""The backing chain that a definition names by itself, beside the one that the images' headers name. Pure.

libvirt believes the <backingStore> elements of a definition and reads no header then. quiesce reads headers only, and removes
the elements when it changes a disk's image. So both must say the same, or the VM would run on other images afterwards."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedChain:
    paths: tuple[str | None, ...]
    """The backing files, nearest first; None: one that is no file or device, as an NBD export."""
    complete: bool
    """Whether the definition says that the last of these has no backing file."""
    formats: tuple[str | None, ...] = ()
    """What each of `paths` is."""

    def spelled(self, spell: Callable[[str], str]) -> NamedChain:
        return NamedChain(tuple(spell(path) if path else path for path in self.paths), self.complete, self.formats)

    def format(self, path: str) -> str | None:
        """What the definition says that this backing file is; None: nothing."""
        return dict(zip(self.paths, self.formats, strict=False)).get(path)

    def contradicts(self, headers: Sequence[str], made: Collection[str] = ()) -> bool:
        """Whether the headers name other backing files. `headers`: by the headers, nearest first. `made`: images that quiesce
        made: a merge changes their headers, and libvirt may not have written that into the definition."""
        named = [path for path in self.paths if path not in made]
        headers = [path for path in headers if path not in made]
        for mine, theirs in zip(named, headers, strict=False):
            if mine is None:
                return False  # what follows is nothing of ours
            if mine != theirs:
                return True
        return len(named) > len(headers) or (self.complete and len(named) < len(headers))


def named_chains(xml: str) -> dict[str, NamedChain]:
    """The chain of each disk that names one, by target."""
    found = {}
    for disk in ET.fromstring(xml).iterfind("./devices/disk"):
        target, below = disk.find("target"), disk.find("backingStore")
        if target is not None and below is not None:
            found[target.get("dev", "")] = _chain(below)
    return found


def _chain(below: ET.Element | None) -> NamedChain:
    paths: list[str | None] = []
    formats: list[str | None] = []
    while below is not None:
        source = below.find("source")
        if source is None:
            return NamedChain(tuple(paths), complete=True, formats=tuple(formats))
        paths.append(source.get("file") or source.get("dev"))
        kind = below.find("format")
        formats.append(kind.get("type") if kind is not None else None)
        below = below.find("backingStore")
    return NamedChain(tuple(paths), complete=False, formats=tuple(formats))
