"""agent/looks.py, with a real filesystem that never answers and one that somebody else has frozen."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.standstill import wait_for, within
from quiesce.agent import files, filesystems, identity, linux, looks, mountinfo, processes
from quiesce.agent.inventory import FilesystemList
from quiesce.agent.looks import NotAnsweringError
from quiesce.agent.mountinfo import Mount
from quiesce.agent.writers import postgresql, redis_configuration, sqlite
from quiesce.agent.writers.base import ApplicationWriter
from quiesce.model.reports import FreezeState, Outcome
from tests.unit import hung_filesystem, loop_filesystem

LIMIT_S = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "LIMIT_S", LIMIT_S)
    monkeypatch.setattr(looks, "_hung", {})
    monkeypatch.setattr(looks, "_tables", {})
    monkeypatch.setattr(looks, "_answers", {})


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Path]:
    with hung_filesystem.hung(tmp_path) as mountpoint:
        yield mountpoint


def ways(hung: Path, tmp_path: Path) -> list[str]:
    """Paths that lead to the filesystem."""
    (tmp_path / "link").symlink_to(hung)
    (tmp_path / "relative").symlink_to("hung/below")
    (tmp_path / "twice").symlink_to(tmp_path / "link" / "x")
    return [str(hung), f"{hung}/a/b", f"{tmp_path}/link", f"{tmp_path}/relative/c", f"{tmp_path}/twice", f"{hung}/../hung/d"]


def test_a_look_at_a_filesystem_that_does_not_answer_ends_and_names_its_mount(hung, tmp_path):
    """Broken: the agent would be stuck until a reboot, and nobody know why."""
    for path in ways(hung, tmp_path):
        looks._hung.clear()
        with within(5), pytest.raises(NotAnsweringError) as error:
            looks.at(path, os.stat, path)
        assert str(error.value) == f"the filesystem at {hung} (fuse.test) does not answer"


def test_it_is_asked_once_and_not_for_every_file(hung):
    """Broken: a service with a thousand open files there would cost two seconds for each."""
    with within(5):
        for number in range(1000):
            with pytest.raises(NotAnsweringError):
                looks.at(f"{hung}/{number}", os.stat, f"{hung}/{number}")


def test_files_beside_it_are_looked_at_as_ever(hung, tmp_path):
    """Broken: one hung mount would keep every application of the guest from a checkpoint."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "to-file").symlink_to("file")
    for path in (f"{tmp_path}/file", f"{tmp_path}/to-file", f"{tmp_path}/../{tmp_path.name}/file"):
        assert looks.at(path, os.stat, path).st_size == 1
    with pytest.raises(FileNotFoundError):
        looks.at(f"{tmp_path}/none", os.stat, f"{tmp_path}/none")
    assert looks.exists(f"{tmp_path}/file")
    assert not looks.exists(f"{tmp_path}/none")
    assert looks.real(f"{tmp_path}/to-file") == f"{tmp_path}/file"


def test_what_is_not_looked_at_is_not_known_to_be_nothing(hung):
    """Broken: a tablespace there would vanish from the list of directories that must be frozen."""
    assert looks.is_directory(f"{hung}/tablespace")
    assert looks.real(f"{hung}/tablespace") == f"{hung}/tablespace"


def test_a_child_answers_with_the_value_or_the_error(tmp_path, monkeypatch):
    """Broken: a slow filesystem that answers would be read wrongly."""
    slow = Mount(1, (0, 99), str(tmp_path), "nfs4", "server:/", super_read_only=False)
    monkeypatch.setattr(looks, "slow_mount", lambda _: slow)
    (tmp_path / "file").write_text("x" * 300_000)
    assert len(files.read_bytes(f"{tmp_path}/file", 400_000)) == 300_000
    assert looks.at("", os.stat, f"{tmp_path}/file").st_size == 300_000
    with pytest.raises(FileNotFoundError):
        looks.at("", os.stat, f"{tmp_path}/none")
    with pytest.raises(ValueError, match="no number"):
        looks.at("", _raise, ValueError("no number"))


def _raise(error: Exception) -> None:
    raise error


