"""Compares two checkpoints of a VM, or a checkpoint with the VM as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quiesce.applications.changes import WriterChange, compare_writers
from quiesce.context import Context
from quiesce.disks.survey import Survey, survey
from quiesce.model import configuration
from quiesce.model.names import CheckpointReference
from quiesce.model.tree import Checkpoint, Tree


@dataclass(frozen=True)
class DiskSide:
    """One disk at one of the two points: a checkpoint, or the VM as it is now."""

    image: str
    size: int | None
    """Virtual size, in bytes; None if the image cannot be read."""
    written: int | None
    """Bytes that the images between `common_image` and this point take: the guest's writes, rounded up to the images' clusters,
    and the images' own tables (a few hundred KB even if nothing was written). A copy that made the chain shorter counts with
    all that it has. None if an image cannot be read."""


@dataclass(frozen=True)
class DiskDifference:
    """The difference of one disk. The two points differ in at most as many bytes as were written on both sides, and in what the
    guest discarded, which takes no space."""

    disk: str
    first: DiskSide | None
    """None: at this point the VM did not have the disk, or the checkpoint left it out."""
    second: DiskSide | None
    left_out: tuple[str, ...]
    """Which of the two checkpoints left the disk out on request: `first`, `second`."""
    common_image: str | None
    """The nearest image that both backing chains contain. None: the VM has another disk of this name now, or the chain was made
    shorter between the two points by a copy without a backing file."""


@dataclass(frozen=True)
class Difference:
    vm: str
    first: Checkpoint
    second: Checkpoint | None
    """None: the VM as it is now."""
    common_ancestor: Checkpoint | None
    """The nearest checkpoint that both points are, or are based on. None: there is none, or it was deleted since."""
    one_line: bool
    """Whether one of the two points is based on the other."""
    disks: tuple[DiskDifference, ...]
    configuration: tuple[str, ...]
    """Lines of a unified diff of the domain XMLs, without what model/configuration.py leaves out."""
    writers: tuple[WriterChange, ...] | None
    """None: at one of the two points the guest was not asked, because that point is the VM as it is now, or the VM was off, or
    it had no agent."""


def diff(context: Context, reference: CheckpointReference, other: str | None = None) -> Difference:
    """Compares a checkpoint with the checkpoint named `other` or, if that is None, with the VM as it is now. Changes nothing,
    and asks no guest.

    Raises NotFoundError, HypervisorError; BusyError while an operation on the VM runs, because it may add and remove images.
    """
    with context.vm(reference.vm) as vm, context.locked(vm, "diff"):
        found = survey(context, vm)
        first = found.tree.find(reference.checkpoint)
        second = found.tree.find(other) if other is not None else None
        before = context.catalog.checkpoints.domain_xml(first.id)
        after = context.catalog.checkpoints.domain_xml(second.id) if second else vm.definition()
        common, one_line = parted(found.tree, first.id, second.id if second else None)
        names = (f"{vm.name}@{first.name}", f"{vm.name}@{second.name}" if second else vm.name)
        return Difference(
            vm=vm.name,
            first=first,
            second=second,
            common_ancestor=common if common and not common.hidden else None,
            one_line=one_line,
            disks=disk_differences(found, first, second),
            configuration=configuration.changes(before, after, names=names),
            writers=writer_changes(first, second, one_line=one_line),
        )


def parted(tree: Tree, first: str, second: str | None) -> tuple[Checkpoint | None, bool]:
    """The nearest checkpoint, hidden or not, that each of the two points is, or is based on; and whether it is one of the two.

    `second`: None for the VM as it is now. No checkpoint is based on the VM as it is now.
    """
    line = tree.ancestors(first)
    other = {node.id for node in tree.ancestors(second or tree.head_parent)}
    common = next((node for node in line if node.id in other), None)
    return common, common is not None and common.id in (first, second)


def disk_differences(found: Survey, first: Checkpoint, second: Checkpoint | None) -> tuple[DiskDifference, ...]:
    """The differences of all disks, from the backing files that the images' headers name. The image of a deleted checkpoint in
    the chain counts until it is merged. A merged image does not count, because its backing file has its data, too."""
    paths = _images(first), _images(second) if second else found.head
    targets = sorted(paths[0].keys() | paths[1].keys())
    left_out = first.excluded, second.excluded if second else ()
    return tuple(_disk(found, target, paths, left_out) for target in targets)


def writer_changes(first: Checkpoint, second: Checkpoint | None, *, one_line: bool) -> tuple[WriterChange, ...] | None:
    """The differences of the applications. None if a guest was not asked: a guest that was asked reported at least a
    filesystem. `one_line`: see `compare_writers`."""
    if second is None or not all(node.writers or node.filesystems for node in (first, second)):
        return None
    return compare_writers(first.writers, second.writers, one_line=one_line)


def _images(node: Checkpoint) -> dict[str, str]:
    return {disk.target: disk.path for disk in node.disks}


def _disk(
    found: Survey,
    target: str,
    paths: tuple[Mapping[str, str], Mapping[str, str]],
    left_out: tuple[tuple[str, ...], tuple[str, ...]],
) -> DiskDifference:
    chains = tuple(found.chains.chain(side.get(target)) for side in paths)
    common = next((path for path in chains[0] if path in chains[1]), None)
    first, second = (_side(found, chain, common) for chain in chains)
    sides = tuple(name for name, excluded in zip(("first", "second"), left_out, strict=True) if target in excluded)
    return DiskDifference(target, first, second, sides, common)


def _side(found: Survey, chain: tuple[str, ...], common: str | None) -> DiskSide | None:
    if not chain:
        return None
    above = chain[: chain.index(common)] if common else chain
    sizes = [found.images[path].allocation if path in found.images else None for path in above if path not in found.merged]
    image = found.images.get(chain[0])
    written = None if None in sizes else sum(size for size in sizes if size is not None)
    return DiskSide(chain[0], image.capacity if image else None, written)
