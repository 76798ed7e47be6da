"""agent/writers/unsupported.py"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quiesce.agent.writers import unsupported
from quiesce.model.grades import Grade, Level


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own."""

    def moved(path: str) -> Path:
        assert path.startswith("/proc")
        return tmp_path / path[1:]

    def open_moved(path: str, *arguments: Any, **options: Any) -> Any:
        return moved(path).open(*arguments, **options)

    monkeypatch.setattr(
        unsupported, "os", SimpleNamespace(listdir=lambda path: [entry.name for entry in moved(path).iterdir()])
    )
    monkeypatch.setattr(unsupported, "open", open_moved, raising=False)
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def run(proc: Path, *names: str) -> None:
    for number, name in enumerate(names, start=1):
        (proc / str(number)).mkdir()
        (proc / str(number) / "comm").write_text(name + "\n")


def test_each_known_server_that_runs_is_named_once(proc):
    """Broken: a label would pass over a database in silence, or name each of its processes."""
    run(proc, "systemd", "mysqld", "mysqld", "bash", "redis-server")
    found = [writer.identify() for writer in unsupported.discover()]
    assert [(writer.id, writer.application) for writer in found] == [("mysqld", "MySQL"), ("redis-server", "Redis")]


def test_where_none_runs_there_is_none(proc):
    """Broken: every guest's label would be spoilt."""
    run(proc, "systemd", "mysqld_safe", "notetcd")
    assert unsupported.discover() == []


def test_what_is_no_process_or_just_ended_is_passed_over(proc):
    """Broken: a process that ends while it is looked at would end the checkpoint."""
    run(proc, "etcd")
    (proc / "77").mkdir()
    (proc / "self").mkdir()
    (proc / "uptime").write_text("1 1\n")
    assert [writer.identify().id for writer in unsupported.discover()] == ["etcd"]


@pytest.mark.parametrize("name", sorted(unsupported.KNOWN))
def test_a_known_server_is_known_by_the_name_the_kernel_gives(name, proc):
    """Broken: a name longer than the kernel's 15 characters would never be found."""
    run(proc, name)
    assert len(name.encode()) <= 15
    assert [writer.identify().id for writer in unsupported.discover()] == [name]


def test_it_is_a_crash_image_through_all_steps():
    """Broken: an application that nobody holds would earn a better grade by going through the motions."""
    writer = unsupported.Unsupported("mongod")
    for step in (lambda: writer.prepare(0, 0), lambda: writer.hold(0), writer.release, lambda: writer.forgo("no")):
        step()
        found = writer.identify()
        assert (found.grade, found.level) == (Grade.CRASH, Level.BACK_END)
        assert "MongoDB" in str(found.reason)
    writer.abort()
    writer.abort()
    writer.remember()
    assert writer.paths() == []


def test_a_process_name_cut_in_the_middle_of_a_character(proc: Path) -> None:
    """Any process could keep the whole guest from being checkpointed by its name alone."""
    (proc / "1").mkdir()
    (proc / "1" / "comm").write_bytes("中中中中中中".encode()[:14] + b"\n")
    assert unsupported.discover() == []
