"""Removes the files of an import that was killed before it defined its VM."""

from __future__ import annotations

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import CopyIn
from quiesce.context import Context
from quiesce.hypervisor.connection import Host


def undo_import(context: Context, host: Host, vm_uuid: str, operation: Interrupted) -> str:
    """Removes the files of an interrupted import. If the VM is defined, the import was complete: its files stay. Returns what
    became of the import, as the end of a sentence."""
    if host.has(vm_uuid):
        return "was complete"
    for step in operation.of(CopyIn):
        context.storage(host).remove(step.path)
    return "was undone"
