"""agent/attempt.py: who is told what, and in which order. Nothing is frozen, and the dead-man only notes what it is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from quiesce.agent.attempt import DEADMAN_GRACE_NS, Attempt, AttemptError
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from quiesce.wire.messages import ErrorCode, Prepare, State
from tests.unit.attempt_world import FROZEN, WINDOW_MS, World, hold_all, make_world, prepared, release_all, soon


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


# -- a good one


def test_from_first_to_last(world):
    """Broken: what lies behind would be held before what is in front of it, or let go before it; or something would be
    done of which the dead-man does not know."""
    web = world.writer("web", Level.FRONT_END, undo="/thaw-web")
    one, two = world.writer("one"), world.writer("two", undo="/thaw-two")
    system = world.writer("system", Level.SYSTEM)
    attempt = Attempt("token", Prepare(WINDOW_MS, insist=True))
    states = [attempt.state]
    inventory = attempt.prepare([one, system, two, web], soon())
    states.append(attempt.state)
    assert [writer.id for writer in inventory.writers] == ["web", "one", "two", "system"]
    assert inventory.filesystems == FROZEN
    hold_all(attempt)
    states.append(attempt.state)
    frozen = attempt.freeze(soon())
    states.append(attempt.state)
    thawed = attempt.thaw()
    states.append(attempt.state)
    release_all(attempt)
    states.append(attempt.state)
    attempt.post_checkpoint(True)
    attempt.abort()
    states.append(attempt.state)
    assert states == [*State, State.IDLE]
    assert thawed.unbroken
    assert thawed.freeze_token == frozen.freeze_token != ""
    armed = world.told("arm")
    world.story.remove(armed[0])
    assert world.story == [
        *[("start", (7, 8))],
        *["one identify", "one prepare", "system identify", "system prepare"],
        *["two identify", "two prepare", "web identify", "web prepare", "flush"],
        *[("doing", 2), "web hold"],
        *["one hold", ("doing", 1), "two hold"],
        *["system hold"],
        *["freeze", "thaw"],
        *["system release"],
        *["two release", ("undone", 1), "one release"],
        *["web release", ("undone", 2), ("disarm",)],
        *["one post-checkpoint True", "system post-checkpoint True", "two post-checkpoint True", "web post-checkpoint True"],
        *["web abort", "two abort", "system abort", "one abort"],
    ]
    assert world.undos == [Undo(99, b"0"), Undo(command=("/thaw-two",)), Undo(command=("/thaw-web",))]


def test_the_first_undo_is_the_freezers_where_it_has_one(world):
    """Broken: the freezer says 0 when it means RCU's pace; the dead-man would thaw an application instead, and the guest
    would keep its expedited grace periods."""
    world.rcu = None
    attempt = prepared(world.writer("two", undo="/thaw-two"))
    attempt.hold(Level.BACK_END, soon())
    assert world.undos == [Undo(command=("/thaw-two",))]
    assert world.told("doing") == [("doing", 0)]


def test_where_nobody_can_write_no_application_is_asked_to(world):
    """Broken: a database would be told to write a checkpoint to a filesystem that somebody has frozen, and wait."""
    world.stuck.append("nobody can write to /srv: somebody has frozen it")
    attempt = Attempt("token", Prepare(WINDOW_MS, insist=False))
    with pytest.raises(AttemptError, match="nobody can write to /srv") as error:
        attempt.prepare([world.writer("db")], soon())
    assert error.value.code is ErrorCode.FAILED
    assert world.story == []
    attempt.abort()


def test_a_report_says_on_which_filesystems_the_files_are(world):
    """Broken: the host could not tell that a disk with a tablespace is left out."""
    attempt = Attempt("token", Prepare(WINDOW_MS, insist=True))
    inventory = attempt.prepare([world.writer("db")], soon())
    assert inventory.writers[0].filesystems == ("/",)
    attempt.abort()


def test_two_writers_of_the_same_name_have_each_their_own_undo(world):
    """Broken: one of them would be taken back twice, and the other never."""
    attempt = prepared(world.writer("same", undo="/first"), world.writer("same", undo="/second"))
    attempt.hold(Level.BACK_END, soon())
    attempt.release(Level.BACK_END)
    assert world.told("doing", "undone") == [("doing", 1), ("doing", 2), ("undone", 2), ("undone", 1)]


def test_the_window_begins_with_the_first_hold_and_ends_with_the_last_release(world):
    """Broken: the dead-man would strike while all is well, or only long after the window."""
    attempt = prepared(world.writer("web", Level.FRONT_END), world.writer("db"))
    assert attempt.left_ms() is None
    before = time.monotonic_ns()
    attempt.hold(Level.FRONT_END, soon())
    left = attempt.left_ms()
    took_ns = time.monotonic_ns() - before
    assert left is not None
    assert WINDOW_MS - took_ns / 1_000_000 - 1 <= left <= WINDOW_MS
    attempt.hold(Level.BACK_END, soon())
    [(_, deadline)] = world.told("arm")
    assert 0 <= deadline - before - WINDOW_MS * 1_000_000 - DEADMAN_GRACE_NS <= took_ns
    attempt.release(Level.BACK_END)
    assert attempt.left_ms() is not None
    assert attempt.state is State.HELD
    released = attempt.release(Level.FRONT_END)
    assert (attempt.left_ms(), attempt.state) == (None, State.RELEASED)
    assert world.story[-1] == ("disarm",)
    assert released.window_us > 0


def test_with_nothing_to_hold_the_thaw_is_the_end(world):
    """Broken: a guest without applications would never come out of its window."""
    attempt = prepared()
    attempt.freeze(soon())
    assert attempt.left_ms() is not None
    assert attempt.thaw().window_us > 0
    assert (attempt.left_ms(), attempt.state) == (None, State.RELEASED)
    assert world.story[-1] == ("disarm",)


def test_a_release_before_the_thaw_is_refused(world):
    """Broken: applications would write to frozen filesystems, and hang there."""
    attempt = prepared(world.writer("db"))
    attempt.hold(Level.BACK_END, soon())
    attempt.freeze(soon())
    with pytest.raises(AttemptError) as raised:
        attempt.release(Level.BACK_END)
    assert raised.value.code is ErrorCode.WRONG_STATE
    assert "db release" not in world.story


# -- who insists, and on what

REFUSES = {
    "prepare": {"prepare": WriterError("no password")},
    "hold": {"hold": WriterError("too busy", Outcome.TIMEOUT)},
}


@pytest.mark.parametrize("phase", ["prepare", "hold"])
@pytest.mark.parametrize(("insist", "required"), [(True, True), (True, False), (False, True), (False, False)])
def test_one_that_fails_ends_an_attempt_that_insists_on_it(insist, required, phase, world):
    """Broken: a checkpoint would be kept that the user did not want; or one that they did want would be lost for an
    application that they said does not count."""
    good, bad = world.writer("good"), world.writer("bad", **REFUSES[phase])
    bad.required = required

    def until_held() -> Attempt:
        attempt = prepared(good, bad, insist=insist)
        attempt.hold(Level.BACK_END, soon())
        return attempt

    if not (insist and required):
        attempt = until_held()
        attempt.freeze(soon())
        attempt.thaw()
        reports = {writer.id: writer for writer in attempt.release(Level.BACK_END).writers}
        assert reports["good"].grade is Grade.NIL_REDO
        assert not reports["bad"].grade.vouched
        assert reports["bad"].required is required
        assert attempt.state is State.RELEASED
        return
    with pytest.raises(AttemptError) as raised:
        until_held()
    assert raised.value.code is ErrorCode.REFUSED
    assert "bad: " in str(raised.value)
    assert str(bad.reason) in str(raised.value)
    assert "bad" in [writer.id for writer in raised.value.writers]


def test_all_that_refuse_are_named_at_once(world):
    """Broken: the user would mend one after the other, each time to be told of the next."""
    no, crash = WriterError("no password"), WriterError("a standby", grade=Grade.CRASH)
    with pytest.raises(AttemptError) as raised:
        prepared(world.writer("a", prepare=no), world.writer("b"), world.writer("c", identify=crash))
    assert str(raised.value) == "a: no password; c: a standby"
    assert [writer.id for writer in raised.value.writers] == ["a", "b", "c"]
    assert not any("hold" in each for each in world.done())
    assert "flush" not in world.story


@pytest.mark.parametrize("insist", [True, False])
def test_one_that_keeps_no_data_is_never_in_the_way(insist, world):
    """Broken: a pooler in session mode would keep the databases behind it from every checkpoint."""
    pooler = world.writer("pooler", hold=WriterError("busy"))
    pooler.stateless = True
    attempt = prepared(pooler, insist=insist)
    [report] = attempt.hold(Level.BACK_END, soon()).writers
    assert report.grade.vouched


def test_files_that_do_not_freeze_are_seen_before_anything_is_held(world):
    """Broken: a database on tmpfs would be held for nothing, and vouched for."""
    world.loose["/srv/db"] = "its files in /srv/db are on a filesystem that is not frozen"
    with pytest.raises(AttemptError, match="db: not held: its files in /srv/db"):
        prepared(world.writer("db"), world.writer("other"))
    attempt = prepared(world.writer("db", undo="/thaw-db"), insist=False)
    attempt.hold(Level.BACK_END, soon())
    assert "db hold" not in world.story
    assert world.told("doing") == []


def test_files_that_did_not_freeze_are_seen_after_the_release(world):
    """Broken: a database on a filesystem that turned out to have no freeze would be vouched for; or it would stand still while
    its files are looked at."""
    world.loose_since_frozen["/srv/db"] = "vfat cannot be frozen"
    attempt = prepared(world.writer("db", undo="/thaw-db"))
    hold_all(attempt)
    attempt.freeze(soon())
    attempt.thaw()
    [report] = attempt.release(Level.BACK_END).writers
    assert (report.grade, report.reason) == (Grade.CRASH, "not held: vfat cannot be frozen")
    assert world.told("undone") == [("undone", 1)]
    assert world.done()[-1] == "db release"


def test_the_agent_goes_before_all_others_in_the_window_alone(world):
    """Broken: applications would stand still for as long as other programs keep the processor; or the agent would keep it
    when the window is over."""
    attempt = prepared(world.writer("db"))
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    hold_all(attempt)
    in_window = os.sched_getscheduler(0)
    attempt.freeze(soon())
    attempt.thaw()
    release_all(attempt)
    assert (in_window, os.sched_getscheduler(0)) == (os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.SCHED_OTHER)


def test_the_agent_goes_before_no_other_after_a_failure(world):
    """Broken: an agent whose attempt failed would keep the processor from the applications."""
    world.freezing_fails = "no"
    attempt = prepared(world.writer("db"))
    hold_all(attempt)
    with pytest.raises(AttemptError):
        attempt.freeze(soon())
    attempt.abort()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_one_that_somebody_else_keeps_at_rest_is_not_the_dead_mans_to_wake(world):
    """Broken: an agent that dies would resume what an administrator paused, or start what they stopped."""
    paused = world.writer("paused", undo="/resume", identify=WriterError("it is paused already, by somebody else"))
    paused.required = False
    attempt = prepared(paused, world.writer("db", undo="/thaw-db"))
    attempt.hold(Level.BACK_END, soon())
    assert world.told("doing") == [("doing", 2)]


def test_one_that_the_dead_man_cannot_undo_is_not_held(world):
    """Broken: an agent that dies would leave it paused for ever."""
    pooler = world.writer("pooler")
    pooler.outlives = True
    attempt = prepared(pooler, insist=False)
    attempt.hold(Level.BACK_END, soon())
    assert "pooler hold" not in world.story
