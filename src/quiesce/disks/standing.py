"""Whether a VM that is off stands exactly at a checkpoint."""

from __future__ import annotations

from quiesce.catalog.store import WORTH
from quiesce.context import Context
from quiesce.disks import images
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.errors import NotFoundError
from quiesce.model.tree import Checkpoint


def head(context: Context, vm: Vm) -> str | None:
    """The checkpoint that the VM's present disks are based on, by id."""
    return context.catalog.tree(vm.host.name, vm.uuid).head_parent


def stands_at(context: Context, vm: Vm, node: Checkpoint) -> bool:
    """Off, put back to the checkpoint or not started since it was taken."""
    if vm.facts().power is not PowerState.OFF or head(context, vm) != node.id:
        return False
    left = {path: when for path, when in context.catalog.untouched(vm.host.name, vm.uuid).items() if path != WORTH}
    if not left or not left.keys() <= set(vm.file_disks().values()):
        return False
    try:
        return images.written(vm, left) == left
    except NotFoundError:
        return False
