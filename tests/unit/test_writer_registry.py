"""agent/writers/registry.py: in which order the applications of a machine come, and what went wrong with each the last time."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent import memory
from quiesce.agent.writers import declared, registry, scripts, unaccounted
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.unaccounted import Unaccounted
from quiesce.model.reports import OpenFiles, Outcome
from tests.unit.sample_writer import Sample, attempt


@pytest.fixture
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other writers than those given, and a memory of its own."""
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(registry, "BUILT_IN", ())
    monkeypatch.setattr(declared, "DIRECTORY", str(tmp_path / "writers.d"))
    monkeypatch.setattr(scripts, "discover", lambda **_: [])
    monkeypatch.setattr(unaccounted, "discover", lambda _: [])


def test_the_last_error_is_shown_until_it_goes_right_again(nothing_else):
    """Broken: `quiesce writers` could not say why last night's checkpoint failed; or would say it for ever."""
    first, other = Sample(hold=WriterError("too busy", Outcome.TIMEOUT)), Sample("other")
    attempt(first)
    attempt(other)
    registry.remember([first, other])
    assert (first.remembered, other.remembered) == (1, 1)

    second, other = registry.discover([Sample(), Sample("other")])
    second.identify()
    assert second.report().last_error == "hold: timeout: too busy"
    assert other.report().last_error is None
    assert attempt(second).last_error is None
    registry.remember([second])
    [third] = registry.discover([Sample()])
    assert third.report().last_error is None


def test_the_errors_of_others_are_kept(nothing_else):
    """Broken: an application that is down for a moment would lose its history."""
    writer = Sample("a", prepare=WriterError("no"))
    attempt(writer)
    registry.remember([writer])
    registry.remember([Sample("b")])
    assert [found.last_error for found in registry.discover([Sample("a"), Sample("b")])] == ["prepare: retryable: no", None]


def test_scripts_come_first_then_the_built_in_then_programs(nothing_else, monkeypatch):
    """Broken: docs/writers.md promises this order within a level; and a platform's own scripts would run twice."""
    asked: list[str] = []
    monkeypatch.setattr(scripts, "discover", lambda *, without: asked.append(without) or [Sample("script")])
    monkeypatch.setattr(registry, "BUILT_IN", ("one", "two"))
    monkeypatch.setattr(
        registry.importlib,
        "import_module",
        lambda name: type("Module", (), {"discover": lambda: [Sample(name.rpartition(".")[2])]}),
    )
    found = registry.discover([Sample("program")], without="vmware")
    assert [writer.id for writer in found] == ["script", "one", "two", "program"]
    assert asked == ["vmware"]


def test_what_nobody_accounts_for_comes_last_and_its_errors_are_not_kept(nothing_else, monkeypatch):
    """Broken: a program that is a writer would be listed once more as unknown; or fill the agent's memory."""
    asked: list[list[str]] = []

    def left_over(found: list[Sample]) -> list[Unaccounted]:
        asked.append([writer.id for writer in found])
        return [Unaccounted("unaccounted:/srv/x", OpenFiles("/srv/x", "", ("/srv/a",), 1, kept=True))]

    monkeypatch.setattr(unaccounted, "discover", left_over)
    found = registry.discover([Sample("program")])
    assert asked == [["program"]]
    assert [writer.id for writer in found] == ["program", "unaccounted:/srv/x"]
    for writer in found:
        writer.identify()
    assert found[1].report().last_error is not None
    registry.remember(found)
    assert [writer.last_error for writer in registry.discover([Sample("program")])] == [None, None]
