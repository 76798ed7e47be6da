"""agent/filesystems.py. No filesystem is frozen here: the kernel calls are recorded. tests/vm freezes those of guests."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent import filesystems, linux
from quiesce.agent.filesystems import FreezeError, Freezer
from quiesce.agent.mountinfo import Mount
from quiesce.agent.mounts import Found
from quiesce.model.reports import FreezeState
from tests.unit.test_mounts import mount

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
23 22 0:20 / /proc rw,nosuid - proc proc rw
24 22 0:21 / /sys rw master:2 propagate_from:3 - sysfs sysfs rw
25 22 254:16 / /srv/with\040space\011tab\134backslash\012newline ro,noatime - xfs /dev/vdb rw,attr2
26 22 254:0 /var/bind /mnt/bind ro - ext4 /dev/vda rw
27 22 254:32 / /ro rw shared:9 - ext4 /dev/vdc ro,norecovery
"""


class Kernel:
    """Takes the calls that freeze and thaw, and answers with `errors`, by (operation, mount)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.errors: dict[tuple[str, int], int] = {}

    def ioctl(self, descriptor: int, operation: int, _argument: int) -> int:
        return self._answer({linux.FIFREEZE: "freeze", linux.FITHAW: "thaw"}[operation], descriptor)

    def syncfs(self, descriptor: int) -> None:
        self._answer("flush", descriptor)

    def _answer(self, what: str, descriptor: int) -> int:
        call = (what, descriptor)
        self.calls.append(call)
        if call in self.errors:
            raise OSError(self.errors[call], os.strerror(self.errors[call]))
        return 0


class Notes:
    """A dead-man that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def __getattr__(self, name: str):
        return lambda *values: self.told.append((name, *values))


class Watch:
    """Has something been mounted? As the test says."""

    def __init__(self) -> None:
        self.news = False

    def changed(self) -> bool:
        return self.news

    def close(self) -> None:
        pass


class World:
    """A machine of two filesystems, both really the one on which tests keep their files."""

    def __init__(self, path: Path) -> None:
        number = filesystems.mount_id(str(path))
        self.path = path
        self.found = [
            Found((Mount(number, (254, 16), str(path), "ext4", "/dev/vdb", super_read_only=False),)),
            Found((Mount(number, (254, 0), str(path), "ext4", "/dev/vda", super_read_only=False),)),
        ]
        self.kernel = Kernel()
        self.deadman = Notes()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    (tmp_path / "rcu").write_text("0\n")
    monkeypatch.setattr(filesystems, "find_filesystems", lambda: list(made.found))
    monkeypatch.setattr(filesystems, "_MountWatch", Watch)
    monkeypatch.setattr(filesystems, "RCU_EXPEDITED", str(tmp_path / "rcu"))
    monkeypatch.setattr(filesystems.fcntl, "ioctl", made.kernel.ioctl)
    monkeypatch.setattr(linux, "syncfs", made.kernel.syncfs)
    return made


@pytest.fixture
def freezer(world: World) -> Iterator[Freezer]:
    made = Freezer()
    yield made
    made.close()


NEVER = 2**63


def test_all_are_frozen_in_order_and_thawed_in_reverse(world, freezer):
    """Broken: a freeze could wait for a filesystem frozen before it; or the dead-man would learn of a freeze too late."""
    first, second = freezer.descriptors
    freezer.freeze(NEVER, world.deadman)
    assert freezer.frozen
    assert (world.path / "rcu").read_text() == "1\n"
    assert freezer.thaw(world.deadman)
    assert not freezer.frozen
    assert world.kernel.calls == [("freeze", first), ("freeze", second), ("thaw", second), ("thaw", first)]
    assert world.deadman.told == [
        ("doing", 0),
        ("freezing", 0),
        ("freezing", 1),
        ("thawed", 1),
        ("thawed", 0),
        ("undone", 0),
    ]
    assert (world.path / "rcu").read_text() == "0\n"
    assert {item.state for item in freezer.report()} == {FreezeState.THAWED}


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EBUSY, "already frozen by somebody else"), (errno.EIO, "cannot be frozen")]
)
def test_one_that_is_refused_thaws_those_before_it(number, says, world, freezer):
    """Broken: a failed attempt would leave filesystems frozen, or thaw one that somebody else froze."""
    first, second = freezer.descriptors
    world.kernel.errors["freeze", second] = number
    with pytest.raises(FreezeError, match=says):
        freezer.freeze(NEVER, world.deadman)
    assert world.kernel.calls == [("freeze", first), ("freeze", second), ("thaw", first)]
    assert ("not_ours", 1) in world.deadman.told
    assert not freezer.frozen


def test_one_without_a_freeze_is_flushed_and_said_to_be(world, freezer):
    """Broken: a vfat (/boot/efi) would keep the guest from every checkpoint, or be called frozen."""
    first, second = freezer.descriptors
    world.kernel.errors["freeze", first] = errno.EOPNOTSUPP
    freezer.freeze(NEVER, world.deadman)
    assert ("flush", first) in world.kernel.calls
    assert [item.state for item in freezer.report()] == [FreezeState.FLUSHED, FreezeState.FROZEN]
    assert freezer.thaw(world.deadman)
    assert ("thaw", first) not in world.kernel.calls
    assert ("thaw", second) in world.kernel.calls


