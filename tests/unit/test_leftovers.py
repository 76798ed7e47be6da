"""agent/leftovers.py, agent/holds.py: the agent and its dead-man are killed, and the next agent takes back what they held."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.standstill import wait_for, within
from quiesce.agent import deadman, filesystems, holds, leftovers, linux, memory, mounts, service
from quiesce.agent.deadman import DeadMan
from quiesce.agent.holds import HoldRecord
from quiesce.agent.undos import Undo
from quiesce.agent.writers import redis
from tests.unit import fake_redis, loop_filesystem


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(deadman, "RESCUE_NOTE", str(tmp_path / "note"))
    monkeypatch.setattr(deadman, "_never_kill_for_memory", lambda: None)
    return tmp_path


def both_killed(undos: Sequence[Undo], told: Sequence[tuple[str, int]], filesystems: Sequence[dict[str, Any]] = ()) -> None:
    """An attempt tells its dead-man this; then both are killed at the same moment, as by an administrator's `kill -9`."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            record = HoldRecord.begin(filesystems, [undo.recorded() for undo in undos])
            watcher = DeadMan.start([], undos, [], record)
            for what, value in told:
                getattr(watcher, what)(value)
            os.kill(watcher._pid, signal.SIGSTOP)  # it must not act between the two
            os.kill(watcher._pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def far() -> int:
    return time.monotonic_ns() + 60 * 10**9


def test_what_both_left_is_taken_back_and_nothing_else(directory):
    """Broken: a frozen service, a stopped unit or a script's hold would last until somebody notices; or what was let go before
    would be let go twice, which starts a unit that an administrator has stopped since."""
    group = directory / "cgroup.freeze"
    group.write_text("1")
    undos = [
        Undo(descriptor=0, data=b"0", path=str(group)),
        Undo(command=("/bin/sh", "-c", f"echo second >>{directory}/ran")),
        Undo(command=("/bin/sh", "-c", f"echo let-go-before >>{directory}/ran")),
        Undo(command=("/bin/sh", "-c", f"echo never-held >>{directory}/ran")),
    ]
    both_killed(undos, [("arm", far()), ("doing", 0), ("doing", 1), ("doing", 2), ("undone", 2)])
    assert (directory / "ran").exists() is False
    leftovers.take_back_all()
    assert group.read_text() == "0"
    assert (directory / "ran").read_text() == "second\n"
    assert deadman.last_rescue() == (
        "the agent and its dead-man died; the next agent: 0 filesystem(s) thawed, 2 hold(s) taken back"
    )
    leftovers.take_back_all()
    assert (directory / "ran").read_text() == "second\n"


@pytest.mark.parametrize(
    "told",
    [[], [("arm", 1), ("doing", 0), ("undone", 0)], [("freezing", 0), ("not_ours", 0)], [("freezing", 0), ("thawed", 0)]],
)
def test_nothing_is_left_of_what_was_let_go(told):
    """Broken: the next agent would thaw what somebody else has frozen since."""
    both_killed([Undo(command=("/bin/false",))], told, [{"device": [1, 1]}])
    assert not holds.left()


def test_a_record_of_another_boot_is_no_record(directory, monkeypatch):
    """Broken: after a soft reboot, or a restore of a guest with its memory, old numbers of devices would be acted upon."""
    both_killed([Undo(command=("/usr/bin/touch", str(directory / "ran")))], [("doing", 0)])
    assert holds.left()
    monkeypatch.setattr(holds, "boot_id", lambda: "another")
    leftovers.take_back_all()
    assert not (directory / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b'{"boot": 1}\nA1\n', b"\xff\n"])
def test_a_record_that_makes_no_sense_is_no_record(content, directory):
    """Broken: the service could not start any more."""
    (directory / holds.NAME).write_bytes(content)
    assert not holds.left()


def test_a_half_written_message_announces_nothing(directory):
    """Broken: index 12, cut after its first digit, would let go another application."""
    both_killed([Undo(command=("/bin/false",))], [])
    with (directory / holds.NAME).open("ab") as file:
        file.write(b"D0")
    assert not holds.left()


def test_a_filesystem_that_we_froze_is_thawed_and_one_that_others_froze_is_not(tmp_path_factory):
    """Broken: the guest would stand still until a reboot; or another program's snapshot would be broken by us."""
    with (
        loop_filesystem.mounted(tmp_path_factory.mktemp("ours")) as ours,
        loop_filesystem.mounted(tmp_path_factory.mktemp("theirs")) as theirs,
    ):
        found = {item.mount.mountpoint: item for item in mounts.find_filesystems()}
        recorded = [filesystems._recorded(found[str(path)]) for path in (ours, theirs)]
        for path in (ours, theirs):
            loop_filesystem.ask(path, linux.FIFREEZE)
        both_killed([], [("arm", far()), ("freezing", 0), ("freezing", 1), ("not_ours", 1)], recorded)
        leftovers.take_back_all()
        with pytest.raises(OSError) as not_frozen:
            loop_filesystem.ask(ours, linux.FITHAW)
        assert not_frozen.value.errno == errno.EINVAL
        loop_filesystem.ask(theirs, linux.FITHAW)
    assert "1 filesystem(s) thawed" in str(deadman.last_rescue())


