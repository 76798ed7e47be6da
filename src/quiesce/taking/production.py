"""Takes the disks of running VMs at one instant at which their applications are at rest: prepare, window, judge."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import anyio

from quiesce.catalog.steps import Switch
from quiesce.context import Context
from quiesce.guests.port import POST_CHECKPOINT_TIMEOUT_S, PREPARE_TIMEOUT_S, Guest, GuestRefusedError
from quiesce.hypervisor.vm import Facts, Vm
from quiesce.model.coverage import HostDisk
from quiesce.model.errors import HypervisorError, QuiesceError
from quiesce.model.events import Warned
from quiesce.model.grades import Consistency, RequiredGrade
from quiesce.taking import judgement
from quiesce.taking.evidence import Evidence
from quiesce.taking.judgement import Asked
from quiesce.taking.part import Part
from quiesce.taking.participant import Switched, VmParticipant
from quiesce.window.driver import ABORT_TIMEOUT_S, WindowReport, drive
from quiesce.window.machine import Action, WindowMember, WindowStep
from quiesce.wire.messages import Inventory, Prepare


def open_guest(context: Context, vm: Vm, facts: Facts, required: Consistency, stack: contextlib.ExitStack) -> Guest | None:
    """The VM's guest, through our agent or VSS. None if neither answers and the user accepts a crash-consistent checkpoint.
    Closing `stack` ends the conversation with the guest."""
    try:
        return stack.enter_context(context.guest(vm, facts))
    except QuiesceError as error:
        if required is not Consistency.CRASH:
            raise
        context.emit(Warned(f"{error.message}; the disks are taken without the guest"))
        return None


def take_production(context: Context, members: Sequence[RunningPart], window_s: float) -> list[Evidence]:
    """Switches all these VMs to their parts' overlays while the applications of all of them are at rest. Returns the evidence
    of each. Raises QuiesceError if the label of a part would be less than that part requires."""
    _prepare(context, members, window_s)
    with contextlib.ExitStack() as states:
        for each in members:
            states.enter_context(each.switching())
        report, switched = _drive(context, members, window_s)
        while any(each.gives_way(report) for each in members):
            if len(members) > 1:  # the other members were aborted, so they must prepare again
                _prepare(context, members, window_s)
            report, switched = _drive(context, members, window_s)
        return _judge(members, report, switched)


def _prepare(context: Context, members: Sequence[RunningPart], window_s: float) -> None:
    """Prepares all members at the same time; their applications run meanwhile. If any fails, raises the QuiesceError of the
    first one in order, after all have ended."""
    with context.phase("prepare"):
        threads = ThreadPoolExecutor(len(members))
        try:
            preparations = [threads.submit(each.prepare, window_s) for each in members]
            wait(preparations)
        finally:
            threads.shutdown(wait=False)  # after an interrupt, they end when their conversations are closed
        for preparation in preparations:
            preparation.result()


def _drive(context: Context, members: Sequence[RunningPart], window_s: float) -> tuple[WindowReport, dict[str, Switched]]:
    """Runs one window. Returns its report, and the result of each member's switch by the member's name. Raises
    OutcomeUnknownError, before any other error, if it is not known whether a VM was switched."""
    participants = {each.name: each.participant() for each in members}
    more_s = max((each.extra_window_s for each in members), default=0.0)
    try:
        report = anyio.run(drive, [each.member() for each in members], participants, window_s + more_s, context.emit)
    finally:
        switched = {name: participant.outcome() for name, participant in participants.items()}
    for each in members:
        each.warn_of_abort(report)
    return report, switched


def _judge(members: Sequence[RunningPart], report: WindowReport, switched: dict[str, Switched]) -> list[Evidence]:
    """The evidence of each member. Raises QuiesceError with the failure that stopped the window or, if there is none, with the
    reason why the first member's label is too low."""
    for each in members:
        each.conclude(report)
    failed = report.outcome.failed_step
    by_blame = sorted(members, key=lambda each: failed is None or each.name != failed.member)
    if len(members) > 1 and not report.outcome.all_switched:
        # Even if the late switch was done by now: the other members were released before it, so the instants differ.
        raise judgement.explain(by_blame[0].asked(), report)
    found = {each.name: each.evidence(report, switched[each.name]) for each in by_blame}
    return [found[each.name] for each in members]


def host_disks(vm: Vm, facts: Facts, excluded: Sequence[str]) -> tuple[HostDisk, ...]:
    """The disks of a running VM, and whether a checkpoint without the excluded ones has them."""
    found = []
    for disk in facts.disks:
        if not disk.removable:
            try:
                size = vm.capacity(disk.target)
            except HypervisorError:  # of a kind that no checkpoint can have
                size = 0
            found.append(HostDisk(disk.target, size, disk.serial, disk.target not in excluded))
    return tuple(found)


