"""What the two ways of holding a cluster have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Optional

from quiesce.agent.undos import Undo
from quiesce.model.grades import Grade


class ClusterHold(ABC):
    """One attempt to hold one cluster. `control`: a session at the cluster, which holds nothing."""

    grade: Grade
    """Of a hold that lasts."""
    undo: Optional[Undo] = None
    """What lets the cluster go if this process dies; None: its death alone does."""

    def __init__(self) -> None:
        self.segment_size = 0
        """Of the cluster's log, in bytes."""
        self.position: dict[str, str] = {}
        """Of the cluster while it was held."""
        self.timings: dict[str, int] = {}
        """In microseconds, by step."""

    def require_possible(self, control: Any) -> None:  # noqa: B027 - most have no condition
        """Raises WriterError if the cluster cannot be held now."""

    @abstractmethod
    def prepare(self, control: Any, deadline_ns: int, window_ms: int) -> None:
        """Everything slow. `window_ms`: after this long the hold must end by itself."""

    @abstractmethod
    def take(self, control: Any, deadline_ns: int) -> Optional[str]:
        """Holds the cluster. Returns the reason of the grade, if there is one. Raises WriterError, TimeoutError."""

    @abstractmethod
    def release(self, control: Any) -> Optional[str]:
        """Lets the cluster go. Returns the reason of the grade, if there is one.

        Raises WriterError if the hold had ended before, or if something was written under it."""

    @abstractmethod
    def close(self) -> None:
        """Lets the cluster go, and closes everything. Idempotent. Raises OSError."""

    def remember(self) -> None:  # noqa: B027 - most learn nothing
        """Keeps what the next attempt can use."""
