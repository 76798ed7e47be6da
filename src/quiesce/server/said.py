"""What a service says in its log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Said:
    """A line for the service's log."""

    severity: Severity
    text: str


Say = Callable[[Said], None]
"""Called from any thread."""
