"""agent/cgroups.py. Plain files stand for the kernel's, and a test for the kernel; tests/vm freezes real groups."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.standstill import within
from quiesce.agent import cgroups
from quiesce.agent.cgroups import Cgroup, CgroupError
from tests.unit.fake_systemd import Group, group_below

NGINX = "/system.slice/nginx.service"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    return group_below(tmp_path, NGINX)


@pytest.fixture
def cgroup(group: Group) -> Iterator[Cgroup]:
    made = Cgroup(NGINX)
    made.open()
    yield made
    made.close()


def soon(seconds: float = 5) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def test_it_is_frozen_and_let_go(group, cgroup):
    """Broken: an application would go on while it is called held, or stand still for ever."""
    group.settles()
    assert not cgroup.asked()
    cgroup.freeze(soon())
    assert (group.asked, cgroup.asked(), cgroup.frozen(), cgroup.ours) == ("1", True, True, True)
    cgroup.thaw()
    assert (group.asked, cgroup.ours) == ("0", False)
    cgroup.freeze(soon())
    assert group.asked == "1"
    cgroup.thaw()


def test_one_whose_processes_were_killed_is_not_frozen_any_more(group, cgroup):
    """Broken: an application that was killed in the window would be called held to its end, until systemd removes the group."""
    group.settles(populated=True)
    cgroup.freeze(soon())
    assert cgroup.frozen()
    group.settles(populated=False)
    assert not cgroup.frozen()


def test_it_is_frozen_when_the_last_process_stands_still(group, cgroup):
    """Broken: a process that still writes would be called held."""
    timer = threading.Timer(0.05, group.settles)
    with within(5, at_least=0.04):  # from before the timer, which may run long before this thread does again
        timer.start()
        cgroup.freeze(soon())
    timer.join()


def test_one_that_does_not_come_to_a_standstill_runs_again(group, cgroup):
    """Broken: an attempt that gives up would leave half of an application standing still."""
    with pytest.raises(TimeoutError, match=r"nginx.service did not come to a standstill"):
        cgroup.freeze(soon(0.02))
    assert (group.asked, cgroup.ours) == ("0", False)


def test_what_somebody_else_froze_stays_frozen(group, cgroup):
    """Broken: an administrator's `systemctl freeze` would be undone by a checkpoint."""
    group.set("1")
    group.settles()
    with pytest.raises(CgroupError, match="frozen already, by somebody else"):
        cgroup.freeze(soon())
    cgroup.thaw()
    assert group.asked == "1"


def test_it_can_be_let_go_at_any_time_and_again(group, cgroup):
    """Broken: an abort would fail, or thaw what somebody else froze meanwhile."""
    cgroup.thaw()
    group.settles()
    cgroup.freeze(soon())
    cgroup.thaw()
    group.set("1")
    cgroup.thaw()
    assert group.asked == "1"
    cgroup.close()
    cgroup.thaw()
    cgroup.close()


def test_a_group_that_is_gone_needs_no_thaw(group, tmp_path):
    """Broken: a service that ends in the window would be said to be still held."""
    group.stuck()  # writes fail, as the kernel has it for a group that was removed
    cgroup = Cgroup(NGINX)
    cgroup.open()
    with pytest.raises(OSError, match="No space"):
        cgroup.freeze(soon())
    with pytest.raises(OSError, match="No space"):
        cgroup.thaw()
    assert cgroup.ours
    shutil.rmtree(tmp_path / "system.slice")
    cgroup.thaw()
    assert not cgroup.ours
    cgroup.close()


def test_a_group_that_a_restarted_service_has_anew_needs_no_thaw(group, cgroup, monkeypatch):
    """Broken: a server that was killed and started again in the window would be said to be still held."""
    group.settles()
    cgroup.freeze(soon())

    def removed(*_: object) -> int:
        raise OSError(errno.ENODEV, "No such device")  # as the kernel answers for a group that was removed

    monkeypatch.setattr(os, "pwrite", removed)
    cgroup.thaw()
    assert not cgroup.ours


def test_in_a_group_that_is_gone_nothing_stands_still(group, cgroup):
    """Broken: a release would end with an error number where it should say what happened."""
    group.settles()
    descriptor = cgroup._events
    assert cgroup.frozen()
    try:
        cgroup._events = os.open(group.directory, os.O_RDONLY)  # reading it fails
        assert not cgroup.frozen()
    finally:
        os.close(cgroup._events)
        cgroup._events = descriptor


def test_the_dead_mans_undo_lets_it_go(group, cgroup):
    """Broken: an agent that dies would leave the application standing still for ever."""
    group.settles()
    undo = cgroup.undo
    cgroup.freeze(soon())
    assert undo.descriptor is not None
    os.write(undo.descriptor, undo.data)
    assert group.asked == "0"
    assert not undo.command


@pytest.mark.parametrize(
    "path", [NGINX, NGINX + "/", NGINX[1:], "/system.slice/x/../nginx.service", "//system.slice//nginx.service"]
)
def test_a_path_has_one_spelling(path, group):
    """Broken: a group with the agent in it would not be recognized, and the agent and its dead-man be frozen for ever."""
    cgroup = Cgroup(path)
    cgroup.open()
    assert cgroup.path == NGINX
    cgroup.close()


def test_a_group_that_is_not_there_says_so(group):
    """Broken: it would be found out only in the window."""
    with pytest.raises(FileNotFoundError):
        Cgroup("/system.slice/other.service").open()
