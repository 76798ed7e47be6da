"""agent/writers/external.py: what a program is asked, and what its answers are worth. The sockets are real."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent.programs import Programs
from quiesce.agent.writers import external
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from quiesce.model.reports import WriterReport as Reported
from quiesce.wire import framing
from quiesce.wire.schema import from_wire, to_wire
from tests.strategies import JSON, NASTY, almost, examples
from tests.unit.external_programs import STABLE, attempt, only, program, soon
from tests.unit.fake_programs import SHOP, attend, join, listening


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


def test_a_good_attempt_from_first_to_last(agent):
    """Broken: programs would be asked in another order than they were promised, or told less."""
    answers = {
        "identify": {"outcome": "stable", "grade": "clean", "position": {"order": "1"}},
        "hold": {"outcome": "stable", "grade": "clean", "position": {"order": "42"}, "warnings": ["the queue is long"]},
        "release": {"outcome": "stable", "position": {"order": "43"}},
    }
    with program(agent, answers) as heard:
        report = attempt(only(agent))
        hold = heard[2]
        assert [(request["id"], request["do"]) for request in heard] == [
            (1, "identify"),
            (2, "prepare"),
            (3, "hold"),
            (4, "release"),
            (5, "post-checkpoint"),
        ]
        assert heard[1]["window_ms"] == 10_000
        assert 1000 < hold["timeout_ms"] <= 5000
        assert heard[4]["kept"] is True
    assert (report.id, report.application, report.version) == ("external:shop", "web shop", "3.2")
    assert (report.level, report.data_directory) == (Level.FRONT_END, "/srv/shop")
    assert (report.grade, report.outcome, report.last_error) == (Grade.CLEAN, Outcome.STABLE, None)
    assert report.position == {"order": "42"}
    assert report.warnings == ("the queue is long",)
    assert report.timings_us["hold"] > 0


def test_requests_look_as_a_shell_expects_them(agent):
    """Broken: writers in shell tell requests apart by these bytes; docs/write-a-writer.md promises them."""
    with contextlib.closing(join(agent, SHOP)) as peer:
        peer.hear()
        peer.say({"id": 1, **STABLE}, {"id": 2, **STABLE})
        only(agent).prepare(soon(), 10_000)
        assert peer.lines.readline() == b'{"id":1,"do":"identify"}\n'


def test_a_look_is_all_that_identify_is(agent):
    """Broken: looking at a machine's writers would disturb its applications."""
    with program(agent, {}) as heard:
        for _ in range(2):
            writer = only(agent)
            writer.identify()
            writer.abort()
            assert writer.report().grade is Grade.HELD
            assert writer.paths() == ["/srv/shop"]
        assert [request["do"] for request in heard] == ["identify", "identify"]


@pytest.mark.parametrize(
    ("held", "released", "earned"), [("clean", "nil-redo", "nil-redo"), ("held", "clean", "held"), (None, None, "held")]
)
def test_the_release_can_lower_a_grade_and_never_raise_it(agent, held, released, earned):
    """Broken: an application would be called cleaner than it was when the disks were switched."""
    answers = {"hold": {"outcome": "stable", "grade": held}, "release": {"outcome": "stable", "grade": released}}
    with program(agent, answers):
        assert attempt(only(agent)).grade is Grade(earned)


def test_a_position_that_is_not_told_again_is_unknown(agent):
    """Broken: a checkpoint would be found by a position from before its hold."""
    with program(agent, {"identify": {"outcome": "stable", "position": {"order": "1"}}}):
        writer = only(agent)
        writer.identify()
        assert writer.report().position == {"order": "1"}
        assert attempt(writer).position == {}


@pytest.mark.parametrize("outcome", [outcome.value for outcome in Outcome if outcome is not Outcome.STABLE])
def test_a_hold_that_fails_is_a_crash_image_and_aborted(agent, outcome):
    """Broken: a writer's veto would be lost, or half a hold be left behind."""
    with program(agent, {"hold": {"outcome": outcome, "reason": "too busy"}}) as heard:
        report = attempt(only(agent))
        assert [request["do"] for request in heard][2:] == ["hold", "abort"]
    assert (report.grade, report.outcome, report.reason) == (Grade.CRASH, Outcome(outcome), "not held: too busy")
    assert report.last_error == f"hold: {outcome}: too busy"


def test_one_that_cannot_be_held_is_passed_over_and_still_told_the_end(agent):
    """Broken: a program that refused in prepare would be held all the same, or never learn that it can clean up."""
    answers = {"prepare": {"outcome": "non-retryable", "grade": "crash", "reason": "it is a standby"}}
    with program(agent, answers) as heard:
        report = attempt(only(agent), kept=False)
        assert [request["do"] for request in heard] == ["identify", "prepare", "post-checkpoint"]
        assert heard[-1]["kept"] is False
    assert (report.grade, report.reason, report.outcome) == (Grade.CRASH, "it is a standby", Outcome.NON_RETRYABLE)


@pytest.mark.parametrize("phase", ["identify", "prepare", "hold", "release"])
@pytest.mark.parametrize("grade", ["crash", "refused"])
def test_stable_and_not_vouched_for_is_no_success(agent, phase, grade):
    """Broken: the attempt would go on insisting on nothing, and the label be a surprise."""
    with program(agent, {phase: {"outcome": "stable", "grade": grade}}):
        report = attempt(only(agent))
    assert not report.grade.vouched
    assert report.outcome is Outcome.NON_RETRYABLE
    assert report.reason


