"""agent/writers/scripts.py: real shell scripts, under all three contracts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.standstill import wait_for, within
from quiesce.agent import install
from quiesce.agent.undos import Undo
from quiesce.agent.writers import scripts
from quiesce.agent.writers.scripts import Script
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.sample_writer import Observer
from tests.unit.scripts_machine import Machine, failed_hold, found, hold, make_machine, release

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's scripts are run")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


# -- all three


def test_all_contracts_are_kept_in_order_and_in_reverse(machine):
    """Broken: what an administrator wrote for another platform would not run, or thaw what depends on it too late."""
    machine.script(machine.qemu / "20-two")
    machine.script(machine.qemu / "10-one.sh")
    machine.script(machine.vmware / "b")
    machine.script(machine.vmware / "a")
    machine.script(machine.directory / "pre-freeze-script")
    machine.script(machine.directory / "post-thaw-script")
    machine.azure_pair(preScriptParams=["x"], postScriptParams=["y"])
    writers = found()
    assert [(writer.id, writer.grade) for writer in writers] == [
        ("fsfreeze-hook:10-one.sh", Grade.HELD),
        ("fsfreeze-hook:20-two", Grade.HELD),
        ("vmware:pre-freeze-script", Grade.HELD),
        ("vmware:a", Grade.HELD),
        ("vmware:b", Grade.HELD),
        ("azure:scripts", Grade.HELD),
    ]
    assert machine.order() == []  # to look is to run nothing
    hold(*writers)
    assert machine.order() == ["10-one.sh freeze", "20-two freeze", "pre-freeze-script", "a freeze", "b freeze", "pre.sh x"]
    release(*writers)
    assert machine.order() == ["post.sh y", "b thaw", "a thaw", "post-thaw-script", "20-two thaw", "10-one.sh thaw"]
    for writer in writers:
        writer.abort()
    assert machine.order() == []
    assert {writer.grade for writer in writers} == {Grade.HELD}
    assert {writer.application for writer in writers} == {"script"}


def test_a_platform_that_runs_its_own_is_left_to_it(machine):
    """Broken: VMware's scripts would freeze twice, the second time waiting for the first."""
    machine.script(machine.qemu / "q")
    machine.script(machine.vmware / "v")
    machine.script(machine.directory / "pre-freeze-script")
    assert [writer.id for writer in scripts.discover(without="vmware")] == ["fsfreeze-hook:q"]
    assert len(scripts.discover(without="")) == 3


def test_what_is_no_script_is_passed_over(machine):
    """Broken: a backup copy of a script would freeze a second time; or this agent wait for itself."""
    for name in ("mine", "quiesce-database.sh"):
        machine.script(machine.qemu / name)
    for name in ("a~", "a.bak", "a.orig", "a.rpmsave", "a.rpmnew", "a.sample", "a.dpkg-old", "a.dpkg-remove", ".hidden"):
        machine.script(machine.qemu / name)
    machine.script(machine.qemu / "not-executable", mode=0o644)
    (machine.qemu / "directory").mkdir()
    (machine.vmware / "50-quiesce").write_text(install.HOOK_TEXT.format(more=""))
    (machine.vmware / "50-quiesce").chmod(0o755)
    assert [writer.id for writer in scripts.discover()] == ["fsfreeze-hook:mine", "fsfreeze-hook:quiesce-database.sh"]


