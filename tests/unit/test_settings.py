"""operations/settings.py and cli/settings.py, on libvirt's mock driver."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from quiesce.catalog.store import Catalog
from quiesce.cli.main import app
from quiesce.context import Context
from quiesce.model.grades import Consistency
from quiesce.model.settings import Settings, Type
from quiesce.operations.settings import settings

HOST = """
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>web1</name>
    <uuid>11111111-2222-3333-4444-555555555555</uuid>
    <memory>65536</memory>
    <os><type>hvm</type></os>
    <devices>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
      <disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/b.qcow2'/><target dev='vdb' bus='virtio'/></disk>
      <disk type='file' device='cdrom'><source file='/i/c.iso'/><target dev='sda' bus='sata'/></disk>
    </devices>
    <test:runstate>5</test:runstate>
  </domain>
</node>
"""
UNSET = {
    "type": "production",
    "require": "application",
    "automatic": False,
    "exclude": [],
    "require_grade": "stands-still",
    "quarantine_days": 30,
    "verify": "never",
}


class Program:
    """`quiesce settings` for a VM with the disks vda and vdb, and a CD in sda."""

    def __init__(self, directory: Path) -> None:
        self._arguments = ["--connect", f"test://{directory}/host.xml", "--catalog", str(directory / "catalog.db")]
        (directory / "host.xml").write_text(HOST)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["settings", *arguments, *self._arguments])

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        result = self.run("web1", *arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_a_vm_of_which_nobody_said_anything(program):
    """Broken: the strictest settings would not be what holds unless somebody says otherwise."""
    assert program() == UNSET


def test_what_is_set_stays_and_nothing_else_changes(program):
    """Broken: changing one setting would reset another."""
    assert program("--require", "crash") == {**UNSET, "require": "crash"}
    assert program("--automatic") == {**UNSET, "require": "crash", "automatic": True}
    assert program("--exclude", "vdb", "--type", "standard")["exclude"] == ["vdb"]
    assert program("--require-grade", "nil-redo")["require_grade"] == "nil-redo"
    assert program("--quarantine-days", "7")["quarantine_days"] == 7
    assert program("--verify", "daily")["verify"] == "daily"
    expected = {
        "type": "standard",
        "require": "crash",
        "automatic": True,
        "exclude": ["vdb"],
        "require_grade": "nil-redo",
        "quarantine_days": 7,
        "verify": "daily",
    }
    assert program() == expected
    assert program("--no-automatic", "--no-exclude") == {**expected, "automatic": False, "exclude": []}


def test_disks_to_exclude_replace_those_before(program):
    """Broken: a disk once excluded would stay so with nobody noticing."""
    assert program("--exclude", "vdb", "--exclude", "vdb")["exclude"] == ["vdb"]
    assert program("--exclude", "vda")["exclude"] == ["vda"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--exclude", "vdz", "--exclude", "vda"), "web1 has no disk vdz to exclude"),
        (("--exclude", "vdb", "--exclude", "vda"), "a checkpoint of web1 would have no disk"),
        (("--exclude", "vda", "--no-exclude"), "contradict"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changed(program, arguments, message):
    """Broken: every later checkpoint would fail, or half of what was asked for be set."""
    before = program("--require", "filesystem")
    error = program("--type", "standard", *arguments, code=2)["error"]
    assert message in error["message"]
    assert program() == before


@pytest.mark.parametrize(
    "arguments", [("--type", "instant"), ("--require", "perfect"), ("--require-grade", "crash"), ("--exclude",)]
)
def test_what_the_command_line_does_not_have(program, arguments):
    """Broken: a mistyped value would be taken for a default."""
    assert program.run("web1", *arguments).exit_code == 2
    assert program() == UNSET


def test_an_unknown_vm(program):
    """Broken: settings would be kept for a VM that does not exist."""
    assert program.run("web2", "--automatic").exit_code == 3


def test_automatic_and_disabled_contradict_each_other(program):
    """Broken: somebody would wait for checkpoints that never come."""
    program("--type", "disabled")
    assert "quiesce takes no automatic checkpoint of web1" in program.run("web1", "--automatic").stderr


def test_what_is_shown(program):
    """Broken: a person could not read it."""
    assert program.run("web1", "--exclude", "vdb", "--automatic").stdout.splitlines() == [
        "type       production",
        "require    application",
        "automatic  yes",
        "exclude    vdb",
        "grade      stands-still",
        "quarantine 30 days",
        "overlays   -",
        "verify     never",
    ]


def test_two_who_change_different_settings_at_once_both_succeed(tmp_path, program):
    """Broken: one change would undo the other."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    context = Context(f"test://{tmp_path}/host.xml", catalog, lambda _: None)
    changes: list[dict[str, Any]] = [
        {"type": Type.STANDARD}, {"require": Consistency.CRASH}, {"automatic": True}, {"exclude": ("vdb",)}
    ]  # fmt: skip
    threads = [threading.Thread(target=settings, args=(context, "web1"), kwargs=change) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settings(context, "web1") == Settings(Type.STANDARD, Consistency.CRASH, True, ("vdb",))
    catalog.close()
