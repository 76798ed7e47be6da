"""What an attempt holds, in a file in /run: if the agent and its dead-man are both killed, the next agent reads there what it
has to take back (leftovers.py).

The first line of the file names the guest's boot, the filesystems and the undos. Then follows every message that the dead-man
gets, before the hold that it announces. /run is in memory, so no checkpoint has the file, and it is never frozen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from quiesce.agent import memory

NAME = "holds"
ARM, FREEZING, NOT_OURS, THAWED, DOING, UNDONE, RUNNING, ENDED, DISARM = b"AFNTHURED"
"""The first byte of a message; a number and a newline follow."""


def message(what: int, value: int) -> bytes:
    return b"%c%d\n" % (what, value)


class Outstanding:
    """What is frozen, held and running, by the messages so far. Filesystems and undos are named by their positions."""

    def __init__(self) -> None:
        self.deadline_ns: Optional[int] = None
        self.maybe_frozen: set[int] = set()
        self.doing: list[int] = []
        """Undos that are to be done, the earliest hold first."""
        self.running: set[int] = set()
        """Process groups of commands."""

    def heed(self, line: bytes) -> None:
        """Takes note of one message, without its newline. Raises ValueError."""
        what, value = line[0], int(line[1:])
        if what == ARM:
            self.deadline_ns = value
        elif what == FREEZING:
            self.maybe_frozen.add(value)
        elif what in (NOT_OURS, THAWED):
            self.maybe_frozen.discard(value)
        elif what == DOING:
            self.doing.append(value)
        elif what == UNDONE and value in self.doing:
            self.doing.remove(value)
        elif what == RUNNING:
            self.running.add(value)
        elif what == ENDED:
            self.running.discard(value)


class HoldRecord:
    """The file of one attempt, open for appending. The dead-man inherits the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def begin(cls, filesystems: Sequence[dict[str, Any]], undos: Sequence[dict[str, Any]]) -> HoldRecord:
        """Replaces the file of the attempt before, of which nothing may be left. Raises OSError."""
        path = os.path.join(memory.DIRECTORY, NAME)
        header = {"boot": boot_id(), "filesystems": list(filesystems), "undos": list(undos)}
        descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(header).encode() + b"\n")
            os.replace(path + ".new", path)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def note(self, told: bytes) -> None:
        """Raises OSError. After a hold this is allowed to fail: the next agent then lets go what was let go before."""
        os.write(self.descriptor, told)

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class Left:
    """What an attempt of this boot held when its agent and its dead-man died."""

    filesystems: dict[int, dict[str, Any]]
    """By position."""
    undos: dict[int, dict[str, Any]]
    """By position, the latest hold first."""
    groups: frozenset[int]
    """Process groups of commands that may still run."""

    def __bool__(self) -> bool:
        return bool(self.filesystems or self.undos)


def left() -> Left:
    """Reads the file. Nothing is left if it is of another boot, or not readable."""
    try:
        with open(os.path.join(memory.DIRECTORY, NAME), "rb") as file:
            first, *lines = file.read().split(b"\n")
        header = json.loads(first)
        if header["boot"] != boot_id():
            return Left({}, {}, frozenset())
        outstanding = Outstanding()
        for line in lines[:-1]:  # without its end, the last message was not written, and what it announces not begun
            outstanding.heed(line)
        filesystems, undos = header["filesystems"], header["undos"]
        return Left(
            {index: filesystems[index] for index in sorted(outstanding.maybe_frozen)},
            {index: undos[index] for index in reversed(outstanding.doing)},
            frozenset(outstanding.running),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return Left({}, {}, frozenset())


def note_undone(what: int, value: int) -> None:
    """Appends a message to the file, after the attempt. Never raises."""
    try:
        with open(os.path.join(memory.DIRECTORY, NAME), "ab", buffering=0) as file:
            file.write(message(what, value))
    except OSError:
        pass


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
