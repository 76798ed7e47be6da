"""Puts all VMs of a group back to one of its checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import RestoreGroup
from quiesce.context import Context
from quiesce.disks.head import head, stands_at
from quiesce.guests.port import IDENTIFY_TIMEOUT_S
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import QuiesceError, RefusedError
from quiesce.model.events import Warned
from quiesce.model.groups import START_ORDER, Tier
from quiesce.model.tree import Checkpoint, GroupPart
from quiesce.operations.divergence import require_agreement
from quiesce.operations.group import members_of, parts_of
from quiesce.operations.restore import Restored, plan_restore, restore_planned
from quiesce.recovery import recover_all
from quiesce.wire.messages import PORT_NAME

READY_TIMEOUT_S = 300.0
"""Longest wait for the applications of one tier, all of them, in seconds, before the next tier is started."""


@dataclass(frozen=True)
class GroupRestored:
    part: GroupPart
    checkpoints: tuple[Checkpoint, ...]
    restored: tuple[Restored, ...]
    """Without those that stood there already, from an interrupted call."""
    started: bool


def group_restore(
    context: Context,
    reference: str,
    *,
    start: bool = False,
    discard_current: bool = False,
    accept_divergence: bool = False,
) -> GroupRestored:
    """Puts every member back to its part of the group's checkpoint `GROUP@CHECKPOINT`, as `restore` does one, front ends first;
    with `start` starts them all, back ends first, each tier when the applications of the one before answer.

    Whatever would be refused of one member is refused before any is touched. If it fails or is killed later, the members stay
    off, each whole, at its part or where it was, and the same call goes on with those that are left.
    Raises RefusedError if a part is gone: the others could not be of one instant with it. Raises DivergenceError, unless
    `accept_divergence`, if servers beside the group's checkpoint would disagree with it.
    """
    part, nodes = parts_of(context, reference)
    if len(nodes) < len(part.members):
        raise RefusedError(
            f"{len(part.members) - len(nodes)} of {len(part.members)} parts of {reference} were deleted",
            hint=f"restore one server's part by itself: quiesce restore {nodes[0].vm_name}@{nodes[0].name}",
        )
    with contextlib.ExitStack() as stack:
        vms = {node.id: stack.enter_context(context.vm(node.vm_uuid)) for node in nodes}
        for vm in vms.values():
            stack.enter_context(context.locked(vm, f"group restore {reference}, with"))
        with context.phase("plan"):
            for vm in vms.values():
                recover_all(context, vm)
            plans = {id: plan_restore(context, vm, id, discard_current=discard_current) for id, vm in vms.items()}
        if not accept_divergence:
            require_agreement(context, nodes)
        tiers = _tiers(context, part)
        left = _left(context, [(vms[node.id], node) for node in nodes], starting=start)
        pending = [(node, _begun(context, vms[node.id], reference)) for node in left]  # of all, before any is touched
        restored = []
        for tier in reversed(START_ORDER):
            for node, journal in pending:
                if tiers.get(node.vm_uuid, Tier.MIDDLE) is tier:
                    restored.append(restore_planned(context, vms[node.id], plans[node.id]))
                    journal.finish("done")
        if start:
            for tier in START_ORDER:
                members = [node for node in nodes if tiers.get(node.vm_uuid, Tier.MIDDLE) is tier]
                _start(context, tier, [(vms[node.id], node) for node in members])
    return GroupRestored(part, tuple(nodes), tuple(replace(item, started=start) for item in restored), start)


def _begun(context: Context, vm: Vm, reference: str) -> Journal:
    """So that it is known of each member that the others may have gone back without it."""
    journal = Journal(context.catalog, vm.key, "group restore")
    journal.intend(RestoreGroup(reference))
    return journal


def recover(_context: Context, _vm: Vm, operation: Interrupted) -> str:
    """Whether to go on is its user's to say: meanwhile the members may have been started."""
    for step in operation.of(RestoreGroup):
        return f"may have put other servers back without this one; `quiesce group restore {step.reference}` goes on"
    return "had not begun"


def _tiers(context: Context, part: GroupPart) -> dict[str, Tier]:
    """As the group is now; it may have been forgotten."""
    with contextlib.suppress(QuiesceError):
        return {member.vm_uuid: member.tier for member in members_of(context, part.group) if member.tier is not Tier.EXTERNAL}
    return {}


def _left(context: Context, members: Sequence[tuple[Vm, Checkpoint]], *, starting: bool) -> list[Checkpoint]:
    """The parts whose VMs are to be put back: not those that an interrupted call put back. If it had come to starting them,
    none: those that run already are not thrown back."""
    standing = {node.id for vm, node in members if stands_at(context, vm, node)}
    running = {node.id for vm, node in members if vm.active() and head(context, vm) == node.id}
    if starting and standing and len(standing | running) == len(members):
        return []
    return [node for _, node in members if node.id not in standing]


def _start(context: Context, tier: Tier, members: Sequence[tuple[Vm, Checkpoint]]) -> None:
    if not members:
        return
    with context.phase(f"start tier {tier.value}"):
        for vm, _ in members:
            if not vm.active():
                vm.start()
        deadline = time.monotonic() + READY_TIMEOUT_S
        for vm, node in members:
            _wait_until_ready(context, vm, node, deadline)


def _wait_until_ready(context: Context, vm: Vm, node: Checkpoint, deadline: float) -> None:
    """Until every application answers that could be vouched for when the checkpoint was taken. One that does not come is said.
    Of a guest without our agent nobody can tell."""
    expected = {writer.id for writer in node.writers if writer.grade.vouched}
    missing = expected if PORT_NAME in vm.facts().channels else set()
    while missing and time.monotonic() < deadline:
        with contextlib.suppress(QuiesceError):
            with context.guest(vm, vm.facts()) as asked:
                found = asked.identify(IDENTIFY_TIMEOUT_S)
            missing = expected - {writer.id for writer in found.writers if writer.grade.vouched}
        if missing:
            time.sleep(1)
    if missing:
        context.emit(Warned(f"{vm.name}: not ready after {READY_TIMEOUT_S:g} s: {', '.join(sorted(missing))}"))
