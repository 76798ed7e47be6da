"""Asks the servers that stay as they are whether they would agree with the servers that are restored to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from quiesce.applications.divergence import judge_server
from quiesce.context import Context
from quiesce.disks.head import has_content_of, head
from quiesce.hypervisor.vm import PowerState, Vm
from quiesce.model.divergence import Agreement, ServerFindings, describe
from quiesce.model.errors import DivergenceError, QuiesceError
from quiesce.model.groups import Member, Tier
from quiesce.model.keys import VmKey
from quiesce.model.names import CheckpointReference
from quiesce.model.reports import WriterReport
from quiesce.model.tree import Checkpoint, Witness
from quiesce.operations.group import members_of, parts_of
from quiesce.operations.writers import writers

AT_ONCE = 8
"""Number of guests that are asked at the same time."""


@dataclass(frozen=True)
class Divergence:
    checkpoints: tuple[Checkpoint, ...]
    """The checkpoints that would be restored together."""
    servers: tuple[ServerFindings, ...]
    """The servers that would stay as they are."""


def divergence(context: Context, reference: CheckpointReference) -> Divergence:
    """The findings about the other servers if this one VM were restored. Changes nothing; asks the guests of the others."""
    with context.vm(reference.vm) as vm:
        node = context.catalog.checkpoints.tree(vm.key).find(reference.checkpoint)
    return Divergence((node,), _servers(context, (node,)))


def group_divergence(context: Context, reference: str) -> Divergence:
    """The findings about the other servers if the group's checkpoint `GROUP@CHECKPOINT` were restored."""
    _, nodes = parts_of(context, reference)
    return Divergence(tuple(nodes), _servers(context, nodes))


def require_agreement(context: Context, going: Sequence[Checkpoint]) -> None:
    """Raises DivergenceError if a server that stays as it is has moved since these checkpoints, or cannot be asked. `going`:
    the checkpoints that are to be restored."""
    servers = _servers(context, going)
    disagreeing = [each for each in servers if not each.agrees]
    if disagreeing:
        group = next((node.group for node in going if node.group), None)
        parts = {part.vm_name for part in context.catalog.checkpoints.parts(group.id)} if group else set()
        together = ""
        if group and {each.vm_name for each in disagreeing} <= parts:  # otherwise a restore of the group is refused, too
            together = f"restore all of them: quiesce group restore {group.group}@{group.name}; or "
        raise DivergenceError(
            f"other servers would disagree with {', '.join(f'{node.vm_name}@{node.name}' for node in going)}:\n"
            + "\n".join(f"  {each}" for each in disagreeing),
            hint=f"{together}--accept-divergence restores in spite of that",
            details={"servers": describe(servers)},
        )


def witnesses(context: Context, members: Iterable[Member]) -> tuple[Witness, ...]:
    """The present positions of the applications of these servers, which have no part in a checkpoint."""
    context = _quiet(context)

    def ask(member: Member) -> Witness:
        try:
            return Witness(member.host, member.vm_uuid, member.vm_name, writers(context, member.vm_uuid).writers)
        except QuiesceError as error:
            return Witness(member.host, member.vm_uuid, member.vm_name, (), error.message)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(ask, members))


@dataclass(frozen=True)
class _Other:
    """A server that stays as it is."""

    key: VmKey
    vm_name: str
    part: Checkpoint | None = None
    """The server's own part of the group's checkpoint."""
    witness: Witness | None = None


def _quiet(context: Context) -> Context:
    """The context without events: the phases of many guests at once would tell the user nothing."""
    return replace(context, emit=lambda _: None)


def _servers(context: Context, going: Sequence[Checkpoint]) -> tuple[ServerFindings, ...]:
    quiet, others = _quiet(context), _others(context, going)
    if not others:
        return ()
    then = [writer for node in going for writer in node.writers]
    with context.phase("ask the other servers"), ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(lambda other: _judge(quiet, other, then), others))


def _others(context: Context, going: Sequence[Checkpoint]) -> list[_Other]:
    """The servers that had a part in, or were a witness of, the group's checkpoint, and those that are in a group with a
    restored VM now."""
    found: dict[VmKey, _Other] = {}
    for node in going:
        if node.group:
            for part in context.catalog.checkpoints.parts(node.group.id):
                found[part.key] = _Other(part.key, part.vm_name, part=part)
            for seen in node.group.witnesses:
                found.setdefault(seen.key, _Other(seen.key, seen.vm_name, witness=seen))
    restored = {node.key for node in going}
    for group in context.catalog.groups.all():
        members = members_of(context, group.name)
        if any(member.key in restored and member.tier is not Tier.EXTERNAL for member in members):
            for member in members:
                found.setdefault(member.key, _Other(member.key, member.vm_name))
    return [other for key, other in found.items() if key not in restored]


def _judge(context: Context, other: _Other, going: Sequence[WriterReport]) -> ServerFindings:
    try:
        with context.vm(other.key.uuid) as vm:
            return _judge_vm(context, vm, other, going)
    except QuiesceError as error:
        return ServerFindings.whole(other.vm_name, Agreement.UNKNOWN, f"it cannot be asked: {error.message}")


def _judge_vm(context: Context, vm: Vm, other: _Other, going: Sequence[WriterReport]) -> ServerFindings:
    part = other.part
    if part and has_content_of(context, vm, part):
        return ServerFindings.whole(vm.name, Agreement.AGREES, "it is off, and its disks are at its part of that checkpoint")
    if vm.facts().power is PowerState.OFF:
        return ServerFindings.whole(
            vm.name, Agreement.UNKNOWN, "it is off; only a running guest can report the positions of its applications"
        )
    if part and part.id not in {node.id for node in context.catalog.checkpoints.tree(vm.key).ancestors(head(context, vm))}:
        return ServerFindings.whole(vm.name, Agreement.MOVED, "it was restored to another checkpoint since")
    if other.witness and other.witness.reason:
        return ServerFindings.whole(
            vm.name, Agreement.UNKNOWN, f"it could not be asked when that checkpoint was taken: {other.witness.reason}"
        )
    return judge_server(vm.name, _writers_then(other), writers(context, vm.uuid).writers, going)


def _writers_then(other: _Other) -> tuple[WriterReport, ...] | None:
    """The server's writers at the checkpoint. None if the guest was not asked: the part of a VM that was off, or had no agent,
    has neither writers nor filesystems."""
    if other.part:
        return other.part.writers if other.part.writers or other.part.filesystems else None
    return other.witness.writers if other.witness else None
