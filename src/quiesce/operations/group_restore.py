"""Restores all VMs of a group to one of the group's checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quiesce.catalog.journal import Interrupted, Journal
from quiesce.catalog.steps import RestoreGroup
from quiesce.context import Context
from quiesce.disks.head import has_content_of, head
from quiesce.guests.port import IDENTIFY_TIMEOUT_S
from quiesce.hypervisor.vm import Vm
from quiesce.model.errors import HypervisorError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.groups import START_ORDER, Tier
from quiesce.model.tree import Checkpoint, GroupPart
from quiesce.operations.divergence import require_agreement
from quiesce.operations.group import all_parts_of, tiers_of
from quiesce.operations.restore import Restored, restore_planned
from quiesce.operations.restore_plan import plan_restore
from quiesce.operations.shorten import keep_short, make_room_on
from quiesce.recovery import recover_all
from quiesce.wire.messages import PORT_NAME

READY_TIMEOUT_S = 300.0
"""Longest wait until all applications of a tier answer, in seconds. Then the next tier is started."""


@dataclass(frozen=True)
class GroupRestored:
    part: GroupPart
    checkpoints: tuple[Checkpoint, ...]
    restored: tuple[Restored, ...]
    """The VMs that this call restored. VMs that an interrupted earlier call had restored are not among them."""
    started: bool


def group_restore(
    context: Context,
    reference: str,
    *,
    start: bool = False,
    discard_current: bool = False,
    accept_divergence: bool = False,
    accept_changed: bool = False,
) -> GroupRestored:
    """Restores every member to its part of the group's checkpoint `GROUP@CHECKPOINT`, as `restore` does with one VM, front ends
    first. With `start`, then starts them all, back ends first; a tier starts when the applications of the tier before answer.

    Refuses before any member changes, if the restore of one member would be refused. If the operation fails or is killed later,
    the members stay off: each has either the content of its part, or its content from before. The same call, again, restores
    the rest.

    Raises RefusedError if a part is gone: the restored members would then not be of one instant with that server. Raises
    DivergenceError, unless `accept_divergence`, if servers outside the group's checkpoint would disagree with it; RefusedError,
    unless `accept_changed`, if another program changed an image of a part.
    """
    part, nodes = all_parts_of(context, reference, "restored", hint="restore the part of one server alone: quiesce restore")
    with contextlib.ExitStack() as stack:
        vms = {node.id: stack.enter_context(context.vm(node.vm_uuid)) for node in nodes}
        for vm in vms.values():
            stack.enter_context(context.locked(vm, f"group restore {reference}, with"))
        with context.phase("plan"):
            for vm in vms.values():
                recover_all(context, vm)
        for id, vm in vms.items():
            make_room_on(context, vm, id)
        with context.phase("plan"):
            plans = {
                id: plan_restore(context, vm, id, start=start, discard_current=discard_current, accept_changed=accept_changed)
                for id, vm in vms.items()
            }
        if not accept_divergence:
            require_agreement(context, nodes)
        tiers = tiers_of(context, part)
        left = _left(context, [(vms[node.id], node) for node in nodes], starting=start)
        pending = [(node, _begun(context, vms[node.id], reference)) for node in left]  # for all, before any changes
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
        for vm in vms.values():
            keep_short(context, vm)
    return GroupRestored(part, tuple(nodes), tuple(replace(item, started=start) for item in restored), start)


def _begun(context: Context, vm: Vm, reference: str) -> Journal:
    """Journals the group's restore for this member. If the process is killed, the journal tells that other members may have
    been restored and this one not."""
    journal = Journal(context.catalog, vm.key, "group restore")
    journal.intend(RestoreGroup(reference))
    return journal


def recover(_context: Context, _vm: Vm, operation: Interrupted) -> str:
    """Nothing to do. The user has to decide whether the restore goes on: the members may have been started meanwhile."""
    for step in operation.of(RestoreGroup):
        return f"may have restored other servers without this one; `quiesce group restore {step.reference}` restores the rest"
    return "had not begun"


def _left(context: Context, members: Sequence[tuple[Vm, Checkpoint]], *, starting: bool) -> list[Checkpoint]:
    """The parts whose VMs have to be restored. VMs that an interrupted earlier call restored are not among them. If that call
    was already starting the VMs, none is: a VM that runs on its part must not be restored again."""
    standing = {node.id for vm, node in members if has_content_of(context, vm, node)}
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
                _start_one(vm)
        deadline = time.monotonic() + READY_TIMEOUT_S
        for vm, node in members:
            _wait_until_ready(context, vm, node, deadline)


def _start_one(vm: Vm) -> None:
    try:
        vm.start()
    except HypervisorError as error:
        raise type(error)(
            f"all members were restored, and {vm.name} did not start: {error.message}",
            hint="when the cause is gone, the same command starts the members that are off. What each was before is its"
            " checkpoint 'before restore ...', unless it was discarded (quiesce tree VM)",
            details=error.details,
        ) from error


def _wait_until_ready(context: Context, vm: Vm, node: Checkpoint, deadline: float) -> None:
    """Waits until every application answers that was held when the checkpoint was taken. Warns of applications that do not
    answer until `deadline`. Does not wait for a guest without our agent: nobody answers for its applications."""
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
        context.emit(Warned(f"{vm.name}: {', '.join(sorted(missing))} not ready after {READY_TIMEOUT_S:g} s"))
