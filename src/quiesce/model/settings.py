"""How the checkpoints of one VM are to be taken, where a call does not say otherwise. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from quiesce.model.grades import Consistency


class Type(str, Enum):
    PRODUCTION = "production"
    STANDARD = "standard"
    """Disks, memory and devices, restored running. Its applications are not asked; not for servers others talk to."""
    DISABLED = "disabled"


@dataclass(frozen=True)
class Settings:
    type: Type = Type.PRODUCTION
    require: Consistency = Consistency.APPLICATION
    """The least to accept. APPLICATION is what Hyper-V calls production-only; less is a fallback, allowed by name."""
    automatic: bool = False
    """A checkpoint is taken when the VM starts with none, and removed when it has shut down cleanly."""
    exclude: tuple[str, ...] = ()
    """Disks to leave out, by their targets."""

    @property
    def wants_automatic(self) -> bool:
        return self.automatic and self.type is not Type.DISABLED
