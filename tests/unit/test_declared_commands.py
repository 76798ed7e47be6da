"""agent/writers/declared.py: real commands of an administrator that prepare, hold and release an application."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.declared import Commands
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.declared_machine import WRITER, Machine, make_machine, only, prepared
from tests.unit.sample_writer import Observer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are heeded")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


def commands_file(machine: Machine, more: str = "", **then: str) -> ApplicationWriter:
    text = WRITER
    for name in ("Prepare", "Hold", "Release", "Position"):
        text += f'{name}={machine.command(name.lower(), then.get(name.lower(), ""))} "an argument"\n'
    machine.file(text + more)
    writer = only()
    assert isinstance(writer, Commands)
    return writer


def test_commands_are_run_in_their_phases(machine):
    """Broken: an application that its administrator knows how to hold would not be held, or never released."""
    note = f"echo $QUIESCE_WINDOW_MS >>{machine.directory}/window; "
    writer = commands_file(machine, "Paths=/srv/a /srv/b\n", prepare=note, position="echo 42; echo more")
    prepared(writer)
    assert machine.order() == ["position an argument", "prepare an argument"]
    assert (machine.directory / "window").read_text() == "700\n"
    writer.hold(deadline_in_ns(5))
    assert machine.order() == ["hold an argument", "position an argument"]
    writer.release()
    writer.abort()
    assert machine.order() == ["release an argument"]
    assert (writer.grade, writer.position) == (Grade.HELD, {"position": "42\nmore"})
    assert writer.paths() == ["/srv/a", "/srv/b"]
    assert writer.undo() == Undo(command=(str(machine.directory / "release"), "an argument"))


def test_the_attempt_is_told_of_every_command_that_runs(machine):
    """Broken: what a command started would outlive a killed agent, and hold what the dead-man had released."""
    writer = commands_file(machine)
    writer.command_observer = observer = Observer()
    prepared(writer)
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert observer.commands() == len(machine.order()) == 5


def test_prepare_and_position_need_not_be(machine):
    """Broken: the shortest file of docs/writers.md would be refused."""
    machine.file(f"{WRITER}Hold={machine.command('hold')}\nRelease={machine.command('release')}\n")
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert machine.order() == ["hold", "release"]
    assert (writer.grade, writer.position) == (Grade.HELD, {})


@pytest.mark.parametrize("which", ["hold", "position"])
def test_a_hold_that_fails_is_released(which, machine):
    """Broken: half of a hold would stay."""
    writer = commands_file(machine)
    prepared(writer)
    machine.order()
    machine.command(which, "echo 'no database' >&2; exit 4")
    with pytest.raises(WriterError, match="ended with 4: no database"):
        writer.hold(deadline_in_ns(5))
    assert machine.order()[-1] == "release an argument"
    assert (writer.grade, writer.let_go) == (Grade.CRASH, True)


def test_a_hold_that_takes_too_long_is_killed_and_released(machine):
    """Broken: one application would use up everybody's window."""
    writer = commands_file(machine, "HoldTimeoutSec=0.1\n", hold="sleep 60")
    prepared(writer)
    with pytest.raises(WriterError) as raised:
        writer.hold(deadline_in_ns(5))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert machine.order()[-1] == "release an argument"


def test_a_release_that_fails_is_tried_again_and_then_left_to_the_dead_man(machine):
    """Broken: an application would stay held, and its checkpoint be called good."""
    writer = commands_file(machine, release="exit 1")
    prepared(writer)
    writer.hold(deadline_in_ns(5))
    machine.order()
    writer.release()
    assert (writer.grade, writer.outcome, writer.let_go) == (Grade.CRASH, Outcome.INCONSISTENT, False)
    assert machine.order() == ["release an argument"] * 2
    machine.command("release")
    writer.abort()
    assert writer.let_go


@pytest.mark.parametrize("which", ["prepare", "hold", "release", "position"])
def test_a_command_that_others_can_write_is_never_run(which, machine):
    """Broken: whoever can write it would be root."""
    writer = commands_file(machine)
    (machine.directory / which).chmod(0o777)
    prepared(writer)
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert machine.order() == []
    writer.hold(deadline_in_ns(5))
    writer.abort()
    assert machine.order() == []


def test_a_prepare_that_fails_is_said_before_anything_waits(machine):
    """Broken: the application would be held unprepared."""
    writer = commands_file(machine, prepare="exit 1")
    prepared(writer)
    assert writer.grade is Grade.REFUSED
    writer.hold(deadline_in_ns(5))
    assert "hold an argument" not in machine.order()
