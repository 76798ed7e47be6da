"""agent/writers/sqlite.py: the service stands still while its files are held. Only the control group is played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.standstill import within
from quiesce.agent import systemd
from quiesce.agent.cgroups import CgroupError
from quiesce.agent.systemd import UnitError
from quiesce.agent.undos import Undo
from quiesce.agent.writers import sqlite
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.sqlite_files import UNIT, Other, database, holding, others, preparing


@pytest.fixture
def other() -> Iterator[Callable[..., Other]]:
    with others() as start:
        yield start


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return database(tmp_path / "shop.db")


class Group:
    """A control group. `then`: what the service does when it is let go."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.frozen = False
        self.then: Callable[[], object] | None = None
        self.error: Exception | None = None

    def open(self) -> None:
        self.story.append("open")

    @property
    def undo(self) -> Undo:
        return Undo(5, b"0")

    def freeze(self, _deadline_ns: int) -> None:
        if self.error:
            raise self.error
        self.story.append("freeze")
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            self.story.append("thaw")
            self.frozen = False
            if self.then:
                self.then()

    def close(self) -> None:
        self.story.append("close")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The service's, which can be frozen."""
    made = Group()
    monkeypatch.setattr(systemd, "freezable_cgroup", lambda unit: f"/system.slice/{unit}")
    monkeypatch.setattr(sqlite, "Cgroup", lambda path: made if path == f"/system.slice/{UNIT}" else None)
    return made


def test_the_service_is_frozen_for_the_hold_and_let_go_by_the_release(file, group):
    """Broken: a service would be told that its file is locked; or stand still for ever."""
    with holding(file, freezing=True) as writer:
        assert (writer.guarded, writer.undo(), writer.warnings) == (True, Undo(5, b"0"), [])
        assert group.story == ["open", "freeze", "open"]
        writer.release()
        assert group.story[-1] == "thaw"
        assert writer.grade is Grade.CLEAN
    assert group.story[-1] == "close"


def test_a_service_that_stands_in_a_transaction_is_let_go_until_it_does_not(file, group, other):
    """Broken: it could never end its transaction, and every attempt would fail."""
    service = other(file)
    service.say("BEGIN IMMEDIATE", "INSERT INTO t VALUES (2)")
    tries: list[str] = []

    def go_on() -> None:
        tries.append(service.say("COMMIT") if len(tries) == 2 else "writes")

    group.then = go_on
    with preparing(file, freezing=True) as writer:
        with within(1):
            writer.hold(deadline_in_ns(5))
        assert tries == ["writes", "writes", "[]"]
        assert group.story == ["open", *["freeze", "thaw"] * 3, "freeze"]
        writer.release()
        assert writer.grade is Grade.CLEAN


def test_one_that_cannot_be_held_runs_again(file, group, other):
    """Broken: a failed attempt would leave the service standing still."""
    other(file).say("BEGIN IMMEDIATE")
    with preparing(file, freezing=True) as writer:
        with pytest.raises(WriterError, match="a transaction keeps it locked"):
            writer.hold(deadline_in_ns(0.4))
        assert not group.frozen
        assert "freeze" in group.story
        assert group.story[-2:] == ["thaw", "close"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(CgroupError("it is frozen already"), Outcome.RETRYABLE), (TimeoutError("too slow"), Outcome.TIMEOUT)],
)
def test_a_service_that_cannot_be_frozen_in_the_window_is_not_held(error, outcome, file, group, other):
    """Broken: it would be told that its file is locked, which it was promised not to be."""
    group.error = error
    with preparing(file, freezing=True) as writer:
        with pytest.raises(WriterError) as raised:
            writer.hold(deadline_in_ns(1))
        assert raised.value.outcome is outcome
    assert other(file).say("INSERT INTO t VALUES (2)") == "[]"


def test_a_service_that_must_not_be_frozen_is_held_by_its_locks_alone_with_a_warning(file, group, monkeypatch, other):
    """Broken: systemd would kill a service with a watchdog; or clients see errors that nobody spoke of."""

    def refuse(unit: str) -> str:
        raise UnitError(f"{unit} has a watchdog")

    monkeypatch.setattr(systemd, "freezable_cgroup", refuse)
    service = other(file)
    with holding(file, freezing=True) as writer:
        assert not writer.guarded
        assert writer.warnings == [f"its writers may be told that the file is busy during the hold: {UNIT} has a watchdog"]
        assert service.say("INSERT INTO t VALUES (2)") == "database is locked"
        writer.release()
        assert writer.grade is Grade.CLEAN
    assert group.story == []
