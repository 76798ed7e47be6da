"""Removes what an import left that was killed before it had defined its VM."""

from __future__ import annotations

from quiesce.catalog.journal import Interrupted
from quiesce.hypervisor import volumes
from quiesce.hypervisor.connection import Host


def undo_import(host: Host, vm_uuid: str, operation: Interrupted) -> str:
    """Removes the files of an import that had not defined its VM; leaves them to the VM where it had."""
    if host.has(vm_uuid):
        return "was complete"
    for step in operation.details("copy"):
        with volumes.beside(host, step["path"]) as (pool, name):
            pool.delete(name)
    return "was undone"
