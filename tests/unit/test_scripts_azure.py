"""agent/writers/scripts.py: the pair of scripts that Azure's file names, and what that file says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent.undos import Undo
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.agent.writers.scripts import Azure
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.scripts_machine import Machine, found, hold, make_machine, release

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's scripts are run")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


def azure(machine: Machine, **settings: Any) -> ApplicationWriter:
    machine.azure_pair(**settings)
    [writer] = found()
    assert isinstance(writer, Azure)
    return writer


def test_azures_pair_is_run_by_sh_with_its_parameters(machine):
    """Broken: a script whose first line names another shell would run differently from Azure's own agent."""
    writer = azure(machine, preScriptParams=["a b", 7], postScriptParams=None)
    for name in ("pre.sh", "post.sh"):
        text = (machine.directory / name).read_text().replace("#!/bin/sh", "#!/nowhere/interpreter")
        (machine.directory / name).write_text(text)
    hold(writer)
    assert machine.order() == ["pre.sh a b"]
    release(writer)
    assert machine.order() == ["post.sh"]
    assert writer.undo() == Undo(command=("/bin/sh", str(machine.directory / "post.sh")))


@pytest.mark.parametrize(
    ("settings", "limit_ms"),
    [
        ({}, 30_000),
        ({"timeoutInSeconds": 20}, 20_000),
        ({"timeoutInSeconds": 9999}, 1_800_000),
        ({"timeoutInSeconds": "5"}, 5000),
    ],
)
def test_azures_time_out_is_heeded_within_azures_bound(settings, limit_ms, machine):
    """Broken: a script would be killed that Azure lets run, or never."""
    assert azure(machine, **settings).hold_limit_ms == limit_ms


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ({}, True),
        ({"continueBackupOnFailure": False}, True),
        ({"continueBackupOnFailure": True}, False),
        ({"continueBackupOnFailure": "false"}, True),
        ({"continueBackupOnFailure": None}, True),
    ],
)
def test_azures_scripts_count_unless_the_backup_is_to_go_on_without(settings, required, machine):
    """Broken: a checkpoint would be kept, or lost, against what the file says."""
    assert azure(machine, **settings).required is required


@pytest.mark.parametrize("which", ["pre.sh", "post.sh"])
@pytest.mark.parametrize("mode", [0o750, 0o704, 0o600])
def test_azures_scripts_are_roots_alone(mode, which, machine):
    """Broken: what Azure refuses to run would run here."""
    machine.azure_pair()
    (machine.directory / which).chmod(mode)
    [writer] = found()
    assert writer.outcome is Outcome.NON_RETRYABLE
    assert ("chmod +x" if mode == 0o600 else "chmod 700") in str(writer.reason)
    hold(writer)
    assert machine.order() == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[]", "VMSnapshotScriptPluginConfig.json: "),
        ("{}", "preScriptLocation is missing"),
        ('{"preScriptLocation": "/x"}', "postScriptLocation is missing"),
        ('{"preScriptLocation": "/x", "preScriptParams": "a"}', "preScriptParams is no list"),
        ('{"preScriptLocation": "/x", "postScriptLocation": "/x", "timeoutInSeconds": "soon"}', "soon"),
        ('{"preScriptLocation": "/x", "postScriptLocation": "/x", "timeoutInSeconds": 1e999}', "infinity"),
        ('{"preScriptLocation": "/x", "postScriptLocation": "/x", "timeoutInSeconds": []}', "list"),
        ('{"preScriptLocation": "", "postScriptLocation": ""}', "no absolute path"),
        ('{"preScriptLocation": "pre.sh", "postScriptLocation": "/x"}', "pre.sh is no absolute path"),
        ('{"preScriptLocation": "/nowhere/x", "postScriptLocation": "/nowhere/x"}', "/nowhere/x: No such file"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_file_of_azures_that_makes_no_sense_is_refused_and_not_ignored(text, says, machine):
    """Broken: as in Azure's own agent, a slip in the file would mean a backup that is called good, and no script run."""
    machine.azure.write_text(text, errors="surrogateescape")
    [writer] = found()
    assert (writer.id, writer.grade, writer.outcome) == ("azure:scripts", Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert says in str(writer.reason)
    assert writer.required
    hold(writer)
    release(writer)
    writer.abort()
    assert machine.order() == []


def test_a_file_of_azures_that_others_can_write_is_refused(machine):
    """Broken: whoever can write it would be root."""
    machine.azure_pair()
    machine.azure.chmod(0o666)
    [writer] = found()
    assert "can be written by others than root" in str(writer.reason)
