"""What the host knows of an application: the questions that it asks, and the answers for an application without a file here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from quiesce.model.divergence import Agreement
from quiesce.model.reports import WriterReport


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
