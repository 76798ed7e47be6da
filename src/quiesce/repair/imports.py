"""Removes what an import left that was killed before it had defined its VM."""

from __future__ import annotations

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import CopyIn
from quiesce.context import Context
from quiesce.hypervisor.connection import Host


def undo_import(context: Context, host: Host, vm_uuid: str, operation: Interrupted) -> str:
    """Removes the files of an import that had not defined its VM; leaves them to the VM where it had. Returns what became of
    it."""
    if host.has(vm_uuid):
        return "was complete"
    for step in operation.of(CopyIn):
        context.storage(host).remove(step.path)
    return "was undone"
