"""How far a server that stays as it is agrees with servers that go back to a checkpoint. Values only: what an application's
positions say is in `quiesce.applications`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Agreement(str, Enum):
    """Of an application, or of a server: then the worst of its applications'."""

    AGREES = "agrees"
    """It has not moved since the checkpoint's instant, or can follow from there."""
    SILENT = "silent"
    """The server has no application that our writers know and that keeps data."""
    UNKNOWN = "unknown"
    """It could not be asked, or did not report a position that can be compared: now, or at that instant."""
    MOVED = "moved"
    """It went on, or back."""


NOTHING_KNOWN = "keeps nothing that a writer knows of"
"""The text for a server without findings."""
_BEST_FIRST = (Agreement.AGREES, Agreement.SILENT, Agreement.UNKNOWN, Agreement.MOVED)


@dataclass(frozen=True)
class Finding:
    """About one application, or about the whole server."""

    writer: str
    """The writer's id; empty if the finding is about the whole server."""
    verdict: Agreement
    text: str
    """A sentence, as `PostgreSQL 17/main has not moved since the checkpoint`."""


@dataclass(frozen=True)
class ServerFindings:
    vm_name: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Agreement:
        return max((finding.verdict for finding in self.findings), key=_BEST_FIRST.index, default=Agreement.SILENT)

    @property
    def agrees(self) -> bool:
        """The others can go back while this server stays as it is."""
        return self.verdict in (Agreement.AGREES, Agreement.SILENT)

    def __str__(self) -> str:
        """The server's name and the findings that decide the verdict."""
        decisive = [finding.text for finding in self.findings if finding.verdict is self.verdict]
        return f"{self.vm_name}: {'; '.join(decisive) or NOTHING_KNOWN}"

    @classmethod
    def whole(cls, vm_name: str, verdict: Agreement, text: str) -> ServerFindings:
        """One finding about the whole server, whatever runs in it."""
        return cls(vm_name, (Finding("", verdict, text),))


def describe(servers: Iterable[ServerFindings]) -> list[dict[str, object]]:
    """As JSON, for a program: each server, its verdict and its findings."""
    return [
        {
            "vm": each.vm_name,
            "verdict": each.verdict.value,
            "findings": [
                {"writer": finding.writer or None, "verdict": finding.verdict.value, "text": finding.text}
                for finding in each.findings
            ],
        }
        for each in servers
    ]
