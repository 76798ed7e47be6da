"""Takes a checkpoint: plan, prepare, window, judge, record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import anyio

from quiesce.catalog.journal import Journal
from quiesce.hypervisor.domain_xml import Disk
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import (
    ConsistencyError,
    HypervisorError,
    NameTakenError,
    QuiesceError,
)
from quiesce.model.events import Warned
from quiesce.model.grades import LEVELS, Consistency, Grade, judge
from quiesce.model.names import check_checkpoint_name, default_checkpoint_name
from quiesce.model.reports import Filesystem, FreezeState, Writer
from quiesce.model.tree import Checkpoint, DiskImage, Kind
from quiesce.operations import guest, images, plan
from quiesce.operations.context import Context
from quiesce.operations.participant import Participant
from quiesce.operations.recover import recover
from quiesce.window.driver import WindowReport, drive
from quiesce.window.machine import Action, Member
from quiesce.wire.messages import Frozen, Held, Inventory, Released, Thawed
from quiesce.wire.requester import AgentRefusedError, Requester

DEFAULT_WINDOW_S = 10.0
"""VSS's own limit for holding writes."""
PREPARE_TIMEOUT_S = 600.0
"""Longest preparation, in seconds; applications run meanwhile."""


def checkpoint(
    context: Context,
    vm_name: str,
    *,
    name: str | None = None,
    required: Consistency = Consistency.APPLICATION,
    window_s: float = DEFAULT_WINDOW_S,
) -> Checkpoint:
    """Takes a checkpoint of the running VM and returns it.

    Its label is at least `required`. If that cannot be had, a QuiesceError is raised, the guest runs, and nothing is left
    behind. Killed at any moment, the guest releases itself within `window_s`.
    """
    name = check_checkpoint_name(name) if name is not None else default_checkpoint_name(datetime.now(UTC))
    with context.vm(vm_name) as vm, context.locked(vm, "checkpoint"), contextlib.ExitStack() as stack:
        with context.phase("plan"):
            recover(context, vm)
            facts = vm.facts()
            disks = plan.disks_to_switch(facts)
            plan.require_running(facts)
            plan.require_nothing_in_the_way(facts)
            tree = context.catalog.tree(vm.host.name, vm.uuid)
            if tree.has_name(name):
                raise NameTakenError(f"{vm.name} has a checkpoint named {name!r} already", hint="choose another --name")
            plan.require_known_chain(disks, tree, context.emit)
            requester = _open_agent(context, vm, facts, required, stack)
        attempt = _Attempt(context, vm, disks, required, window_s)
        with attempt.overlays() as overlays:
            inventory = attempt.prepare(requester) if requester else None
            verdict = attempt.run_window(requester, inventory, overlays)
            node = Checkpoint(
                id=attempt.id,
                host=vm.host.name,
                vm_uuid=vm.uuid,
                vm_name=vm.name,
                name=name,
                created=attempt.created.isoformat(timespec="milliseconds"),
                kind=Kind.PRODUCTION,
                consistency=verdict.consistency,
                required=required,
                disks=tuple(DiskImage(disk.target, str(disk.path), disk.format) for disk in disks),
                parent=tree.head_parent,
                stall_us=verdict.stall_us,
                writers=verdict.writers,
                filesystems=verdict.filesystems,
                phases_us=verdict.phases_us,
                guest_clock_ns=verdict.guest_clock_ns,
                warnings=tuple(verdict.warnings),
            )
            with context.phase("record"):
                attempt.record(node)
        for warning in node.warnings:
            context.emit(Warned(warning))
        return node


def _open_agent(context: Context, vm: Vm, facts: Facts, required: Consistency, stack: contextlib.ExitStack) -> Requester | None:
    """The agent, or None where the user is content with a crash-consistent checkpoint and there is none."""
    try:
        guest.require_agent_port(facts)
        return stack.enter_context(guest.agent(vm))[0]
    except QuiesceError as error:
        if required is not Consistency.CRASH:
            raise
        context.emit(Warned(f"{error.message}; the guest is not asked to come to rest"))
        return None


