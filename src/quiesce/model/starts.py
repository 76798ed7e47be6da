"""What a guest reports of a copy of a checkpoint: what each application did when it started, and what its own checks say.

Guests run this module, too: Python 3.9 and the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

FILESYSTEMS = "filesystems"
"""The id of the report on what the kernel says of the filesystems."""
CHECK = "check:"
"""How the id of an administrator's own check begins."""


class Did(str, Enum):
    """What an application did with its files when it started."""

    NOTHING = "nothing"
    """It found nothing to recover."""
    REDO = "redo"
    """It recovered."""
    UNKNOWN = "unknown"
    """Nothing tells."""


@dataclass(frozen=True)
class Start:
    """How one application started. What is not known is None, or empty."""

    id: str
    """The writer's id, as in the reports of a checkpoint."""
    application: str
    version: str = "unknown"
    did: Did = Did.UNKNOWN
    running: bool = True
    required: bool = True
    stateless: bool = False
    failure: str | None = None
    """What is wrong with it, in its own words."""
    redo_from: str | None = None
    redo_to: str | None = None
    """Positions in its log, as the application writes them: where its recovery began, and where it found the end."""
    redo_bytes: int | None = None
    position: dict[str, str] = field(default_factory=dict)
    """The state that it found, by the names that its position has at a checkpoint."""
    checks: tuple[str, ...] = ()
    """What was checked, and found right."""
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""
    evidence: tuple[str, ...] = ()
    """Lines of its log."""
    answered_ms: int | None = None
    """When its service was up, in milliseconds since the guest's kernel started."""


@dataclass(frozen=True)
class FailedUnit:
    """A systemd unit that failed in the copy, and the last lines of its log."""

    unit: str
    lines: tuple[str, ...]
