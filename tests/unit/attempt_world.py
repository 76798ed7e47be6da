"""What attempts see instead of this machine: nothing is frozen, and the dead-man only notes what it is told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent import attempt as attempts
from quiesce.agent import filesystems, memory
from quiesce.agent.attempt import Attempt
from quiesce.agent.deadman import DeadManError
from quiesce.agent.filesystems import FreezeError
from quiesce.agent.undos import Undo
from quiesce.model.grades import Level
from quiesce.model.reports import Filesystem, FreezeState
from quiesce.wire.messages import Prepare
from tests.unit.sample_writer import Sample

WINDOW_MS = 10_000
FROZEN = (Filesystem("/", "ext4", "/dev/vda", FreezeState.FROZEN),)


class World:
    """The machine, and in `story` what was done to it, by whomever."""

    def __init__(self) -> None:
        self.story: list[Any] = []
        self.rcu: Undo | None = Undo(99, b"0")
        self.loose: dict[str, str] = {}
        """By path, why it is not frozen."""
        self.loose_since_frozen: dict[str, str] = {}
        self.freezing_fails = ""
        self.stuck: list[str] = []
        self.deadman_is_gone = False
        self.undos: list[Undo] = []

    def writer(self, id: str, level: Level = Level.BACK_END, undo: str = "", **does: Any) -> Sample:
        writer = Sample(id, self.story, **does)
        writer.level = level
        writer.outlives = bool(undo)
        writer.undoes = Undo(command=(undo,)) if undo else None
        writer.keeps([f"/srv/{id}"])
        return writer

    def told(self, *names: str) -> list[tuple[Any, ...]]:
        """What the dead-man was told, of these kinds."""
        return [each for each in self.story if isinstance(each, tuple) and each[0] in names]

    def done(self) -> list[str]:
        """What was done to applications and filesystems."""
        return [each for each in self.story if isinstance(each, str)]


class Freezer:
    def __init__(self, world: World) -> None:
        self.world, self.rcu, self.descriptors, self.frozen = world, world.rcu, [7, 8], False
        self.stuck = world.stuck
        self.recorded = [{"device": [8, 1]}, {"device": [8, 2]}]

    def why_not_frozen(self, paths: list[str]) -> str:
        loose = self.world.loose_since_frozen if "freeze" in self.world.story else self.world.loose
        return next((loose[path] for path in paths if path in loose), "")

    def mount_points(self, paths: list[str]) -> tuple[str, ...]:
        assert paths
        return ("/",)

    def flush(self) -> None:
        self.world.story.append("flush")

    def freeze(self, _deadline_ns: int, _deadman: DeadMan) -> None:
        self.world.story.append("freeze")
        if self.world.freezing_fails:
            raise FreezeError(self.world.freezing_fails)
        self.frozen = True

    def thaw(self, _deadman: DeadMan) -> bool:
        if self.frozen:
            self.world.story.append("thaw")
        self.frozen = False
        return True

    def thaw_anybodys(self) -> None:
        self.world.story.append("thaw anybody's")

    def report(self) -> tuple[Filesystem, ...]:
        return FROZEN

    def close(self) -> None:
        self.descriptors = []


class DeadMan:
    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        def tell(*values: int) -> None:
            if self.world.deadman_is_gone and name != "disarm":
                raise DeadManError("it is gone")
            self.world.story.append((name, *values))

        return tell


def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """What attempts see from now on instead of this machine."""
    made = World()

    def start(descriptors: list[int], undos: list[Undo], _keep: list[int], _record: object) -> DeadMan:
        if made.deadman_is_gone:
            raise DeadManError("it died while starting")
        made.story.append(("start", tuple(descriptors)))
        made.undos = list(undos)
        return DeadMan(made)

    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(filesystems, "Freezer", lambda: Freezer(made))
    monkeypatch.setattr(attempts.DeadMan, "start", start)
    monkeypatch.setattr(attempts, "_wait_for_earlier", lambda _: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(attempts, "FOREIGN_THAWS", 2)
    return made


def soon(seconds: float = 30) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def prepared(*found: Sample, insist: bool = True, window_ms: int = WINDOW_MS) -> Attempt:
    attempt = Attempt("token", Prepare(window_ms, insist))
    attempt.prepare(found, soon())
    return attempt


LEVELS = (Level.FRONT_END, Level.BACK_END, Level.SYSTEM)


def hold_all(attempt: Attempt) -> None:
    for level in LEVELS:
        attempt.hold(level, soon())


def release_all(attempt: Attempt) -> None:
    for level in reversed(LEVELS):
        attempt.release(level)