@dataclass
class _Verdict:
    consistency: Consistency
    stall_us: int = 0
    writers: tuple[Writer, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    phases_us: dict[str, int] = field(default_factory=dict)
    guest_clock_ns: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class _Attempt:
    """One attempt and what must be undone if it fails."""

    def __init__(self, context: Context, vm: Vm, disks: tuple[Disk, ...], required: Consistency, window_s: float) -> None:
        self.created = datetime.now(UTC)
        self._context = context
        self._vm = vm
        self._disks = disks
        self._required = required
        self._window_s = window_s
        self._journal = Journal(context.catalog, vm.host.name, vm.uuid, "checkpoint")
        self.id = self._journal.id
        self._overlays: dict[str, str] = {}
        self._participant: Participant | None = None

    @contextlib.contextmanager
    def overlays(self) -> Iterator[dict[str, str]]:
        """Differencing disks for all disks. Unless the attempt was recorded, none is left, in use or lying about."""
        try:
            with self._context.phase("make differencing disks"):
                for disk in self._disks:
                    self._overlays[disk.target] = images.make_overlay(
                        self._context,
                        self._vm,
                        self._journal,
                        disk.target,
                        self._vm.capacity(disk.target),
                        str(disk.path),
                        disk.format,
                    )
            yield self._overlays
        except BaseException:
            self._undo()
            raise
        self._journal.finish("done")

    def prepare(self, requester: Requester) -> Inventory | None:
        """What the guest has to hold and freeze; None where it cannot be prepared and a crash image is enough."""
        insist = self._required is Consistency.APPLICATION
        try:
            with self._context.phase("prepare"), guest.translated(self._vm.name):
                try:
                    return requester.prepare(int(self._window_s * 1000), insist, PREPARE_TIMEOUT_S)
                except AgentRefusedError as refusal:
                    raise self._inconsistent(refusal) from refusal
        except QuiesceError as error:
            if self._required is not Consistency.CRASH:
                raise
            self._context.emit(Warned(f"{error.message}; the guest is not asked to come to rest"))
            return None

    def run_window(self, requester: Requester | None, inventory: Inventory | None, overlays: dict[str, str]) -> _Verdict:
        """The window and the judgement. Raises QuiesceError if the label is not what is required."""
        number = self._journal.intend("switch", overlays=overlays)
        report, participant = self._drive(requester if inventory else None, inventory, overlays)
        failed = report.outcome.failed_step
        if failed and failed.action in (Action.HOLD, Action.FREEZE) and self._required is Consistency.CRASH:
            self._context.emit(Warned(f"{self._explain(report).message}; the guest is not asked to come to rest"))
            inventory = None
            report, participant = self._drive(None, None, overlays)
        verdict = self._judge(report, inventory, participant)
        if not participant.switched:
            raise self._explain(report)
        self._journal.done(number)
        if not verdict.consistency.satisfies(self._required):
            raise self._fell_short(report, verdict)
        return verdict

    def _drive(
        self, requester: Requester | None, inventory: Inventory | None, overlays: dict[str, str]
    ) -> tuple[WindowReport, Participant]:
        levels = frozenset(writer.level for writer in inventory.writers) if inventory else frozenset()
        member = Member(self._vm.name, levels, quiesced=requester is not None)
        participant = self._participant = Participant(self._vm, requester, overlays)
        try:
            report = anyio.run(drive, [member], {member.name: participant}, self._window_s, self._context.emit)
        finally:
            participant.settle()
        return report, participant

    def record(self, node: Checkpoint) -> None:
        xml = self._vm.definition()
        with self._journal.step("record", checkpoint=node.id):
            self._context.catalog.add(node, xml, head_parent=node.id)
        images.write_manifest(self._context, self._vm, node, xml)

    def _judge(self, report: WindowReport, inventory: Inventory | None, participant: Participant) -> _Verdict:
        outcome, name = report.outcome, self._vm.name
        verdict = _Verdict(Consistency.CRASH, phases_us=dict(report.phases_us))
        frozen: Frozen | None = outcome.value(Action.FREEZE, name)
        thawed: Thawed | None = outcome.value(Action.THAW, name)
        released: list[Released] = [
            value for level in LEVELS if (value := outcome.value(Action.RELEASE, name, level)) is not None
        ]
        held: list[Held] = [value for level in LEVELS if (value := outcome.value(Action.HOLD, name, level)) is not None]
        if inventory:
            latest = {writer.id: writer for writer in inventory.writers}
            told = [writer for answer in held for writer in answer.writers]
            told += [writer for answer in released for writer in answer.writers]
            latest |= {writer.id: writer for writer in told}
            verdict.writers = tuple(latest.values())
        if outcome.failure or frozen is None or thawed is None:
            verdict.writers = tuple(_as_crash(writer) for writer in verdict.writers)
            return verdict
        verdict.filesystems = thawed.filesystems
        verdict.warnings += [
            f"{item.mountpoint}: {item.reason}" for item in thawed.filesystems if item.state is FreezeState.FLUSHED
        ]
        verdict.warnings += [f"{writer.id}: {warning}" for writer in verdict.writers for warning in writer.warnings]
        unbroken = thawed.unbroken and thawed.freeze_token == frozen.freeze_token and participant.whole
        verdict.consistency = judge(frozen_unbroken=unbroken, writer_grades=[writer.grade for writer in verdict.writers])
        verdict.stall_us = max([thawed.window_us, *(reply.window_us for reply in released)])
        if held and released:
            verdict.guest_clock_ns = {
                "held": max(reply.monotonic_ns for reply in held),
                "released": min(reply.monotonic_ns for reply in released),
            }
        return verdict

    def _explain(self, report: WindowReport) -> QuiesceError:
        failure = report.outcome.failure
        step = report.outcome.failed_step
        assert failure is not None
        what = step.action.value if step else "checkpoint"
        if isinstance(failure, AgentRefusedError):
            return self._inconsistent(failure)
        if isinstance(failure, HypervisorError):
            return failure
        return ConsistencyError(
            f"{self._vm.name} could not {what} in time: {failure}",
            hint="nothing was kept, and the guest has been released",
            details={"step": what},
        )

    def _inconsistent(self, refusal: AgentRefusedError) -> ConsistencyError:
        return ConsistencyError(
            f"{self._vm.name} cannot be made {self._required.value}-consistent: {refusal}",
            hint="nothing was kept, and the guest runs; a lower label can be had with --require filesystem or crash",
            details={"writers": [_brief(writer) for writer in refusal.error.writers]},
        )

    def _fell_short(self, report: WindowReport, verdict: _Verdict) -> ConsistencyError:
        reasons = [f"{writer.id}: {writer.reason}" for writer in verdict.writers if not writer.grade.vouched]
        step, failure = report.outcome.failed_step, report.outcome.failure
        if step and failure:
            reasons.insert(0, f"{step.action.value} failed: {failure}")
        if not reasons:
            reasons = ["a freeze was broken, a filesystem mounted, or a disk added from outside"]
        return ConsistencyError(
            f"the checkpoint of {self._vm.name} would only be {verdict.consistency.value}-consistent,"
            f" {self._required.value} is required: {'; '.join(reasons)}",
            hint="nothing was kept, and the guest runs; try again, or ask for less with --require",
            details={"writers": [_brief(writer) for writer in verdict.writers]},
        )

    def _undo(self) -> None:
        """Brings the VM back onto its old images and removes the overlays. What cannot be undone stays journalled."""
        try:
            if self._context.catalog.has(self.id):
                return  # recorded, so the overlays are the VM's disks for good
            if self._participant and not self._participant.ended:
                raise HypervisorError("libvirt has not returned from the switch; its outcome is not known")
            below = {disk.target: str(disk.path) for disk in self._disks}
            overlays = {target: (overlay, below[target]) for target, overlay in self._overlays.items()}
            images.put_back(self._context, self._vm, overlays)
            self._journal.finish("undone")
        except QuiesceError as error:
            self._context.emit(Warned(f"the failed attempt could not be undone: {error.message}"))


def _as_crash(writer: Writer) -> Writer:
    return replace(writer, grade=Grade.CRASH, reason=writer.reason or "the window was not completed")


def _brief(writer: Writer) -> dict[str, str | None]:
    return {"id": writer.id, "grade": writer.grade.value, "reason": writer.reason}
