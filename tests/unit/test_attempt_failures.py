"""agent/attempt.py: what goes wrong in an attempt, and how it can be aborted. Nothing is frozen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent import attempt as attempts
from quiesce.agent import commands, memory
from quiesce.agent.attempt import Attempt, AttemptError
from quiesce.agent.deadman import DeadManError
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Level
from quiesce.wire.messages import ErrorCode, Prepare, State
from tests.unit.attempt_world import WINDOW_MS, World, make_world, prepared, soon
from tests.unit.sample_writer import Sample


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def test_one_that_failed_to_hold_and_let_go_is_no_more_the_dead_mans(world):
    """Broken: its undo would be run on an application that runs; or, where it could not let go, not be run."""
    clean = world.writer("clean", undo="/thaw-clean", hold=WriterError("busy"))
    stuck = world.writer("stuck", undo="/thaw-stuck", hold=WriterError("busy"), abort=OSError("gone"))
    attempt = prepared(clean, stuck, insist=False)
    attempt.hold(Level.BACK_END, soon())
    attempt.freeze(soon())
    attempt.thaw()
    attempt.release(Level.BACK_END)
    assert set(world.told("undone")) == {("undone", 1)}
    assert world.story[-1] == ("disarm",)  # by which the dead-man takes the other back


def test_without_a_dead_man_nothing_is_prepared(world):
    """Broken: a guest could be frozen with nobody to thaw it."""
    world.deadman_is_gone = True
    with pytest.raises(AttemptError, match="no dead-man: it died while starting") as raised:
        prepared(world.writer("db"))
    assert raised.value.code is ErrorCode.FAILED
    assert world.done() == []


def test_a_dead_man_that_died_is_noticed_before_anything_is_held(world):
    """Broken: as above."""
    attempt = prepared(world.writer("db"))
    world.deadman_is_gone = True
    with pytest.raises(DeadManError):
        attempt.hold(Level.BACK_END, soon())
    assert "db hold" not in world.story


@pytest.mark.parametrize("step", ["hold", "freeze"])
def test_past_the_deadline_no_step_begins(step, world):
    """Broken: an application would be made to wait when nobody wants it any more."""
    attempt = prepared(world.writer("db"))
    with pytest.raises(AttemptError) as raised:
        attempt.hold(Level.BACK_END, 0) if step == "hold" else attempt.freeze(0)
    assert raised.value.code is ErrorCode.DEADLINE
    assert not {"db hold", "freeze"} & set(world.done())


def test_a_hold_has_the_steps_time_and_never_more_than_the_window(world):
    """Broken: a slow step would use up the whole window; or go on when the dead-man has struck."""
    deadlines: list[int] = []
    attempt = prepared(world.writer("db", hold=deadlines.append), world.writer("two", hold=deadlines.append))
    step = soon(1)
    attempt.hold(Level.BACK_END, step)
    assert deadlines[0] < soon(0.6)  # the first leaves half of it to the other
    assert deadlines[1] == step
    attempt = prepared(world.writer("db", hold=deadlines.append), window_ms=500)
    attempt.hold(Level.BACK_END, soon(60))
    assert deadlines[-1] < soon(0.6)


def test_a_freeze_that_fails_is_said_and_what_is_held_can_be_let_go(world):
    """Broken: the user would not know which filesystem; or its applications would stay held."""
    world.freezing_fails = "/srv is already frozen by somebody else"
    attempt = prepared(world.writer("db"))
    attempt.hold(Level.BACK_END, soon())
    with pytest.raises(AttemptError, match="/srv is already frozen") as raised:
        attempt.freeze(soon())
    assert raised.value.code is ErrorCode.FAILED
    attempt.abort()
    assert world.done()[-1] == "db abort"


def reach(attempt: Attempt, state: State, found: list[Sample]) -> None:
    """Goes on until it is there."""
    steps = [
        lambda: attempt.prepare(found, soon()),
        lambda: attempt.hold(Level.BACK_END, soon()),
        lambda: attempt.freeze(soon()),
        attempt.thaw,
        lambda: attempt.release(Level.BACK_END),
    ]
    for step in steps:
        if attempt.state is state:
            return
        step()
    assert attempt.state is state


@pytest.mark.parametrize("state", list(State))
def test_it_can_be_aborted_from_every_state_and_again(state, world):
    """Broken: a host that hangs up at the wrong moment would leave the guest frozen, or its applications held."""
    attempt = Attempt("token", Prepare(WINDOW_MS, insist=True))
    one, two = world.writer("one", undo="/thaw-one"), world.writer("two")
    reach(attempt, state, [one, two])
    held = state in (State.HELD, State.FROZEN, State.THAWED)
    del world.story[:]
    attempt.abort()
    expected: list[Any] = ["thaw"] if state is State.FROZEN else []
    if state is not State.IDLE:
        expected += ["two abort", "one abort"]
    assert world.done() == expected
    assert world.told("disarm") == ([("disarm",)] if state not in (State.IDLE, State.RELEASED) else [])
    if held:
        assert world.story[-2:] == [("undone", 1), ("disarm",)]
    assert (one.let_go, two.let_go) == (True, True)
    assert (attempt.state, attempt.left_ms()) == (State.IDLE, None)
    del world.story[:]
    attempt.abort()
    assert world.story == []


def test_an_abort_after_a_failed_preparation_closes_what_was_opened(world):
    """Broken: the sessions of those that were ready would stay open."""
    attempt = Attempt("token", Prepare(WINDOW_MS, insist=True))
    with pytest.raises(AttemptError):
        attempt.prepare([world.writer("good"), world.writer("bad", prepare=WriterError("no"))], soon())
    attempt.abort()
    assert world.done()[-2:] == ["bad abort", "good abort"]
    assert world.story[-1] == ("disarm",)


def test_the_dead_man_knows_what_commands_run_and_its_end_keeps_none_from_letting_go(world):
    """Broken: a freezing script's children would outlive the agent; or a thawing one not be run because the dead-man died."""

    def letting_go() -> None:
        world.deadman_is_gone = True
        ran.append(commands.run_command(["/bin/echo", "thawed"], 5, script.command_observer))

    ran: list[str] = []

    def holding(_: int) -> None:
        commands.run_command(["/bin/true"], 5, script.command_observer)

    script = world.writer("script", hold=holding, abort=letting_go)
    attempt = prepared(script)
    attempt.hold(Level.BACK_END, soon())
    [(_, started), (_, ended)] = world.told("command_started", "command_ended")
    assert started == ended > 1
    attempt.abort()
    assert ran == ["thawed"]
    world.deadman_is_gone = False
    del world.story[:]
    commands.run_command(["/bin/true"], 5, script.command_observer)
    assert world.story == []  # the attempt is over, and its dead-man is told nothing


def test_what_went_wrong_is_remembered_however_it_ended(world):
    """Broken: `quiesce writers` could not say why the last attempt failed."""
    bad = world.writer("bad", hold=WriterError("too busy"))
    attempt = prepared(bad)
    with pytest.raises(AttemptError):
        attempt.hold(Level.BACK_END, soon())
    attempt.abort()
    assert memory.recall("last-errors") == {"bad": "hold: retryable: too busy"}
    assert bad.remembered == 1


def test_an_attempt_waits_for_what_an_earlier_one_left_to_its_dead_man(tmp_path, monkeypatch):
    """Broken: an earlier dead-man, still letting go, would let go what this attempt holds; and it be vouched for."""
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    earlier = attempts._wait_for_earlier(soon())
    copy = os.dup(earlier)  # the dead-man's
    os.close(earlier)
    with pytest.raises(AttemptError, match="still releasing what that attempt held"):
        attempts._wait_for_earlier(soon(0.1))
    os.close(copy)
    os.close(attempts._wait_for_earlier(soon(0.1)))
