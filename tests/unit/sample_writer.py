"""An application that does what a test wants, and one who is told of commands."""

from __future__ import annotations

import contextlib
from typing import Any

from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.grades import Grade
from quiesce.model.reports import WriterReport

NEVER = 2**63


class Sample(ApplicationWriter):
    """Tells what it was asked. `does`: by phase, an error to be raised, or something to be called with its arguments."""

    application = "sample"

    def __init__(self, id: str = "sample", calls: list[str] | None = None, **does: Any) -> None:
        super().__init__(id)
        self.version = "1.2"
        self.calls = [] if calls is None else calls
        self.prefix = "" if calls is None else f"{id} "
        self.does = does
        self.undoes: Undo | None = None
        self.remembered = 0

    def _do(self, phase: str, *arguments: Any) -> None:
        self.calls.append(self.prefix + phase)
        does = self.does.get(phase)
        if isinstance(does, Exception):
            raise does
        if does:
            does(*arguments)

    def on_identify(self, deadline_ns: int) -> None:
        self._do("identify", deadline_ns)
        self.grade, self.reason = Grade.NIL_REDO, None

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        self._do("prepare", deadline_ns, window_ms)

    def on_hold(self, deadline_ns: int) -> None:
        self._do("hold", deadline_ns)

    def on_release(self) -> None:
        self._do("release")

    def on_abort(self) -> None:
        self._do("abort")

    def on_post_checkpoint(self, kept: bool) -> None:
        self._do(f"post-checkpoint {kept}")

    def undo(self) -> Undo | None:
        return self.undoes

    def remember(self) -> None:
        self.remembered += 1


class Observer:
    """Notes the process group of each command that began, and its negative when it ended."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def command_started(self, group: int) -> None:
        self.told.append(group)

    def command_ended(self, group: int) -> None:
        self.told.append(-group)

    def commands(self) -> int:
        """How many ran; every one of them is known to have ended."""
        assert self.told[1::2] == [-group for group in self.told[::2]]
        return len(self.told) // 2


def attempt(writer: ApplicationWriter) -> WriterReport:
    """All of it, by one who does not insist."""
    writer.prepare(NEVER, 1000)
    with contextlib.suppress(WriterError):
        writer.hold(NEVER)
    writer.release()
    writer.post_checkpoint(True)
    return writer.report()
