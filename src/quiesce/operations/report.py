"""All that is known of a checkpoint, of one VM or of a group, for a person who was not there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from quiesce.context import Context
from quiesce.disks import fingerprints
from quiesce.model.errors import NotFoundError
from quiesce.model.names import CheckpointReference
from quiesce.model.timeline import Bar, bars
from quiesce.model.tree import Checkpoint, Witness
from quiesce.operations.group import parts_of


@dataclass(frozen=True)
class CheckpointReport:
    title: str
    """`db1@before-upgrade`, or `shop@before-upgrade` for a group."""
    made: str
    """When the report was made; UTC, ISO 8601."""
    checkpoints: tuple[Checkpoint, ...]
    """Of one VM, or the parts of a group in its order, with the labels that their images deserve now."""
    timeline: tuple[Bar, ...]
    witnesses: tuple[Witness, ...] = ()
    """The servers that had no part, with their positions at the time."""
    missing: int = 0
    """How many parts of the group's checkpoint are gone."""


def report(context: Context, reference: CheckpointReference) -> CheckpointReport:
    """Of one VM's checkpoint. Changes nothing. Raises NotFoundError."""
    with context.vm(reference.vm) as vm:
        node = fingerprints.tree_as_it_is(context, vm).find(reference.checkpoint)
        witnesses = node.group.witnesses if node.group else ()
        return CheckpointReport(f"{vm.name}@{node.name}", _now(), (node,), bars((node,)), witnesses)


def group_report(context: Context, reference: str) -> CheckpointReport:
    """Of a group's checkpoint, `GROUP@CHECKPOINT`. Changes nothing. Raises NotFoundError, UsageError."""
    part, parts = parts_of(context, reference)
    nodes = tuple(_as_it_is(context, node) for node in parts)
    missing = len(part.members) - len(nodes)
    return CheckpointReport(f"{part.group}@{part.name}", _now(), nodes, bars(nodes), part.witnesses, missing)


def _as_it_is(context: Context, node: Checkpoint) -> Checkpoint:
    """The part of a VM that libvirt no longer knows is shown as it was recorded."""
    try:
        with context.vm(node.vm_uuid) as vm:
            return fingerprints.tree_as_it_is(context, vm).find(node.id)
    except NotFoundError:
        return node


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
