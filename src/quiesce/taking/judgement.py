"""The result of a window for one of its members: the evidence, or the error that says why there is none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quiesce.guests.port import GuestRefusedError
from quiesce.model import coverage
from quiesce.model.coverage import HostDisk
from quiesce.model.errors import ConsistencyError, HypervisorError, QuiesceError
from quiesce.model.grades import LEVELS, Consistency, Grade, RequiredGrade, judge
from quiesce.model.reports import FreezeState, WriterReport, required_grades
from quiesce.taking.evidence import Evidence
from quiesce.taking.participant import Switched
from quiesce.window.driver import WindowReport
from quiesce.window.machine import Action
from quiesce.wire.messages import Frozen, Held, Inventory, Released, Thawed


@dataclass(frozen=True)
class Asked:
    """One member of a window, and what it was asked for."""

    member: str
    """The member's name in the window."""
    vm_name: str
    required: Consistency
    inventory: Inventory | None
    """The writers and filesystems that the guest reported; None: the guest was not asked."""
    disks: tuple[HostDisk, ...] = ()
    """The VM's disks; empty: not known, or the guest does not tell its own."""
    guest_clock: bool = True
    """Whether the times in the guest's answers are from the guest's own clock."""


def evidence(asked: Asked, report: WindowReport, switched: Switched) -> Evidence:
    """The evidence of one member. The label is less than application-consistent as soon as anything is in doubt."""
    outcome, name = report.outcome, asked.member
    frozen: Frozen | None = outcome.value(Action.FREEZE, name)
    thawed: Thawed | None = outcome.value(Action.THAW, name)
    held: list[Held] = _answers(report, Action.HOLD, name)
    released: list[Released] = _answers(report, Action.RELEASE, name)
    writers = _latest(asked.inventory, [*held, *released])
    found = Evidence(Consistency.CRASH, phases_us=dict(report.phases_us), switched_ns=switched.at_ns)
    if outcome.failure or frozen is None or thawed is None:
        return replace(found, writers=tuple(_as_crash(writer) for writer in writers))
    unbroken = thawed.unbroken and thawed.freeze_token == frozen.freeze_token and switched.whole
    absent = coverage.not_whole(thawed.filesystems, asked.disks) if asked.disks else {}
    partly = coverage.broken(thawed.filesystems, asked.disks) if asked.disks else []
    writers = coverage.covered(writers, absent)
    flushed = [f"{item.mountpoint}: {item.reason}" for item in thawed.filesystems if item.state is FreezeState.FLUSHED]
    told = [f"{writer.id}: {warning}" for writer in writers for warning in writer.warnings]
    clock = {}
    if held and released and asked.guest_clock:
        clock = {
            "held": max(reply.monotonic_ns for reply in held),
            "released": min(reply.monotonic_ns for reply in released),
        }
    return replace(
        found,
        consistency=judge(frozen_unbroken=unbroken and not partly, writer_grades=required_grades(writers)),
        writers=writers,
        filesystems=thawed.filesystems,
        warnings=(*flushed, *told, *(f"the checkpoint does not have {name}: it is {why}" for name, why in absent.items())),
        stall_us=max([thawed.window_us, *(reply.window_us for reply in released)]),
        guest_clock_ns=clock,
    )


def _answers(report: WindowReport, action: Action, member: str) -> list[Any]:
    """The member's answers to this action, one for each level that it was asked for."""
    return [answer for level in LEVELS if (answer := report.outcome.value(action, member, level)) is not None]


def _latest(inventory: Inventory | None, answers: Sequence[Held | Released]) -> tuple[WriterReport, ...]:
    """The last report of each writer."""
    if inventory is None:
        return ()
    latest = {writer.id: writer for writer in inventory.writers}
    latest |= {writer.id: writer for answer in answers for writer in answer.writers}
    return tuple(latest.values())