def test_what_a_dead_man_that_lives_has_taken_back_is_not_taken_back_again(directory):
    """Broken: a thaw script would run twice after each rescue."""
    command = ("/bin/sh", "-c", f"echo once >>{directory}/ran")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            undos = [Undo(command=command)]
            watcher = DeadMan.start([], undos, [], HoldRecord.begin([], [undo.recorded() for undo in undos]))
            watcher.arm(far())
            watcher.doing(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: deadman.last_rescue() is not None, 10)
    assert not holds.left()
    leftovers.take_back_all()
    assert (directory / "ran").read_text() == "once\n"


@pytest.mark.parametrize("way", ["disarmed", "killed"])
def test_a_filesystem_that_is_not_frozen_any_more_is_not_left(way, directory):
    """Broken: after each snapshot by another platform, which thaws by itself, the next attempt would report a death that was
    none, and thaw what somebody else has frozen since."""
    (directory / "file").touch()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            descriptor = os.open(directory / "file", os.O_RDONLY)
            watcher = DeadMan.start([descriptor], [], [], HoldRecord.begin([{"device": [1, 1]}], []))
            watcher.arm(far())
            watcher.freezing(0)
            if way == "disarmed":
                watcher.disarm()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: not holds.left(), 10)


def test_an_undo_that_fails_is_said_and_keeps_no_other(directory):
    """Broken: one unit that is gone would keep every other application held, and nobody would know."""
    undos = [Undo(command=("/bin/false",)), Undo(command=("/usr/bin/touch", str(directory / "ran")))]
    both_killed(undos, [("doing", 0), ("doing", 1)])
    leftovers.take_back_all(retry_for_s=0.5)
    assert (directory / "ran").exists()
    assert str(deadman.last_rescue()).endswith("1 hold(s) taken back; /bin/false failed")
    assert not holds.left()


def test_a_command_that_still_runs_is_killed_before_its_hold_is_undone(directory):
    """Broken: a hold script that goes on would hold again after it was undone, with nobody left to undo it."""
    straggler = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    both_killed([Undo(command=("/usr/bin/touch", str(directory / "ran")))], [("doing", 0), ("command_started", straggler.pid)])
    leftovers.take_back_all()
    assert straggler.wait(10) == -signal.SIGKILL
    assert (directory / "ran").exists()


def test_the_service_takes_back_without_waiting(directory, tmp_path):
    """Broken: a dead-man that is still at work would keep the new service from its next caller."""
    both_killed([Undo(command=("/usr/bin/touch", str(directory / "ran")))], [("doing", 0)])
    lock = leftovers.open_lock()
    fcntl.flock(lock, fcntl.LOCK_EX)
    with within(5):
        service._take_back_leftovers()
    time.sleep(0.2)
    assert not (directory / "ran").exists()
    os.close(lock)
    wait_for(lambda: (directory / "ran").exists(), 10)
    wait_for(lambda: not holds.left(), 10)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_redis.Fake]:
    with fake_redis.serving(tmp_path, monkeypatch) as fake:
        monkeypatch.setattr(redis, "discover", lambda: [fake_redis.server()])
        yield fake


@pytest.mark.parametrize("who", ["next agent", "dead-man"])
def test_a_pause_is_ended_by_whoever_is_left(who, fake):
    """Broken: after a clock that was set back an hour, writers of a Redis would wait for an hour."""
    undo = fake_redis.server().undo()
    assert undo
    if who == "next agent":
        both_killed([undo], [("arm", far()), ("doing", 0)])
        assert not fake.count("CLIENT UNPAUSE")
        leftovers.take_back_all()
    else:
        watcher = DeadMan.start([], [undo])
        watcher.doing(0)
        watcher.disarm()
    assert fake.count("CLIENT UNPAUSE") == 1


def test_a_server_that_does_not_answer_yet_is_asked_again(fake, monkeypatch):
    """Broken: a server that was busy for a second would keep its writers waiting."""
    monkeypatch.setattr(leftovers, "RETRY_S", 0.05)
    undo = fake_redis.server().undo()
    assert undo
    both_killed([undo], [("doing", 0)])
    fake.errors["CLIENT UNPAUSE"] = "BUSY a script runs"
    fake.recovers_after = 2
    leftovers.take_back_all(retry_for_s=20)
    assert fake.count("CLIENT UNPAUSE") == 3
    assert str(deadman.last_rescue()).endswith("1 hold(s) taken back")


def test_a_server_that_is_gone_is_held_by_nobody():
    """Broken: every later start of the agent would report a failure."""
    both_killed([Undo(call=("redis", 2**22 - 1))], [("doing", 0)])
    leftovers.take_back_all()
    assert str(deadman.last_rescue()).endswith("1 hold(s) taken back")
