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


class VerifyWhen(str, Enum):
    """When `quiesce watch` boots the VM's newest checkpoint aside, unless it was tried already."""

    ALWAYS = "always"
    DAILY = "daily"
    """At most one checkpoint in 24 hours."""
    NEVER = "never"


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
    overlays: str | None = None
    """The directory for new overlays. None: beside the image that an overlay has as its backing file."""

    quarantine_days: int = 30
    """How long `doctor` keeps a file in the quarantine before it removes it for good."""
    verify: VerifyWhen = VerifyWhen.NEVER

    @property
    def wants_automatic(self) -> bool:
        return self.automatic and self.type is not Type.DISABLED