def require_whole(asked: Asked) -> None:
    """Raises ConsistencyError if it is known before the window that the checkpoint would not have all files that the required
    label needs."""
    if not asked.inventory or not asked.disks or asked.required is Consistency.CRASH:
        return
    listed = asked.inventory.filesystems
    absent = coverage.not_whole(listed, asked.disks)
    if partly := coverage.broken(listed, asked.disks):
        raise _not_whole(asked, f"it would have a part of {partly[0]} only, which is {absent[partly[0]]}")
    lost = [
        after
        for before, after in zip(asked.inventory.writers, coverage.covered(asked.inventory.writers, absent), strict=True)
        if before.grade.vouched and not after.grade.vouched and after.required
    ]
    if lost and asked.required is Consistency.APPLICATION:
        raise _not_whole(asked, "; ".join(f"{writer.id}: {writer.reason}" for writer in lost))


def _not_whole(asked: Asked, why: str) -> ConsistencyError:
    return ConsistencyError(
        f"{asked.vm_name} cannot be made {asked.required.value}-consistent: {why}",
        hint="nothing was kept, and the guest runs; include the disk, or accept a lower label with --require",
    )


def explain(asked: Asked, report: WindowReport) -> QuiesceError:
    """The error to raise if the window was stopped: what failed, in the words of the guest or of libvirt."""
    failure, step = report.outcome.failure, report.outcome.failed_step
    assert failure is not None
    what = step.action.value if step else "checkpoint"
    if isinstance(failure, GuestRefusedError):
        return inconsistent(asked, failure)
    if isinstance(failure, HypervisorError):
        return failure
    return ConsistencyError(
        f"{asked.vm_name} did not {what} within the window: {failure}",
        hint="nothing was kept, and the guest has been released; try again, with a longer --window if the guest is slow",
        details={"step": what},
    )


def inconsistent(asked: Asked, refusal: GuestRefusedError) -> ConsistencyError:
    """The error to raise if the guest refused a step."""
    return ConsistencyError(
        f"{asked.vm_name} cannot be made {asked.required.value}-consistent: {refusal.reason}",
        hint="nothing was kept, and the guest runs; --require filesystem or --require crash accepts a lower label",
        details={"writers": [_brief(writer) for writer in refusal.writers]},
    )


def fell_short(asked: Asked, report: WindowReport, found: Evidence) -> ConsistencyError:
    """The error to raise if the VM was switched, but the label is less than what is required."""
    reasons = [f"{writer.id}: {writer.reason}" for writer in found.writers if writer.required and not writer.grade.vouched]
    step, failure = report.outcome.failed_step, report.outcome.failure
    if step and failure:
        whose = "" if step.member == asked.member else f" of {step.member}"
        reasons.insert(0, f"{step.action.value}{whose} failed: {failure}")
    if not reasons:
        reasons = ["during the window somebody thawed or mounted a filesystem in the guest, or added a disk to the VM"]
    return ConsistencyError(
        f"the checkpoint of {asked.vm_name} would only be {found.consistency.value}-consistent,"
        f" {asked.required.value} is required: {'; '.join(reasons)}",
        hint="nothing was kept, and the guest runs; try again, or accept a lower label with --require",
        details={"writers": [_brief(writer) for writer in found.writers]},
    )


def require_grade(asked: Asked, required: RequiredGrade, writers: Sequence[WriterReport]) -> None:
    """Raises ConsistencyError if a required application has a lower grade."""
    lower = [writer for writer in writers if writer.required and not required.accepts(writer.grade)]
    if lower:
        reasons = "; ".join(f"{writer.id} is {writer.grade.value}" for writer in lower)
        raise ConsistencyError(
            f"{asked.vm_name}: {required.value} is required of every application, and {reasons}",
            hint="nothing was kept, and the guest runs; leave --require-grade out, or make the writer optional (Required=no)",
            details={"writers": [_brief(writer) for writer in lower]},
        )


def _as_crash(writer: WriterReport) -> WriterReport:
    return replace(writer, grade=Grade.CRASH, reason=writer.reason or "the window was not completed")


def _brief(writer: WriterReport) -> dict[str, str | None]:
    return {"id": writer.id, "grade": writer.grade.value, "reason": writer.reason}
