"""Compares what a checkpoint claims of its applications with how they started when it was booted aside. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from quiesce.applications.application import StartVerdict, amount
from quiesce.applications.registry import application_of
from quiesce.model.grades import Consistency, Grade
from quiesce.model.proof import ProofState, WriterProof
from quiesce.model.reports import WriterReport
from quiesce.model.starts import CHECK, FILESYSTEMS, Did, FailedUnit, Start
from quiesce.model.tree import Checkpoint

MAX_LINES = 12


def judge_starts(node: Checkpoint, starts: Sequence[Start], failed: Sequence[FailedUnit]) -> tuple[WriterProof, ...]:
    """What came of each application of the checkpoint, of the filesystems, and of whatever the copy has besides. `failed`: the
    units that failed in the copy."""
    by_id = {start.id: start for start in starts}
    claimed = {writer.id: writer for writer in node.writers if writer.not_accounted_for is None}
    used: set[str] = set()
    proofs = []
    for writer in claimed.values():
        start = by_id.get(writer.id) or _of_the_same_kind(writer, starts, claimed.keys() | used)
        if start:
            used.add(start.id)
        proofs.append(_judge(node, writer, start, failed))
    for start in starts:
        if start.id not in used:
            proofs.append(_filesystems(node, start) if start.id == FILESYSTEMS else _unclaimed(start))
    return tuple(proofs)


def _of_the_same_kind(writer: WriterReport, starts: Sequence[Start], taken: set[str]) -> Start | None:
    """A service that is down has another id than while it runs."""
    return next((each for each in starts if each.application == writer.application and each.id not in taken), None)


def _judge(node: Checkpoint, writer: WriterReport, start: Start | None, failed: Sequence[FailedUnit]) -> WriterProof:
    held = writer.grade.vouched or bool(node.changed)
    if start is None:
        units = [unit for unit in failed if writer.application in unit.unit] or list(failed)
        lines = tuple(line for unit in units for line in (f"{unit.unit} failed:", *unit.lines))[-MAX_LINES:]
        found = StartVerdict(ProofState.FAILED, "did not start: the copy has no such application", differs=writer.grade.vouched)
        if writer.stateless or not writer.required:
            found = StartVerdict(ProofState.UNTRIED, "is not in the copy")
        return _proof(writer, Start(writer.id, writer.application, evidence=lines), found)
    if start.failure:
        return _proof(writer, start, StartVerdict(ProofState.FAILED, start.failure, differs=writer.grade.vouched))
    if not start.running:
        if writer.role == "down":
            return _proof(writer, start, StartVerdict(ProofState.PROVEN, "is down, as it was at the checkpoint"))
        why = "; ".join(start.evidence[-3:])
        text = f"did not start: {why}" if why else "did not start"
        return _proof(writer, start, StartVerdict(ProofState.FAILED, text, differs=writer.grade.vouched))
    return _proof(writer, start, application_of(writer).judge_start(writer, start, held=held))


def _filesystems(node: Checkpoint, start: Start) -> WriterProof:
    """They were frozen if the label is more than crash: then they have nothing to recover."""
    frozen = node.consistency.satisfies(Consistency.FILESYSTEM)
    grade = Grade.CLEAN if frozen else Grade.CRASH
    if start.failure:
        found = StartVerdict(ProofState.FAILED, f"are damaged: {start.failure}", differs=frozen)
    elif start.did is Did.REDO:
        found = StartVerdict(ProofState.RECOVERED, "were recovered when they were mounted", differs=frozen)
    else:
        found = StartVerdict(ProofState.PROVEN, "were mounted with nothing to recover, by the kernel's log")
    return _of(start.id, grade, True, start, found)


def _unclaimed(start: Start) -> WriterProof:
    """A check of the administrator's, or an application of which the checkpoint claims nothing, as one that was taken without
    the guest."""
    if start.failure or not start.running:
        found = StartVerdict(ProofState.FAILED, start.failure or "does not run")
    elif start.did is Did.REDO:
        found = StartVerdict(ProofState.RECOVERED, f"recovered when it started{amount(start)}")
    elif start.did is Did.NOTHING:
        found = StartVerdict(ProofState.PROVEN, "started with nothing to recover")
    elif start.checks:
        found = StartVerdict(
            ProofState.PROVEN, "found nothing wrong" if start.id.startswith(CHECK) else "runs, and its checks find it right"
        )
    else:
        found = StartVerdict(ProofState.UNTRIED, "runs; the checkpoint claims nothing of it")
    return _of(start.id, None, start.required and not start.stateless, start, found)


def _proof(writer: WriterReport, start: Start, found: StartVerdict) -> WriterProof:
    return _of(writer.id, writer.grade, writer.required and not writer.stateless, start, found)


def _of(id: str, claimed: Grade | None, required: bool, start: Start, found: StartVerdict) -> WriterProof:
    return WriterProof(
        id=id,
        state=found.state,
        text=found.text,
        claimed=claimed,
        differs=found.differs and required,
        required=required,
        redo_bytes=start.redo_bytes,
        answered_ms=start.answered_ms,
        checks=start.checks,
        notes=start.notes,
        evidence=start.evidence,
    )
