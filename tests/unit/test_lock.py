"""catalog/lock.py"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from pathlib import Path

import pytest

from quiesce.catalog import lock
from quiesce.model.errors import BusyError, RefusedError


def test_one_at_a_time_and_the_holder_is_named(tmp_path):
    """Broken: two operations would work on one VM's disks at once."""
    with lock.hold(tmp_path / "locks", "web1", "quiesce delete web1"):
        with pytest.raises(BusyError, match=rf"quiesce delete web1 \(process {os.getpid()}\)") as refusal:
            with lock.hold(tmp_path / "locks", "web1", "quiesce restore web1"):
                pass
        assert refusal.value.exit_code == 9
        with lock.hold(tmp_path / "locks", "web2", "quiesce restore web2"):
            pass
    with lock.hold(tmp_path / "locks", "web1", "quiesce restore web1"):
        pass


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_frees_it(failure, tmp_path):
    """Broken: after a failed operation the VM would be locked for good."""
    with pytest.raises(failure), lock.hold(tmp_path, "web1", "first"):
        raise failure
    with lock.hold(tmp_path, "web1", "second"):
        pass


def test_the_death_of_its_holder_frees_it(tmp_path):
    """Broken: after a kill -9 an administrator would have to find and remove a file."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock.hold(tmp_path, "web1", "quiesce checkpoint web1"):
                os.write(send, b"held")
                os.read(os.pipe()[0], 1)
        finally:
            os._exit(1)
    os.close(send)
    try:
        assert os.read(receive, 4) == b"held"
        os.close(receive)
        with pytest.raises(BusyError, match=f"process {child}"), lock.hold(tmp_path, "web1", "mine"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with lock.hold(tmp_path, "web1", "mine"):
        pass


def test_waiting_takes_its_turn_after_the_holder(tmp_path):
    """Broken: two first commands would make the catalog's tables at once; or the second would fail instead of waiting."""
    go, start = os.pipe()
    receive, send = os.pipe()
    child = os.fork()  # before the lock is taken: a child would inherit it
    if child == 0:
        try:
            os.close(start)
            os.read(go, 1)
            with lock.wait(tmp_path / "locks", "schema"):
                os.write(send, b"has it")
        finally:
            os._exit(0)
    os.close(go)
    os.close(send)
    with lock.wait(tmp_path / "locks", "schema"):
        os.close(start)
        assert not select.select([receive], [], [], 0.1)[0]
    assert os.read(receive, 6) == b"has it"
    os.close(receive)
    assert os.waitpid(child, 0)[1] == 0
    with lock.wait(tmp_path / "locks", "schema"), lock.wait(tmp_path / "locks", "another"):
        pass


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_ends_the_wait_of_others(failure, tmp_path):
    """Broken: a catalog that could not be opened once could never be opened again."""
    with pytest.raises(failure), lock.wait(tmp_path, "schema"):
        raise failure
    with lock.hold(tmp_path, "schema", "next"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"what": 1}', "\x00"])
def test_a_holder_that_has_said_nothing_yet_is_still_one(content, tmp_path):
    """Broken: the error about a lock would itself be an error."""
    with lock.hold(tmp_path, "web1", "first"):
        Path(tmp_path / "web1.lock").write_text(content)
        with pytest.raises(BusyError, match=f"process {os.getpid()}|does not tell"), lock.hold(tmp_path, "web1", "second"):
            pass


# -- other users


def test_a_lock_file_is_nobody_elses_business(tmp_path):
    """Broken: a stranger could hold a lock that root waits for."""
    with lock.hold(tmp_path / "locks", "web1", "mine"):
        assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "locks/web1.lock").stat().st_mode) == 0o600
    (tmp_path / "locks/web1.lock").chmod(0o644)  # as older versions made it
    with lock.wait(tmp_path / "locks", "web1"):
        assert stat.S_IMODE((tmp_path / "locks/web1.lock").stat().st_mode) == 0o600


def test_no_lock_is_in_a_directory_where_others_can_write():
    """Broken: a stranger could make the file first, and hold it; or have root write through a link."""
    for world_writable in ("/run/lock", "/tmp", "/var/tmp", "/dev/shm"):
        assert not lock.directory_for_this_user().is_relative_to(world_writable)
    source = Path(lock.__file__).parents[1]
    found = [path for path in source.rglob("*.py") if "flock(" in path.read_text() and "agent" not in path.parts]
    assert {path.name for path in found} == {"lock.py", "pools.py"}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
@pytest.mark.parametrize("spoil", ["owner", "mode", "file", "link", "fifo"])
def test_a_lock_that_a_stranger_could_have_made_is_refused(spoil, tmp_path):
    """Broken: root would wait for a stranger, or overwrite a file of its own through a link."""
    directory, secret = tmp_path / "locks", tmp_path / "secret"
    directory.mkdir(mode=0o700)
    secret.write_text("root's own")
    if spoil == "owner":
        os.chown(directory, 65534, 65534)
    elif spoil == "mode":
        directory.chmod(0o777)
    elif spoil == "file":
        (directory / "web1.lock").touch()
        os.chown(directory / "web1.lock", 65534, 65534)
    elif spoil == "link":
        (directory / "web1.lock").symlink_to(secret)
    else:
        os.mkfifo(directory / "web1.lock")
    for take in (lambda: lock.hold(directory, "web1", "mine"), lambda: lock.wait(directory, "web1")):
        with pytest.raises(RefusedError, match="locks"), take():
            pass
    assert secret.read_text() == "root's own"


@pytest.mark.parametrize("mode", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_wait_ends_and_names_who_holds_the_lock(mode, tmp_path, monkeypatch):
    """Broken: a process that hangs would have all others wait without end, and nobody know for whom."""
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    with lock.lock_file(tmp_path, "pools") as held:
        lock.acquire(held, mode)
        with (
            pytest.raises(BusyError, match=rf"pools\.lock has been locked.*process {os.getpid()} \("),
            lock.wait(tmp_path, "pools"),
        ):
            pass
    with lock.wait(tmp_path, "pools"):
        pass


@pytest.mark.parametrize("content", ["[" * 100_000, '{"what": "' + "x" * 10**6, "7", "\ud800".encode("utf-8", "surrogatepass")])
def test_whatever_a_lock_file_contains_the_holder_is_named(content, tmp_path):
    """Broken: an error about a lock would itself be an error."""
    with lock.hold(tmp_path, "web1", "first"):
        path = Path(tmp_path / "web1.lock")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), lock.hold(tmp_path, "web1", "second"):
            pass
