"""agent/writers/unsupported.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quiesce.agent import processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import unsupported
from quiesce.model.grades import Grade, Level


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has processes of these names run, and no others."""

    def only(*names: str) -> None:
        found = [Process(pid, name, 0, container=False) for pid, name in enumerate(names, 1)]
        monkeypatch.setattr(processes, "running", lambda: iter(found))

    return only


def test_each_known_server_that_runs_is_named_once(run):
    """Broken: a label would pass over a database in silence, or name each of its processes."""
    run("systemd", "mongod", "mongod", "bash", "etcd")
    found = [writer.report() for writer in unsupported.discover()]
    assert [(writer.id, writer.application) for writer in found] == [("etcd", "etcd"), ("mongod", "MongoDB")]


def test_where_none_runs_there_is_none(run):
    """Broken: every guest's label would be spoilt."""
    run("systemd", "mysqld_safe", "notetcd")
    assert unsupported.discover() == []


@pytest.mark.parametrize("name", sorted(unsupported.KNOWN))
def test_a_known_server_is_known_by_the_name_the_kernel_gives(name, run):
    """Broken: a name longer than the kernel's 15 characters would never be found."""
    run(name)
    assert len(name.encode()) <= 15
    assert [writer.id for writer in unsupported.discover()] == [name]


def test_it_is_a_crash_image_through_all_steps():
    """Broken: an application that nobody holds would earn a better grade by going through the motions."""
    writer = unsupported.Unsupported("mongod")
    for step in (lambda: writer.prepare(0, 0), lambda: writer.hold(0), writer.release, lambda: writer.forgo("no")):
        step()
        found = writer.report()
        assert (found.grade, found.level) == (Grade.CRASH, Level.BACK_END)
        assert "MongoDB" in str(found.reason)
    writer.abort()
    writer.abort()
    writer.remember()
    assert writer.paths() == []
