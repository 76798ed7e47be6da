"""Which images of deleted checkpoints can be removed or merged, by a survey. The rules are in merges.py; nothing here changes
anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from quiesce.disks.survey import Survey
from quiesce.model.errors import RefusedError
from quiesce.model.tree import Checkpoint, Tree
from quiesce.storage.port import Storage, no_space


@dataclass(frozen=True)
class PlannedMerge:
    """The commit of `top` into `base`."""

    top: str
    base: str
    owner: Checkpoint | None
    """The checkpoint that owns `top`; None: the VM writes `top`."""
    target: str
    branches: tuple[str, ...]
    """The images whose backing file is `top`: the merge can be done in the chain of any of them. Empty if `top` is the topmost
    image of its chain."""
    hidden: Checkpoint
    """The deleted checkpoint that owns `base`."""

    @property
    def key(self) -> tuple[str, str]:
        return self.top, self.base

    def images(self, found: Survey) -> set[str]:
        """The images whose bytes the merge changes, or copies."""
        return between(found, self.top, self.base) | set(self.branches)


@dataclass(frozen=True)
class PlannedBranch:
    """An image whose backing file `top` was merged into `base`, and which can get `base` as its backing file."""

    image: str
    top: str
    base: str
    owner: str

    @property
    def key(self) -> tuple[str, str]:
        return self.image, self.top

    def images(self, found: Survey) -> set[str]:
        """As PlannedMerge.images."""
        return between(found, self.top, self.base) | {self.image}


def between(found: Survey, top: str, base: str) -> set[str]:
    """Both, and the images between."""
    chain = found.chains.chain(top)
    return set(chain[: chain.index(base) + 1])


def finished(found: Survey) -> Checkpoint | None:
    """A hidden checkpoint whose images nothing needs any more."""
    owners = found.owners()
    for node in found.tree.nodes:
        if node.hidden and not any(
            owners.get(disk.path) is node and found.chains.dependents(disk.path, owners) for disk in node.disks
        ):
            return node
    return None


def planned_merges(found: Survey) -> list[PlannedMerge]:
    """The merges that are possible: images of hidden checkpoints that are the nearest owned backing file of exactly one owned
    image. The merge nearest to the base of the chain comes first, so that no data are moved twice."""
    owners, merges = found.owners(), []
    for node in sorted(found.tree.nodes, key=lambda node: len(found.tree.ancestors(node.id))):
        for disk in node.disks if node.hidden else ():
            dependents = found.chains.dependents(disk.path, owners) if owners.get(disk.path) is node else []
            if len(dependents) == 1:
                (top,) = dependents
                target = _target(found, owners[top], top)
                branches = tuple(found.chains.directly_on(top))
                merges.append(PlannedMerge(top, disk.path, owners[top], target, branches, node))
    return merges


def _target(found: Survey, owner: Checkpoint | None, path: str) -> str:
    if owner is None:
        return next(target for target, head in found.head.items() if head == path)
    return next(disk.target for disk in owner.disks if disk.path == path)


def planned_branches(found: Survey) -> list[PlannedBranch]:
    owners, needed = found.owners(), found.needed()
    branches = []
    for top in sorted(found.merged & needed):
        base = found.chains.base(top, owners)
        for image in found.chains.directly_on(top):
            if base and image in needed and image not in found.merged:
                owner = owners.get(image)
                branches.append(PlannedBranch(image, top, base, owner.name if owner else "now"))
    return branches


def require_possible(
    storage: Storage, found: Survey, deleting: Iterable[Checkpoint], saved_memory: RefusedError | None
) -> None:
    """To be called before these checkpoints are hidden. Raises NotFoundError if an image in a chain is gone, NoSpaceError if a
    merge that the deletion makes possible has too little room, and `saved_memory`, if not None, if such a merge would change
    the chain of the VM, whose saved memory can only resume on its present images."""
    found.require_complete_chains()
    going = {node.id: node for node in deleting}
    freed = Counter[str]()

    def free(paths: Iterable[str]) -> None:
        for path in set(paths) & found.images.keys() & found.made:
            freed[storage.place(path)] += found.images[path].allocation

    free(file.path for node in going.values() for file in node.files)
    nodes = [replace(node, hidden=True, files=()) if node.id in going else node for node in found.tree.nodes]
    would = replace(found, tree=Tree.of(nodes, found.tree.head_parent))
    while node := finished(would):
        free(disk.path for disk in node.disks if would.owners().get(disk.path) is node)
        would = replace(would, tree=Tree.of((other for other in would.tree.nodes if other is not node), would.tree.head_parent))
    running_chain = found.chains.needed(found.head.values())
    for merge in planned_merges(would):
        if saved_memory and merge.hidden.id in going and merge.images(would) & running_chain:
            raise saved_memory
        if not storage.knows(merge.base):
            continue  # a block device does not grow
        place, needed = storage.place(merge.base), would.room_for_merge(merge.top, merge.base)
        room = storage.room(place).free + freed[place]
        if room < needed and merge.hidden.id in going:
            raise no_space(place, room, needed, "the merge")
