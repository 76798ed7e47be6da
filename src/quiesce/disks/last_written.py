"""Which image each disk of a VM had last, and whether the definition still names it. Pure: facts in, values out.

Administrators define VMs anew from files: Ansible, Terraform, a backup of the XML. Such a definition names the images that the
VM had when it was made. quiesce knows better which images the VM wrote last: it gave them to the VM. Example: the VM wrote
`now.qcow2`, an overlay of checkpoint a's image `first.qcow2`, and the new definition names `first.qcow2`. If nobody wrote to
`first.qcow2` since, the definition is wrong, and nothing is lost when it names `now.qcow2` again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum

from quiesce.disks.survey import Survey
from quiesce.model.chains import Chains, Image
from quiesce.model.tree import Tree


class AstrayState(str, Enum):
    """What is known of an image that a definition names instead of the one that the VM wrote last."""

    GONE = "gone"
    """There is no such file, in a directory that has others of the VM."""
    UNWRITTEN = "unwritten"
    """A checkpoint consists of it, or it has old data of the last image, and nobody wrote to it or below it since."""
    WRITTEN = "written"
    """As UNWRITTEN, but somebody wrote to it."""
    RUNNING = "running"
    """The VM writes it now."""
    UNKNOWN = "unknown"
    """Anything else: a copy, an image of something else, an image whose content nothing vouches for."""


@dataclass(frozen=True)
class Astray:
    """A disk whose definition does not name the image that the VM wrote last."""

    target: str
    named: str
    last: str
    state: AstrayState
    next_start: bool = False
    """Whether the VM runs, on the right image, and only its next start would use the wrong one."""


@dataclass(frozen=True)
class LastWritten:
    """What `last_written` found."""

    images: Mapping[str, frozenset[str]]
    """By target: the images that the VM may have written last; usually one."""
    unassigned: frozenset[str]
    """Images of which nothing tells to which disk they belong."""

    def only(self, target: str) -> str | None:
        found = self.images.get(target, frozenset())
        return next(iter(found)) if len(found) == 1 else None


def last_written(
    images: Mapping[str, Image],
    tree: Tree,
    live: Collection[str],
    made: Collection[str],
    switched: Collection[str],
    others: Collection[str],
) -> LastWritten:
    """`live`, `made`, `others`: as in Survey. `switched`: overlays to which an interrupted operation may have switched the VM.

    The image that quiesce gave the VM last or, if somebody took a snapshot of it with virsh, the topmost overlay of that one.
    Example: `live` has `now`, and `virsh snapshot-create-as --no-metadata` made `theirs` above it: `theirs`."""
    chains = Chains({path: image.backing for path, image in images.items()})
    owned = {disk.path: disk.target for node in tree.nodes for disk in node.disks}
    frozen = {path for node in tree.nodes for disk in node.disks for path in chains.chain(disk.path)[1:]}
    frozen |= {disk.path for node in tree.checkpoints for disk in node.disks}
    found: dict[str, set[str]] = {}
    unassigned = set()
    for path in set(live) & images.keys() - frozen:
        target = owned.get(path) or owned.get(chains.base(path, owned) or "")
        above = {
            image
            for image in chains.readers(path) & images.keys() - set(others) - owned.keys()
            if image not in made or image in live or image in switched
        }
        tops = {image for image in above if not chains.readers(image) & above} or {path}
        if target:
            found.setdefault(target, set()).update(tops)
        else:
            unassigned |= tops
    return LastWritten({target: frozenset(paths) for target, paths in found.items()}, frozenset(unassigned))


def astray(found: Survey, last: LastWritten, named_next: Mapping[str, str], *, running: bool) -> list[Astray]:
    """The disks whose definitions do not name what the VM wrote last. `named_next`: as Vm.heads(next_start=True)."""
    result = []
    in_use = set(found.head.values())
    for target, named in sorted(found.head.items()):
        expected = last.only(target)
        if not expected or expected in found.others:
            continue
        if named == expected or (expected in found.chains.chain(named) and not _stale(found, named)):
            ahead = named_next.get(target, named)
            if running and ahead != named and named not in found.chains.chain(ahead) and ahead not in in_use:
                result.append(Astray(target, ahead, named, _state(found, ahead, named), next_start=True))
        elif expected not in in_use:
            state = AstrayState.RUNNING if running else _state(found, named, expected)
            result.append(Astray(target, named, expected, state))
    return result


def _stale(found: Survey, path: str) -> bool:
    """Whether the image is one that quiesce took away from the VM: it was committed into the image below, or given up."""
    return path in found.made and path not in found.live and path in found.merged


def _state(found: Survey, named: str, last: str) -> AstrayState:
    if named not in found.images:
        known = {found.places.get(path) for path in {last, *(disk.path for node in found.tree.nodes for disk in node.disks)}}
        return AstrayState.GONE if found.places.get(named) in known - {None} else AstrayState.UNKNOWN
    frozen = found.chains.needed(disk.path for node in found.tree.nodes for disk in node.disks)
    if named in frozen or named in found.chains.chain(last):
        read = found.chains.chain(named)
        if any(path in found.changed for path in read):
            return AstrayState.WRITTEN
        return AstrayState.UNWRITTEN if all(path in found.fingerprints for path in read) else AstrayState.UNKNOWN
    if last in found.chains.chain(named):
        written, since = (_time(found.images[path]) for path in (named, last))
        return AstrayState.UNWRITTEN if written is not None and since is not None and written <= since else AstrayState.WRITTEN
    return AstrayState.UNKNOWN


def _time(image: Image) -> Decimal | None:
    return Decimal(image.written) if image.written.replace(".", "", 1).isdigit() else None
