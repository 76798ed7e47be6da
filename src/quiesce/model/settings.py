"""How quiesce takes the checkpoints of one VM unless an option says otherwise. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quiesce.model.grades import Consistency, RequiredGrade


class Type(str, Enum):
    PRODUCTION = "production"
    STANDARD = "standard"
    """Disks, memory and devices; a restore resumes the running VM. No application holds, so this type is not for servers that
    others talk to."""
    DISABLED = "disabled"


@dataclass(frozen=True)
class Settings:
    type: Type = Type.PRODUCTION
    require: Consistency = Consistency.APPLICATION
    """The lowest label to accept. APPLICATION is Hyper-V's "production only"."""
    automatic: bool = False
    """quiesce takes a checkpoint when the VM starts and has none, and removes it when the VM has shut down cleanly."""
    exclude: tuple[str, ...] = ()
    """Targets of the disks that checkpoints leave out."""
    require_grade: RequiredGrade = RequiredGrade.STANDS_STILL
    """The lowest grade of an application in an application-consistent checkpoint."""

    @property
    def wants_automatic(self) -> bool:
        return self.automatic and self.type is not Type.DISABLED