def test_a_child_that_is_left_behind_keeps_nothing_open(hung, tmp_path):
    """Broken: the port to the host, the lock of an attempt or a session would stay in use for as long as the mount hangs."""
    with (tmp_path / "session").open("w"):
        with pytest.raises(NotAnsweringError):
            looks.at(str(hung), os.statvfs, str(hung))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            opened = [str(path.readlink()) for path in Path(f"/proc/{child}/fd").glob("*") if int(path.name) > 2]
            assert str(tmp_path / "session") not in opened


@pytest.mark.parametrize(
    ("fstype", "device", "slow"),
    [
        *[("ext4", (254, 1), False), ("tmpfs", (0, 30), False), ("proc", (0, 31), False), ("overlay", (0, 32), False)],
        *[("btrfs", (0, 33), False), ("zfs", (0, 34), False), ("fuseblk", (254, 2), True), ("fuse.sshfs", (0, 35), True)],
        *[("fuse", (0, 36), True), ("nfs4", (0, 37), True), ("autofs", (0, 38), True), ("9p", (0, 39), True)],
    ],
)
def test_which_filesystems_may_not_answer(fstype, device, slow):
    """Broken: the agent would be stuck on one, or fork a process for each file of a local disk."""
    assert looks._may_not_answer(Mount(1, device, "/x", fstype, "x", super_read_only=False)) is slow


def test_a_disk_whose_file_or_network_may_not_answer_may_not_answer(hung, monkeypatch):
    """Broken: an image file on a hung mount, loop-mounted, would be taken for a local disk."""
    mount = Mount(1, (7, 0), "/x", "ext4", "/dev/loop0", super_read_only=False)
    monkeypatch.setattr(mountinfo, "backing_files", lambda device: [f"{hung}/image"] if device == (7, 0) else [])
    assert looks._may_not_answer(mount)
    monkeypatch.setattr(mountinfo, "backing_files", lambda _: [])
    monkeypatch.setattr(mountinfo, "on_the_network", lambda device: device == (7, 0))
    looks._answers.clear()
    assert looks._may_not_answer(mount)


def test_the_inventory_comes_and_says_what_does_not_answer(hung):
    """Broken: `quiesce writers` would take a minute and ask whether the guest is frozen."""
    with within(10):
        [found] = [each for each in FilesystemList().report if each.mountpoint.endswith(str(hung))]
    assert found.state is FreezeState.SKIPPED
    assert str(found.reason).endswith("; it does not answer")


def test_a_writers_files_there_are_named(hung):
    """Broken: a checkpoint would hang for ten minutes in its preparation."""
    with within(10):
        freezer = filesystems.Freezer()
        try:
            says = freezer.why_not_frozen([f"{hung}/pg"])
        finally:
            freezer.close()
    assert says == f"its files in {hung}/pg cannot be reached: the filesystem at {hung} (fuse.test) does not answer"


def test_discovery_goes_on_past_a_service_with_files_there(hung, monkeypatch):
    """Broken: every application of the guest would wait for one service's hung files, or its files be passed over in
    silence."""
    service = processes.Process(4321, "service", 0, container=False)
    monkeypatch.setattr(processes, "running", lambda *_: iter([service]))
    monkeypatch.setattr(processes, "unit", lambda _: "shop.service")
    monkeypatch.setattr(processes, "open_files", lambda _: iter([f"{hung}/data", f"{hung}/more"]))
    monkeypatch.setattr(processes, "writes_to", lambda _, path: path.endswith("data"))
    with within(5):
        [writer] = sqlite.discover()
    writer.identify()
    assert (writer.id, writer.outcome) == ("files:shop.service", Outcome.TIMEOUT)
    assert f"{hung}/data: the filesystem at {hung} (fuse.test) does not answer" in str(writer.reason)
    monkeypatch.setattr(processes, "writes_to", lambda *_: False)
    assert sqlite.discover() == []


def test_a_process_writes_to_what_it_opened_for_writing(tmp_path):
    """Broken: a web server that reads a hung mount would be taken for a database, or a database for a reader."""
    with (tmp_path / "written").open("w"), (tmp_path / "written").open("r"), (tmp_path / "read").open("w"):
        pass
    with (tmp_path / "written").open("w"), (tmp_path / "read").open("r"):
        assert processes.writes_to(os.getpid(), f"{tmp_path}/written")
        assert not processes.writes_to(os.getpid(), f"{tmp_path}/read")
    assert not processes.writes_to(2**22 - 1, f"{tmp_path}/read")


