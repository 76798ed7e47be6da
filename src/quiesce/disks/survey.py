"""The images around a VM: which exist, to whom each belongs, and which of them nothing needs. Backing files come from the
images' headers, not from the catalog."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from quiesce.context import Context
from quiesce.disks.neighbours import Neighbours, around
from quiesce.disks.places import manifests
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.fingerprints import Discrepancy, Fingerprint
from quiesce.model.tree import Checkpoint, Tree
from quiesce.storage.port import Listing, Storage

_SHOWS = "`quiesce doctor {vm}` shows what is known of it, and what a repair would do and lose"
COPY = "-copy"
"""In the name of a file, after the disk's: the image is a copy that made a chain shorter (shortening.py). Its backing file does
not tell on which checkpoint it is based. The name tells what it is also when the catalog is lost."""
_COPY = re.compile(rf".+{COPY}\.[0-9a-f]{{12}}\.qcow2")


@dataclass(frozen=True)
class Survey:
    """The images around a VM at one time. Only under the VM's lock does nobody of us change them meanwhile."""

    tree: Tree
    images: Mapping[str, Image]
    """Every image of the VM and of its checkpoints, and their backing files. After `look_around` also the overlays of
    others."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""
    head: Mapping[str, str]
    """The image of each disk, by target: the VM writes it now, or will when it is started."""
    named: frozenset[str]
    """Every file that the VM's definitions name: the present one and that of the next start."""
    made: frozenset[str]
    """Files that quiesce made for the VM."""
    merged: frozenset[str]
    """Images that were committed into their backing files."""
    live: frozenset[str]
    """Images that the VM writes, or wrote when somebody gave its disk another image, or none. Only the administrator may
    remove the latter."""
    others: frozenset[str]
    """Those of the images that the definitions of other VMs of the host name; empty before `look_around`."""
    elsewhere: frozenset[str]
    """Images that the storage does not know: a block device, an NBD export. At such an image a chain ends for quiesce, and it
    is never removed. `images` has the block devices among them that the VM or a checkpoint has as a disk."""
    places: Mapping[str, str]
    """The place of each image."""
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    """The recorded fingerprints of images, by path."""
    writing: frozenset[str] = frozenset()
    """The images that the VM has open for writing: those of `head`, if it runs."""

    @cached_property
    def chains(self) -> Chains:
        return Chains({path: image.backing for path, image in self.images.items()})

    @cached_property
    def discrepancies(self) -> Mapping[str, Discrepancy]:
        """The images in the backing chains of checkpoints, hidden ones too, that are not known to have the content that was
        checkpointed, by path. Images that are gone are not among them."""
        return discrepancies(self.tree, self.images, self.fingerprints, self.writing)

    @cached_property
    def changed(self) -> Mapping[str, str]:
        """A sentence for each image of `discrepancies`."""
        return {path: difference.of(path) for path, difference in self.discrepancies.items()}

    def changed_for(self, paths: Iterable[str]) -> Mapping[str, str]:
        """Those of `changed` that are in the backing chains of these images, or are one of them."""
        read = self.chains.needed(paths)
        return {path: text for path, text in self.changed.items() if path in read}

    def owners(self) -> dict[str, Checkpoint | None]:
        """The owner of each owned image: a checkpoint; None: the VM. If two checkpoints share an image after a merge, the one
        that is not hidden owns it."""
        found: dict[str, Checkpoint | None] = {}
        for node in sorted(self.tree.nodes, key=lambda node: (not node.hidden, len(self.tree.ancestors(node.id)))):
            found |= {disk.path: node for disk in node.disks}
        return found | dict.fromkeys(self.head.values())

    def own(self) -> frozenset[str]:
        """Every file of this VM and its checkpoints."""
        return self.made | frozenset(self.head.values()) | {path for node in self.tree.nodes for path in node.paths()}

    def needed(self) -> set[str]:
        """Every file of the VM and of its checkpoints, backing files included."""
        return self.chains.needed(self.named | {path for node in self.tree.nodes for path in node.paths()})

    def orphans(self) -> list[str]:
        """Files of ours for which no need is known, overlays before their backing files. A file that somebody else's image has
        as a backing file is needed. That no need is known is no reason to remove a file: see disks/unneeded.py."""
        needed = self.needed()
        strangers = {path for path in self.images if path not in self.made and path not in needed}
        left = self.made - needed - self.chains.needed(strangers | self.live | self.others)
        return sorted(left & self.images.keys(), key=lambda path: (-len(self.chains.chain(path)), path))

    def missing(self, node: Checkpoint) -> list[str]:
        """Files of the checkpoint, and backing files of these, that do not exist although their places can be read."""
        return sorted(path for path in self.chains.needed(node.paths()) if self._gone(path) and not self._unreadable(path))

    def require_complete_chains(self) -> None:
        """Raises NotFoundError if an image in a chain does not exist: it is then unknown which images may be merged."""
        images = self.chains.needed({*self.head.values(), *(disk.path for node in self.tree.nodes for disk in node.disks)})
        missing = [path for path in sorted(images) if self._gone(path)]
        if missing:
            raise NotFoundError(
                f"{missing[0]} does not exist or cannot be read, although a checkpoint or the VM needs it",
                hint="`quiesce doctor` says which",
            )

    def standing(self, disks: Mapping[str, str]) -> dict[str, str | None]:
        """The checkpoint on which each of these disks is based, by the images' headers: id by target. None: no checkpoint.
        `disks`: the image of each disk, by target. Where a copy that made the chain shorter comes before the image of a
        checkpoint, the headers do not tell, and the catalog's record stands.

        Example: `c (C)` and `d2 (D) <- n`, and D is deleted. Then the VM writes d2, and is based on C."""
        owners = self.owners()
        return {
            target: self.tree.head_parent
            if self._copied(path, owners)
            else owner.id
            if base and (owner := owners[base])
            else None
            for target, path in disks.items()
            for base in [self.chains.base(path, owners)]
        }

    def _copied(self, path: str, owners: Mapping[str, Checkpoint | None]) -> bool:
        """Whether the image, or one between it and the nearest checkpoint's image, is a copy that made the chain shorter."""
        chain, base = self.chains.chain(path), self.chains.base(path, owners)
        return any(_COPY.fullmatch(posixpath.basename(image)) for image in (chain[: chain.index(base)] if base else chain))

    def based_on(self, node: Checkpoint) -> bool:
        """Whether the VM writes an overlay of an image of this checkpoint, or an overlay of such an overlay."""
        images = {target: image.path for target in self.head if (image := node.image(target))}
        return any(path in self.chains.chain(self.head[target])[1:] for target, path in images.items())

    def head_parent_without(self, node: Checkpoint) -> str | None:
        """The checkpoint that the VM is based on once `node` is forgotten, on which it is based now.

        The nearest ancestor of `node` with an image in a chain of the VM; if there is none, another checkpoint on which a disk
        is based. Example where it is not the parent: `node` has vda alone, the parent has vdb alone, and the VM's vdb is based
        on another branch, because a restore of `node` leaves vdb as it is. No checkpoint that has a disk which is then based on
        none: it would be called a chain that somebody changed."""
        owners = self.owners()
        if any(self._copied(path, owners) for path in self.head.values()):
            return node.parent
        standing = {target: id for target, id in self.standing(self.head).items() if id and id != node.id}
        loose = self.head.keys() - standing.keys()
        possible = {other.id for other in self.tree.nodes if not any(map(other.image, loose))}
        above = (other.id for other in self.tree.ancestors(node.parent) if other.id in possible and self.based_on(other))
        return next(above, None) or min(possible.intersection(standing.values()), default=None)

    def contradicting(self, disks: Mapping[str, str]) -> list[str]:
        """The disks whose chains are not as the catalog records: the VM's checkpoint has the disk, but the disk is based on no
        checkpoint, or no disk of the VM is based on the VM's checkpoint. `disks`: the image of each disk, by target.

        One disk may be based on another checkpoint than the other disks: after a restore of a checkpoint that leaves the disk
        out.
        """
        parent = self.tree.get(self.tree.head_parent)
        if not parent or parent.hidden:
            return []
        standing = self.standing(disks)
        based = [target for target, path in disks.items() if (image := parent.image(target)) and image.path != path]
        agreed = self.based_on(parent) or parent.id in standing.values()
        return [target for target in based if standing[target] is None or not agreed]

    def require_known_chain(self, disks: Mapping[str, str]) -> None:
        """Raises RefusedError if somebody changed a chain: the VM writes an image of a checkpoint, or a disk is
        `contradicting`."""
        parent = self.tree.get(self.tree.head_parent)
        spoilt = [(target, node) for target, path in disks.items() for node in self.tree.checkpoints if path in node.paths()]
        for target, node in [*spoilt, *((target, parent) for target in self.contradicting(disks) if parent)]:
            image = node.image(target)
            raise RefusedError(
                f"somebody changed the backing chain of disk {target}: by checkpoint {node.name!r}, it should be an overlay of"
                f" {image.path if image else 'no image'}",
                hint=_SHOWS.format(vm=node.vm_name),
            )

    def require_no_overwriting(self, ahead: Mapping[str, str], without: Iterable[Checkpoint] = ()) -> None:
        """Raises RefusedError if the VM writes an image of a checkpoint, or will at its next start: a definition of old, or a
        commit with virsh. `ahead`: the image of each disk at the next start, by target. `without`: checkpoints that do not
        count."""
        leaving = {node.id for node in without}
        for node in self.tree.checkpoints:
            read = self.chains.needed(disk.path for disk in node.disks) if node.id not in leaving else set()
            for target, path in [*self.head.items(), *ahead.items()]:
                if path in read:
                    raise RefusedError(
                        f"disk {target} of {node.vm_name} is {path}, an image of checkpoint {node.name!r}, which would be"
                        " overwritten",
                        hint=_SHOWS.format(vm=node.vm_name),
                    )

    def room_for_merge(self, top: str, base: str) -> int:
        """An upper bound of the bytes by which `base` grows if `top`, and all images between, are committed into it. A block
        device does not grow."""
        if base in self.elsewhere:
            return 0
        chain = self.chains.chain(top)
        above = sum(self.images[path].allocation for path in chain[: chain.index(base)])
        image = self.images[base]
        full = max(image.capacity, self.images[top].capacity)
        return max(0, min(above, full + full // 1000 + 1024 * 1024 - image.allocation))

    def _gone(self, path: str) -> bool:
        return path not in self.images and path not in self.elsewhere

    def format(self, path: str) -> str:
        """The format of an image of a checkpoint, as it is recorded."""
        return next(disk.format for node in self.tree.nodes for disk in node.disks if disk.path == path)

    def _unreadable(self, path: str) -> bool:
        return self.places.get(path) in self.unreadable


def discrepancies(
    tree: Tree, images: Mapping[str, Image], recorded: Mapping[str, Fingerprint], writing: frozenset[str]
) -> Mapping[str, Discrepancy]:
    """As Survey.discrepancies. `images`: as `with_tables` returned them."""
    chains = Chains({path: image.backing for path, image in images.items()})
    frozen = chains.needed(disk.path for node in tree.nodes for disk in node.disks)
    shown = chains.needed(disk.path for node in tree.checkpoints for disk in node.disks)
    found = {path: Discrepancy("the VM writes to it", spoilt=True) for path in shown & writing}
    for path in frozen & recorded.keys() & images.keys():
        if difference := recorded[path].difference(Fingerprint.of(images[path])):
            found.setdefault(path, difference)
    return dict(sorted(found.items()))


_seen_tables: WeakKeyDictionary[Vm, dict[Image, str]] = WeakKeyDictionary()


def with_tables(
    storage: Storage, vm: Vm, images: Mapping[str, Image], recorded: Mapping[str, Fingerprint]
) -> Mapping[str, Image]:
    """These images, with the tables of those whose recorded fingerprint is doubted. Few are: so whoever looks at a VM reads no
    tables. An operation reads those of an image once, as long as the image does not change."""
    found, seen = dict(images), _seen_tables.setdefault(vm, {})
    for path in sorted(recorded.keys() & images.keys()):
        image = images[path]
        if not recorded[path].doubted(image):
            continue
        if image not in seen:
            with suppress(HypervisorError, NotFoundError):  # then it is unknown
                seen[image] = storage.tables(path, image.format)
        found[path] = replace(image, tables=seen.get(image, ""))
    return found


def survey(context: Context, vm: Vm, *, patient: bool = False) -> Survey:
    """Looks at the images of a VM and of its checkpoints, and at nothing else. Raises HypervisorError if a place cannot be
    read; with `patient`, `unreadable` lists these places instead."""
    catalog, key, storage = context.catalog, vm.key, context.storage(vm.host)
    tree = catalog.checkpoints.tree(key)
    made = frozenset(catalog.images.made_for(key))
    head = vm.heads()
    named = frozenset(vm.chain())
    expected = {*head.values(), *(path for node in tree.nodes for path in node.paths())}
    raw = vm.raw_images() | recorded_raw(tree)
    mine = set(storage.identities((*expected, *made, *named)).values())
    found = _require_not_empty(storage, storage.look(mine, raw), expected, made)
    found = _require_ends(storage, found, mine)
    if not patient:
        _require_readable(vm, found.unreadable)
    devices = {path for path in expected if not storage.knows(path)}
    found = replace(found, images={**found.images, **{path: _device(path, tree, found.images) for path in devices}})
    needed = found.chains.needed({*made, *named, *expected})
    recorded = catalog.fingerprints.of(key)
    return Survey(
        tree=tree,
        images=with_tables(storage, vm, found.images, recorded),
        unreadable=found.unreadable,
        head=head,
        named=named,
        made=made,
        merged=frozenset(catalog.images.merged(key)),
        live=frozenset(catalog.images.live(key)),
        others=frozenset(),
        elsewhere=frozenset(path for path in needed if not storage.knows(path)),
        places={path: storage.place(path) for path in needed if storage.knows(path)},
        fingerprints=recorded,
        writing=frozenset(head.values()) if vm.active() else frozenset(),
    )


def look_around(
    context: Context, vm: Vm, found: Survey, *, patient: bool = False, neighbours: Neighbours | None = None
) -> Survey:
    """The survey with the overlays that others made of the VM's images: to be asked for before images are removed or merged.
    Raises HypervisorError as `survey`. `neighbours`: those of the whole host, if the caller has them."""
    storage, places = context.storage(vm.host), set(found.places.values())
    near = neighbours or around(context, vm, places)
    unreadable = {place: reason for place, reason in near.unreadable.items() if place in places}
    if not patient:
        _require_readable(vm, unreadable)
    mine = {*found.made, *found.owners()}
    images = dict(found.images)
    if beyond := near.readers.of(mine) - images.keys():
        images = {**storage.look(beyond, vm.raw_images() | recorded_raw(found.tree)).images, **images}
    return replace(
        found,
        images=images,
        unreadable={**unreadable, **found.unreadable},
        others=near.named_by_others({*images, *mine}, vm.uuid),
    )


def _require_readable(vm: Vm, unreadable: Mapping[str, str]) -> None:
    for place, reason in unreadable.items():
        raise HypervisorError(
            f"{place}, which has images of {vm.name}, cannot be read: {reason}",
            hint="mount it, start its storage pool, or bring the right files back",
        )


def recorded_raw(tree: Tree) -> set[str]:
    """The images that checkpoints have and that are recorded as raw."""
    return {disk.path for node in tree.nodes for disk in node.disks if disk.format == "raw"}


def _device(path: str, tree: Tree, images: Mapping[str, Image]) -> Image:
    """A block device of the VM or a checkpoint. Its size is that of the disk when the checkpoint was taken: if somebody
    enlarged the device since, the checkpoint is not larger. Nothing tells when it was last written."""
    recorded = [disk.size for node in tree.nodes for disk in node.disks if disk.path == path]
    size = max(recorded, default=0) or max((image.capacity for image in images.values() if image.backing == path), default=0)
    return Image(path, "raw", None, size, size, "", size)


def _require_not_empty(storage: Storage, found: Listing, expected: set[str], made: frozenset[str]) -> Listing:
    """Adds to `unreadable` each place of an image or a backing file that has none of the files that should be in it, nor any
    manifest: probably it is not mounted. A template may be the only image in its place."""
    places: dict[str, set[str]] = {}
    for path in found.chains.needed(expected):
        if storage.knows(path):
            places.setdefault(storage.place(path), set()).add(path)
    there = {storage.place(path) for path in found.images if path in made}
    reason = "none of the images that should be in it is there; is it mounted?"
    empty = {
        place: reason
        for place, paths in places.items()
        if not (place in found.unreadable or place in there or paths & found.images.keys() or manifests(storage, place))
    }
    return replace(found, unreadable={**empty, **found.unreadable})


def _require_ends(storage: Storage, found: Listing, paths: Iterable[str]) -> Listing:
    """Adds to `unreadable` each place with an image whose backing files lead back to it: somebody exchanged or rebased files.
    Such an image has no content, and `qemu-img create` of an overlay would never end."""
    circles: dict[str, str] = {}
    for path in sorted(paths):
        if circle := found.chains.circle(path):
            reason = f"the backing files of {circle[0]} lead back to it: {', '.join(circle)}"
            circles.setdefault(storage.place(circle[0]), reason)
    return replace(found, unreadable={**circles, **found.unreadable})
