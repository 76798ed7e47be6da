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
from quiesce.model.grades import Consistency, RequiredGrade
from quiesce.model.groups import Member, Tier
from quiesce.model.names import check_checkpoint_name, default_checkpoint_name
from quiesce.model.settings import Type
from quiesce.model.tree import Checkpoint, GroupPart, Witness
from quiesce.operations.checkpoint import DEFAULT_WINDOW_S, begin_part, require_still_off, settings_of, take_alone
from quiesce.operations.divergence import witnesses
from quiesce.operations.group import members_of
from quiesce.operations.shorten import keep_short, make_room
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
    required_grade: RequiredGrade | None = None,
    window_s: float = DEFAULT_WINDOW_S,
) -> Taken:
    """Takes a production checkpoint of every member except external ones, at one instant; or of none.

    Holds the applications of all members level by level, all front ends first; freezes all filesystems; switches all disks; and
    releases in reverse order. The label of each part is at least `required`, and the grades of its applications at least
    `required_grade`; if either is None, what the member's own settings require. Otherwise a QuiesceError is raised, all guests
    run, and nothing is left behind. If this process is killed at any moment, either all parts are recorded, or the next
    operation on a member (or `quiesce doctor --repair`) undoes its part. The part of a member that is off has the disks as its
    guest left them."""
    if name is not None:
        check_checkpoint_name(name)
    everybody = members_of(context, group)
    members = [member for member in everybody if member.tier is not Tier.EXTERNAL]
    external = [member for member in everybody if member.tier is Tier.EXTERNAL]
    with ExitStack() as locks:
        vms = _locked(context, group, members, locks)
        for vm in vms:
            recover_all(context, vm)
            make_room(context, vm)
        if name is None:
            keys = [vm.key for vm in vms]
            name = context.catalog.checkpoints.free_name(default_checkpoint_name(datetime.now(UTC)), keys)
        taken = _take_together(context, group, vms, external, name, required, required_grade, window_s)
        for vm in vms:
            keep_short(context, vm)
    return taken


def _take_together(
    context: Context,
    group: str,
    vms: Sequence[Vm],
    external: Sequence[Member],
    name: str,
    required: Consistency | None,
    required_grade: RequiredGrade | None,
    window_s: float,
) -> Taken:
    with ExitStack() as stack:
        with context.phase("plan"):
            opened = [_open(context, vm, name, required, required_grade, stack) for vm in vms]
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
    """All members, locked. Each has a libvirt connection of its own, because libvirtd serves five calls of a connection at a
    time."""
    if not members:
        raise RefusedError(
            f"group {group} has no members to checkpoint (external ones do not count)",
            hint=f"quiesce group add {group} VM:TIER",
        )
    vms = [stack.enter_context(context.vm(member.vm_uuid)) for member in members]
    for vm, member in zip(vms, members, strict=True):
        if vm.key != member.key:
            raise RefusedError(
                f"{member.vm_name} is a member on host {context.catalog.hosts.name(member.host)}, and this is {vm.host.name}",
                hint="connect to that host (--connect); a checkpoint is of VMs of one host",
            )
        stack.enter_context(context.locked(vm, f"group checkpoint {group}, with"))
    return vms


def _open(
    context: Context,
    vm: Vm,
    name: str,
    required: Consistency | None,
    required_grade: RequiredGrade | None,
    stack: ExitStack,
) -> _Opened:
    settings = replace(settings_of(context, vm, None, required, required_grade), type=Type.PRODUCTION)
    part, running = begin_part(context, vm, plan(context, vm, name, settings), stack)
    return _Opened(vm, part, running)


def _witnesses(context: Context, external: Sequence[Member]) -> tuple[Witness, ...]:
    """The positions of the external servers, asked for before the window: everything that they do later counts as moved since
    the checkpoint, so no move is missed."""
    if not external:
        return ()
    with context.phase("ask external servers"):
        found = witnesses(context, external)
    for witness in found:
        if witness.reason:
            text = f"{witness.vm_name} could not be asked for the positions of its applications: {witness.reason}"
            context.emit(Warned(text))
    return found


def _take(context: Context, opened: Sequence[_Opened], window_s: float) -> list[Evidence]:
    """The evidence of each member. Takes the members that are off first: their disks do not change."""
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