def test_past_the_deadline_nothing_is_frozen(world, freezer):
    """Broken: the guest would be frozen when nobody waits for it any more."""
    with pytest.raises(FreezeError, match="deadline"):
        freezer.freeze(0, world.deadman)
    assert world.kernel.calls == []
    assert (world.path / "rcu").read_text() == "0\n"


def test_a_freeze_that_somebody_else_ended_is_not_vouched_for(world, freezer):
    """Broken: files that changed in the window would be called consistent."""
    first, _ = freezer.descriptors
    freezer.freeze(NEVER, world.deadman)
    world.kernel.errors["thaw", first] = errno.EINVAL
    assert not freezer.thaw(world.deadman)
    assert not freezer.frozen


def test_one_that_cannot_be_thawed_is_left_to_the_deadman(world, freezer):
    """Broken: the dead-man would think it thawed, and it would stay frozen for ever."""
    first, _ = freezer.descriptors
    freezer.freeze(NEVER, world.deadman)
    world.kernel.errors["thaw", first] = errno.EIO
    assert not freezer.thaw(world.deadman)
    assert freezer.frozen
    assert ("thawed", 0) not in world.deadman.told


NEW = Found((mount(999, (254, 48), "/new"),))


def test_what_was_mounted_since_the_preparation_refuses_the_freeze(world, freezer):
    """Broken: a filesystem that nobody froze would be under an application-consistent label."""
    freezer._mounts.news = True
    world.found.append(NEW)
    with pytest.raises(FreezeError, match="/new was mounted since"):
        freezer.freeze(NEVER, world.deadman)
    assert world.kernel.calls == []


def test_what_was_mounted_in_the_window_breaks_it(world, freezer):
    """Broken: as above."""
    freezer.freeze(NEVER, world.deadman)
    freezer._mounts.news = True
    world.found.append(NEW)
    assert not freezer.thaw(world.deadman)


@pytest.mark.parametrize("skip", [None, "read-only"])
def test_mounts_that_hold_nothing_new_change_nothing(skip, world, freezer):
    """Broken: an automounter, or a bind mount, would fail checkpoints at random."""
    again = Found((mount(998, (254, 16), "/bind"),)) if skip is None else Found((mount(999, (254, 48), "/cd"),), skip)
    world.found.append(again)
    freezer._mounts.news = True
    freezer.freeze(NEVER, world.deadman)
    assert freezer.thaw(world.deadman)


def test_one_hidden_below_another_mount_is_skipped_and_says_so(world):
    """Broken: the filesystem over it would be frozen in its stead, twice."""
    world.found = [Found((mount(2**30, (254, 16), str(world.path)),))]
    freezer = Freezer()
    (item,) = freezer.report()
    assert (item.state, freezer.descriptors) == (FreezeState.SKIPPED, [])
    assert "hidden" in str(item.reason)
    freezer.close()


# -- why_not_frozen


def test_files_on_what_freezes_are_held_still(world, freezer):
    """Broken: no application could be vouched for."""
    (world.path / "data").mkdir()
    paths = [str(world.path), str(world.path / "data")]
    assert freezer.why_not_frozen(paths) == ""
    freezer.freeze(NEVER, world.deadman)
    assert freezer.why_not_frozen(paths) == ""
    freezer.thaw(world.deadman)
    assert freezer.why_not_frozen(paths) == ""
    assert freezer.why_not_frozen([]) == ""


def test_files_elsewhere_are_not_and_the_path_is_named(world, freezer):
    """Broken: a database on tmpfs or NFS would be vouched for, though it went on changing or is in no image."""
    said = freezer.why_not_frozen([str(world.path), "/proc/self"])
    assert said == "its files in /proc/self are on a filesystem that is not frozen"


def test_files_on_what_was_skipped_say_why(world):
    """Broken: the user would not learn what to change."""
    world.found = [Found(world.found[0].mounts, "on the network or the host, not on this machine's disks")]
    freezer = Freezer()
    said = freezer.why_not_frozen([str(world.path)])
    assert said.endswith("is not frozen: on the network or the host, not on this machine's disks")
    freezer.close()


def test_files_on_what_was_only_flushed_are_not_held_still(world):
    """Broken: a database on vfat would be vouched for, though it could be written to."""
    del world.found[1:]
    freezer = Freezer()
    world.kernel.errors["freeze", freezer.descriptors[0]] = errno.ENOTTY
    freezer.freeze(NEVER, world.deadman)
    assert freezer.why_not_frozen([str(world.path)]).endswith("ext4 cannot be frozen; it was flushed")
    freezer.close()


def test_files_that_cannot_be_reached_are_not_vouched_for(world, freezer):
    """Broken: a path that vanished would end the attempt with an exception, or count as held."""
    assert "cannot be reached: No such file" in freezer.why_not_frozen([str(world.path / "absent")])


WATCH = """
import subprocess, sys
from quiesce.agent.filesystems import _MountWatch

def run(*command):
    subprocess.run([*command, sys.argv[1]], check=True)

watch = _MountWatch()
said = [watch.changed()]
run("mount", "-t", "tmpfs", "none")
said += [watch.changed(), watch.changed()]
run("umount")
said += [watch.changed(), watch.changed()]
watch.close()
print(said)
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs a mount namespace of its own")
def test_each_mount_is_noticed_once(tmp_path):
    """Broken: a filesystem mounted in the window would go unseen, or one mounted long ago would spoil each attempt."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    ended = subprocess.run(
        [*unshare, sys.executable, "-c", WATCH, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[False, True, False, True, False]\n", "")
