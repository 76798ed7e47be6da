"""A machine whose administrator declares writers: files and commands are real, systemctl and control groups are played."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent import cgroups, processes, systemd
from quiesce.agent.writers import declared
from quiesce.agent.writers.base import ApplicationWriter, deadline_in_ns
from quiesce.agent.writers.declared import Misconfigured
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_systemd import Group, Systemctl, group_below

UNIT = "shop.service"
CGROUP = f"/system.slice/{UNIT}"


class Machine:
    """Its directories are a test's own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.writers_d = directory, directory / "writers.d"
        self.writers_d.mkdir()
        self._seen = 0
        self.systemctl = Systemctl(directory)
        self.systemctl.can_be_stopped(UNIT)

    def file(self, text: str, name: str = "one.conf") -> Path:
        path = self.writers_d / name
        path.write_text(text, errors="surrogateescape")
        path.chmod(0o644)
        return path

    def command(self, name: str, then: str = "") -> str:
        """A program that notes how it was called."""
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.directory}/order\n{then}\n')
        path.chmod(0o755)
        return str(path)

    def order(self) -> list[str]:
        path = self.directory / "order"
        lines = path.read_text().splitlines()[self._seen :] if path.exists() else []
        self._seen += len(lines)
        return [line.rstrip() for line in lines]

    def group(self, path: str = CGROUP) -> Group:
        return group_below(self.directory / "cgroup", path)


def make_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What the agent sees from now on instead of this one."""
    made = Machine(tmp_path)
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(declared, "DIRECTORY", str(made.writers_d))
    monkeypatch.setattr(systemd, "SYSTEMCTL", made.systemctl.path)
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "cgroup"))
    monkeypatch.setattr(processes, "cgroup", lambda _: "/system.slice/quiesce-agent.service")
    return made


def only(*found: ApplicationWriter) -> ApplicationWriter:
    [writer] = declared.configured(list(found))
    return writer


def prepared(writer: ApplicationWriter) -> ApplicationWriter:
    """As an attempt does it."""
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(10), 700)
    return writer


def refused(machine: Machine, text: str, *found: ApplicationWriter) -> str:
    """Why a file is, which is a writer then; those that were found are as they were."""
    path = machine.file(text)
    result = declared.configured(list(found))
    assert result[:-1] == list(found)
    writer = result[-1]
    assert isinstance(writer, Misconfigured)
    prepared(writer)
    assert (writer.id, writer.application) == (f"configuration:{path}", "configuration")
    assert (writer.grade, writer.outcome, writer.required) == (Grade.REFUSED, Outcome.NON_RETRYABLE, True)
    return str(writer.reason)


WRITER = "[Writer]\nName=shop\n"
UNIT_WRITER = f"{WRITER}Unit={UNIT}\n"
