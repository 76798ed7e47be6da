"""agent/writers/external.py: real sockets, and real processes where one dies or stands still."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.standstill import wait_for, within
from quiesce.agent.programs import Programs
from quiesce.agent.writers import external
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from quiesce.model.reports import WriterReport as Reported
from quiesce.wire import framing
from quiesce.wire.schema import from_wire, to_wire
from tests.strategies import JSON, NASTY, almost, examples
from tests.unit.fake_programs import SHOP, Peer, attend, join, listening, named

STABLE = {"outcome": "stable"}
Answers = dict[str, Any]
"""By request: fields of the answer, bytes to be sent instead, or something to be done instead."""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


BRIEFLY_S = 0.15


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "LET_GO_TIMEOUT_S", BRIEFLY_S)
    monkeypatch.setattr(external, "POST_CHECKPOINT_TIMEOUT_S", BRIEFLY_S)


def respond(peer: Peer, answers: Answers, heard: list[Any]) -> None:
    """As a program does, until the end of the connection."""
    while request := peer.hear():
        heard.append(request)
        answer = answers.get(request["do"], STABLE)
        if callable(answer):
            answer()
        else:
            peer.say(answer if isinstance(answer, bytes) else {"id": request["id"], **answer})
    heard.append("the end")


@contextlib.contextmanager
def program(agent: Programs, answers: Answers, registration: dict[str, Any] = SHOP) -> Iterator[list[Any]]:
    """A program in a thread. Gives what it hears, without its registration's answer."""
    peer, heard = join(agent, registration), []
    assert "registered" in peer.hear()
    thread = threading.Thread(target=respond, args=(peer, answers, heard))
    thread.start()
    try:
        yield heard
    finally:
        agent.close_all()
        thread.join(5)
        peer.close()


@contextlib.contextmanager
def process(agent: Programs, answers: Answers, registration: dict[str, Any]) -> Iterator[int]:
    """A program in a process of its own."""
    peer = join(agent, registration)
    assert "registered" in peer.hear()
    child = os.fork()
    if child == 0:
        os.closerange(3, peer.socket.fileno())  # it has nothing but its own end
        os.closerange(peer.socket.fileno() + 1, 1000)
        respond(peer, answers, [])
        os._exit(0)
    peer.close()
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def only(agent: Programs) -> ApplicationWriter:
    [writer] = external.program_writers(agent)
    return writer


def soon(seconds: float = 5) -> int:
    return deadline_in_ns(seconds)


def attempt(writer: ApplicationWriter, kept: bool = True, seconds: float = 5) -> Reported:
    """From prepare to the end, as an attempt that does not insist has it."""
    writer.prepare(soon(seconds), 10_000)
    with contextlib.suppress(WriterError):
        writer.hold(soon(seconds))
    writer.release()
    writer.post_checkpoint(kept)
    writer.abort()
    return writer.report()


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


def test_one_that_dies_while_held_spoils_itself_alone(agent):
    """Broken: one application's death would leave others held, or pass for a hold."""
    with process(agent, {}, SHOP) as dying, process(agent, {}, named("other")):
        shop, other = sorted(external.program_writers(agent), key=lambda writer: writer.id == "external:other")
        for writer in (shop, other):
            writer.prepare(soon(), 10_000)
        for writer in (shop, other):
            writer.hold(soon())
        os.kill(dying, signal.SIGKILL)
        for writer in (other, shop):
            writer.release()
        assert (shop.grade, shop.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
        assert "connection ended" in str(shop.reason)
        assert (other.grade, other.outcome) == (Grade.HELD, Outcome.STABLE)
        assert shop.report().warnings == ()  # it has let go: by dying


@pytest.mark.parametrize("phase", ["identify", "prepare", "hold", "release", "post-checkpoint", "abort"])
def test_one_that_does_not_answer_is_given_up_in_time(agent, phase, impatient):
    """Broken: one hung program would hang every checkpoint, keep the others held, or go on holding itself."""
    answers: Answers = {phase: lambda: None}
    if phase == "abort":
        answers["hold"] = {"outcome": "retryable"}
    with program(agent, answers) as heard:
        with within(2):
            writer = only(agent)
            report = attempt(writer, seconds=BRIEFLY_S)
        wait_for(lambda: "the end" in heard, 5)
        assert [request["do"] for request in heard[:-1]][-1] == phase  # nothing more was asked
        attend(agent)
        assert [missing.id for missing in agent.missing()] == ["external:shop"]
    if phase in ("post-checkpoint", "abort"):
        assert any("in time" in warning for warning in report.warnings)
    else:
        assert (report.outcome, report.grade.vouched) == (Outcome.TIMEOUT, False)


def test_one_that_stands_still_is_given_up_in_time(agent):
    """Broken: a program that somebody stopped would hang every checkpoint."""
    with process(agent, {}, SHOP) as stopped:
        writer = only(agent)
        writer.prepare(soon(), 10_000)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(WriterError, match="in time"):
            writer.hold(soon(BRIEFLY_S))
        assert writer.report().outcome is Outcome.TIMEOUT


def test_a_programs_own_limit_bounds_its_hold(agent):
    """Broken: one slow program would use up the window of all."""
    with program(agent, {"hold": lambda: None}, {**SHOP, "hold_timeout_ms": 50}) as heard:
        writer = only(agent)
        writer.prepare(soon(), 10_000)
        with within(3), pytest.raises(WriterError):
            writer.hold(soon(5))
        assert 0 < heard[2]["timeout_ms"] <= 50


def test_when_no_time_is_left_it_is_not_asked(agent):
    """Broken: a healthy program would be hung up on because another one was slow."""
    with program(agent, {}) as heard:
        writer = only(agent)
        writer.prepare(soon(-1), 10_000)
        assert writer.report().outcome is Outcome.TIMEOUT
        assert heard == []
        assert agent.connected()[0].open


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


def test_a_missing_program_is_a_crash_image_through_all_steps(agent):
    """Broken: an application whose program hung or crashed would not be in the label at all."""
    join(agent, SHOP).close()
    attend(agent)
    report = attempt(only(agent))
    assert (report.id, report.grade, report.outcome) == ("external:shop", Grade.CRASH, Outcome.RETRYABLE)
    assert "without taking leave" in str(report.reason)
    assert (report.level, report.data_directory) == (Level.FRONT_END, "/srv/shop")


# Whoever answers is a thread of this process; Python 3.12 warns of that at every fork.
threads_too = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def in_conversation(work: Callable[[], None]) -> int:
    """Runs `work` in a child, which is killed if it does not end. Returns its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@threads_too
def test_a_forked_conversation_asks_and_the_service_goes_on(agent):
    """Broken: what a conversation leaves behind would confuse the next, or the service."""
    with program(agent, {}) as heard:
        for _ in range(2):
            assert in_conversation(lambda: attempt(only(agent))) == 0
            attend(agent)
            assert [program.open for program in agent.connected()] == [True]
        assert [request["id"] for request in heard] == [1, 2, 3, 4, 5] * 2


@threads_too
def test_a_conversation_killed_in_the_window_ends_the_hold(agent):
    """Broken: the dead-man kills a conversation that hangs, and the programs it held would not hear of it."""

    def die_holding() -> None:
        writer = only(agent)
        writer.prepare(soon(), 10_000)
        writer.hold(soon())
        os.kill(os.getpid(), signal.SIGKILL)

    with program(agent, {}) as heard:
        assert os.WIFSIGNALED(in_conversation(die_holding))
        assert heard[-1]["do"] == "hold"
        agent.close_all()
        wait_for(lambda: heard[-1] == "the end", 5)
