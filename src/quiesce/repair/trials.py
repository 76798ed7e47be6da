"""Removes what is left of copies that were booted aside, and whose process was killed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from quiesce.catalog import journal
from quiesce.catalog.journal import Interrupted
from quiesce.catalog.steps import BootCopy, MakeFile, MakePlace
from quiesce.context import Context
from quiesce.hypervisor.connection import Host
from quiesce.model.errors import BusyError, HypervisorError
from quiesce.model.keys import VmKey
from quiesce.model.names import TRIAL_PREFIX


@dataclass(frozen=True)
class Abandoned:
    """A verification that did not end, or that is under way."""

    key: VmKey
    """Of the copy."""
    vm: str
    """UUID of the VM whose checkpoint was booted; the copy's own, if the operation was killed before its first step."""
    operation: Interrupted

    @property
    def text(self) -> str:
        return f"the verification begun at {self.operation.started} was interrupted"


def abandoned(context: Context, host: Host) -> list[Abandoned]:
    found = []
    for key, operation in journal.all_interrupted(context.catalog, host.id):
        boot = next(iter(operation.of(BootCopy)), None)
        if boot or _begun(context, host, key, operation):
            found.append(Abandoned(key, boot.vm if boot else key.uuid, operation))
    return found


def _begun(context: Context, host: Host, key: VmKey, operation: Interrupted) -> bool:
    """Whether the operation is a verification that was killed before its first step: then nothing was made."""
    nothing = operation.verb == "verify" and not operation.steps and not operation.unknown
    return nothing and not host.has(key.uuid) and not context.catalog.checkpoints.tree(key).nodes


def clear(context: Context, host: Host, left: Abandoned, *, only_look: bool = False) -> str:
    """Ends the copy and removes its files, or only looks whether that can be done. Returns what was done. Raises BusyError if
    its process is still at work."""
    with context.locked_key(left.key, "quiesce doctor"):
        if only_look:
            return ""
        undo_trial(context, host, left.key.uuid, left.operation)
        journal.finish(context.catalog, left.operation.id, "recovered: was undone")
    return "the copy of an interrupted verification was removed"


def clear_all(context: Context, host: Host) -> Iterator[str]:
    """Of all whose process is gone."""
    for left in abandoned(context, host):
        with suppress(BusyError):
            yield clear(context, host, left)


def undo_trial(context: Context, host: Host, copy_uuid: str, operation: Interrupted) -> str:
    """Ends the copy of this UUID, and removes the files and directories that were made for it. Can be killed and called again.
    Returns what became of the operation, as the end of a sentence."""
    host.end_copy(copy_uuid)
    _remove_made(context, host, copy_uuid, operation)
    return "was undone"


def _remove_made(context: Context, host: Host, copy_uuid: str, operation: Interrupted) -> None:
    """Removes the files of the steps MakeFile, and the places of the steps MakePlace. In a place that has the name or UUID of
    the copy everything goes: libvirt's log daemon makes more files when the console's log grows, swtpm one for its lock."""
    storage, made = context.storage(host), [step.path for step in operation.of(MakePlace)]
    files = {step.path for step in operation.of(MakeFile)}
    for place in made:
        try:
            present = storage.contents(place).keys()
        except HypervisorError:
            continue  # it was not made, or is gone
        whole = posixpath.basename(place).startswith(TRIAL_PREFIX) or copy_uuid in place
        own = (present if whole else present & files) - set(made)
        for path in sorted(own):
            storage.remove(path)
    for place in reversed(made):
        storage.remove_place(place)
