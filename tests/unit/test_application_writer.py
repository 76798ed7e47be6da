"""agent/writers/base.py: what is the same for every application, on one that does what a test wants."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest

from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire
from tests.unit.sample_writer import NEVER, Sample, attempt


def held(**does: Any) -> Sample:
    writer = Sample(**does)
    writer.prepare(NEVER, 1000)
    writer.hold(NEVER)
    return writer


def test_a_good_attempt_asks_for_each_phase_once_and_in_order():
    """Broken: applications would be held unprepared, or never let go."""
    windows: list[int] = []
    writer = Sample(prepare=lambda _, window_ms: windows.append(window_ms))
    writer.position = {"lsn": "1"}
    writer.keeps(["/srv/a", "/srv/b"])
    report = attempt(writer)
    assert writer.calls == ["identify", "prepare", "hold", "release", "post-checkpoint True"]
    assert windows == [1000]
    assert (report.id, report.application, report.version, report.level) == ("sample", "sample", "1.2", Level.BACK_END)
    assert (report.grade, report.reason, report.outcome, report.last_error) == (Grade.NIL_REDO, None, Outcome.STABLE, None)
    assert (report.position, report.required, report.data_directory) == ({"lsn": "1"}, True, "/srv/a")
    assert writer.paths() == ["/srv/a", "/srv/b"]
    assert from_wire(WriterReport, to_wire(report)) == report


# -- how a phase ended


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (WriterError("no"), Outcome.RETRYABLE),
        (WriterError("no", Outcome.NON_RETRYABLE), Outcome.NON_RETRYABLE),
        (WriterError("no", Outcome.TIMEOUT), Outcome.TIMEOUT),
        (TimeoutError("no"), Outcome.TIMEOUT),
        (MemoryError("no"), Outcome.OUT_OF_RESOURCES),
        (OSError(errno.ENOSPC, "no"), Outcome.OUT_OF_RESOURCES),
        (BlockingIOError(errno.EAGAIN, "no"), Outcome.OUT_OF_RESOURCES),
        (OSError(errno.EIO, "no"), Outcome.RETRYABLE),
        (KeyError("no"), Outcome.RETRYABLE),
    ],
)
@pytest.mark.parametrize("phase", ["identify", "prepare", "hold", "release"])
def test_what_goes_wrong_has_an_outcome_in_the_words_of_vss(phase, error, outcome):
    """Broken: a requester could not know whether to try again, or to wait for somebody; or an application's library could
    end the whole attempt by an error of its own."""
    writer = Sample(**{phase: error})
    if phase == "identify":
        writer.identify()
    else:
        attempt(writer)
    report = writer.report()
    if phase == "release" and outcome is Outcome.RETRYABLE:
        outcome = Outcome.INCONSISTENT  # what was taken is no good, whatever the next attempt brings
    assert report.outcome is outcome
    text = str(error) if isinstance(error, (WriterError, TimeoutError)) else f"{type(error).__name__}: {error}"
    assert report.last_error == f"{phase}: {outcome.value}: {text}"
    assert not report.grade.vouched


def test_a_phase_that_goes_right_takes_back_what_was_said_of_the_one_before():
    """Broken: an application would be refused for ever for what went wrong once."""
    writer = Sample(identify=WriterError("it starts up"))
    writer.identify()
    assert writer.report().last_error == "identify: retryable: it starts up"
    writer.does.clear()
    writer.prepare(NEVER, 1000)
    report = writer.report()
    assert (report.outcome, report.grade, report.reason, report.last_error) == (Outcome.STABLE, Grade.NIL_REDO, None, None)


def test_there_is_time_or_there_is_not():
    """Broken: a writer would wait with a negative time-out, which is for ever in some libraries."""
    assert 0 < left_s(time.monotonic_ns() + 10**9) <= 1
    with pytest.raises(WriterError) as raised:
        left_s(time.monotonic_ns() - 1)
    assert raised.value.outcome is Outcome.TIMEOUT


# -- what it is worth


@pytest.mark.parametrize(
    ("error", "grade"),
    [
        (WriterError("a standby", grade=Grade.CRASH), Grade.CRASH),
        (WriterError("no way in"), Grade.REFUSED),
        (OSError("?"), Grade.REFUSED),
    ],
)
@pytest.mark.parametrize("phase", ["identify", "prepare"])
def test_one_that_refuses_before_is_not_held_and_keeps_its_own_grade(phase, error, grade):
    """Broken: clients would wait for a hold that is worth nothing, or a crash image be called refused."""
    writer = Sample(**{phase: error})
    report = attempt(writer)
    assert not {"hold", "release"} & set(writer.calls)
    assert report.grade is grade
    assert report.reason == writer._words(error)


@pytest.mark.parametrize(("phase", "reason"), [("hold", "not held: too busy"), ("release", "too busy")])
def test_one_that_fails_in_the_window_is_a_crash_image_and_has_let_go(phase, reason):
    """Broken: a hold that broke would be vouched for, or half of it stay behind."""
    writer = Sample(**{phase: WriterError("too busy")})
    report = attempt(writer)
    assert (report.grade, report.reason) == (Grade.CRASH, reason)
    assert writer.calls[writer.calls.index(phase) + 1] == "abort"
    assert writer.let_go
    assert not writer.holding


def test_a_hold_that_fails_is_heard_of():
    """Broken: an attempt that insists would go on without this application."""
    writer = Sample(hold=WriterError("too busy", Outcome.TIMEOUT))
    writer.prepare(NEVER, 1000)
    with pytest.raises(WriterError, match="not held: too busy") as raised:
        writer.hold(NEVER)
    assert raised.value.outcome is Outcome.TIMEOUT
    writer.release()
    assert "release" not in writer.calls


@pytest.mark.parametrize("phase", ["identify", "prepare", "hold", "release"])
def test_one_that_keeps_no_data_stays_clean_whatever_fails(phase):
    """Broken: a pooler that cannot be paused would cost the databases behind it their label."""
    writer = Sample(**{phase: WriterError("it has session pooling")})
    writer.stateless = True
    writer.does.setdefault("identify", lambda _: setattr(writer, "grade", Grade.CLEAN))
    report = attempt(writer)
    assert report.grade.vouched
    assert "session pooling" in str(report.reason)
    assert report.outcome is not Outcome.STABLE
    if phase in ("hold", "release"):
        assert str(report.reason).endswith("; it keeps no data")


# -- forgo


@pytest.mark.parametrize(("stateless", "grade"), [(False, Grade.CRASH), (True, Grade.NIL_REDO)])
def test_one_that_is_forgone_is_not_held(stateless, grade):
    """Broken: a database on a network disk, which no freeze holds still, would be vouched for."""
    writer = Sample()
    writer.stateless = stateless
    writer.prepare(NEVER, 1000)
    writer.forgo("its files are on tmpfs")
    assert writer.passed_over
    writer.hold(NEVER)
    writer.release()
    assert writer.calls == ["identify", "prepare", "abort"]
    assert writer.grade is grade
    assert str(writer.reason).startswith("not held: its files are on tmpfs")


def test_one_that_is_forgone_while_held_is_let_go():
    """Broken: an application that does not count any more would wait until the end."""
    writer = held()
    writer.forgo("it is on vfat")
    assert writer.calls[-1] == "abort"
    assert writer.let_go
    writer.release()
    assert "release" not in writer.calls
    assert writer.grade is Grade.CRASH


def test_one_that_is_passed_over_while_all_is_frozen_is_let_go_with_the_others():
    """Broken: a script would be run on frozen filesystems, and hang there; or what was not held still be vouched for."""
    writer = held()
    writer.pass_over("vfat cannot be frozen")
    assert (writer.grade, writer.reason) == (Grade.CRASH, "not held: vfat cannot be frozen")
    assert not writer.let_go
    writer.release()
    assert writer.calls[-1] == "release"
    assert (writer.grade, writer.let_go) == (Grade.CRASH, True)


@pytest.mark.parametrize("how", [ApplicationWriter.forgo, ApplicationWriter.pass_over])
def test_being_passed_over_does_not_hide_why_it_was_refused(how):
    """Broken: the user would mend the wrong thing."""
    writer = Sample(prepare=WriterError("no password"))
    writer.prepare(NEVER, 1000)
    how(writer, "its files are on tmpfs")
    assert (writer.grade, writer.reason) == (Grade.REFUSED, "no password")


# -- holding


def test_what_nobody_could_undo_is_never_done():
    """Broken: an agent that dies would leave an application paused for ever."""
    writer = Sample()
    writer.outlives = True
    writer.prepare(NEVER, 1000)
    with pytest.raises(WriterError, match="nobody could let it go"):
        writer.hold(NEVER)
    assert "hold" not in writer.calls
    assert writer.grade is Grade.CRASH
    assert writer.let_go


def test_what_the_dead_man_can_undo_is_done():
    """Broken: nothing whose hold outlives the agent could be held at all."""
    writer = Sample()
    writer.outlives = writer.guarded = True
    assert attempt(writer).grade is Grade.NIL_REDO
    assert "hold" in writer.calls


@pytest.mark.parametrize(("limit_ms", "longest_s"), [(None, 10), (500, 0.5), (60_000, 10)])
def test_a_hold_has_until_its_own_limit_or_the_steps_deadline(limit_ms, longest_s):
    """Broken: one slow application would use up everybody's window; or it could be configured beyond the deadline."""
    deadlines: list[int] = []
    writer = Sample(hold=deadlines.append)
    writer.hold_limit_ms = limit_ms
    writer.prepare(NEVER, 1000)
    now = time.monotonic_ns()
    writer.hold(now + 10 * 10**9)
    assert longest_s - 0.1 < (deadlines[0] - now) / 1e9 < longest_s + 0.1


