"""Acknowledged writes, and how long clients waited for them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
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


def longest_wait_ms(entries: Iterable[Acknowledged], from_ns: int, to_ns: int) -> float:
    """The duration of the longest write that ran, at least in part, between the two times; in milliseconds."""
    waits = [
        entry.acknowledged_ns - entry.started_ns
        for entry in entries
        if entry.started_ns <= to_ns and entry.acknowledged_ns >= from_ns
    ]
    return max(waits, default=0) / 1e6


class Standstill:
    """Measures how long this host itself stood still, and every guest with it: a machine that runs tests may share its disks
    and processors with others."""

    EVERY_S = 0.05

    def __init__(self, directory: Path) -> None:
        """`directory`: a directory on the disk that is measured."""
        self.longest_ms = 0.0
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with tempfile.TemporaryFile(dir=self._directory) as file:
            before = time.monotonic()
            while not self._over.wait(self.EVERY_S):
                os.pwrite(file.fileno(), b"x", 0)
                os.fsync(file.fileno())
                now = time.monotonic()
                self.longest_ms = max(self.longest_ms, 1000 * (now - before - self.EVERY_S))
                before = now
