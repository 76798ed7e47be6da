"""How far a server that stays as it is agrees with servers that go back to a checkpoint. Values only: `quiesce.applications`
compares the positions of each application.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Agreement(str, Enum):
    """Whether an application, or a server, agrees. A server has the worst verdict of its applications."""

    AGREES = "agrees"
    """The application is at the position that it had at the checkpoint, or can follow from there."""
    SILENT = "silent"
    """The server has no application that our writers know and that keeps data."""
    UNKNOWN = "unknown"
    """Nobody could ask the application, or it did not report a position that can be compared: now, or at the checkpoint."""
    MOVED = "moved"
    """The application's position changed since the checkpoint, forwards or backwards."""


NOTHING_KNOWN = "keeps nothing that a writer knows of"
"""The text for a server without findings."""
_BEST_FIRST = (Agreement.AGREES, Agreement.SILENT, Agreement.UNKNOWN, Agreement.MOVED)


@dataclass(frozen=True)
class Finding:
    """A sentence about one application, or about the whole server, and its verdict."""

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
        """Whether the other servers can go back while this server stays as it is."""
        return self.verdict in (Agreement.AGREES, Agreement.SILENT)

    def __str__(self) -> str:
        """The server's name and the findings that decide the verdict."""
        decisive = [finding.text for finding in self.findings if finding.verdict is self.verdict]
        return f"{self.vm_name}: {'; '.join(decisive) or NOTHING_KNOWN}"

    @classmethod
    def whole(cls, vm_name: str, verdict: Agreement, text: str) -> ServerFindings:
        """The findings of a server about which there is one finding as a whole."""
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