class RunningPart:
    """The part of a running VM, with the VM's guest: a member of a window, alone or with others."""

    def __init__(self, context: Context, vm: Vm, part: Part, guest: Guest | None) -> None:
        """Without `guest` the VM is only switched."""
        self._context = context
        self._vm = vm
        self._part = part
        self._required = part.plan.settings.require
        self._required_grade = part.plan.settings.require_grade
        self._guest = guest
        self._inventory: Inventory | None = None
        self._disks: tuple[HostDisk, ...] = ()
        self._switch_number = -1
        self._completed = False
        """Whether the window was completed: the writers then wait to hear whether the checkpoint was kept."""

    @property
    def name(self) -> str:
        """The member's name in a window."""
        return f"{self._vm.host.name}/{self._vm.name}"

    @property
    def extra_window_s(self) -> float:
        return self._guest.extra_window_s if self._guest else 0.0

    def asked(self) -> Asked:
        clock = self._guest is None or self._guest.has_clock
        return Asked(self.name, self._vm.name, self._required, self._inventory, self._disks, clock)

    def prepare(self, window_s: float) -> None:
        """Has the guest find its applications and filesystems, and prepare to hold and freeze them. If the guest cannot be
        prepared and a crash-consistent checkpoint is enough, goes on without the guest; otherwise raises QuiesceError."""
        guest, before, self._inventory = self._guest, self._inventory, None
        if guest is None:
            return
        insist = self._required is Consistency.APPLICATION
        nil_redo = self._required_grade is RequiredGrade.NIL_REDO
        try:
            if before:  # if another member stopped the window early, this one may still be prepared
                guest.abort(ABORT_TIMEOUT_S)
            asked = Prepare(int(window_s * 1000), insist, nil_redo)
            self._inventory = guest.prepare(asked, PREPARE_TIMEOUT_S)
            if any(filesystem.disks for filesystem in self._inventory.filesystems):
                self._disks = host_disks(self._vm, self._part.plan.facts, self._part.plan.excluded)
            judgement.require_whole(self.asked())
        except GuestRefusedError as refusal:
            self._leave_alone(judgement.inconsistent(self.asked(), refusal))
        except QuiesceError as error:
            self._leave_alone(error)

    def _leave_alone(self, why: QuiesceError) -> None:
        if self._required is not Consistency.CRASH:
            raise why
        self._context.emit(Warned(f"{why.message}; the disks are taken without the guest"))
        self._inventory = self._guest = None

    @contextlib.contextmanager
    def switching(self) -> Iterator[None]:
        """Journals the switch as intended, and takes the UEFI variables and the TPM's state. The block runs the windows."""
        with self._part.machine_state():
            self._switch_number = self._part.journal.intend(Switch(self._part.overlays))
            yield

    def member(self) -> WindowMember:
        found = self._inventory.writers if self._inventory else ()
        levels = frozenset(writer.level for writer in found if writer.not_accounted_for is None)  # nobody can hold those
        early = self._guest is not None and self._guest.freezes_first
        return WindowMember(self.name, levels, quiesced=self._inventory is not None, early=early)

    def participant(self) -> VmParticipant:
        guest = self._guest if self._inventory else None
        return VmParticipant(self._vm, guest, self._part.overlays, self._part.plan.excluded)

    def gives_way(self, report: WindowReport) -> bool:
        """Whether the window failed because of this guest and a crash-consistent checkpoint is enough. If so, the next window
        goes on without the guest."""
        step = report.outcome.failed_step
        if not step or step.member != self.name or step.action not in (Action.HOLD, Action.FREEZE):
            return False
        if self._required is not Consistency.CRASH:
            return False
        self._leave_alone(judgement.explain(self.asked(), report))
        return True

    def conclude(self, report: WindowReport) -> None:
        """Takes note of the report of the last window."""
        self._completed = self._inventory is not None and report.outcome.failure is None

    def warn_of_abort(self, report: WindowReport) -> None:
        """Warns if the guest does not confirm that it was released."""
        aborted = report.outcome.answers.get(WindowStep(Action.ABORT, self.name))
        if aborted and isinstance(aborted.failure, QuiesceError):
            self._context.emit(Warned(aborted.failure.message))

    def evidence(self, report: WindowReport, switched: Switched) -> Evidence:
        """The evidence of the part. Raises QuiesceError if the VM was not switched, or if the label is less than required."""
        asked = self.asked()
        if not switched.done:
            raise judgement.explain(asked, report)
        self._part.journal.done(self._switch_number)
        found = judgement.evidence(asked, report, switched)
        if not found.consistency.satisfies(self._required):
            raise judgement.fell_short(asked, report, found)
        if self._required is Consistency.APPLICATION:
            judgement.require_grade(asked, self._required_grade, found.writers)
        return found

    def tell_writers(self, *, kept: bool) -> None:
        """Tells the writers that held whether the checkpoint was kept. A failure is only a warning: the checkpoint does not
        depend on it."""
        if self._guest and self._completed:
            try:
                self._guest.post_checkpoint(kept, POST_CHECKPOINT_TIMEOUT_S)
            except QuiesceError as error:
                kept_or_not = "was kept" if kept else "was not kept"
                self._context.emit(Warned(f"the writers could not be told that the checkpoint {kept_or_not}: {error.message}"))
