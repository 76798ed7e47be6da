"""Takes a checkpoint of all VMs of a group at one instant."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from quiesce.context import Context
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import RefusedError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency
from quiesce.model.groups import Member, Tier
from quiesce.model.names import check_checkpoint_name, default_checkpoint_name
from quiesce.model.settings import Type
from quiesce.model.tree import Checkpoint, GroupPart, Witness
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, Taking, settings_of
from quiesce.operations.divergence import witnesses
from quiesce.operations.group import members_of
from quiesce.taking import production
from quiesce.taking.part import Evidence, record


@dataclass(frozen=True)
class Taken:
    part: GroupPart
    checkpoints: tuple[Checkpoint, ...]
    """One for each member, in the group's order."""


def group_checkpoint(
    context: Context,
    group: str,
    *,
    name: str | None = None,
    required: Consistency | None = None,
    window_s: float = DEFAULT_WINDOW_S,
) -> Taken:
    """Takes a production checkpoint of every VM of the group, all at one instant: front ends of all are held first, then
    what lies behind; all are frozen before any is switched, and none goes on before all were.

    All members get their checkpoint, each with at least the label `required` of it, or none does: then a QuiesceError is
    raised, all guests run, and nothing is left behind. Killed at any moment, every guest releases itself within `window_s`,
    and the next operation on each VM, or `doctor`, finds that all parts are recorded, or removes them all. A member that is
    off takes part with what its guest left.
    """
    name = check_checkpoint_name(name) if name is not None else default_checkpoint_name(datetime.now(UTC))
    everybody = members_of(context, group)
    members = [member for member in everybody if member.tier is not Tier.EXTERNAL]
    external = [member for member in everybody if member.tier is Tier.EXTERNAL]
    with contextlib.ExitStack() as stack:
        vms = _opened(context, group, members, stack)
        takings: list[Taking] = []
        with context.phase("plan"):
            for vm in vms:
                settings = replace(settings_of(context, vm, None, required), type=Type.PRODUCTION)
                taking = Taking(context, vm, name, settings, (), stack)
                stack.enter_context(taking.undone_unless_recorded())
                takings.append(taking)
        for taking in takings:
            taking.make_overlays()
        seen = _witnesses(context, external)
        verdicts = _take(context, takings, window_s)
        ids = tuple(taking.attempt.id for taking in takings)
        part = GroupPart(uuid.uuid4().hex, group, name, ids, _skew_us(verdicts), seen)
        with context.phase("record"):
            nodes = [taking.describe(verdict, part) for taking, verdict in zip(takings, verdicts, strict=True)]
            record(context.catalog, [(taking.attempt, node) for taking, node in zip(takings, nodes, strict=True)])
    for node in nodes:
        for warning in node.warnings:
            context.emit(Warned(f"{node.vm_name}: {warning}"))
    return Taken(part, tuple(nodes))


def _opened(context: Context, group: str, members: Sequence[Member], stack: contextlib.ExitStack) -> list[Vm]:
    """All members, locked: each on a connection of its own, as libvirt does five things at a time on one."""
    if not members:
        raise RefusedError(f"group {group} has no members", hint=f"quiesce group add {group} VM:TIER")
    vms = [stack.enter_context(context.vm(member.vm_uuid)) for member in members]
    for vm, member in zip(vms, members, strict=True):
        if vm.host.name != member.host:
            raise RefusedError(f"{member.vm_name} is on host {member.host}, this is {vm.host.name}")
        stack.enter_context(context.locked(vm, f"group checkpoint {group}, with"))
    return vms


def _witnesses(context: Context, external: Sequence[Member]) -> tuple[Witness, ...]:
    """Asked before the window: what they do after that counts as done since, and nothing that they did is missed."""
    if not external:
        return ()
    with context.phase("ask external servers"):
        found = witnesses(context, external)
    for witness in found:
        if witness.reason:
            context.emit(Warned(f"{witness.vm_name} could not be asked where it stands: {witness.reason}"))
    return found


def _take(context: Context, takings: Sequence[Taking], window_s: float) -> list[Evidence]:
    """Those that are off first: nothing of them changes any more."""
    verdicts = {taking.attempt.id: taking.take_alone() for taking in takings if not taking.guest}
    running = [(taking, taking.guest) for taking in takings if taking.guest]
    if running:
        found = production.take(context, [guest for _, guest in running], window_s)
        verdicts |= {taking.attempt.id: verdict for (taking, _), verdict in zip(running, found, strict=True)}
    for taking in takings:
        taking.require_as_taken()
    return [verdicts[taking.attempt.id] for taking in takings]


def _skew_us(verdicts: Sequence[Evidence]) -> int:
    switched = [verdict.switched_ns for verdict in verdicts if verdict.switched_ns]
    return (max(switched) - min(switched)) // 1000 if switched else 0
