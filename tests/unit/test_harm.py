"""Whatever happens to an attempt, the application works afterwards as it did before: each writer under each harm.

Servers are played where they must be; processes, files, dead-men and a filesystem without room are real. tests/vm has the real
servers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.standstill import wait_for
from quiesce.agent import cgroups, deadman, holds, leftovers, memory, processes, systemd, trust
from quiesce.agent.deadman import DeadMan
from quiesce.agent.holds import HoldRecord
from quiesce.agent.writers import redis
from quiesce.agent.writers.base import ApplicationWriter, WriterError, deadline_in_ns
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.scripts import Script
from quiesce.agent.writers.sqlite import Sqlite
from quiesce.agent.writers.stopped import StoppedService
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit import declared_machine, fake_redis, loop_filesystem, sqlite_files
from tests.unit.fake_systemd import Systemctl, group_below

UNIT = "shop.service"
HOUR_S = 3600


@dataclass
class Scene:
    """An application in a machine of its own."""

    writer: Callable[[], ApplicationWriter]
    works: Callable[[], bool]
    """Whether it serves its clients."""
    restart: Callable[[], object] = field(default=lambda: None)
    """What a restart of the server does to it."""
    survives: bool = True
    """Whether a restart in the hold leaves the grade: the hold is not the server's own."""
    by_wall_clock: bool = False


def redis_scene(directory: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> Scene:
    fake = stack.enter_context(fake_redis.serving(directory, monkeypatch))
    monkeypatch.setattr(redis, "discover", lambda: [fake_redis.server()])

    def paused() -> bool:
        told = [said for said in fake.said if said.startswith("CLIENT")]
        return bool(told) and told[-1].startswith("CLIENT PAUSE")

    def restart() -> None:
        fake.info["run_id"] = "another"
        fake.said.append("CLIENT UNPAUSE")  # a pause is in the server's memory only

    return Scene(fake_redis.server, lambda: not paused(), restart, survives=False, by_wall_clock=True)


def frozen_scene(directory: Path, monkeypatch: pytest.MonkeyPatch, _stack: ExitStack) -> Scene:
    systemctl = Systemctl(directory)
    systemctl.has(UNIT)
    monkeypatch.setattr(systemd, "SYSTEMCTL", systemctl.path)
    monkeypatch.setattr(cgroups, "ROOT", str(directory / "cgroup"))
    group = group_below(directory / "cgroup", f"/system.slice/{UNIT}")
    group.settles()

    def restart() -> None:
        shutil.rmtree(group.directory)
        group_below(directory / "cgroup", f"/system.slice/{UNIT}")

    class Directory(FrozenCgroup):
        worth = Grade.CLEAN

    return Scene(lambda: Directory("openldap:x", unit=UNIT), lambda: set(group.asked) == {"0"}, restart)


def stopped_scene(directory: Path, monkeypatch: pytest.MonkeyPatch, _stack: ExitStack) -> Scene:
    systemctl = Systemctl(directory)
    systemctl.can_be_stopped(UNIT)
    monkeypatch.setattr(systemd, "SYSTEMCTL", systemctl.path)
    return Scene(
        lambda: StoppedService("rabbitmq:x", UNIT),
        lambda: systemd.properties_of(UNIT).get("ActiveState") == "active",
        lambda: systemctl.has(UNIT),
        survives=False,
    )


def commands_scene(directory: Path, monkeypatch: pytest.MonkeyPatch, _stack: ExitStack) -> Scene:
    machine = declared_machine.make_machine(directory, monkeypatch)
    held = directory / "held"
    hold, release = machine.command("hold", f"touch {held}"), machine.command("release", f"rm -f {held}")
    machine.file(f"{declared_machine.WRITER}Hold={hold}\nRelease={release}\n")
    return Scene(declared_machine.only, lambda: not held.exists())


def script_scene(directory: Path, monkeypatch: pytest.MonkeyPatch, _stack: ExitStack) -> Scene:
    held, path = directory / "held", directory / "10-shop"
    path.write_text(f'#!/bin/sh\nif [ "$1" = freeze ]; then touch {held}; else rm -f {held}; fi\n')
    path.chmod(0o755)
    monkeypatch.setattr(trust, "_on_the_way", lambda _: iter(()))
    return Scene(lambda: Script("fsfreeze-hook:10-shop", [str(path), "freeze"], [str(path), "thaw"]), lambda: not held.exists())


def sqlite_scene(directory: Path, _monkeypatch: pytest.MonkeyPatch, _stack: ExitStack) -> Scene:
    path = sqlite_files.database(directory / "shop.db")

    def make() -> ApplicationWriter:
        writer = Sqlite(UNIT, [str(path)])
        writer.freezing = False
        return writer

    return Scene(make, lambda: can_be_written(path))


def can_be_written(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
        try:
            connection.execute("INSERT INTO t VALUES (2)")
            connection.commit()
        except sqlite3.OperationalError:
            return False
        return True


SCENES = {
    "redis": redis_scene,
    "frozen": frozen_scene,
    "stopped": stopped_scene,
    "commands": commands_scene,
    "script": script_scene,
    "sqlite": sqlite_scene,
}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(deadman, "RESCUE_NOTE", str(tmp_path / "run" / "note"))
    monkeypatch.setattr(deadman, "_never_kill_for_memory", lambda: None)
    monkeypatch.setattr(processes, "cgroup", lambda _: "/system.slice/quiesce-agent.service")
    with ExitStack() as stack:
        made = SCENES[request.param](tmp_path, monkeypatch, stack)
        assert made.works()
        yield made


def held(scene: Scene) -> ApplicationWriter:
    """As an attempt does it, with nobody else about."""
    writer = scene.writer()
    writer.guarded = writer.undo() is not None
    writer.prepare(deadline_in_ns(10), 5000)
    writer.hold(deadline_in_ns(10))
    assert writer.grade.vouched, writer.reason
    assert not scene.works()
    return writer


def attempt(scene: Scene, harm: Callable[[DeadMan], object]) -> None:
    """Holds in a process of its own, with a dead-man, and then comes to harm."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            writer = scene.writer()
            undos = [undo] if (undo := writer.undo()) else []
            watcher = DeadMan.start([], undos, [], HoldRecord.begin([], [undo.recorded() for undo in undos]))
            writer.guarded = bool(undos)
            writer.prepare(deadline_in_ns(10), 5000)
            watcher.arm(deadline_in_ns(60))
            if undos:
                watcher.doing(0)
            writer.hold(deadline_in_ns(10))
            Path(memory.DIRECTORY, "held").touch()
            harm(watcher)
        os._exit(1)
    os.waitpid(child, 0)
    assert Path(memory.DIRECTORY, "held").exists()


def test_the_agent_is_killed(scene):
    """Broken: the application would stand still until somebody notices."""
    attempt(scene, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    wait_for(scene.works, 10)
    wait_for(lambda: not holds.left(), 10)


def test_the_deadline_passes_and_the_agent_is_stuck(scene):
    """Broken: the same, with an agent that lives and does nothing."""

    def stop(watcher: DeadMan) -> None:
        watcher.arm(deadline_in_ns(0.05))
        os.kill(os.getpid(), signal.SIGSTOP)

    attempt(scene, stop)
    wait_for(scene.works, 10)
    wait_for(lambda: not holds.left(), 10)


def test_the_agent_and_its_dead_man_are_killed(scene):
    """Broken: the application would stand still for ever."""

    def both(watcher: DeadMan) -> None:
        os.kill(watcher._pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    outlives = scene.writer().outlives
    attempt(scene, both)
    assert scene.works() is not outlives  # a hold of a session ends with it
    leftovers.take_back_all()
    wait_for(scene.works, 10)
    assert not holds.left()


def test_the_server_is_restarted_in_the_hold(scene):
    """Broken: what it wrote at its start would be vouched for, or it would be held again by nobody's wish."""
    writer = held(scene)
    scene.restart()
    writer.release()
    writer.abort()
    assert scene.works()
    if not scene.survives:
        assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


@pytest.mark.parametrize("leap_s", [HOUR_S, -HOUR_S], ids=["forth", "back"])
@pytest.mark.parametrize("way", ["release", "abort"])
def test_the_clock_is_set_in_the_hold(way, leap_s, scene, monkeypatch):
    """Broken: a hold would last for an hour, or end at once and be vouched for."""
    writer = held(scene)
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + leap_s)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + leap_s * 10**9)
    getattr(writer, way)()
    if way == "release" and scene.by_wall_clock and leap_s > 0:
        assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
        writer.abort()
        return  # the server ended the pause itself
    if scene.by_wall_clock and leap_s > 0:
        return
    assert writer.grade.vouched
    writer.abort()
    assert scene.works()