def test_our_own_is_called_by_the_name_that_the_installer_gives_it(tmp_path, monkeypatch):
    """Broken: the hook that asks this agent would be run by this agent, which would wait for itself."""
    places = {"AGENT": "agent.pyz", "UNIT": "unit", "RULE": "rules/rule", "WRITERS": "writers.d", "HOOK": "hook"}
    for name, place in places.items():
        monkeypatch.setattr(install, name, str(tmp_path / place))
    monkeypatch.setattr(install, "QEMU_CONFIGURATION", str(tmp_path / "absent" / "qemu-ga.conf"))
    monkeypatch.setattr(install, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(install, "VMWARE_SCRIPTS", str(tmp_path / "backupScripts.d"))
    monkeypatch.setattr(install, "precompile", lambda _: None)
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(install.sys, "argv", [str(tmp_path / "agent.pyz")])
    assert install.install() == []
    assert os.listdir(tmp_path / "backupScripts.d") == [scripts.OURS]  # noqa: PTH208


def test_a_directory_that_has_two_names_is_one(machine, monkeypatch):
    """Broken: every script would freeze twice where /etc/qemu-ga is a link to /etc/qemu."""
    machine.script(machine.qemu / "one")
    (machine.directory / "qemu-ga").symlink_to(machine.qemu)
    monkeypatch.setattr(scripts, "QEMU_DIRECTORIES", (str(machine.qemu), str(machine.directory / "qemu-ga")))
    assert [writer.id for writer in scripts.discover()] == ["fsfreeze-hook:one"]


def test_two_directories_are_run_one_after_the_other(machine, monkeypatch):
    """Broken: scripts of one of them would not run, or in another order from one attempt to the next."""
    (machine.directory / "other").mkdir()
    machine.script(machine.qemu / "z")
    machine.script(machine.directory / "other" / "a")
    monkeypatch.setattr(scripts, "QEMU_DIRECTORIES", (str(machine.qemu), str(machine.directory / "other")))
    assert [writer.id for writer in scripts.discover()] == ["fsfreeze-hook:z", "fsfreeze-hook:a"]


# -- when a script fails

FAILS = '[ "$1" != %s ] || { echo "no database" >&2; exit 3; }'


@pytest.mark.parametrize("ending", ["release", "abort"])
def test_the_attempt_is_told_of_every_script_that_runs(ending, machine):
    """Broken: a freezing script's children would outlive a killed agent, and freeze what the dead-man had thawed."""
    machine.script(machine.vmware / "a")
    [writer] = found()
    writer.command_observer = observer = Observer()
    hold(writer)
    assert observer.commands() == 1
    getattr(writer, ending)()
    assert observer.commands() == 2


@pytest.mark.parametrize(("where", "undone_by"), [("qemu", "thaw"), ("vmware", "freezeFail")])
def test_a_script_that_fails_to_freeze_is_a_failure_and_is_told(where, undone_by, machine):
    """Broken: as with qemu-guest-agent's own hook, an application that was not frozen would count as frozen; or what half
    of a script did would stay."""
    machine.script(getattr(machine, where) / "bad", FAILS % "freeze")
    [writer] = found()
    error = failed_hold(writer)
    assert str(error).endswith("bad freeze ended with 3: no database")
    assert writer.grade is Grade.CRASH
    assert machine.order() == ["bad freeze", f"bad {undone_by}"]
    assert writer.let_go
    release(writer)
    writer.abort()
    assert machine.order() == []


@pytest.mark.parametrize(("where", "undone_by"), [("qemu", "thaw"), ("vmware", "freezeFail")])
def test_an_attempt_that_ends_early_thaws_what_was_frozen(where, undone_by, machine):
    """Broken: VMware's scripts would take a failed snapshot for a good one; or others be left frozen."""
    machine.script(getattr(machine, where) / "good")
    [writer] = found()
    hold(writer)
    writer.abort()
    writer.abort()
    assert machine.order() == ["good freeze", f"good {undone_by}"]
    path = str(getattr(machine, where) / "good")
    assert writer.undo() == Undo(command=(path, undone_by))


def test_a_script_that_fails_to_thaw_is_tried_again_and_then_left_to_the_dead_man(machine):
    """Broken: an application would stay frozen, and its checkpoint be called good."""
    machine.script(machine.qemu / "bad", FAILS % "thaw")
    [writer] = found()
    hold(writer)
    release(writer)
    assert (writer.grade, writer.outcome, writer.let_go) == (Grade.CRASH, Outcome.INCONSISTENT, False)
    assert machine.order() == ["bad freeze", "bad thaw", "bad thaw"]
    [warning] = writer.warnings
    assert warning.startswith("it could not be let go: ")
    assert warning.endswith("bad thaw ended with 3: no database")
    machine.script(machine.qemu / "bad")
    writer.abort()
    assert writer.let_go


def test_a_script_that_hangs_is_killed_in_time_and_undone(machine, monkeypatch):
    """Broken: one script would use up everybody's window."""
    monkeypatch.setattr(scripts, "HOLD_LIMIT_MS", 700)  # a busy machine needs some of it to start a shell
    machine.script(machine.qemu / "slow", '[ "$1" != freeze ] || sleep 60')
    [writer] = found()
    with within(5):
        assert failed_hold(writer).outcome is Outcome.TIMEOUT
    assert machine.order() == ["slow freeze", "slow thaw"]


def test_a_thaw_that_hangs_is_killed(machine, monkeypatch):
    """Broken: all that were held before it would stay held."""
    monkeypatch.setattr(scripts, "THAW_TIMEOUT_S", 0.1)
    machine.script(machine.qemu / "slow", '[ "$1" != thaw ] || sleep 60')
    [writer] = found()
    hold(writer)
    release(writer)
    assert writer.outcome is Outcome.TIMEOUT
    assert not writer.let_go


def test_a_script_that_holds_by_a_process_in_the_background_is_held(machine):
    """Broken: QEMU's own mysql-flush.sh.sample does so, and could not be held."""
    background = f"(read x <{machine.directory}/fifo; echo unlocked >>{machine.directory}/order) &"
    machine.script(
        machine.qemu / "flush",
        f'case "$1" in freeze) mkfifo {machine.directory}/fifo; {background} ;; thaw) echo >{machine.directory}/fifo ;; esac',
    )
    [writer] = found()
    hold(writer)
    assert machine.order() == ["flush freeze"]
    release(writer)
    seen: list[str] = []

    def unlocked() -> bool:
        seen.extend(machine.order())
        return "unlocked" in seen

    wait_for(unlocked, 5)
    assert "flush thaw" in seen
    assert writer.grade is Grade.HELD


def test_a_script_that_others_can_write_is_refused_and_never_run(machine):
    """Broken: whoever can write it would be root."""
    machine.script(machine.qemu / "open", mode=0o777)
    [writer] = found()
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert "chmod go-w" in str(writer.reason)
    hold(writer)
    assert machine.order() == []


def test_one_that_the_dead_man_cannot_undo_is_not_run(machine):
    """Broken: an agent that dies would leave its application frozen for ever."""
    machine.script(machine.qemu / "one")
    [writer] = found()
    writer.guarded = False
    assert "nobody could let it go" in str(failed_hold(writer))
    assert machine.order() == []


# -- VMware's first pair


@pytest.mark.parametrize("fails", [False, True])
def test_a_pair_of_which_only_the_first_is_there(fails, machine):
    """Broken: an attempt would end with an error of ours for a script that has nothing to undo."""
    machine.script(machine.directory / "pre-freeze-script", "exit 1" if fails else "")
    [writer] = found()
    assert writer.undo() is None
    if fails:
        failed_hold(writer)
    else:
        hold(writer)
    release(writer)
    writer.abort()
    assert machine.order() == ["pre-freeze-script"]
    assert writer.warnings == []
    assert writer.grade is (Grade.CRASH if fails else Grade.HELD)


def test_a_pair_of_which_only_the_second_is_there(machine):
    """Broken: a script that starts something again after each snapshot would not run."""
    machine.script(machine.directory / "post-thaw-script")
    [writer] = found()
    hold(writer)
    assert machine.order() == []
    release(writer)
    assert machine.order() == ["post-thaw-script"]
    assert writer.grade is Grade.HELD


def test_a_pair_that_cannot_be_executed_is_refused(machine):
    """Broken: it would be passed over in silence, though VMware would fail for it."""
    machine.script(machine.directory / "pre-freeze-script", mode=0o644)
    [writer] = found()
    assert "chmod +x" in str(writer.reason)


def test_hold_limits_are_those_of_the_docs(machine):
    """Broken: docs/writers.md promises 5 s for a script."""
    machine.script(machine.qemu / "one")
    [writer] = found()
    assert isinstance(writer, Script)
    assert writer.hold_limit_ms == 5000
