"""What images there are around a VM, whose they are, and which of them nobody needs: by their headers, not by our hopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from quiesce.context import Context
from quiesce.hypervisor import volumes
from quiesce.hypervisor.connection import Host
from quiesce.hypervisor.storage_xml import Volume
from quiesce.hypervisor.vm import Vm
from quiesce.model.chains import Chains
from quiesce.model.errors import HypervisorError, NotFoundError, RefusedError
from quiesce.model.tree import Checkpoint, Tree


@dataclass(frozen=True)
class Survey:
    """Sure only under the VM's lock."""

    tree: Tree
    volumes: Mapping[str, Volume]
    """Every file in every directory that an image of ours, or one below it, is in."""
    unreadable: Mapping[str, str]
    """Directories that could not be opened, and why."""
    head: Mapping[str, str]
    """What the VM writes now, or would when started, by target."""
    named: frozenset[str]
    """Every file the VM's definitions name, present and next."""
    made: frozenset[str]
    merged: frozenset[str]
    live: frozenset[str]
    """What the VM writes, or wrote when one of its disks was taken away: by nobody's will but its administrator's that ends."""
    others: frozenset[str]
    """Every file that other VMs of the host name."""
    chains: Chains

    def owners(self) -> dict[str, Checkpoint | None]:
        """Whose each owned image is; None is the VM itself. What another checkpoint was merged into is that one's."""
        found: dict[str, Checkpoint | None] = {}
        for node in sorted(self.tree.nodes, key=lambda node: (not node.hidden, len(self.tree.ancestors(node.id)))):
            found |= {disk.path: node for disk in node.disks}
        return found | dict.fromkeys(self.head.values())

    def own(self) -> frozenset[str]:
        """Every file of this VM and its checkpoints."""
        return self.made | frozenset(self.head.values()) | {path for node in self.tree.nodes for path in node.paths()}

    def needed(self) -> set[str]:
        """Every file that a checkpoint, or the VM, consists of or reads through."""
        return self.chains.needed(self.named | {path for node in self.tree.nodes for path in node.paths()})

    def orphans(self) -> list[str]:
        """Files of ours that nothing needs, those first that lie on others. Somebody else's image may still read through
        one: such a one is no orphan."""
        needed = self.needed()
        strangers = {path for path in self.volumes if path not in self.made and path not in needed}
        left = self.made - needed - self.chains.needed(strangers | self.live | self.others)
        return sorted(left & self.volumes.keys(), key=lambda path: (-len(self.chains.chain(path)), path))

    def missing(self, node: Checkpoint) -> list[str]:
        """Files of the checkpoint, or below them, that are gone although their directories can be read."""
        return sorted(
            path
            for path in self.chains.needed(node.paths())
            if path not in self.volumes and _is_file(path) and volumes.split(path)[0] not in self.unreadable
        )

    def require_whole(self) -> None:
        """Raises NotFoundError if an image that something reads through is gone: nobody then knows what may be merged."""
        images = self.chains.needed({*self.head.values(), *(disk.path for node in self.tree.nodes for disk in node.disks)})
        missing = [path for path in sorted(images) if path not in self.volumes and _is_file(path)]
        if missing:
            raise NotFoundError(f"{missing[0]} is gone, or cannot be read", hint="`quiesce doctor` says more")

    def standing(self, disks: Mapping[str, str]) -> dict[str, str | None]:
        """The checkpoint each of these disks lies on by its headers: ids by target."""
        owners = self.owners()
        return {
            target: owner.id if base and (owner := owners[base]) else None
            for target, path in disks.items()
            for base in [self.chains.base(path, owners)]
        }

    def require_known_chain(self, disks: Mapping[str, str]) -> None:
        """Raises RefusedError if somebody changed the chain: a disk is an image of a checkpoint itself, or lies on none
        although it should, or no disk at all lies on the checkpoint the VM is based on.

        A disk may lie on another checkpoint than the rest, after a restore of one that leaves it out.
        """
        parent, standing = self.tree.get(self.tree.head_parent), self.standing(disks)
        images = {target: image for target in disks if parent and not parent.hidden and (image := parent.image(target))}
        to_lie = [target for target, image in images.items() if image.path != disks[target]]  # the others are merged already
        agreed = parent and any(standing[target] == parent.id for target in to_lie)
        lost = [
            target
            for target in to_lie
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
        above = sum(self.volumes[path].allocation for path in chain[: chain.index(base)])
        image = self.volumes[base]
        full = max(image.capacity, self.volumes[top].capacity)
        return max(0, min(above, full + full // 1000 + 1024 * 1024 - image.allocation))


def survey(context: Context, vm: Vm, *, patient: bool = False) -> Survey:
    """Raises HypervisorError if a directory cannot be opened, unless `patient`."""
    catalog, host = context.catalog, vm.host.name
    tree = catalog.tree(host, vm.uuid)
    made = frozenset(catalog.images_made_for(host, vm.uuid))
    head = vm.file_disks()
    named = frozenset(vm.chain())
    others = frozenset(vm.host.files_of_others(vm.uuid))
    expected = {*head.values(), *(path for node in tree.nodes for path in node.paths())}
    found, unreadable = look(vm.host, {*made, *named, *expected})
    for directory in {volumes.split(path)[0] for path in expected if _is_file(path)} - unreadable.keys():
        if not any(volumes.split(path)[0] == directory and path in found for path in expected):
            unreadable[directory] = "none of the images that should be in it is there; is it mounted?"
    found = _elsewhere(vm, frozenset(path for path in others if path not in found)) | found
    if unreadable and not patient:
        directory, reason = next(iter(unreadable.items()))
        raise HypervisorError(f"{directory}, where images of {vm.name} are, cannot be read: {reason}")
    chains = chains_of(found)
    merged, written = frozenset(catalog.merged_images(host, vm.uuid)), set(head.values())
    # One that lies on what the VM writes was merged into it, by whomever.
    live = frozenset(path for path in catalog.live_images(host, vm.uuid) if not written & set(chains.chain(path)[1:]))
    return Survey(tree, found, unreadable, head, named, made, merged, live, others, chains)


_seen_elsewhere: WeakKeyDictionary[Vm, tuple[frozenset[str], dict[str, Volume]]] = WeakKeyDictionary()


def _elsewhere(vm: Vm, paths: frozenset[str]) -> dict[str, Volume]:
    """Other VMs' images, which may lie on ours; what of them cannot be read is not ours to complain of. Read once an operation,
    and anew if these VMs come to name other files: a host may have many, each in a directory of its own."""
    seen = _seen_elsewhere.get(vm)
    if not seen or seen[0] != paths:
        seen = _seen_elsewhere[vm] = (paths, look(vm.host, set(paths))[0])
    return seen[1]


def chains_of(found: Mapping[str, Volume]) -> Chains:
    return Chains({path: volume.backing for path, volume in found.items()})


def look(host: Host, paths: set[str]) -> tuple[dict[str, Volume], dict[str, str]]:
    """Every file in the directories of these and of all images below them, and the directories that could not be opened."""
    found: dict[str, Volume] = {}
    unreadable: dict[str, str] = {}
    seen: set[str] = set()
    ahead = {volumes.split(path)[0] for path in paths if _is_file(path)}
    while ahead:
        for path in sorted(ahead):
            try:
                with volumes.directory(host, path) as directory:
                    found |= {volume.path: volume for volume in directory.volumes()}
            except HypervisorError as error:
                unreadable[path] = error.message
        seen |= ahead
        below = chains_of(found).needed(paths)
        ahead = {volumes.split(path)[0] for path in below if path not in found and _is_file(path)} - seen
    return found, unreadable


def _is_file(path: str) -> bool:
    """Not a block device: the lowest image of a chain may be one."""
    return not path.startswith("/dev/")
