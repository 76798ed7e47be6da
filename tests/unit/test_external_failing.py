"""agent/writers/external.py: programs that die, stand still or are late, and conversations that are killed. All are real."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for, within
from quiesce.agent.programs import Programs
from quiesce.agent.writers import external
from quiesce.agent.writers.base import WriterError
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from tests.unit.external_programs import Answers, attempt, only, program, respond, soon
from tests.unit.fake_programs import SHOP, attend, join, listening, named


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


BRIEFLY_S = 0.15


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "LET_GO_TIMEOUT_S", BRIEFLY_S)
    monkeypatch.setattr(external, "POST_CHECKPOINT_TIMEOUT_S", BRIEFLY_S)


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
