"""The checkpoint that a VM is based on, and what the disks of a VM that is off are worth."""

from __future__ import annotations

from collections.abc import Set

from quiesce.context import Context
from quiesce.disks import images
from quiesce.disks.survey import survey
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import NotFoundError
from quiesce.model.grades import Consistency
from quiesce.model.standing import Standing, standing
from quiesce.model.tree import Checkpoint


def head(context: Context, vm: Vm) -> str | None:
    """The id of the checkpoint that the VM's present disks are based on."""
    return context.catalog.checkpoints.tree(vm.key).head_parent


def has_content_of(context: Context, vm: Vm, node: Checkpoint) -> bool:
    """Whether the VM is off and its disks have exactly the content of the checkpoint: the VM was restored to it, or was not
    started after it."""
    if vm.facts().power is not PowerState.OFF or head(context, vm) != node.id:
        return False
    left = context.catalog.checkpoints.untouched(vm.key)
    heads = set(vm.heads().values())
    if not left or not left.written or not left.written.keys() <= heads or survey(context, vm).changed_for(heads):
        return False
    try:
        return left.unchanged(images.untouched(context, vm, left.written).written)
    except NotFoundError:
        return False


def standing_of(context: Context, vm: Vm, paths: Set[str]) -> Standing:
    """What the images `paths` of the VM are worth. The VM must be off. If another program changed an image in their backing
    chains, they are worth no more than after a crash."""
    left, found = context.catalog.checkpoints.untouched(vm.key), survey(context, vm)
    if changed := found.changed_for(paths):
        return Standing(Consistency.CRASH, note="; ".join(changed.values()))
    now = {path: image.stamp for path, image in found.images.items()}
    return standing(left, found.tree.get(found.tree.head_parent), now, paths, shut_itself_down=vm.shut_itself_down())
