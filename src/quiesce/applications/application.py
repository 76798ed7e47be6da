"""What the host knows of an application: the questions that it asks, and the answers for an application without a file here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from quiesce.model.divergence import Agreement
from quiesce.model.grades import Grade
from quiesce.model.proof import ProofState
from quiesce.model.reports import WriterReport
from quiesce.model.starts import Did, Start


class Comparison(NamedTuple):
    """An application now, compared with itself at a checkpoint."""

    verdict: Agreement
    text: str
    """The end of a sentence that begins with the application's name, as `has not moved since the checkpoint`."""


class Ahead(NamedTuple):
    """How far a replica is ahead of its primary at a checkpoint."""

    by: int
    """0 or less: the replica is not ahead."""
    unit: str
    """In the singular: `transaction`, `byte`."""
    where: str
    """Both positions, the primary's first, as `LSN 0/100 -> 0/1100`."""


class StartVerdict(NamedTuple):
    """How an application started, compared with its claims."""

    state: ProofState
    text: str
    """The end of a sentence that begins with the application's name."""
    differs: bool = False
    """Whether the checkpoint claims more."""


@dataclass(frozen=True)
class Application:
    """As it is: an application without a file here. A subclass overrides what it knows better.

    What it goes by are the reports of the application's writer. They come from the guest, so any text can be in a position; no
    method fails for it.
    """

    display_name: str | None = None
    """As people call it (`PostgreSQL`); None: it is called by its writer's id (`openldap:slapd.service`)."""
    summary_keys: tuple[str, ...] | None = None
    """The keys of a position that are shown where there is one line for it; None: all."""

    def name(self, report: WriterReport) -> str:
        """The name for a person, with the part of the id that tells several of one guest apart: `PostgreSQL 17/main`."""
        return f"{self.display_name} {report.id.partition(':')[2]}" if self.display_name else report.id

    def compare(self, before: WriterReport, now: WriterReport) -> Comparison:
        """Whether the application moved between a checkpoint (`before`) and now, while its server stays as it is.

        Here: it has not moved if every key that its position had at the checkpoint has the same value now.
        """
        if not before.position or not before.position.keys() <= now.position.keys():
            return not_comparable(before, now)
        changed = [key for key in before.position if before.position[key] != now.position[key]]
        if not changed:
            return NOT_MOVED
        steps = ", ".join(f"{key} {from_to(before, now, key)}" for key in changed)
        return Comparison(Agreement.MOVED, f"has moved since the checkpoint ({steps})")

    def replica_ahead(self, replica: WriterReport, primary: WriterReport) -> Ahead | None:  # noqa: ARG002 - for subclasses
        """How far a replica, as it is now, is ahead of a primary, as it was at a checkpoint: whether it could follow a primary
        that goes back to that checkpoint. Both reports are of this application, and the first has the role of a replica.

        None: the replica follows another primary, or the reports do not tell. So it is here.
        """
        return None

    def log_bytes(self, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, int]:  # noqa: ARG002 - for subclasses
        """Bytes of the application's log between two positions, by the key that both have; less than 0 if the first is the
        later one. Of points of one and the same log only; empty where the positions do not prove that. So it is here."""
        return {}

    def judge_start(self, claimed: WriterReport, start: Start, *, held: bool) -> StartVerdict:
        """How the application started when the checkpoint was booted aside. `held`: its position at the checkpoint is that of
        its files, as it was held when the disks were taken.

        Here: a position that both have must be the same.
        """
        if held:
            for key, value in claimed.position.items():
                if (found := start.position.get(key, value)) != value:
                    text = f"did not stand at the checkpoint's position: {key} was {value} there, and it found {found}"
                    return StartVerdict(ProofState.RECOVERED, text, differs=claimed.grade.vouched)
        if start.did is Did.NOTHING:
            return StartVerdict(ProofState.PROVEN, "started with nothing to recover")
        if start.did is Did.REDO:
            clean = claimed.grade in (Grade.CLEAN, Grade.NIL_REDO)
            return StartVerdict(ProofState.RECOVERED, f"recovered when it started{amount(start)}", differs=clean)
        if start.checks:
            return StartVerdict(ProofState.PROVEN, f"runs, and is right ({start.checks[0]}); how it started, nothing tells")
        if claimed.stateless:
            return StartVerdict(ProofState.PROVEN, "runs; it keeps no data")
        return StartVerdict(ProofState.UNTRIED, "runs; nothing tells how it started, and it has no check of its own (Verify=)")


