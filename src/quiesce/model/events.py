"""What an operation says while it works. The CLI draws events; a server would stream them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseStarted:
    phase: str


@dataclass(frozen=True)
class PhaseFinished:
    phase: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    phase: str
    done: int
    total: int
    """Both in bytes; a total of 0 means not known yet."""


@dataclass(frozen=True)
class Warned:
    message: str


Event = PhaseStarted | PhaseFinished | Progress | Warned
Emit = Callable[[Event], None]
"""Called from the operation's own thread, in the window too: it must only take note, never block."""
