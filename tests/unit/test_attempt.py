"""agent/attempt.py: who is told what, and in which order. Nothing is frozen, and the dead-man only notes what it is told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent import attempt as attempts
from quiesce.agent import commands, filesystems, memory
from quiesce.agent.attempt import DEADMAN_GRACE_NS, Attempt, AttemptError
from quiesce.agent.deadman import DeadManError, Undo
from quiesce.agent.filesystems import FreezeError
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Filesystem, FreezeState, Outcome
from quiesce.wire.messages import ErrorCode, State
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
        self.loose_when_frozen: dict[str, str] = {}
        self.freezing_fails = ""
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

    def why_not_frozen(self, paths: list[str]) -> str:
        loose = self.world.loose_when_frozen if self.frozen else self.world.loose
        return next((loose[path] for path in paths if path in loose), "")

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

    def start(descriptors: list[int], undos: list[Undo], _keep: list[int]) -> DeadMan:
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


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def soon(seconds: float = 30) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def prepared(*found: Sample, insist: bool = True, window_ms: int = WINDOW_MS) -> Attempt:
    attempt = Attempt("token", window_ms, insist)
    attempt.prepare(found, soon())
    return attempt


LEVELS = (Level.FRONT_END, Level.BACK_END, Level.SYSTEM)


def hold_all(attempt: Attempt) -> None:
    for level in LEVELS:
        attempt.hold(level, soon())


def release_all(attempt: Attempt) -> None:
    for level in reversed(LEVELS):
        attempt.release(level)


# -- a good one


def test_from_first_to_last(world):
    """Broken: what lies behind would be held before what is in front of it, or let go before it; or something would be
    done of which the dead-man does not know."""
    web = world.writer("web", Level.FRONT_END, undo="/thaw-web")
    one, two = world.writer("one"), world.writer("two", undo="/thaw-two")
    system = world.writer("system", Level.SYSTEM)
    attempt = Attempt("token", WINDOW_MS, insist=True)
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
    assert left is not None
    assert WINDOW_MS - 500 < left <= WINDOW_MS
    attempt.hold(Level.BACK_END, soon())
    [(_, deadline)] = world.told("arm")
    assert 0 <= deadline - before - WINDOW_MS * 1_000_000 - DEADMAN_GRACE_NS < 500_000_000
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


@pytest.mark.parametrize("insist", [True, False])
def test_files_that_did_not_freeze_are_seen_when_all_is_frozen(insist, world):
    """Broken: a database on a filesystem that turned out to have no freeze would be vouched for."""
    world.loose_when_frozen["/srv/db"] = "vfat cannot be frozen"
    db = world.writer("db", undo="/thaw-db")
    attempt = prepared(db, insist=insist)
    attempt.hold(Level.BACK_END, soon())
    if insist:
        with pytest.raises(AttemptError, match="db: not held: vfat"):
            attempt.freeze(soon())
        attempt.abort()
        assert world.done()[-2:] == ["thaw", "db abort"]
    else:
        attempt.freeze(soon())
        attempt.thaw()
        [report] = attempt.release(Level.BACK_END).writers
        assert report.grade is Grade.CRASH
        assert attempt.state is State.RELEASED
    assert world.told("undone") == [("undone", 1)]


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


# -- what goes wrong


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
    assert deadlines == [step, step]
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
    attempt = Attempt("token", WINDOW_MS, insist=True)
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
    attempt = Attempt("token", WINDOW_MS, insist=True)
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


# -- a freeze of somebody else's


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


def test_a_foreign_freeze_that_is_never_thawed_is_thawed_by_us_whatever_is_let_go(world):
    """Broken: scripts would be run on a frozen disk, and whoever froze it go on freezing with nobody to end it."""
    attempt = prepared(world.writer("db"))
    attempt.hold(Level.BACK_END, soon())
    attempt.guard_foreign_freeze(soon())
    attempt.abort()
    done = [step for step in world.story if step in ("thaw anybody's", "db abort")]
    assert done == ["thaw anybody's", "db abort", "thaw anybody's", "thaw anybody's"]
