"""agent/deadman.py: real processes, and no filesystem but plain files, which cannot be frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lab.standstill import wait_for
from quiesce.agent import deadman, linux
from quiesce.agent import undos as undos_module
from quiesce.agent.deadman import DeadMan, DeadManError
from quiesce.agent.undos import Undo

MS = 1_000_000


@pytest.fixture(autouse=True)
def not_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadman, "RESCUE_NOTE", str(tmp_path / "note"))
    # A container may not ask for this, even as root; in a guest the dead-man does not start without it.
    monkeypatch.setattr(deadman, "_never_kill_for_memory", (tmp_path / "spared").touch)


def in_conversation(
    work: Callable[[DeadMan], object], filesystems: list[int] | None = None, undos: Sequence[Undo] = ()
) -> tuple[int, int]:
    """Runs `work` in a child that has a dead-man. Returns the child's and the dead-man's process ids."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            watcher = DeadMan.start(filesystems or [], undos)
            os.write(send, b"%d" % watcher._pid)
            os.close(send)
            work(watcher)
        finally:
            os._exit(0)
    os.close(send)
    try:
        return child, int(os.read(receive, 20))
    finally:
        os.close(receive)


def wait_gone(pid: int, seconds: float = 10) -> None:
    wait_for(lambda: not _running(pid), seconds)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def opened_by(pid: int) -> list[str]:
    """What a process has open, besides its standard streams."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if int(path.name) > 2:
                found.append(str(path.readlink()))
    return found


def soon(milliseconds: int = 50) -> int:
    return time.monotonic_ns() + milliseconds * MS


def test_disarmed_it_ends_and_leaves_no_note():
    """Broken: every checkpoint would leave a locked process behind, or claim a rescue."""
    watcher = DeadMan.start([])
    watcher.arm(soon(60_000))
    assert _running(watcher._pid)
    watcher.disarm()
    assert not _running(watcher._pid)
    watcher.disarm()
    assert deadman.last_rescue() is None


@pytest.mark.parametrize("stuck", ["asleep", "stopped"])
def test_at_the_deadline_it_kills_the_conversation(stuck):
    """Broken: an agent that hangs would hold the guest's applications for ever."""

    def hang(watcher: DeadMan) -> None:
        watcher.arm(soon())
        os.kill(os.getpid(), signal.SIGSTOP) if stuck == "stopped" else time.sleep(60)

    child, watcher = in_conversation(hang)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    wait_gone(watcher)
    assert deadman.last_rescue() == "the deadline passed; 0 filesystem(s) thawed"


def test_before_the_deadline_it_leaves_the_conversation_alone():
    """Broken: healthy checkpoints would be killed."""

    def work(watcher: DeadMan) -> None:
        watcher.arm(soon(60_000))
        time.sleep(0.15)
        watcher.disarm()

    child, watcher = in_conversation(work)
    assert os.waitpid(child, 0)[1] == 0
    wait_gone(watcher)
    assert deadman.last_rescue() is None


def test_the_conversations_death_in_the_window_is_a_rescue():
    """Broken: an agent killed in the window would leave filesystems frozen until the deadline, or for ever."""

    def work(watcher: DeadMan) -> None:
        watcher.arm(soon(60_000))
        os.kill(os.getpid(), signal.SIGKILL)

    child, watcher = in_conversation(work)
    os.waitpid(child, 0)
    wait_gone(watcher)
    assert deadman.last_rescue() == "the agent died; 0 filesystem(s) thawed"


def test_the_conversations_death_before_the_window_is_none():
    """Broken: each host that hangs up before the window would leave a process, or an alarming note."""
    child, watcher = in_conversation(lambda _: None)
    os.waitpid(child, 0)
    wait_gone(watcher)
    assert deadman.last_rescue() is None


def test_what_cannot_be_thawed_does_not_stop_it(tmp_path):
    """Broken: one filesystem that is not frozen (any more) would keep the others from being thawed."""
    with (tmp_path / "plain").open("w") as file:

        def work(watcher: DeadMan) -> None:
            watcher.arm(soon(60_000))
            for index in (0, 1):
                watcher.freezing(index)
            watcher.not_ours(1)
            watcher.thawed(1)

        child, watcher = in_conversation(work, [file.fileno(), file.fileno()])
        os.waitpid(child, 0)
        wait_gone(watcher)
    assert deadman.last_rescue() == "the agent died; 0 filesystem(s) thawed"


def test_disarming_waits_for_the_thaws_it_began(tmp_path, monkeypatch):
    """Broken: a filesystem whose thaw the conversation could not confirm would stay frozen, with nobody left to thaw it."""

    def slow_thaw(descriptor: int, operation: int, _argument: int) -> int:
        assert operation == linux.FITHAW
        time.sleep(0.2)
        return os.write(descriptor, b"thawed")

    monkeypatch.setattr(deadman.fcntl, "ioctl", slow_thaw)
    with (tmp_path / "one").open("wb") as one, (tmp_path / "two").open("wb") as two, (tmp_path / "three").open("wb") as three:
        watcher = DeadMan.start([one.fileno(), two.fileno(), three.fileno()])
        for index in range(3):
            watcher.freezing(index)
        watcher.thawed(1)
        watcher.disarm()
    assert [(tmp_path / name).read_bytes() for name in ("one", "two", "three")] == [b"thawed", b"", b"thawed"]


