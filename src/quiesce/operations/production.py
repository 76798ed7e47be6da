"""Takes the running VM's disks at an instant its applications agreed to: prepare, window, judge."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import anyio

from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import ConsistencyError, HypervisorError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.grades import LEVELS, Consistency, Grade, judge
from quiesce.model.reports import FreezeState, Writer, required_grades
from quiesce.operations import guest, windows
from quiesce.operations.attempt import Attempt, Verdict
from quiesce.operations.context import Context
from quiesce.operations.participant import Participant
from quiesce.operations.windows import AnyRequester, VssRequester
from quiesce.window.driver import WindowReport, drive
from quiesce.window.machine import Action, Member, Step
from quiesce.wire.messages import Frozen, Held, Inventory, Released, Thawed
from quiesce.wire.requester import AgentRefusedError

PREPARE_TIMEOUT_S = 600.0
"""Longest preparation, in seconds; applications run meanwhile."""
POST_CHECKPOINT_TIMEOUT_S = 60.0


def open_agent(
    context: Context, vm: Vm, facts: Facts, required: Consistency, stack: contextlib.ExitStack
) -> AnyRequester | None:
    """The agent, or VSS in its place, or None where the user is content with a crash-consistent checkpoint and there is
    neither."""
    try:
        if windows.is_windows(vm, facts):
            return stack.enter_context(windows.vss(vm))
        guest.require_agent_port(facts)
        return stack.enter_context(guest.agent(vm))[0]
    except QuiesceError as error:
        if required is not Consistency.CRASH:
            raise
        context.emit(Warned(f"{error.message}; the guest is not asked to come to rest"))
        return None


class Production:
    """The guest of one attempt."""

    def __init__(
        self, context: Context, vm: Vm, attempt: Attempt, required: Consistency, window_s: float, requester: AnyRequester | None
    ) -> None:
        self._context = context
        self._vm = vm
        self._attempt = attempt
        self._required = required
        self._window_s = window_s
        self._requester = requester
        self._completed = False
        """The window came to its end, so that the writers wait to be told."""

    def take(self) -> Verdict:
        """Switches the VM to the attempt's overlays. Raises QuiesceError if the label would be less than what is required."""
        inventory = self._prepare(self._requester) if self._requester else None
        with self._attempt.machine_state():
            return self._run_window(self._requester, inventory, self._attempt.overlays)

    def tell_writers(self, *, kept: bool) -> None:
        """How it ended, to those that held. The checkpoint does not depend on it."""
        if self._requester and self._completed:
            try:
                with guest.translated(self._vm.name):
                    self._requester.post_checkpoint(kept, POST_CHECKPOINT_TIMEOUT_S)
            except QuiesceError as error:
                self._context.emit(Warned(f"the writers could not be told how it ended: {error.message}"))

    def _prepare(self, requester: AnyRequester) -> Inventory | None:
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

    def _run_window(self, requester: AnyRequester | None, inventory: Inventory | None, overlays: dict[str, str]) -> Verdict:
        """The window and the judgement. Raises QuiesceError if the label is not what is required."""
        number = self._attempt.journal.intend("switch", overlays=overlays)
        report, participant = self._drive(requester if inventory else None, inventory, overlays)
        failed = report.outcome.failed_step
        if failed and failed.action in (Action.HOLD, Action.FREEZE) and self._required is Consistency.CRASH:
            self._context.emit(Warned(f"{self._explain(report).message}; the guest is not asked to come to rest"))
            inventory = None
            report, participant = self._drive(None, None, overlays)
        self._completed = inventory is not None and report.outcome.failure is None
        verdict = self._judge(report, inventory, participant)
        if not participant.switched:
            raise self._explain(report)
        self._attempt.journal.done(number)
        if not verdict.consistency.satisfies(self._required):
            raise self._fell_short(report, verdict)
        return verdict

    def _drive(
        self, requester: AnyRequester | None, inventory: Inventory | None, overlays: dict[str, str]
    ) -> tuple[WindowReport, Participant]:
        levels = frozenset(writer.level for writer in inventory.writers) if inventory else frozenset()
        member = Member(self._vm.name, levels, quiesced=requester is not None)
        window_s, hold_s = self._window_s, math.inf
        if isinstance(requester, VssRequester):
            # Its freeze has all of VSS's preparation in it and its thaw VSS's completion. Between them volumes are held.
            window_s += windows.VSS_PREPARE_S + windows.VSS_COMPLETE_S
            hold_s = min(self._window_s, windows.VSS_HOLD_S)
        participant = Participant(self._vm, requester, overlays, self._attempt.excluded, hold_s)
        try:
            report = anyio.run(drive, [member], {member.name: participant}, window_s, self._context.emit)
        finally:
            self._attempt.known = False
            participant.settle()
            self._attempt.known = True
        aborted = report.outcome.answers.get(Step(Action.ABORT, member.name))
        if aborted and isinstance(aborted.failure, QuiesceError):
            self._context.emit(Warned(aborted.failure.message))
        return report, participant

    def _judge(self, report: WindowReport, inventory: Inventory | None, participant: Participant) -> Verdict:
        outcome, name = report.outcome, self._vm.name
        verdict = Verdict(Consistency.CRASH, phases_us=dict(report.phases_us))
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
        verdict.consistency = judge(frozen_unbroken=unbroken, writer_grades=required_grades(verdict.writers))
        verdict.stall_us = max([thawed.window_us, *(reply.window_us for reply in released)])
        if held and released and not isinstance(self._requester, VssRequester):  # which has no clock of the guest
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

    def _fell_short(self, report: WindowReport, verdict: Verdict) -> ConsistencyError:
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


def _as_crash(writer: Writer) -> Writer:
    return replace(writer, grade=Grade.CRASH, reason=writer.reason or "the window was not completed")


def _brief(writer: Writer) -> dict[str, str | None]:
    return {"id": writer.id, "grade": writer.grade.value, "reason": writer.reason}