def amount(start: Start) -> str:
    """How much of its log a recovery replayed, with a colon before it; empty if that is not known."""
    if start.redo_bytes is None or not start.redo_from:
        return ""
    return f": {counted(start.redo_bytes, 'byte')} of its log, from {start.redo_from} to {start.redo_to}"


def judge_log(
    claimed: WriterReport,
    start: Start,
    begins: tuple[int | None, int | None],
    ends: tuple[int | None, int | None],
    *,
    held: bool,
) -> StartVerdict:
    """Of an application that goes through a log when it starts. `begins`, `ends`: where the log to replay began and ended, by
    the checkpoint's claim and by the start; as numbers of bytes, None where it is not known."""
    grade = claimed.grade
    if held and ends[0] is not None and ends[1] is not None and ends[1] < ends[0]:
        lost = counted(ends[0] - ends[1], "byte")
        text = f"lacks the last {lost} of its log, which it had at the checkpoint: what was committed there is lost"
        return StartVerdict(ProofState.FAILED, text + _words(start), differs=grade.vouched)
    if start.did is Did.NOTHING:
        return StartVerdict(ProofState.PROVEN, "started with nothing to recover")
    if start.did is Did.UNKNOWN:
        return StartVerdict(ProofState.UNTRIED, f"runs; nothing tells how it started{_words(start)}")
    if not grade.vouched or grade is Grade.HELD:
        return StartVerdict(ProofState.RECOVERED, f"recovered when it started{amount(start)}")
    if None in (*begins, *ends):
        return StartVerdict(
            ProofState.RECOVERED, f"recovered when it started, and nothing tells how much{_words(start)}", differs=True
        )
    if grade is Grade.CLEAN or begins[0] != begins[1] or ends[0] != ends[1]:
        claim = f"; the checkpoint claims {counted(max(0, (ends[0] or 0) - (begins[0] or 0)), 'byte')}"
        return StartVerdict(ProofState.RECOVERED, f"recovered when it started{amount(start)}{claim}", differs=True)
    return StartVerdict(ProofState.PROVEN, f"replayed what its grade claims and not a byte more{amount(start)}")


def _words(start: Start) -> str:
    said = [*start.notes, *start.evidence][:2]
    return f" ({'; '.join(said)})" if said else ""


def went_back(claimed: WriterReport, start: Start, pattern: re.Pattern[str]) -> str:
    """The first key of a position whose number in the copy is less than at the checkpoint, as the end of a sentence; empty if
    there is none. `pattern`: finds the number in a value."""
    for key, value in claimed.position.items():
        then, now = pattern.search(value), pattern.search(start.position.get(key, ""))
        if then and now and int(now[1]) < int(then[1]):
            return f"is at an earlier commit than the checkpoint: {key} was {value} there and is {start.position[key]}"
    return ""


NOT_MOVED = Comparison(Agreement.AGREES, "has not moved since the checkpoint")


def moved_by(count: int, unit: str, where: str) -> Comparison:
    """`count`: less than 0 if the application went back. `unit`, `where`: as in `Ahead`."""
    if count == 0:
        return NOT_MOVED
    if count < 0:
        return Comparison(Agreement.MOVED, f"is {counted(-count, unit)} behind the checkpoint ({where})")
    return Comparison(Agreement.MOVED, f"has moved {counted(count, unit)} since the checkpoint ({where})")


def not_comparable(before: WriterReport, now: WriterReport) -> Comparison:
    """One of the two reports lacks what a comparison needs; with that report's reason."""
    if not before.position:
        text, reason = "reported no position at the checkpoint", before.reason
    else:
        text, reason = "reports no position now that can be compared with the checkpoint's", now.reason
    return Comparison(Agreement.UNKNOWN, f"{text}: {reason}" if reason else text)


def counted(count: int, unit: str) -> str:
    """`1 byte`, `1,204 transactions`."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def from_to(before: WriterReport, now: WriterReport, key: str) -> str:
    """`0/100 -> 0/1100`. Both positions have the key."""
    return f"{before.position[key]} -> {now.position[key]}"
