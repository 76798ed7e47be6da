"""What the disks of a VM that is off are worth. Pure.

A guest that shut itself down leaves disks that are application-consistent. quiesce itself also writes to the disks of a VM that
is off: a restore makes new overlays, a merge commits one image into another. The content is then worth what it was worth
before, as long as nobody has written to the images since. Example: checkpoint `a` is application-consistent. `quiesce restore
vm@a` makes overlays, which nobody has written yet. A checkpoint `b` taken right now has the content of `a`, so `b` is
application-consistent too; after one boot and a power failure `b` is crash-consistent."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from quiesce.model.grades import Consistency
from quiesce.model.tree import Checkpoint


@dataclass(frozen=True)
class Untouched:
    """The images of a VM as quiesce left them while the VM was off, and what their content is worth until somebody writes."""

    written: dict[str, str]
    """The stamp of each image, by path (model.chains.Image): another one after every write. The record says nothing of an
    image that is not listed."""
    worth: Consistency | None = None
    """The label of the content. None: the label of the checkpoint that the VM is based on."""

    def unchanged(self, now: Mapping[str, str]) -> bool:
        """Whether nobody has written to the images since. `now`: the stamp of each image; an image that is not in `now`
        counts as changed."""
        return all(now.get(path) == written for path, written in self.written.items())

    def value(self, parent: Checkpoint | None) -> Consistency | None:
        """The label of the content at the time of the record. None: unknown."""
        return self.worth or (parent.consistency if parent else None)


@dataclass(frozen=True)
class Standing:
    """What the disks of a VM that is off are worth."""

    consistency: Consistency
    source: Checkpoint | None = None
    """The checkpoint whose content the disks still have, so that its evidence is theirs, too."""
    note: str | None = None
    """A sentence for the user, if the label comes from a record."""


def standing(
    untouched: Untouched | None,
    parent: Checkpoint | None,
    now: Mapping[str, str],
    images: Set[str],
    *,
    shut_itself_down: bool,
) -> Standing:
    """What these images of a VM that is off are worth.

    `untouched`: the record that quiesce left, None if there is none. `parent`: the checkpoint that the VM is based on. `now`:
    the stamp of each image. `shut_itself_down`: libvirt reports that the guest shut itself down
    (VIR_DOMAIN_SHUTOFF_SHUTDOWN).
    """
    if untouched is not None:
        if not untouched.written.keys() <= now.keys():
            return Standing(Consistency.CRASH)  # an image that was restored is gone
        if untouched.unchanged(now):
            worth = untouched.value(parent)
            if worth is None or not images <= untouched.written.keys():
                return Standing(Consistency.CRASH)
            source = parent if untouched.worth is None else None
            since = repr(source.name) if source else "a restore"
            return Standing(worth, source, f"nothing was written since {since}")
    return Standing(Consistency.APPLICATION if shut_itself_down else Consistency.CRASH)