def test_a_cluster_there_is_listed_and_refused(hung, tmp_path, monkeypatch):
    """Broken: a database would be passed over in silence because its disk hangs."""
    program = tmp_path / "postgres"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    data = tmp_path / "data"
    data.mkdir()
    server = subprocess.Popen([program, "60"], cwd=data)
    try:
        wait_for(
            lambda: processes.kernel_name(server.pid) == "postgres"
        )  # execve(2) closes our pipe before it names the process
        mine = f"/proc/{server.pid}/cwd"
        slow = Mount(1, (0, 99), str(data), "fuse.test", "x", super_read_only=False)
        asked = looks.slow_mount
        monkeypatch.setattr(looks, "slow_mount", lambda path: slow if path.startswith(mine) else asked(path))
        monkeypatch.setattr(looks, "apart", lambda _: (False, None))
        monkeypatch.setattr(identity, "why_stranger", lambda _: "")
        monkeypatch.setattr(postgresql, "data_directories", lambda: iter(()))
        found = [writer for writer in postgresql.discover() if writer.id == f"postgresql:{data}"]
    finally:
        server.kill()
        server.wait()
    [writer] = found
    writer.identify()
    assert (writer.outcome, writer.grade.vouched) == (Outcome.TIMEOUT, False)
    assert f"the filesystem at {data} (fuse.test) does not answer" in str(writer.reason)


def test_a_configuration_that_includes_files_there_is_an_error_and_no_hang(hung, tmp_path):
    """Broken: a Redis whose include lies on a hung mount would stop the agent."""
    (tmp_path / "redis.conf").write_text(f"port 1\ninclude {hung}/*.conf\n")
    with within(5), pytest.raises(NotAnsweringError):
        redis_configuration.read_settings(f"{tmp_path}/redis.conf")


class Reader(ApplicationWriter):
    def on_identify(self, _deadline_ns: int) -> None:
        files.read_text(self.id)


def test_a_writer_says_which_mount_does_not_answer(hung):
    """Broken: the reason would be a class of Python's."""
    writer = Reader(f"{hung}/file")
    writer.identify()
    assert (writer.outcome, writer.reason) == (Outcome.TIMEOUT, f"the filesystem at {hung} (fuse.test) does not answer")


def test_a_filesystem_that_somebody_else_has_frozen_is_told_before_anybody_writes_to_it(tmp_path):
    """Broken: a database would be told to write a checkpoint to it, and the agent wait for ten minutes."""
    with loop_filesystem.mounted(tmp_path) as mountpoint:
        before = sorted(mountpoint.iterdir())
        freezer = filesystems.Freezer()
        freezer.close()
        assert not any(str(mountpoint) in each for each in freezer.stuck)
        loop_filesystem.ask(mountpoint, linux.FIFREEZE)
        with within(10):
            freezer = filesystems.Freezer()
            listed = FilesystemList()
            [found] = [each for each in listed.report if each.mountpoint.endswith(str(mountpoint))]
        says = (
            f"nobody can write to {mountpoint}: somebody has frozen it (fsfreeze --unfreeze {mountpoint}), or its disk does not"
            " answer"
        )
        assert says in freezer.stuck
        freezer.close()
        assert (found.state, found.reason) == (FreezeState.FREEZABLE, says)
        assert listed.mount_points([f"{mountpoint}/lost+found", "/nowhere"]) == (found.mountpoint,)
        assert listed.why_unwritable([f"{mountpoint}/lost+found"]) == says
        assert listed.why_unwritable(["/nowhere", str(tmp_path)]) == ""
        loop_filesystem.ask(mountpoint, linux.FITHAW)
        assert sorted(mountpoint.iterdir()) == before


def test_files_below_another_mount_of_a_filesystem_are_on_that_filesystem(tmp_path):
    """Broken: a database on a second mount of a disk that is left out (a subvolume, a bind mount) would count as on root."""
    with loop_filesystem.mounted(tmp_path) as mountpoint:
        (second := tmp_path / "second").mkdir()
        (mountpoint / "pg").mkdir()
        subprocess.run(["mount", "--bind", mountpoint, second], check=True)
        try:
            listed = FilesystemList()
            [name] = listed.mount_points([str(second / "pg")])
        finally:
            subprocess.run(["umount", second], check=True)
        assert name.endswith(str(mountpoint))
