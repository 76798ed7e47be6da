"""agent/systemd.py, with a script in place of systemctl."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent import systemd
from quiesce.agent.systemd import UnitError
from tests.unit.fake_systemd import Systemctl

UNIT = "shop.service"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    made = Systemctl(tmp_path)
    made.has(UNIT)
    monkeypatch.setattr(systemd, "SYSTEMCTL", made.path)
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path))
    return made


def test_a_unit_that_runs_can_be_frozen(systemctl):
    """Broken: nothing could be held by the kernel."""
    assert systemd.freezable_cgroup(UNIT) == "/system.slice/shop.service"


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"WatchdogUSec": "3min"}, r"has a watchdog \(WatchdogSec=3min\): systemd would kill it"),
        ({"ActiveState": "inactive", "ControlGroup": ""}, "not running: it is inactive"),
        ({"ActiveState": "activating"}, "not running: it is activating"),
        ({"ControlGroup": ""}, "not running"),
        ({"FreezerState": "frozen"}, "is frozen already, by somebody else"),
        ({"LoadState": "not-found"}, "there is no unit shop.service"),
        ({"LoadState": "masked"}, "there is no unit"),
    ],
)
def test_one_that_cannot_be_frozen_says_why(properties, says, systemctl):
    """Broken: systemd would kill a service for standing still; or what somebody froze would be thawed by us."""
    systemctl.has(UNIT, **properties)
    with pytest.raises(UnitError, match=says):
        systemd.freezable_cgroup(UNIT)


@pytest.mark.parametrize("off", ["0", "infinity"])
def test_a_watchdog_that_is_off_is_none(off, systemctl):
    """Broken: most services could not be held."""
    systemctl.has(UNIT, WatchdogUSec=off)
    assert systemd.freezable_cgroup(UNIT)


def test_an_old_systemd_without_a_freezer_state_is_no_obstacle(systemctl):
    """Broken: no service of an older distribution could be held."""
    (systemctl.directory / "units" / UNIT).write_text("LoadState=loaded\nActiveState=active\nControlGroup=/system.slice/x\n")
    assert systemd.freezable_cgroup(UNIT) == "/system.slice/x"


@pytest.mark.parametrize("unit", ["dbus.service", "sshd.service", "ssh.socket", "quiesce-agent.service", "init.scope"])
def test_what_the_machine_needs_is_never_frozen(unit, systemctl):
    """Broken: a line in a file would make the machine unreachable, or stop the agent that has to let it go."""
    systemctl.has(unit)
    with pytest.raises(UnitError, match="never frozen"):
        systemd.freezable_cgroup(unit)


def test_a_unit_that_looks_like_an_option_is_none(systemctl):
    """Broken: a unit's name could be anything to systemctl."""
    with pytest.raises(UnitError, match="there is no unit --force"):
        systemd.freezable_cgroup("--force")


def test_values_with_an_equals_sign_are_whole(systemctl):
    """Broken: a property would be cut."""
    systemctl.has(UNIT, ControlGroup="/system.slice/a=b.service")
    assert systemd.properties_of(UNIT)["ControlGroup"] == "/system.slice/a=b.service"


def test_several_units_are_told_apart(systemctl):
    """Broken: one service that is down would be called by the state of another."""
    systemctl.has("other.service", ActiveState="failed")
    shown = systemd.properties_of_units([UNIT, "none.service", "other.service"])
    assert [shown[unit]["ActiveState"] for unit in (UNIT, "none.service", "other.service")] == ["active", "inactive", "failed"]


def test_a_systemctl_that_fails_hangs_or_is_not_there_is_an_error_that_says_so(systemctl, monkeypatch):
    """Broken: looking at the writers would end with a traceback, or never."""
    systemctl.fails("System has not been booted with systemd as init system")
    with pytest.raises(UnitError, match="not been booted with systemd"):
        systemd.properties_of(UNIT)
    systemctl.fails("")
    with pytest.raises(UnitError, match=f"systemctl show {UNIT} failed"):
        systemd.properties_of(UNIT)
    (systemctl.directory / "fails").unlink()
    systemctl.hangs()
    monkeypatch.setattr(systemd, "TIMEOUT_S", 0.1)
    with pytest.raises(UnitError, match="timed out"):
        systemd.properties_of(UNIT)
    monkeypatch.setattr(systemd, "SYSTEMCTL", "/nowhere/systemctl")
    with pytest.raises(UnitError, match="No such file"):
        systemd.properties_of(UNIT)
    monkeypatch.setattr(systemd, "BOOTED", "/nowhere")
    with pytest.raises(UnitError, match="systemd does not run in this machine"):
        systemd.properties_of(UNIT)
