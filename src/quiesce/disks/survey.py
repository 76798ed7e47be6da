"""What images there are around a VM, whose they are, and which of them nobody needs: by the images' headers, not by our
records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

from quiesce.context import Context
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Chains, Image
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.tree import Checkpoint, Tree
from quiesce.storage.port import Listing, Storage


@dataclass(frozen=True)
class Survey:
    """Certain only under the VM's lock."""

    tree: Tree
    images: Mapping[str, Image]
    """Every file in every place that an image of ours, or a backing file of one, is in."""
    unreadable: Mapping[str, str]
    """Places that could not be read, and why."""
    head: Mapping[str, str]
    """What the VM writes now, or would when started, by target."""
    named: frozenset[str]
    """Every file the VM's definitions name, present and next."""
    made: frozenset[str]
    merged: frozenset[str]
    live: frozenset[str]
    """Images the VM writes, or wrote when one of its disks was taken away: only the administrator says when they end."""
    others: frozenset[str]
    """Every file that other VMs of the host name."""
    elsewhere: frozenset[str]
    """Images that no storage of ours knows: a block device, an NBD export. They end the part of a chain that is ours."""
    places: Mapping[str, str]
    """The place of each image."""

    @cached_property
    def chains(self) -> Chains:
        return Chains({path: image.backing for path, image in self.images.items()})

    def owners(self) -> dict[str, Checkpoint | None]:
        """Whose each owned image is; None is the VM itself. An image that two checkpoints share after a merge is that of the
        one that is not hidden."""
        found: dict[str, Checkpoint | None] = {}
        for node in sorted(self.tree.nodes, key=lambda node: (not node.hidden, len(self.tree.ancestors(node.id)))):
            found |= {disk.path: node for disk in node.disks}
        return found | dict.fromkeys(self.head.values())

    def own(self) -> frozenset[str]:
        """Every file of this VM and its checkpoints."""
        return self.made | frozenset(self.head.values()) | {path for node in self.tree.nodes for path in node.paths()}

    def needed(self) -> set[str]:
        """Every file that a checkpoint, or the VM, consists of, backing files included."""
        return self.chains.needed(self.named | {path for node in self.tree.nodes for path in node.paths()})

    def orphans(self) -> list[str]:
        """Files of ours that nothing needs, overlays before their backing files. A file that is the backing file of somebody
        else's image is no orphan."""
        needed = self.needed()
        strangers = {path for path in self.images if path not in self.made and path not in needed}
        left = self.made - needed - self.chains.needed(strangers | self.live | self.others)
        return sorted(left & self.images.keys(), key=lambda path: (-len(self.chains.chain(path)), path))

    def missing(self, node: Checkpoint) -> list[str]:
        """Files of the checkpoint, or backing files of them, that are gone although their places can be read."""
        return sorted(path for path in self.chains.needed(node.paths()) if self._gone(path) and not self._unreadable(path))

    def require_whole(self) -> None:
        """Raises NotFoundError if an image in a chain is gone: nobody then knows what may be merged."""
        images = self.chains.needed({*self.head.values(), *(disk.path for node in self.tree.nodes for disk in node.disks)})
        missing = [path for path in sorted(images) if self._gone(path)]
        if missing:
            raise NotFoundError(f"{missing[0]} is gone, or cannot be read", hint="`quiesce doctor` says more")

    def standing(self, disks: Mapping[str, str]) -> dict[str, str | None]:
        """The checkpoint that each of these disks is based on by its headers: ids by target."""
        owners = self.owners()
        return {
            target: owner.id if base and (owner := owners[base]) else None
            for target, path in disks.items()
            for base in [self.chains.base(path, owners)]
        }

    def require_known_chain(self, disks: Mapping[str, str]) -> None:
        """Raises RefusedError if somebody changed the chain: a disk is an image of a checkpoint itself, or is based on none
        although it should be, or no disk at all is based on the checkpoint that the VM is based on.

        A disk may be based on another checkpoint than the rest, after a restore of one that leaves the disk out.
        """
        parent, standing = self.tree.get(self.tree.head_parent), self.standing(disks)
        images = {target: image for target in disks if parent and not parent.hidden and (image := parent.image(target))}
        based = [target for target, image in images.items() if image.path != disks[target]]  # the others are merged already
        agreed = parent and any(standing[target] == parent.id for target in based)
        lost = [
            target
            for target in based
            if standing[target] is None or not (agreed or parent in self.tree.ancestors(standing[target]))
        ]
        spoilt = [(target, node) for target, path in disks.items() for node in self.tree.checkpoints if path in node.paths()]
        for target, node in [*spoilt, *((target, parent) for target in lost if parent)]:
            image = node.image(target)
            raise RefusedError(
                f"somebody changed the chain of disk {target}: checkpoint {node.name!r} has it based on"
                f" {image.path if image else 'nothing'}",
                hint="`quiesce doctor` says more, and mends it with --repair",
            )

    def room_for_merge(self, top: str, base: str) -> int:
        """Most bytes that `base` can grow by if `top`, and all between, is committed into it."""
        chain = self.chains.chain(top)
        above = sum(self.images[path].allocation for path in chain[: chain.index(base)])
        image = self.images[base]
        full = max(image.capacity, self.images[top].capacity)
        return max(0, min(above, full + full // 1000 + 1024 * 1024 - image.allocation))

    def _gone(self, path: str) -> bool:
        return path not in self.images and path not in self.elsewhere

    def _unreadable(self, path: str) -> bool:
        return self.places.get(path) in self.unreadable


def survey(context: Context, vm: Vm, *, patient: bool = False) -> Survey:
    """Raises HypervisorError if a place cannot be read, unless `patient`."""
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
        raise HypervisorError(f"{place}, where images of {vm.name} are, cannot be read: {reason}")
    found = replace(found, images={**_elsewhere(storage, vm, others - found.images.keys()), **found.images})
    written = set(head.values())
    # An image that has what the VM writes as a backing file was merged into it, by whomever.
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
    )


def _require_not_empty(storage: Storage, found: Listing, expected: set[str]) -> Listing:
    """A place in which no image is that should be there is probably not mounted."""
    places: dict[str, set[str]] = {}
    for path in expected:
        if storage.knows(path):
            places.setdefault(storage.place(path), set()).add(path)
    reason = "none of the images that should be in it is there; is it mounted?"
    empty = {place: reason for place, paths in places.items() if not paths & found.images.keys()}
    return replace(found, unreadable={**empty, **found.unreadable})


_seen_elsewhere: WeakKeyDictionary[Vm, tuple[frozenset[str], Mapping[str, Image]]] = WeakKeyDictionary()


def _elsewhere(storage: Storage, vm: Vm, paths: frozenset[str]) -> Mapping[str, Image]:
    """Other VMs' images, which may have ours as backing files; what of them cannot be read is not ours to complain of. Read
    once an operation, and anew if these VMs come to name other files: a host may have many, each in a directory of its own."""
    seen = _seen_elsewhere.get(vm)
    if not seen or seen[0] != paths:
        seen = _seen_elsewhere[vm] = (paths, storage.look(paths).images)
    return seen[1]
