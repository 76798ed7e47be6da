"""Takes the disks of running VMs at one instant their applications agreed to: prepare, window, judge."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import anyio

from quiesce.context import Context
from quiesce.guests import linux, vss
from quiesce.guests.vss import AnyRequester, VssRequester
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.errors import ConsistencyError, HypervisorError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.grades import LEVELS, Consistency, Grade, judge
from quiesce.model.reports import FreezeState, WriterReport, required_grades
from quiesce.taking.part import Evidence, Part
from quiesce.taking.participant import VmParticipant
from quiesce.window.driver import ABORT_TIMEOUT_S, WindowReport, drive
from quiesce.window.machine import Action, WindowMember, WindowStep
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
        if vss.is_windows(vm, facts):
            return stack.enter_context(vss.vss(vm))
        linux.require_agent_port(facts)
        return stack.enter_context(linux.agent(vm))[0]
    except QuiesceError as error:
        if required is not Consistency.CRASH:
            raise
        context.emit(Warned(f"{error.message}; the guest is not asked to come to rest"))
        return None


def take(context: Context, guests: Sequence[Guest], window_s: float) -> list[Evidence]:
    """Switches all these VMs to their attempts' overlays at one instant: all of them come to rest first. Returns what each
    checkpoint is worth. Raises QuiesceError if the label of one would be less than what is required of it."""
    _prepare(context, guests, window_s)
    with contextlib.ExitStack() as states:
        for each in guests:
            states.enter_context(each.machine_state())
        report = _drive(context, guests, window_s)
        while any(each.gives_way(report) for each in guests):
            if len(guests) > 1:  # the others have let go
                _prepare(context, guests, window_s)
            report = _drive(context, guests, window_s)
        return _verdicts(guests, report)


def _prepare(context: Context, guests: Sequence[Guest], window_s: float) -> None:
    """All at once. Raises QuiesceError, that of the first in order, when all have ended: the applications run meanwhile."""
    with context.phase("prepare"):
        threads = ThreadPoolExecutor(len(guests))
        try:
            preparations = [threads.submit(each.prepare, window_s) for each in guests]
            wait(preparations)
        finally:
            threads.shutdown(wait=False)  # interrupted, they end when their conversations are closed
        for preparation in preparations:
            preparation.result()


def _drive(context: Context, guests: Sequence[Guest], window_s: float) -> WindowReport:
    """One window. Raises HypervisorError if it is not known of a VM whether it was switched."""
    joined = {each.key: each.join(window_s) for each in guests}
    # VSS's freeze has all of its preparation in it, and its thaw its completion. Between them volumes are held.
    more_s = vss.VSS_PREPARE_S + vss.VSS_COMPLETE_S if any(each.in_windows for each in guests) else 0
    members = [member for member, _ in joined.values()]
    participants = {key: participant for key, (_, participant) in joined.items()}
    try:
        report = anyio.run(drive, members, participants, window_s + more_s, context.emit)
    finally:
        unknown = [error for each in guests if (error := each.settle())]
    if unknown:
        raise unknown[0]
    for each in guests:
        each.tell_of_abort(report)
    return report


def _verdicts(guests: Sequence[Guest], report: WindowReport) -> list[Evidence]:
    """One for each. Raises QuiesceError: what stopped the window, else what the first falls short in."""
    for each in guests:
        each.conclude(report)
    failed = report.outcome.failed_step
    guests_by_blame = sorted(guests, key=lambda each: failed is None or each.key != failed.member)
    if len(guests) > 1 and not report.outcome.all_switched:
        raise guests_by_blame[0].explain(report)  # even if all are switched by now: others went on before
    verdicts = {each.key: each.verdict(report) for each in guests_by_blame}
    return [verdicts[each.key] for each in guests]


class Guest:
    """The guest of one attempt: a member of a window, alone or with others."""

    def __init__(self, context: Context, vm: Vm, attempt: Part, required: Consistency, requester: AnyRequester | None) -> None:
        """`required`: the least label to accept. Without `requester` the VM is only switched."""
        self._context = context
        self._vm = vm
        self._attempt = attempt
        self._required = required
        self._requester = requester
        self._inventory: Inventory | None = None
        self._participant: VmParticipant | None = None
        self._switch_number = -1
        self._completed = False
        """The window came to its end, so that the writers wait to be told."""

    @property
    def key(self) -> str:
        """Names it in a window."""
        return f"{self._vm.host.name}/{self._vm.name}"

    @property
    def in_windows(self) -> bool:
        return isinstance(self._requester, VssRequester)

    def tell_writers(self, *, kept: bool) -> None:
        """How it ended, to those that held. The checkpoint does not depend on it."""
        if self._requester and self._completed:
            try:
                with linux.translated(self._vm.name):
                    self._requester.post_checkpoint(kept, POST_CHECKPOINT_TIMEOUT_S)
            except QuiesceError as error:
                self._context.emit(Warned(f"the writers could not be told how it ended: {error.message}"))

    def prepare(self, window_s: float) -> None:
        """Has the guest find out what it has to hold and freeze. Where it cannot be prepared and a crash image is enough, it is
        left alone. Raises QuiesceError."""
        requester, before, self._inventory = self._requester, self._inventory, None
        if requester is None:
            return
        insist = self._required is Consistency.APPLICATION
        try:
            with linux.translated(self._vm.name):
                try:
                    if before:  # a window that failed because of another may not have come to this one
                        requester.abort(ABORT_TIMEOUT_S)
                    self._inventory = requester.prepare(int(window_s * 1000), insist, PREPARE_TIMEOUT_S)
                except AgentRefusedError as refusal:
                    raise self._inconsistent(refusal) from refusal
        except QuiesceError as error:
            self._leave_alone(error)

    def _leave_alone(self, why: QuiesceError) -> None:
        if self._required is not Consistency.CRASH:
            raise why
        self._context.emit(Warned(f"{why.message}; the guest is not asked to come to rest"))
        self._inventory = self._requester = None

    @contextlib.contextmanager
    def machine_state(self) -> Iterator[None]:
        """To be around the switch: it is intended now, and what is no disk is taken with it."""
        with self._attempt.machine_state():
            self._switch_number = self._attempt.journal.intend("switch", overlays=self._attempt.overlays)
            yield

    def join(self, window_s: float) -> tuple[WindowMember, VmParticipant]:
        """What takes part in the window."""
        levels = frozenset(writer.level for writer in self._inventory.writers) if self._inventory else frozenset()
        member = WindowMember(self.key, levels, quiesced=self._inventory is not None, early=self.in_windows)
        hold_s = min(window_s, vss.VSS_HOLD_S) if self.in_windows else math.inf
        requester = self._requester if self._inventory else None
        self._participant = VmParticipant(self._vm, requester, self._attempt.overlays, self._attempt.excluded, hold_s)
        self._attempt.known = False
        return member, self._participant

    def settle(self) -> QuiesceError | None:
        """To be called after every window, whatever came of it. The error, if it is not known whether the VM was switched."""
        assert self._participant is not None
        try:
            self._participant.settle()
        except QuiesceError as error:
            return error
        self._attempt.known = True
        return None

    def gives_way(self, report: WindowReport) -> bool:
        """Whether the window failed because of this guest, and can be had without asking it."""
        step = report.outcome.failed_step
        if not step or step.member != self.key or step.action not in (Action.HOLD, Action.FREEZE):
            return False
        if self._required is not Consistency.CRASH:
            return False
        self._leave_alone(self.explain(report))
        return True

    def conclude(self, report: WindowReport) -> None:
        """Hears of a window after which there is no other."""
        self._completed = self._inventory is not None and report.outcome.failure is None

    def tell_of_abort(self, report: WindowReport) -> None:
        """Warns of a guest that does not confirm that it has let go."""
        aborted = report.outcome.answers.get(WindowStep(Action.ABORT, self.key))
        if aborted and isinstance(aborted.failure, QuiesceError):
            self._context.emit(Warned(aborted.failure.message))

    def verdict(self, report: WindowReport) -> Evidence:
        """What the attempt is worth. Raises QuiesceError if that is less than what is required."""
        assert self._participant is not None
        verdict = self._judge(report, self._inventory, self._participant)
        if not self._participant.switched:
            raise self.explain(report)
        self._attempt.journal.done(self._switch_number)
        if not verdict.consistency.satisfies(self._required):
            raise self._fell_short(report, verdict)
        return verdict

    def _judge(self, report: WindowReport, inventory: Inventory | None, participant: VmParticipant) -> Evidence:
        outcome, name = report.outcome, self.key
        verdict = Evidence(Consistency.CRASH, phases_us=dict(report.phases_us), switched_ns=participant.switched_ns)
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
        if held and released and not self.in_windows:  # which has no clock of the guest
            verdict.guest_clock_ns = {
                "held": max(reply.monotonic_ns for reply in held),
                "released": min(reply.monotonic_ns for reply in released),
            }
        return verdict

    def explain(self, report: WindowReport) -> QuiesceError:
        """What stopped the window, for whoever asked for it."""
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

    def _fell_short(self, report: WindowReport, verdict: Evidence) -> ConsistencyError:
        reasons = [f"{writer.id}: {writer.reason}" for writer in verdict.writers if not writer.grade.vouched]
        step, failure = report.outcome.failed_step, report.outcome.failure
        if step and failure:
            whose = "" if step.member == self.key else f" of {step.member}"
            reasons.insert(0, f"{step.action.value}{whose} failed: {failure}")
        if not reasons:
            reasons = ["a freeze was broken, a filesystem mounted, or a disk added from outside"]
        return ConsistencyError(
            f"the checkpoint of {self._vm.name} would only be {verdict.consistency.value}-consistent,"
            f" {self._required.value} is required: {'; '.join(reasons)}",
            hint="nothing was kept, and the guest runs; try again, or ask for less with --require",
            details={"writers": [_brief(writer) for writer in verdict.writers]},
        )


def _as_crash(writer: WriterReport) -> WriterReport:
    return replace(writer, grade=Grade.CRASH, reason=writer.reason or "the window was not completed")


def _brief(writer: WriterReport) -> dict[str, str | None]:
    return {"id": writer.id, "grade": writer.grade.value, "reason": writer.reason}