# -- letting go


def test_while_it_is_held_it_has_not_let_go():
    """Broken: the dead-man would be told that there is nothing to undo."""
    writer = Sample(hold=lambda _: seen.append((writer.holding, writer.let_go)))
    seen: list[tuple[bool, bool]] = []
    writer.prepare(NEVER, 1000)
    assert writer.let_go
    writer.hold(NEVER)
    writer.release()
    assert seen == [(True, False)]
    assert (writer.holding, writer.let_go) == (False, True)
    writer.release()
    assert writer.calls.count("release") == 1


@pytest.mark.parametrize("reach", [lambda _: None, lambda writer: writer.prepare(NEVER, 1), lambda writer: writer.hold(NEVER)])
def test_it_can_be_aborted_at_any_time_and_again(reach: Callable[[Sample], None]):
    """Broken: whatever ends an attempt early would leave applications held, or fail itself."""
    writer = Sample()
    reach(writer)
    for _ in range(3):
        writer.abort()
    assert writer.calls.count("abort") == 3
    assert (writer.let_go, writer.holding, writer.warnings) == (True, False, [])


@pytest.mark.parametrize(
    ("error", "words"), [(WriterError("its socket is gone"), "its socket is gone"), (OSError("gone"), "gone")]
)
def test_one_that_cannot_be_let_go_says_so_and_is_tried_again(error, words):
    """Broken: the others would stay held behind one that fails; or nobody would know that this one still is."""
    writer = held(abort=error)
    writer.abort()
    assert not writer.let_go
    assert writer.warnings == [f"it could not be let go: {words}"]
    writer.does.clear()
    writer.abort()
    assert writer.let_go