def test_no_byte_is_left_for_a_sqlite_file(tmp_path_factory):
    """Broken: the log could not be written back, and the service be left with a file that is damaged or locked."""
    with loop_filesystem.mounted(tmp_path_factory.mktemp("full")) as mountpoint:
        path = sqlite_files.database(mountpoint / "shop.db")
        service = sqlite3.connect(path)
        service.execute("INSERT INTO t VALUES (7)")
        service.commit()
        with contextlib.suppress(OSError), (mountpoint / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 65536)
        writer = Sqlite(UNIT, [str(path)])
        writer.freezing = False
        writer.prepare(deadline_in_ns(10), 5000)
        with contextlib.suppress(WriterError):
            writer.hold(deadline_in_ns(10))
        writer.abort()
        (mountpoint / "fill").unlink()
        assert can_be_written(path)
        assert service.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (2,), (7,)]
        service.close()


def test_no_byte_is_left_for_the_save_of_a_redis(tmp_path, monkeypatch):
    """Broken: its writers would wait for a save that never succeeds, until the end of the window."""
    with fake_redis.serving(tmp_path, monkeypatch) as fake:
        writer = fake_redis.prepared()
        fake.info["rdb_changes_since_last_save"] = "4"
        fake.saves = [{"rdb_bgsave_in_progress": "0", "rdb_last_bgsave_status": "err"}]
        with pytest.raises(WriterError, match="its save failed"):
            writer.hold(deadline_in_ns(5))
        assert fake.said[-1] == "CLIENT UNPAUSE"
        assert writer.let_go


def test_no_byte_is_left_in_run(tmp_path, monkeypatch):
    """Broken: a hold would begin that the next agent does not know of."""
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(deadman, "_never_kill_for_memory", lambda: None)
    record = HoldRecord.begin([], [])
    watcher = DeadMan.start([], [], [], record)
    record.descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(deadman.DeadManError, match="cannot be noted"):
        watcher.freezing(0)
    watcher.disarm()
    os.close(record.descriptor)
