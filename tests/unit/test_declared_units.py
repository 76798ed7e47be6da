"""agent/writers/declared.py: units and control groups that are frozen, or stopped. Plain files stand for control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quiesce.agent.writers.base import deadline_in_ns
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.stopped import StoppedService
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.declared_machine import CGROUP, UNIT, UNIT_WRITER, WRITER, Machine, make_machine, only, prepared, refused
from tests.unit.sample_writer import Sample

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are heeded")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make_machine(tmp_path, monkeypatch)


# -- frozen


@pytest.mark.parametrize(
    ("lines", "grade"),
    [
        ("Stateless=yes\n", Grade.CLEAN),
        ("Stateless=no\n", Grade.CRASH),
        ("CrashSafe=yes\nPaths=/srv/shop\n", Grade.STANDS_STILL),
        ("CrashSafe=no\n", Grade.CRASH),
    ],
)
def test_a_declared_unit_is_frozen_and_let_go(lines, grade, machine):
    """Broken: an application that keeps data would be called clean wherever it stood; or stand still for ever."""
    machine.file(UNIT_WRITER + lines)
    group = machine.group()
    group.settles()
    writer = prepared(only())
    assert writer.guarded
    assert writer.grade is grade
    assert ("Stateless=yes" in str(writer.reason)) is (grade is Grade.CRASH)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "1"
    writer.release()
    assert (group.asked, writer.grade, writer.outcome) == ("0", grade, Outcome.STABLE)
    writer.abort()
    writer.abort()


def test_a_unit_that_was_let_go_meanwhile_or_ended_is_not_vouched_for(machine):
    """Broken: an application that ran in the window would be called held."""
    machine.file(UNIT_WRITER)
    group = machine.group()
    group.settles()
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    group.settles(False)
    writer.release()
    assert writer.outcome is Outcome.INCONSISTENT
    assert writer.reason == f"{CGROUP} was thawed during the window, or ended"
    assert group.asked == "0"


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"WatchdogUSec": "30s"}, "has a watchdog"),
        ({"ActiveState": "failed"}, "is not running: it is failed"),
        ({"ControlGroup": "/other.slice/shop.service"}, "is in /other.slice/shop.service, not in /system.slice/shop.service"),
    ],
)
def test_a_unit_that_cannot_be_frozen_says_why(properties, says, machine):
    """Broken: systemd would kill it in the window; or nothing would be frozen, and called held."""
    machine.file(UNIT_WRITER)
    machine.systemctl.has(UNIT, **properties)
    group = machine.group()
    writer = prepared(only())
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert says in str(writer.reason)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "0"


def test_what_somebody_froze_already_stays_so(machine):
    """Broken: an administrator's freeze would be undone by the release."""
    machine.file(UNIT_WRITER)
    group = machine.group()
    group.set("1")
    writer = prepared(only())
    assert "frozen already, by somebody else" in str(writer.reason)
    assert writer.outcome is Outcome.RETRYABLE
    writer.abort()
    assert group.asked == "1"


# -- control groups by a pattern


@pytest.mark.parametrize("pattern", ["/machine.slice/libpod-*.scope", "machine.slice/libpod-[0-9]*.scope"])
def test_the_one_control_group_that_matches_is_meant(pattern, machine):
    """Broken: a container, whose group has a number in its name, could not be declared."""
    group = machine.group("/machine.slice/libpod-0123.scope")
    machine.group("/machine.slice/other.scope")
    group.settles()
    machine.file(f"{WRITER}CGroup={pattern}\nStateless=yes\n")
    writer = prepared(only())
    writer.hold(deadline_in_ns(5))
    assert group.asked == "1"
    writer.release()
    assert (group.asked, writer.grade) == ("0", Grade.CLEAN)


def test_two_that_match_are_refused(machine):
    """Broken: one of two containers would be frozen, by chance."""
    machine.group("/machine.slice/libpod-0.scope")
    machine.group("/machine.slice/libpod-1.scope")
    said = refused(machine, f"{WRITER}CGroup=/machine.slice/libpod-*\n", Sample("other"))
    assert said == "CGroup=/machine.slice/libpod-* matches 2 control groups"


def test_none_that_matches_is_refused(machine):
    """Broken: a container that is not there would be called held."""
    machine.file(f"{WRITER}CGroup=/machine.slice/libpod-*\n")
    writer = prepared(only())
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.NON_RETRYABLE)
    assert "/machine.slice/libpod-* cannot be frozen: No such file" in str(writer.reason)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/system.slice", "the agent itself is in /system.slice"),
        ("/system.slice/", "the agent itself is in /system.slice"),
        ("system.slice", "the agent itself is in /system.slice"),
        ("/system.slice/x/..", "the agent itself is in /system.slice"),
        ("/", "the agent itself is in /"),
        ("/system.slice/quiesce-agent.service", "never frozen"),
        ("/init.scope", "init.scope is never frozen"),
        ("/system.slice/sshd.service/", "sshd.service is never frozen"),
    ],
)
def test_a_group_that_the_machine_or_the_agent_needs_is_never_frozen(path, says, machine):
    """Broken: the agent and its dead-man would stand still with it, and nobody could ever let the machine go."""
    group = machine.group("/system.slice" if path == "/" else os.path.normpath(path))
    group.settles()
    machine.file(f"{WRITER}CGroup={path}\n")
    writer = prepared(only())
    assert writer.grade is Grade.REFUSED
    assert says in str(writer.reason)
    writer.hold(deadline_in_ns(5))
    assert group.asked == "0"


# -- stopped


def test_a_declared_unit_can_be_stopped_for_the_checkpoint(machine):
    """Broken: an application that cannot hold could have no clean checkpoint."""
    machine.file(f"{UNIT_WRITER}Action=stop\nPaths=/srv/shop\n")
    writer = prepared(only())
    assert isinstance(writer, StoppedService)
    assert not isinstance(writer, FrozenCgroup)
    assert (writer.grade, writer.paths(), writer.hold_limit_ms) == (Grade.CLEAN, ["/srv/shop"], None)
    writer.hold(deadline_in_ns(5))
    writer.release()
    assert machine.systemctl.calls == [f"stop {UNIT}", f"start --no-block {UNIT}"]
    assert writer.grade is Grade.CLEAN
