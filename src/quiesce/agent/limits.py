"""How long and how much an application may answer: one limit for a whole phase of one writer, whatever it does in that phase.

Every connection of the agent to another process of the guest (sockets.py) asks here before each wait and after each piece of an
answer. So an application that sends a byte now and then, or rows without end, gets no more time than one that is silent, and no
more of the agent's memory than the limit allows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Optional

from quiesce.model.reports import Outcome

MAX_BYTES = 16 << 20
"""Most that one application may send in one phase, in bytes. A server with 100,000 tables sends some 8 MB."""


class Limit:
    """Of one phase."""

    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns
        """CLOCK_MONOTONIC."""
        self.room = MAX_BYTES
        self.broken = ""
        """What the application did that ended its phase, for a person; empty if it kept to the limit."""
        self.outcome = Outcome.TIMEOUT

    def left_s(self) -> float:
        """Raises TimeoutError if no time is left."""
        left = (self.until_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            self.end()
        return left

    def end(self) -> NoReturn:
        """No time is left. Raises TimeoutError."""
        self.broken = self.broken or "it gave no answer in time"
        raise TimeoutError(self.broken)

    def take(self, size: int) -> None:
        """Raises MemoryError if the application has sent too much."""
        self.room -= size
        if self.room < 0:
            self.broken, self.outcome = f"it sent more than {MAX_BYTES >> 20} MiB", Outcome.OUT_OF_RESOURCES
            raise MemoryError(self.broken)


_current: Optional[Limit] = None


@contextmanager
def until(deadline_ns: int) -> Iterator[Limit]:
    """Limits every connection that is used in the block. Within another block, the earlier deadline counts."""
    global _current
    before = _current
    _current = limit = Limit(deadline_ns if before is None else min(deadline_ns, before.until_ns))
    try:
        yield limit
    finally:
        _current = before
        if before and limit.broken:
            before.broken, before.outcome = limit.broken, limit.outcome


def current() -> Optional[Limit]:
    return _current
