"""Takes a checkpoint of all VMs of a group at one instant."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
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
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, begin_part, require_still_off, settings_of, take_alone
from quiesce.operations.divergence import witnesses
from quiesce.operations.group import members_of
from quiesce.recovery import recover_all
from quiesce.taking.evidence import Evidence
from quiesce.taking.part import Part, record
from quiesce.taking.plan import plan
from quiesce.taking.production import RunningPart, take_production


@dataclass(frozen=True)
class Taken:
    part: GroupPart
    checkpoints: tuple[Checkpoint, ...]
    """One for each member, in the group's order."""


@dataclass(frozen=True)
class _Opened:
    """One member's part."""

    vm: Vm
    part: Part
    running: RunningPart | None


def group_checkpoint(
    context: Context,
    group: str,
    *,
    name: str | None = None,
    required: Consistency | None = None,
    window_s: float = DEFAULT_WINDOW_S,
) -> Taken:
    """Takes a production checkpoint of every member, external ones left out, at one instant; or of none.

    All members' applications are held level by level, all front ends first, then all filesystems are frozen, all disks
    switched, and all of it released in reverse order. Each label is at least `required`, or what the member's own settings
    require. If one of them cannot be had, a QuiesceError is raised, all guests run, and nothing is left behind. Killed at any
    moment, the next operation on a member, or `quiesce doctor`, finds that all parts are recorded, or removes them all. A
    member that is off takes part with what its guest left."""
    name = check_checkpoint_name(name) if name is not None else default_checkpoint_name(datetime.now(UTC))
    everybody = members_of(context, group)
    members = [member for member in everybody if member.tier is not Tier.EXTERNAL]
    external = [member for member in everybody if member.tier is Tier.EXTERNAL]
    with ExitStack() as stack:
        vms = _locked(context, group, members, stack)
        with context.phase("plan"):
            opened = [_open(context, vm, name, required, stack) for vm in vms]
        for each in opened:
            each.part.make_overlays()
        seen = _witnesses(context, external)
        evidence = _take(context, opened, window_s)
        ids = tuple(each.part.id for each in opened)
        part = GroupPart(uuid.uuid4().hex, group, name, ids, _skew_us(evidence), seen)
        with context.phase("record"):
            nodes = record(context, [(each.part, found) for each, found in zip(opened, evidence, strict=True)], part)
    for node in nodes:
        for warning in node.warnings:
            context.emit(Warned(f"{node.vm_name}: {warning}"))
    return Taken(part, tuple(nodes))


def _locked(context: Context, group: str, members: Sequence[Member], stack: ExitStack) -> list[Vm]:
    """All members, locked: each on a connection of its own, as libvirt does five things at a time on one."""
    if not members:
        raise RefusedError(f"group {group} has no members", hint=f"quiesce group add {group} VM:TIER")
    vms = [stack.enter_context(context.vm(member.vm_uuid)) for member in members]
    for vm, member in zip(vms, members, strict=True):
        if vm.key != member.key:
            raise RefusedError(f"{member.vm_name} is on host {context.catalog.hosts.name(member.host)}, this is {vm.host.name}")
        stack.enter_context(context.locked(vm, f"group checkpoint {group}, with"))
    return vms


def _open(context: Context, vm: Vm, name: str, required: Consistency | None, stack: ExitStack) -> _Opened:
    settings = replace(settings_of(context, vm, None, required), type=Type.PRODUCTION)
    recover_all(context, vm)
    part, running = begin_part(context, vm, plan(context, vm, name, settings), stack)
    return _Opened(vm, part, running)


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


def _take(context: Context, opened: Sequence[_Opened], window_s: float) -> list[Evidence]:
    """Those that are off first: nothing of them changes any more."""
    evidence = {each.part.id: take_alone(context, each.vm, each.part) for each in opened if not each.running}
    running = [(each.part.id, each.running) for each in opened if each.running]
    if running:
        found = take_production(context, [member for _, member in running], window_s)
        evidence |= {id: each for (id, _), each in zip(running, found, strict=True)}
    require_still_off([(each.vm, each.part) for each in opened])
    return [evidence[each.part.id] for each in opened]


def _skew_us(evidence: Sequence[Evidence]) -> int:
    switched = [each.switched_ns for each in evidence if each.switched_ns]
    return (max(switched) - min(switched)) // 1000 if switched else 0
