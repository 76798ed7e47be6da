"""agent/attempt.py: applications that are held while somebody else freezes the filesystems. Nothing is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.model.grades import Level
from quiesce.wire.messages import State
from tests.unit.attempt_world import World, make_world, prepared, soon


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def test_filesystems_that_somebody_else_freezes_are_guarded_all_the_same(world):
    """Broken: qemu-guest-agent could leave a guest frozen with nobody to thaw it."""
    attempt = prepared(world.writer("db"))
    attempt.hold(Level.BACK_END, soon())
    attempt.guard_foreign_freeze(soon())
    assert world.told("freezing") == [("freezing", 0), ("freezing", 1)]
    assert attempt.state is State.HELD
    attempt.release(Level.BACK_END)
    assert attempt.state is State.RELEASED
    assert world.story[-1] == ("disarm",)  # by which the dead-man thaws what still is frozen


def test_a_guest_without_applications_is_guarded_too(world):
    """Broken: as above; or its window would never end."""
    attempt = prepared()
    attempt.guard_foreign_freeze(soon())
    assert len(world.told("arm")) == 1
    assert attempt.left_ms() is not None
    attempt.release(Level.SYSTEM)
    assert (attempt.state, attempt.left_ms()) == (State.RELEASED, None)


def test_a_foreign_freeze_that_is_never_thawed_is_thawed_by_us_whatever_is_let_go(world):
    """Broken: scripts would be run on a frozen disk, and whoever froze it go on freezing with nobody to end it."""
    attempt = prepared(world.writer("db"))
    attempt.hold(Level.BACK_END, soon())
    attempt.guard_foreign_freeze(soon())
    attempt.abort()
    done = [step for step in world.story if step in ("thaw anybody's", "db abort")]
    assert done == ["thaw anybody's", "db abort", "thaw anybody's", "thaw anybody's"]
