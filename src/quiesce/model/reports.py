"""What the guest reports of itself, and what a checkpoint keeps of it.

Also read inside guests, so it keeps to Python 3.9 and the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from quiesce.model.grades import Grade, Level


class FreezeState(str, Enum):
    FREEZABLE = "freezable"
    FROZEN = "frozen"
    THAWED = "thawed"
    FLUSHED = "flushed"
    """It has no freeze (vfat, ...): it was flushed, and may have been written to since."""
    SKIPPED = "skipped"
    """Nothing of it is on this VM's disks (tmpfs, network), or it is read-only, or another filesystem carries it."""


@dataclass(frozen=True)
class Filesystem:
    mountpoint: str
    fstype: str
    source: str
    state: FreezeState
    reason: Optional[str] = None
    freeze_us: Optional[int] = None


class Outcome(str, Enum):
    """How a writer's last phase ended, in VSS's words (VSS_E_WRITERERROR_*; notes: hyperv-vss 2)."""

    STABLE = "stable"
    RETRYABLE = "retryable"
    """It may work at the next attempt."""
    NON_RETRYABLE = "non-retryable"
    """It will not work until somebody changes something."""
    TIMEOUT = "timeout"
    INCONSISTENT = "inconsistent"
    """It did not hold to the end: what was taken is not at a boundary of its own."""
    OUT_OF_RESOURCES = "out-of-resources"


@dataclass(frozen=True)
class WriterReport:
    """One application as its writer sees it."""

    id: str
    """Stable within the guest, as `postgresql:17/main`."""
    application: str
    version: str
    level: Level
    grade: Grade
    """While identified or prepared: the best grade to be expected. After release: the grade earned."""
    reason: Optional[str] = None
    role: Optional[str] = None
    position: dict[str, str] = field(default_factory=dict)
    """Names the state held, in the application's own terms."""
    data_directory: Optional[str] = None
    warnings: tuple[str, ...] = ()
    timings_us: dict[str, int] = field(default_factory=dict)
    required: bool = True
    """Whether the label of the whole depends on it."""
    outcome: Outcome = Outcome.STABLE
    stateless: bool = False
    """It keeps no data."""
    last_error: Optional[str] = None
    """What went wrong the last time since the guest booted, until it goes right again: phase, outcome, text."""


def required_grades(writers: Iterable[WriterReport]) -> list[Grade]:
    """Those that the label of the whole depends on."""
    return [writer.grade for writer in writers if writer.required]
