"""agent/writers/stopped.py, with a script in place of systemctl."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent import systemd
from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.stopped import StoppedService
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_systemd import Systemctl
from tests.unit.sample_writer import Observer

UNIT = "shop.service"
STOP, START = f"stop {UNIT}", f"start --no-block {UNIT}"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    made = Systemctl(tmp_path)
    made.can_be_stopped(UNIT)
    monkeypatch.setattr(systemd, "SYSTEMCTL", made.path)
    return made


def prepared() -> StoppedService:
    writer = StoppedService("rabbitmq:shop.service", UNIT, "rabbitmq")
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(10), 1000)
    return writer


def held() -> StoppedService:
    writer = prepared()
    writer.hold(deadline_in_ns(10))
    return writer


def test_it_is_stopped_and_started_again(systemctl):
    """Broken: a service that cannot hold could have no clean checkpoint, or would stay down."""
    writer = held()
    assert systemctl.calls == [STOP]
    assert systemd.properties_of(UNIT)["ActiveState"] == "inactive"
    writer.release()
    writer.abort()
    assert systemctl.calls == [STOP, START]
    assert (writer.grade, writer.outcome, writer.application) == (Grade.CLEAN, Outcome.STABLE, "rabbitmq")
    assert writer.undo() == Undo(command=(systemctl.path, "start", "--no-block", UNIT))


def test_the_attempt_is_told_of_the_commands_that_stop_and_start_it(systemctl):
    """Broken: a stop under way would outlive a killed agent, and take the service down after the dead-man had started it."""
    writer = prepared()
    writer.command_observer = observer = Observer()
    writer.hold(deadline_in_ns(10))
    assert observer.commands() == 1
    writer.release()
    assert observer.commands() == 2


def test_an_attempt_that_ends_early_starts_it(systemctl):
    """Broken: a checkpoint that failed would leave a service down."""
    writer = held()
    writer.abort()
    writer.abort()
    assert systemctl.calls == [STOP, START]


@pytest.mark.parametrize(
    ("properties", "says"),
    [({"ActiveState": "inactive"}, "is not running: it is inactive"), ({"LoadState": "not-found"}, "there is no unit")],
)
def test_one_that_does_not_run_is_neither_stopped_nor_started(properties, says, systemctl):
    """Broken: a checkpoint would start a service that its administrator had stopped."""
    systemctl.has(UNIT, **properties)
    writer = prepared()
    assert says in str(writer.reason)
    assert writer.grade is Grade.REFUSED
    writer.hold(deadline_in_ns(10))
    writer.release()
    writer.abort()
    assert systemctl.calls == []


def test_one_that_did_not_end_in_good_order_is_a_crash_image_and_started(systemctl):
    """Broken: a service that was killed for not stopping would be called clean."""
    systemctl.has(UNIT, "stop", ActiveState="failed")
    writer = prepared()
    with pytest.raises(WriterError, match="did not shut down cleanly: it is failed"):
        writer.hold(deadline_in_ns(10))
    assert writer.grade is Grade.CRASH
    assert systemctl.calls == [STOP, START]


def test_one_that_was_started_in_the_window_is_not_vouched_for(systemctl):
    """Broken: a service that its socket woke would have written, and be called shut down."""
    writer = held()
    systemctl.has(UNIT)
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert writer.reason == f"{UNIT} was started during the window: it is active"


def test_one_that_cannot_be_started_is_left_to_the_dead_man(systemctl):
    """Broken: it would stay down, and nobody would know."""
    writer = held()
    (systemctl.directory / "start" / "fails").touch()
    writer.release()
    assert not writer.let_go
    assert "ended with 1" in writer.warnings[0]
    (systemctl.directory / "start" / "fails").unlink()
    writer.abort()
    assert writer.let_go
    assert systemctl.calls == [STOP, *[START] * 3]


def test_a_systemctl_that_cannot_tell_does_not_keep_it_down(systemctl):
    """Broken: a service would stay down because its state could not be asked after."""
    writer = held()
    systemctl.fails("Connection timed out")
    writer.release()
    assert (writer.outcome, writer.let_go) == (Outcome.INCONSISTENT, False)
    (systemctl.directory / "fails").unlink()
    writer.abort()
    assert systemctl.calls[-1] == START
