"""testing/writer.py: the real thing in a process of its own, asked by the agent's side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for
from quiesce.agent.programs import Programs
from quiesce.agent.writers import external
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome
from quiesce.model.reports import WriterReport as Reported
from quiesce.testing import writer as module
from tests.unit.fake_programs import attend, ids, listening

SOURCES = Path(module.__file__).parents[2]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Programs]:
    with listening(tmp_path) as found:
        yield found


@contextlib.contextmanager
def started(agent: Programs, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A test writer that is registered."""
    command = [sys.executable, "-W", "error", "-m", "quiesce.testing.writer", "--socket", agent._listener.getsockname()]
    before = len(agent.connected())
    with subprocess.Popen(
        [*command, *options], env={**os.environ, "PYTHONPATH": str(SOURCES)}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for(lambda: attend(agent) or len(agent.connected()) > before)
            yield process
        finally:
            process.kill()


def attempt(writer: ApplicationWriter, between: Callable[[], None] = lambda: None, hold_s: float = 5) -> Reported:
    writer.prepare(deadline_in_ns(5), 10_000)
    with contextlib.suppress(WriterError):
        writer.hold(deadline_in_ns(hold_s))
        between()
    writer.release()
    writer.post_checkpoint(True)
    writer.abort()
    return writer.report()


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def number(data: Path) -> int:
    return int(data.read_text() or 0)


def test_what_it_holds_stands_still_at_its_position(agent, tmp_path):
    """Broken: a requester's own test could not tell a hold from none."""
    log, data = tmp_path / "log", tmp_path / "counter"
    seen = []

    def look() -> None:
        seen.append(number(data))
        time.sleep(0.1)
        seen.append(number(data))

    with started(agent, "--name", "one", "--level", "front-end", "--log", str(log), "--data", str(data)):
        wait_for(lambda: data.exists() and number(data))
        [writer] = external.program_writers(agent)
        report = attempt(writer, look)
        wait_for(lambda: number(data) > seen[-1])
    assert (report.id, report.level, report.grade) == ("external:one", Level.FRONT_END, Grade.HELD)
    assert report.data_directory == str(tmp_path)
    assert [str(value) for value in seen] == [report.position["sequence"]] * 2
    assert [call["phase"] for call in calls(log)] == ["identify", "prepare", "hold", "release", "post-checkpoint"]
    assert [call["monotonic_ns"] for call in calls(log)] == sorted(call["monotonic_ns"] for call in calls(log))
    assert {call["writer"] for call in calls(log)} == {"one"}


def test_started_again_it_counts_on(agent, tmp_path):
    """Broken: after a restore the number would say nothing about what was restored."""
    data = tmp_path / "counter"
    data.write_text("00000000000000001000\n")
    with started(agent, "--data", str(data)):
        wait_for(lambda: number(data) > 1000)


def test_a_lie_goes_on_writing(agent, tmp_path):
    """Broken: nobody could test that a checkpoint of a program that lies is found out."""
    data = tmp_path / "counter"
    seen = []
    with started(agent, "--lie", "hold", "--data", str(data)):
        [writer] = external.program_writers(agent)
        report = attempt(writer, lambda: wait_for(lambda: seen.append(number(data)) or seen[-1] > seen[0] + 1))
    assert report.grade is Grade.HELD  # the agent cannot know
    assert seen[-1] > int(report.position["sequence"])


@pytest.mark.parametrize(
    ("options", "outcome", "reason"),
    [
        (["--fail", "hold"], Outcome.RETRYABLE, "told to fail at hold"),
        (["--fail", "prepare", "--outcome", "out-of-resources"], Outcome.OUT_OF_RESOURCES, "told to fail at prepare"),
        (["--fail", "release", "--outcome", "inconsistent"], Outcome.INCONSISTENT, "told to fail at release"),
        (["--hang", "hold"], Outcome.TIMEOUT, "did not answer 'hold' in time"),
        (["--delay", "hold=400"], Outcome.TIMEOUT, "did not answer 'hold' in time"),
        (["--die", "hold"], Outcome.RETRYABLE, "connection ended at 'hold'"),
        (["--die", "release"], Outcome.INCONSISTENT, "connection ended at 'release'"),
        (["--disconnect", "hold"], Outcome.RETRYABLE, "connection ended at 'hold'"),
    ],
)
def test_it_misbehaves_as_told(agent, options, outcome, reason):
    """Broken: what a requester does with a writer that misbehaves could not be tested."""
    with started(agent, *options) as process:
        [writer] = external.program_writers(agent)
        report = attempt(writer, hold_s=0.2 if outcome is Outcome.TIMEOUT else 5)
        assert report.outcome is outcome
        assert not report.grade.vouched
        assert reason in str(report.reason)
        if "--die" in options:
            assert process.wait(5) == -signal.SIGKILL
        else:
            assert process.poll() is None


def test_hung_up_it_lets_go_and_comes_back(agent, tmp_path):
    """Broken: a program would stay held when the agent's conversation is killed, or be lost to the next."""
    log = tmp_path / "log"
    with started(agent, "--log", str(log)):
        [writer] = external.program_writers(agent)
        writer.prepare(deadline_in_ns(5), 10_000)
        writer.hold(deadline_in_ns(5))
        agent.close_all()
        wait_for(lambda: attend(agent) or agent.connected())
        assert [call["phase"] for call in calls(log)][-2:] == ["release", "post-checkpoint"]
        assert calls(log)[-1]["kept"] is False


def test_stopped_on_purpose_it_takes_leave(agent):
    """Broken: each test of a requester would leave a missing writer behind."""
    with started(agent) as process:
        process.terminate()
        assert process.wait(5) == 0
        attend(agent)
        assert ids(agent) == ([], [])


@pytest.mark.parametrize("options", [["--fail", "thaw"], ["--delay", "thaw=1"], ["--delay", "hold=soon"], ["--level", "top"]])
def test_a_mistake_on_the_command_line_is_said(options, capsys):
    """Broken: a test of a requester would pass because the writer did not misbehave."""
    with pytest.raises(SystemExit):
        module.parse(options)
    assert options[0] in capsys.readouterr().err
