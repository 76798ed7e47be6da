"""How sure one can be of a checkpoint: the grade of a writer, and the label of the whole.

Also read inside guests, so it keeps to Python 3.9 and the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Level(str, Enum):
    """When a writer holds, in VSS's order: front ends stop first, so that what lies behind them comes to rest."""

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
    HELD = "held"
    """It stood still, or said it did; how it starts is by its own account, which nothing here can prove."""
    CRASH = "crash"
    """Recovery runs as after a power failure."""
    REFUSED = "refused"
    """The writer cannot vouch for the application at all; the reason says why."""

    @property
    def vouched(self) -> bool:
        """The application comes back exactly as it was at one boundary of its own."""
        return self in (Grade.CLEAN, Grade.NIL_REDO, Grade.HELD)


class Consistency(str, Enum):
    """The label of a checkpoint. Ordered: a higher one implies the lower ones."""

    CRASH = "crash"
    FILESYSTEM = "filesystem"
    APPLICATION = "application"

    @property
    def rank(self) -> int:
        return (Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION).index(self)

    def satisfies(self, required: Consistency) -> bool:
        return self.rank >= required.rank


def judge(*, frozen_unbroken: bool, writer_grades: Iterable[Grade]) -> Consistency:
    """The label a checkpoint deserves, never more.

    `frozen_unbroken`: every filesystem that can be frozen was frozen by us before the switch, and still by the same freeze
    after it. `writer_grades`: one per application found in the guest; with none there is nothing beyond the filesystems
    to vouch for, and a guest whose applications all stand at a boundary is application-consistent.
    """
    if not frozen_unbroken:
        return Consistency.CRASH
    if all(grade.vouched for grade in writer_grades):
        return Consistency.APPLICATION
    return Consistency.FILESYSTEM