def test_one_that_fails_to_release_and_to_abort_is_still_held():
    """Broken: the dead-man would be told that it runs again."""
    writer = held(release=OSError("gone"), abort=OSError("gone"))
    writer.release()
    assert not writer.let_go
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


@pytest.mark.parametrize("error", [WriterError("disk full"), ValueError()])
def test_what_comes_after_the_checkpoint_never_fails_it(error):
    """Broken: a checkpoint that was taken would be reported as lost; or a warning would not be in a person's words."""
    writer = held(**{"post-checkpoint False": error})
    writer.release()
    writer.post_checkpoint(False)
    assert writer.warnings == [f"post-checkpoint: {'disk full' if isinstance(error, WriterError) else 'ValueError'}"]
    assert writer.grade is Grade.NIL_REDO


# -- what keeps an application from being asked


def test_a_writer_that_need_not_be_asked_is_not():
    """Broken: an application on a frozen filesystem would cost its whole time-out."""
    writer = Sample()
    writer.identify(problem="nobody can write to /srv")
    assert (writer.calls, writer.reason, writer.grade) == ([], "nobody can write to /srv", Grade.REFUSED)


def test_the_time_for_all_writers_limits_each():
    """Broken: seven that hang would take longer than the host waits, and the host get no answer at all."""
    deadlines: list[int] = []
    until_ns = time.monotonic_ns() + 10**9
    writer = Sample(identify=deadlines.append)
    writer.identify(until_ns)
    assert deadlines == [until_ns]
    writer.identify(time.monotonic_ns() - 1)
    assert (len(deadlines), writer.outcome) == (1, Outcome.TIMEOUT)


@pytest.mark.parametrize("error", [ValueError("no such variable"), WriterError("no")])
def test_where_its_files_are_may_not_be_known_yet(error, monkeypatch):
    """Broken: an attempt would end in an error of Python's because one application did not answer."""
    writer = Sample()

    def paths() -> list[str]:
        raise error

    monkeypatch.setattr(writer, "paths", paths)
    with pytest.raises(OSError, match="no"):
        writer.where()
