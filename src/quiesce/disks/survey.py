"""The images around a VM: which exist, to whom each belongs, and which of them nothing needs. Backing files come from the
images' headers, not from the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from quiesce.context import Context
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.fingerprints import Fingerprint
from quiesce.model.tree import Checkpoint, Tree
from quiesce.storage.port import Listing, Storage


@dataclass(frozen=True)
class Survey:
    """The images around a VM at one time. Only under the VM's lock does nobody of us change them meanwhile."""

    tree: Tree
    images: Mapping[str, Image]
    """Every file in every place that has an image of the VM, of its checkpoints, or a backing file of these."""
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
    """Images that the VM writes, or wrote when their disk was detached. Only the administrator may remove the latter."""
    others: frozenset[str]
    """Every file that the definitions of other VMs of the host name."""
    elsewhere: frozenset[str]
    """Images that the storage does not know: a block device, an NBD export. At such an image a chain ends for quiesce."""
    places: Mapping[str, str]
    """The place of each image."""
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)
    """The recorded fingerprints of images, by path."""

    @cached_property
    def chains(self) -> Chains:
        return Chains({path: image.backing for path, image in self.images.items()})

    @cached_property
    def changed(self) -> Mapping[str, str]:
        """The images in the backing chains of checkpoints, hidden ones too, that another program changed after a checkpoint was
        taken: a sentence for each path. Images that are gone are not among them."""
        return changed_images(self.tree, self.images, self.fingerprints)

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
        """Files of ours that nothing needs, overlays before their backing files. A file that somebody else's image has as a
        backing file is needed."""
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
        `disks`: the image of each disk, by target."""
        owners = self.owners()
        return {
            target: owner.id if base and (owner := owners[base]) else None
            for target, path in disks.items()
            for base in [self.chains.base(path, owners)]
        }

    def based_on(self, node: Checkpoint) -> bool:
        """Whether the VM writes an overlay of an image of this checkpoint, or an overlay of such an overlay."""
        images = {target: image.path for target in self.head if (image := node.image(target))}
        return any(path in self.chains.chain(self.head[target])[1:] for target, path in images.items())

    def head_parent_without(self, node: Checkpoint) -> str | None:
        """The checkpoint that the VM is based on once `node` is forgotten, on which it is based now.

        The nearest ancestor of `node` with an image in a chain of the VM; if there is none, another checkpoint on which a disk
        is based. Example where it is not the parent: `node` has vda alone, the parent has vdb alone, and the VM's vdb is based
        on another branch, because a restore of `node` leaves vdb as it is."""
        below = next((other.id for other in self.tree.ancestors(node.parent) if self.based_on(other)), None)
        others = {id for id in self.standing(self.head).values() if id and id != node.id}
        return below or min(others, default=None)

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
        agreed = self.based_on(parent)
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
                hint="`quiesce doctor` shows what is wrong; with --repair it corrects it",
            )

    def room_for_merge(self, top: str, base: str) -> int:
        """An upper bound of the bytes by which `base` grows if `top`, and all images between, are committed into it."""
        chain = self.chains.chain(top)
        above = sum(self.images[path].allocation for path in chain[: chain.index(base)])
        image = self.images[base]
        full = max(image.capacity, self.images[top].capacity)
        return max(0, min(above, full + full // 1000 + 1024 * 1024 - image.allocation))

    def _gone(self, path: str) -> bool:
        return path not in self.images and path not in self.elsewhere

    def _unreadable(self, path: str) -> bool:
        return self.places.get(path) in self.unreadable


def changed_images(tree: Tree, images: Mapping[str, Image], recorded: Mapping[str, Fingerprint]) -> Mapping[str, str]:
    """As Survey.changed. `recorded`: the fingerprints in the catalog."""
    chains = Chains({path: image.backing for path, image in images.items()})
    frozen = chains.needed(disk.path for node in tree.nodes for disk in node.disks)
    found = {}
    for path in sorted(frozen & recorded.keys() & images.keys()):
        if difference := recorded[path].difference(Fingerprint.of(images[path])):
            found[path] = f"another program changed the image {path} after a checkpoint was taken: {difference}"
    return found


def survey(context: Context, vm: Vm, *, patient: bool = False) -> Survey:
    """Looks at the images around a VM. Raises HypervisorError if a place cannot be read; with `patient`, `unreadable` lists
    these places instead."""
    catalog, key, storage = context.catalog, vm.key, context.storage(vm.host)
    tree = catalog.checkpoints.tree(key)
    made = frozenset(catalog.images.made_for(key))
    head = vm.file_disks()
    named = frozenset(vm.chain())
    others = frozenset(vm.host.files_of_others(vm.uuid))
    expected = {*head.values(), *(path for node in tree.nodes for path in node.paths())}
    found = _require_not_empty(storage, storage.look({*made, *named, *expected}), expected)
    if found.unreadable and not patient:
        place, reason = next(iter(found.unreadable.items()))
        raise HypervisorError(
            f"{place}, which has images of {vm.name}, cannot be read: {reason}", hint="mount it, or start its storage pool"
        )
    found = replace(found, images={**_elsewhere(storage, vm, others - found.images.keys()), **found.images})
    written = set(head.values())
    # If an image has the image that the VM writes as a backing file, somebody committed it into that image.
    live = frozenset(path for path in catalog.images.live(key) if not written & set(found.chains.chain(path)[1:]))
    needed = found.chains.needed({*made, *named, *expected})
    return Survey(
        tree=tree,
        images=found.images,
        unreadable=found.unreadable,
        head=head,
        named=named,
        made=made,
        merged=frozenset(catalog.images.merged(key)),
        live=live,
        others=others,
        elsewhere=frozenset(path for path in needed if not storage.knows(path)),
        places={path: storage.place(path) for path in needed if storage.knows(path)},
        fingerprints=catalog.fingerprints.of(key),
    )


def _require_not_empty(storage: Storage, found: Listing, expected: set[str]) -> Listing:
    """Adds to `unreadable` each place that has none of the images that should be in it: probably it is not mounted."""
    places: dict[str, set[str]] = {}
    for path in expected:
        if storage.knows(path):
            places.setdefault(storage.place(path), set()).add(path)
    reason = "none of the images that should be in it is there; is it mounted?"
    empty = {place: reason for place, paths in places.items() if not paths & found.images.keys()}
    return replace(found, unreadable={**empty, **found.unreadable})


_seen_elsewhere: WeakKeyDictionary[Vm, tuple[frozenset[str], Mapping[str, Image]]] = WeakKeyDictionary()


def _elsewhere(storage: Storage, vm: Vm, paths: frozenset[str]) -> Mapping[str, Image]:
    """The images of other VMs, which may have ours as backing files. Images that cannot be read are left out: their owners have
    to care for them. They are read once an operation, and again if the other VMs' definitions name other files: a host may have
    many VMs, each with a directory of its own."""
    seen = _seen_elsewhere.get(vm)
    if not seen or seen[0] != paths:
        seen = _seen_elsewhere[vm] = (paths, storage.look(paths).images)
    return seen[1]