@pytest.mark.parametrize("way", ["killed", "deadline", "disarmed"])
@pytest.mark.parametrize("undone", [False, True])
def test_what_would_outlive_the_conversation_is_taken_back_in_reverse(undone, way, tmp_path):
    """Broken: an application would stand still for ever, or be let go twice, or before what was held after it."""
    order = tmp_path / "order"
    order.touch()
    with order.open("ab", buffering=0) as file:
        undos = [Undo(file.fileno(), b"first "), Undo(file.fileno(), b"second "), Undo(file.fileno(), b"never done ")]
        undos.append(Undo(command=("/bin/sh", "-c", f"printf 'third ' >>{order}")))

        def work(watcher: DeadMan) -> None:
            for index in (0, 1, 3):
                watcher.doing(index)
            if undone:
                for index in (3, 1, 1):
                    watcher.undone(index)
            if way == "disarmed":
                watcher.disarm()
            elif way == "deadline":
                watcher.arm(soon())
                time.sleep(60)

        child, watcher = in_conversation(work, undos=undos)
        os.waitpid(child, 0)
        wait_gone(watcher)
    written = "second first " * (1 if way != "deadline" else 2)  # before the conversation's death, and after it
    if undone:
        written = written.replace("second ", "")
    assert order.read_text() == written + ("" if undone else "third ")


def test_an_undo_that_hangs_does_not_keep_the_others(tmp_path, monkeypatch):
    """Broken: one script that does not end would keep every other application held."""
    monkeypatch.setattr(undos_module, "UNDO_TIMEOUT_S", 0.2)
    with (tmp_path / "note").open("wb", buffering=0) as file:
        undos = [Undo(file.fileno(), b"let go"), Undo(command=("/bin/sleep", "60")), Undo(command=("/nowhere",))]

        def work(watcher: DeadMan) -> None:
            for index in range(3):
                watcher.doing(index)

        child, watcher = in_conversation(work, undos=undos)
        os.waitpid(child, 0)
        wait_gone(watcher)
    assert (tmp_path / "note").read_text() == "let go"


def test_polite_signals_do_not_end_it():
    """Broken: stopping the service, or a hang-up, would kill the one that thaws."""

    def work(watcher: DeadMan) -> None:
        watcher.arm(soon(60_000))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            os.kill(watcher._pid, number)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    child, watcher = in_conversation(work)
    os.waitpid(child, 0)
    wait_gone(watcher)
    assert deadman.last_rescue() == "the agent died; 0 filesystem(s) thawed"


def test_it_is_locked_in_memory_spared_by_the_oom_killer_and_keeps_nothing_open(tmp_path):
    """Broken: it could hang on a page-in from the very filesystem it must thaw, be killed first when memory is short, or
    keep a writer's session alive."""
    with (tmp_path / "session").open("w") as session, (tmp_path / "filesystem").open("w") as filesystem:
        watcher = DeadMan.start([filesystem.fileno()])
        try:
            status = Path(f"/proc/{watcher._pid}/status").read_text()
            locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck:"))
            assert locked > 1000
            assert (tmp_path / "spared").exists()
            # An own session, so that a signal to the service's group spares it.
            assert os.getsid(watcher._pid) == watcher._pid
            opened = opened_by(watcher._pid)
            assert str(tmp_path / "filesystem") in opened
            assert session.name not in opened
            # One pipe to hear us; the other, by which it said it is ready, is closed a moment later.
            wait_for(lambda: len([name for name in opened_by(watcher._pid) if name.startswith("pipe:")]) == 1, 5)
        finally:
            watcher.disarm()


def test_without_a_listener_there_is_no_window():
    """Broken: a guest could be frozen with nobody to thaw it."""
    watcher = DeadMan.start([])
    os.kill(watcher._pid, signal.SIGKILL)
    wait_gone(watcher._pid)
    with pytest.raises(DeadManError, match="gone"):
        watcher.arm(soon())
    with pytest.raises(DeadManError):
        watcher.freezing(0)
    watcher.disarm()


def test_one_that_cannot_be_locked_in_memory_is_refused(monkeypatch):
    """Broken: a window would begin on a dead-man that may hang."""

    def fail() -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(linux, "lock_memory", fail)
    with pytest.raises(DeadManError, match="Cannot allocate memory"):
        DeadMan.start([])


def test_disarming_waits_for_what_is_yet_to_be_taken_back(tmp_path, monkeypatch):
    """Broken: a script that takes longer than a moment would keep whatever is to be let go after it held for ever."""
    monkeypatch.setattr(deadman, "DISARM_TIMEOUT_S", 0.05)
    watcher = DeadMan.start([], [Undo(command=("/bin/sh", "-c", f"sleep 0.2; touch {tmp_path}/let-go"))])
    watcher.doing(0)
    watcher.disarm()
    assert (tmp_path / "let-go").exists()
