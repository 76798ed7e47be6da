"""The events that an operation emits while it works. The CLI draws events; a server would stream them."""

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
    """`done` and `total` are in bytes. A total of 0: not known yet."""


@dataclass(frozen=True)
class Warned:
    message: str


Event = PhaseStarted | PhaseFinished | Progress | Warned
Emit = Callable[[Event], None]
"""Called in the operation's own thread, during the window too: it may record the event, and must not block."""
