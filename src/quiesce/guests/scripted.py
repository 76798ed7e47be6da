"""A guest in memory. A test sets its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from quiesce.guests.port import GuestRefusedError
from quiesce.model.grades import LEVELS, Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, WriterReport
from quiesce.wire.messages import Frozen, Held, Inventory, Prepare, Released, State, Status, Thawed, Verified

ROOT = Filesystem("/", "ext4", "/dev/vda1", FreezeState.FREEZABLE)


class ScriptedGuest:
    """A quiesce.guests.port.Guest.

    Calls `on_step` with the name of each step, before the step takes effect: `on_step` may raise, or change the VM of the
    guest. `story` has the names of all steps that were asked for.
    """

    has_clock = True

    def __init__(self, writers: Sequence[WriterReport] = (), *, early: bool = False) -> None:
        self.writers = tuple(writers)
        self.freezes_first = early
        self.extra_window_s = 0.0
        self.hold_s = math.inf
        self.on_step: Callable[[str], None] = lambda _: None
        self.story: list[str] = []
        self.refuses = ""
        """If not empty, the guest refuses `prepare` with `insist`, for this reason."""
        self.token_at_thaw: str | None = None
        """The freeze token in the answer to `thaw`; None: that of its own freeze."""
        self.asked: Prepare | None = None
        """What the last `prepare` asked for."""
        self.unbroken = True
        self.frozen = False
        self.held: set[Level] = set()
        self.told: list[bool] = []
        """For each `post_checkpoint`: whether the checkpoint was kept."""
        self.closed = False
        self.verified = Verified(())
        """How everything started, in a copy of a checkpoint."""
        self._clock = 0

    def software(self) -> str:
        return "scripted"

    def identify(self, _timeout: float) -> Inventory:
        self._step("identify")
        return Inventory(self.writers, (ROOT,))

    def prepare(self, asked: Prepare, _timeout: float) -> Inventory:
        self._step("prepare")
        self.asked = asked
        if asked.insist and self.refuses:
            raise GuestRefusedError("scripted", self.refuses, self.writers)
        return Inventory(self.writers, (ROOT,))

    def hold(self, level: Level, _timeout: float) -> Held:
        self._step(f"hold {level.value}")
        self.held.add(level)
        return Held(self._at(level), self._now())

    def freeze(self, _timeout: float) -> Frozen:
        self._step("freeze")
        self.frozen = True
        return Frozen("its own", (replace(ROOT, state=FreezeState.FROZEN),))

    def thaw(self, _timeout: float) -> Thawed:
        self._step("thaw")
        self.frozen = False
        token = self.token_at_thaw or "its own"
        return Thawed(token, self.unbroken, (replace(ROOT, state=FreezeState.THAWED),), self._now())

    def release(self, level: Level, _timeout: float) -> Released:
        self._step(f"release {level.value}")
        self.held.discard(level)
        return Released(self._at(level), self._now(), self._now())

    def post_checkpoint(self, kept: bool, _timeout: float) -> Status:
        self._step("post-checkpoint")
        self.told.append(kept)
        return Status(State.IDLE)

    def verify(self, _trial: str, _timeout: float) -> Verified:
        self._step("verify")
        return self.verified

    def abort(self, _timeout: float) -> Status:
        self._step("abort")
        self.frozen = False
        self.held.clear()
        return Status(State.IDLE)

    def close(self) -> None:
        self.closed = True
        self.frozen = False
        self.held.clear()

    def _step(self, name: str) -> None:
        self.story.append(name)
        self.on_step(name)

    def _at(self, level: Level) -> tuple[WriterReport, ...]:
        return tuple(writer for writer in self.writers if writer.level is level)

    def _now(self) -> int:
        self._clock += 1000
        return self._clock


def writer(id: str, level: Level = LEVELS[1], grade: Grade = Grade.CLEAN) -> WriterReport:
    return WriterReport(id, id.partition(":")[0], "1", level, grade)
