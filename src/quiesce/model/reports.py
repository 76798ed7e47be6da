"""What a guest reports of its filesystems and applications. A checkpoint keeps these reports.

Guests run this module, too: Python 3.9 and the standard library only.
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
    """The filesystem cannot be frozen (vfat, ...): it was flushed, and programs may have written to it since."""
    SKIPPED = "skipped"
    """The filesystem is not on this VM's disks (FUSE, network), is read-only, or keeps its files in other ones (overlayfs)."""


@dataclass(frozen=True)
class GuestDisk:
    """A disk as the guest sees it."""

    name: str
    """The guest's own name for it, as `vda`; the host's may be another."""
    size: int
    """In bytes."""
    serial: str = ""


@dataclass(frozen=True)
class Filesystem:
    mountpoint: str
    fstype: str
    source: str
    state: FreezeState
    reason: Optional[str] = None
    freeze_us: Optional[int] = None
    disks: Optional[tuple[GuestDisk, ...]] = None
    """The disks that it is stored on; None: not known."""


class Outcome(str, Enum):
    """How a writer's last phase ended, in VSS's words (the constants VSS_E_WRITERERROR_... of vsserror.h)."""

    STABLE = "stable"
    RETRYABLE = "retryable"
    """The phase failed; it may succeed at the next attempt."""
    NON_RETRYABLE = "non-retryable"
    """The phase failed, and will fail until somebody changes something."""
    TIMEOUT = "timeout"
    INCONSISTENT = "inconsistent"
    """The writer did not hold to the end: the disks do not have the application at a boundary of its own."""
    OUT_OF_RESOURCES = "out-of-resources"


@dataclass(frozen=True)
class OpenFiles:
    """The files that a program has open for writing on the VM's disks, and that no writer accounts for."""

    executable: str
    unit: str
    """The system service that the program belongs to; empty if to none."""
    files: tuple[str, ...]
    """Some of the files, as the program sees them, which may be in a container."""
    number: int
    """How many files there are; at least, if there are very many."""
    kept: bool
    """Whether a file stayed open for writing, or mapped shared and writable, as a database keeps its files."""


@dataclass(frozen=True)
class WriterReport:
    """What a writer reports of its application."""

    id: str
    """Stays the same within the guest. Example: `postgresql:17/main`."""
    application: str
    version: str
    level: Level
    grade: Grade
    """After identify and prepare: the best grade that can be expected. After release: the grade that was reached."""
    reason: Optional[str] = None
    role: Optional[str] = None
    position: dict[str, str] = field(default_factory=dict)
    """Names the state of the application while it was held: an LSN, a GTID, ..."""
    data_directory: Optional[str] = None
    warnings: tuple[str, ...] = ()
    timings_us: dict[str, int] = field(default_factory=dict)
    required: bool = True
    """Whether the label of the whole checkpoint depends on this application."""
    outcome: Outcome = Outcome.STABLE
    stateless: bool = False
    """Whether the application keeps no data."""
    last_error: Optional[str] = None
    """The last failure since the guest booted (phase, outcome, text); None after a phase that succeeded."""
    not_accounted_for: Optional[OpenFiles] = None
    """Evidence of a program that quiesce does not know; None: the report is an application's."""
    filesystems: Optional[tuple[str, ...]] = None
    """Mount points of the filesystems that have its files; None: not known."""

    @property
    def matters_to_others(self) -> bool:
        """Whether other servers can disagree with the application: not if it keeps no data, nor if it is a program that quiesce
        does not know and that no label depends on."""
        return not self.stateless and (self.not_accounted_for is None or self.required)


def required_grades(writers: Iterable[WriterReport]) -> list[Grade]:
    """The grades of the applications that the label of the whole checkpoint depends on."""
    return [writer.grade for writer in writers if writer.required]
