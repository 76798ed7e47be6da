"""Acknowledged writes, and how long clients waited for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Acknowledged(Protocol):
    """An acknowledged write. Times are CLOCK_MONOTONIC of the machine where the client runs, in nanoseconds."""

    @property
    def started_ns(self) -> int: ...

    @property
    def acknowledged_ns(self) -> int: ...


@dataclass(frozen=True)
class Entry:
    """One acknowledged write."""

    key: str
    started_ns: int
    acknowledged_ns: int


def longest_wait_ms(entries: Iterable[Acknowledged], from_ns: int = 0, to_ns: int = 2**63) -> float:
    """The duration of the longest write that ran, at least in part, between the two times; in milliseconds."""
    waits = [
        entry.acknowledged_ns - entry.started_ns
        for entry in entries
        if entry.started_ns <= to_ns and entry.acknowledged_ns >= from_ns
    ]
    return max(waits, default=0) / 1e6
