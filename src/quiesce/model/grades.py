"""What a checkpoint is worth: the grade of each application, and the label of the whole checkpoint.

Guests run this module, too: Python 3.9 and the standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Level(str, Enum):
    """When a writer holds, in VSS's order. Front ends hold first, so that no new requests reach the back ends."""

    FRONT_END = "front-end"
    BACK_END = "back-end"
    SYSTEM = "system"


LEVELS = (Level.FRONT_END, Level.BACK_END, Level.SYSTEM)


class Grade(str, Enum):
    """What an application will do when it starts on the checkpoint."""

    CLEAN = "clean"
    """It starts without any recovery."""
    NIL_REDO = "nil-redo"
    """Recovery runs and changes nothing: the image ends at a commit boundary."""
    STANDS_STILL = "stands-still"
    """Its processes stood still as one. Recovery runs, replays a known length of its log, and keeps every acknowledged
    commit."""
    HELD = "held"
    """The application reported that it was at rest. quiesce cannot prove that, nor how the application starts."""
    CRASH = "crash"
    """Recovery runs as after a power failure."""
    REFUSED = "refused"
    """The writer cannot hold the application at all; the report's reason says why."""

    @property
    def vouched(self) -> bool:
        """Whether the application comes back as it was at one boundary of its own, as a commit."""
        return self in (Grade.CLEAN, Grade.NIL_REDO, Grade.STANDS_STILL, Grade.HELD)


class RequiredGrade(str, Enum):
    """The lowest grade that a required application must have in an application-consistent checkpoint."""

    STANDS_STILL = "stands-still"
    """Any grade that is vouched for."""
    NIL_REDO = "nil-redo"
    """No transaction is in flight, and there is nothing to replay."""

    def accepts(self, grade: Grade) -> bool:
        return grade.vouched and (self is RequiredGrade.STANDS_STILL or grade in (Grade.CLEAN, Grade.NIL_REDO))


class Consistency(str, Enum):
    """The label of a checkpoint. Labels are ordered: a higher one implies the lower ones."""

    CRASH = "crash"
    FILESYSTEM = "filesystem"
    APPLICATION = "application"

    @property
    def rank(self) -> int:
        return (Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION).index(self)

    def satisfies(self, required: Consistency) -> bool:
        return self.rank >= required.rank


def judge(*, frozen_unbroken: bool, writer_grades: Iterable[Grade]) -> Consistency:
    """The label that the evidence proves.

    `frozen_unbroken`: the agent froze every filesystem that can be frozen before the switch, and the same freeze lasted until
    after the switch. `writer_grades`: the grade of each required application found in the guest. A guest without applications,
    whose filesystems were frozen, is application-consistent: it has no application that was not at a boundary.
    """
    if not frozen_unbroken:
        return Consistency.CRASH
    if all(grade.vouched for grade in writer_grades):
        return Consistency.APPLICATION
    return Consistency.FILESYSTEM