def test_a_failure_is_worth_nothing_whatever_it_claims(agent):
    """Broken: a program that cannot be held would be called clean."""
    with program(agent, {"identify": {"outcome": "retryable", "grade": "clean", "reason": "starting"}}):
        writer = only(agent)
        writer.identify()
        assert writer.report().grade is Grade.REFUSED


def test_a_hold_that_ended_by_itself_is_a_crash_image(agent):
    """Broken: a program's own dead-man could fire in the window, and the checkpoint be called held."""
    with program(agent, {"release": {"outcome": "inconsistent", "reason": "the window was over"}}) as heard:
        report = attempt(only(agent))
        assert [request["do"] for request in heard][3:] == ["release", "abort"]
    assert (report.grade, report.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert report.reason == "the window was over"


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xfe\n",
        b"stable\n",
        b'{"id": 1}\n',
        b'{"id": 2, "outcome": "stable"}\n',
        b'{"id": 1, "outcome": "fine"}\n',
        b'{"id": 1, "outcome": "stable", "grade": "perfect"}\n',
        b'{"id": 1, "outcome": "stable", "position": {"order": 42}}\n',
        b'{"id": 1, "outcome": "stable", "colour": "red"}\n',
        b'{"id": 1, "outcome": "stable"}\n{"id": 2, "outcome": "stable"}\n',
        json.dumps({"id": 1, "outcome": "stable", "reason": "x" * external.MAX_ANSWER}).encode() + b"\n",
        b"x" * 300_000 + b"\n",
    ],
)
def test_an_answer_that_makes_no_sense_is_the_last(agent, answer):
    """Broken: the agent would take what a program did not say, or wait for it in the wrong place from then on."""
    with program(agent, {"identify": answer}) as heard:
        writer = only(agent)
        writer.identify()
        report = writer.report()
        assert (report.grade, report.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
        assert "makes no sense" in str(report.reason)
        writer.abort()
        attend(agent)
        assert [missing.id for missing in agent.missing()] == ["external:shop"]
    assert [request if isinstance(request, str) else request["do"] for request in heard] == ["identify", "the end"]


GOOD = {"id": 1, "outcome": "stable", "grade": "clean", "reason": "r", "position": {"a": "b"}, "warnings": ["w"]}


@examples(80)
@given(
    st.dictionaries(
        st.sampled_from(["identify", "prepare", "hold", "release", "abort", "post-checkpoint"]),
        st.one_of(
            almost(GOOD).map(lambda answer: json.dumps(answer).encode() + b"\n"),
            st.binary(max_size=20).filter(bytes.strip).map(lambda data: data + b"\n"),
            st.fixed_dictionaries({"outcome": st.just("stable"), "reason": NASTY, "warnings": st.lists(NASTY, max_size=20)}),
            JSON.map(lambda value: {"outcome": value}),
        ),
    )
)
def test_whatever_a_program_answers_the_host_can_read_the_report(answers):
    """Broken: one faulty program would end the conversation, or write on the administrator's terminal."""
    with tempfile.TemporaryDirectory() as directory, listening(directory) as agent, program(agent, answers):
        report = attempt(only(agent))
    again = from_wire(Reported, framing.from_line(framing.to_line(to_wire(report)).rstrip(b"\n")))
    assert again == report
    assert len(report.warnings) <= external.MAX_WARNINGS + 2  # and two of our own


def test_long_reasons_and_many_warnings_are_cut(agent):
    """Broken: sixty talkative programs would make the answer to the host too long, and no checkpoint possible."""
    answer = {"outcome": "retryable", "reason": "x" * 1000, "warnings": [f"{number:100}" for number in range(20)]}
    with program(agent, {"identify": answer}):
        writer = only(agent)
        writer.identify()
        writer.identify()
        report = writer.report()
        assert len(str(report.reason)) == external.MAX_TEXT
        assert len(report.warnings) == external.MAX_WARNINGS


def test_abort_is_asked_once_however_often_it_is_called(agent):
    """Broken: letting go twice would cost the others time; not at all, the application its writes."""
    with program(agent, {}) as heard:
        writer = only(agent)
        writer.prepare(soon(), 10_000)
        writer.hold(soon())
        writer.abort()
        writer.abort()
        assert [request["do"] for request in heard] == ["identify", "prepare", "hold", "abort"]
        assert writer.let_go


def test_forgone_before_its_hold_it_is_not_graded_as_held(agent):
    """Broken: an application on a filesystem that does not freeze would be vouched for."""
    with program(agent, {}) as heard:
        writer = only(agent)
        writer.prepare(soon(), 10_000)
        writer.forgo("its files are on tmpfs")
        with contextlib.suppress(WriterError):
            writer.hold(soon())
        writer.release()
        assert writer.report().grade is Grade.CRASH
        assert "hold" not in [request["do"] for request in heard]


def test_a_stateless_program_never_spoils_a_label(agent):
    """Broken: a front end without data that crashed would make every checkpoint a crash image."""
    with program(agent, {"hold": {"outcome": "retryable", "reason": "no"}}, {**SHOP, "stateless": True}):
        assert attempt(only(agent)).grade is Grade.CLEAN
    attend(agent)
    writer = only(agent)
    writer.identify()
    assert writer.report().grade is Grade.CLEAN
