"""Removes the files of an import that was killed before it defined its VM."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext, suppress

from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import CopyIn, MakePlace
from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import HypervisorError


def undo_import(context: Context, host: Host, vm_uuid: str, operation: Interrupted, *, of_others: Collection[str] = ()) -> str:
    """Removes the files and directories of an interrupted import, except the files `of_others`. If the VM is defined, the
    import was complete: its files stay. Returns what became of the import, as the end of a sentence."""
    if host.has(vm_uuid):
        return "was complete"
    storage, made = context.storage(host), [step.path for step in operation.of(MakePlace)]
    for step in operation.of(CopyIn):
        if step.path not in of_others:
            with suppress(HypervisorError) if storage.place(step.path) in made else nullcontext():  # its place was not made
                storage.remove(step.path)
    for place in reversed(made):
        storage.remove_place(place)
    return "was undone"
