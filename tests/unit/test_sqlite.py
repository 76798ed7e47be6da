"""agent/writers/sqlite.py: which files it holds, how, and what stands in the way. Files and processes are real."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.standstill import within
from quiesce.agent import processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import sqlite
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.sqlite import Sqlite, is_database
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.sqlite_files import UNIT, Other, database, holding, others, preparing

NOBODY = 65534


@pytest.fixture
def other() -> Iterator[Callable[..., Other]]:
    with others() as start:
        yield start


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return database(tmp_path / "shop.db")


def wal(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


# -- a good hold


def test_the_log_is_emptied_and_writers_are_kept_out_until_the_release(file, other):
    """Broken: the image would need a recovery, or be in the middle of what somebody writes."""
    service = other(file)
    service.say("INSERT INTO t VALUES (2)")
    assert wal(file) > 0
    with holding(file) as writer:
        assert wal(file) == 0
        assert service.say("INSERT INTO t VALUES (3)") == "database is locked"
        assert service.say("SELECT count(*) FROM t") == "[(2,)]"
        writer.release()
        assert (writer.grade, writer.outcome, writer.reason) == (Grade.CLEAN, Outcome.STABLE, None)
        assert service.say("INSERT INTO t VALUES (3)") == "[]"


def test_a_file_with_a_rollback_journal_is_held_too(tmp_path, other):
    """Broken: SQLite's default journal would not be held."""
    file = database(tmp_path / "old.db", "delete")
    service = other(file)
    with holding(file) as writer:
        assert service.say("INSERT INTO t VALUES (2)") == "database is locked"
        assert not Path(f"{file}-journal").exists()
        writer.release()
        assert writer.grade is Grade.CLEAN
        assert service.say("INSERT INTO t VALUES (2)") == "[]"


def test_what_is_held_is_whole_and_needs_no_log(file, other, tmp_path):
    """Broken: what was committed before would be missing in the image."""
    service = other(file)
    service.say("INSERT INTO t VALUES (2)")
    with holding(file):
        shutil.copy(file, tmp_path / "image.db")  # without the log
        connection = sqlite3.connect(tmp_path / "image.db")
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
        connection.close()


def test_the_position_names_what_was_committed(file, tmp_path, other):
    """Broken: two states of a file could not be told apart, or one not be recognized."""
    second = database(tmp_path / "second.db", "delete")

    def position() -> dict[str, str]:
        with holding(file, second) as writer:
            return dict(writer.report().position)

    before = position()
    assert before["files"] == "2"
    assert before[str(second)].startswith("change ")
    assert before[str(second)].endswith(" pages 2")
    assert position() == before
    other(second).say("INSERT INTO t VALUES (2)")
    assert position()[str(file)] == before[str(file)]
    assert position()[str(second)] != before[str(second)]


def test_it_says_what_it_is(file):
    """Broken: no report would name the files, or where they must not be."""
    writer = Sqlite(UNIT, [str(file)])
    writer.identify()
    report = writer.report()
    assert (report.id, report.application, report.grade) == (f"sqlite:{UNIT}", "sqlite", Grade.CLEAN)
    assert writer.paths() == [report.data_directory] == [str(file.parent)]
    writer.abort()


def test_letting_go_can_be_said_at_any_time_and_again(file, other):
    """Broken: an attempt that ends early would leave a file locked."""
    service = other(file)
    with holding(file) as writer:
        writer.abort()
        writer.abort()
        assert (writer.let_go, writer.warnings) == (True, [])
        assert service.say("INSERT INTO t VALUES (2)") == "[]"
    assert not [path for path in Path("/proc/self/fd").iterdir() if os.path.realpath(path) == str(file)]


def test_the_locks_of_an_agent_that_dies_end_with_it(file, other):
    """Broken: a service could not write any more until the machine is restarted."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            with holding(file):
                os.write(send, b"held")
                time.sleep(60)
        os._exit(1)
    os.close(send)
    assert os.read(receive, 10) == b"held"
    os.close(receive)
    service = other(file)
    assert service.say("INSERT INTO t VALUES (2)") == "database is locked"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert service.say("INSERT INTO t VALUES (2)") == "[]"


# -- what stands in the way


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_transaction_that_does_not_end_is_waited_for_and_then_named(begin, mode, tmp_path, other):
    """Broken: the user would not learn what to end; or a file be called held while somebody writes."""
    file = database(tmp_path / "shop.db", mode)
    service = other(file)
    assert service.say(begin, "INSERT INTO t VALUES (2)") == "[]"
    with preparing(file) as writer:
        assert writer.grade is Grade.CLEAN, writer.reason
        with within(1.4, at_least=0.4), pytest.raises(WriterError) as raised:
            writer.hold(deadline_in_ns(0.4))
        assert raised.value.outcome is Outcome.TIMEOUT
        assert str(raised.value) == f"not held: {file}: a transaction keeps it locked"
        assert writer.grade is Grade.CRASH
        assert service.say("COMMIT") == "[]"


def test_a_transaction_that_ends_in_time_is_only_waited_for(file, other, monkeypatch):
    """Broken: a busy service could not be held."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 2000)
    service = other(file)
    service.say("BEGIN IMMEDIATE", "INSERT INTO t VALUES (2)")
    assert service.process.stdin
    with preparing(file) as writer:
        later = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.1; echo COMMIT >/proc/{service.process.pid}/fd/0"])
        writer.hold(deadline_in_ns(5))
        writer.release()
        assert writer.grade is Grade.CLEAN
        later.wait()


def test_one_file_that_is_busy_gives_the_others_back_before_each_try(file, tmp_path, other):
    """Broken: a service that needs both files to end its transaction never could."""
    second = database(tmp_path / "z.db")
    busy, free = other(second), other(file)
    busy.say("BEGIN IMMEDIATE")
    with preparing(file, second) as writer:
        with pytest.raises(WriterError, match=r"z\.db: a transaction"):
            writer.hold(deadline_in_ns(0.4))
        assert free.say("INSERT INTO t VALUES (2)") == "[]"


def test_a_reader_that_keeps_the_log_costs_the_grade_and_says_so(file, other, monkeypatch):
    """Broken: an image that is completed from its log at the start would be called clean; or none could be taken."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    reader, service = other(file), other(file)
    reader.say("BEGIN", "SELECT * FROM t")
    service.say("INSERT INTO t VALUES (2)")
    with holding(file) as writer:
        assert wal(file) > 0
        assert (writer.grade, "log" in str(writer.reason)) == (Grade.NIL_REDO, True)
        assert service.say("INSERT INTO t VALUES (3)") == "database is locked"
        writer.release()
        assert (writer.grade, writer.outcome) == (Grade.NIL_REDO, Outcome.STABLE)


def test_a_reader_that_goes_away_costs_nothing(file, other, monkeypatch):
    """Broken: the first reader that passes would spoil the grade."""
    reader, service = other(file), other(file)
    reader.say("BEGIN", "SELECT * FROM t")
    service.say("INSERT INTO t VALUES (2)")
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: naps.append(seconds) or (len(naps) == 3 and reader.say("COMMIT")))
    with holding(file) as writer:
        assert (writer.grade, wal(file), len(naps)) == (Grade.CLEAN, 0, 3)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_was_written_behind_its_back_is_seen_at_the_release(mode, tmp_path):
    """Broken: a file whose lock was not heeded, as on a network filesystem, would be called held."""
    file = database(tmp_path / "shop.db", mode)
    with holding(file) as writer:
        # In a process of its own: closing a file here would give up the locks.
        where, seek = (f"{file}-wal", 0) if mode == "wal" else (str(file), 24)
        subprocess.run(
            ["dd", f"of={where}", "bs=1", f"seek={seek}", "conv=notrunc", "status=none"], input=b"\1\1\1\1", check=True
        )
        writer.release()
        assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
        assert writer.reason == f"{file} was written to during the window"


@pytest.mark.parametrize("damage", ["gone", "garbage"])
def test_a_file_that_cannot_be_opened_is_refused(damage, file):
    """Broken: an error of SQLite's would end the whole attempt, or the file be called held."""
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"SQLite format 3\0" + b"\7" * 5000)
    with preparing(file) as writer:
        assert writer.grade is Grade.REFUSED
        assert writer.reason
        writer.hold(deadline_in_ns(1))
        writer.release()
        assert not writer.grade.vouched


# -- whose files they are


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_files_stay_those_of_the_service_and_are_opened_as_its_user(other, monkeypatch):
    """Broken: a log that we make would be root's, and the service could not open its own database any more; or root be
    led to a file that the service may not open itself."""
    users: list[int] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *path, **how: users.append(os.geteuid()) or connect(*path, **how))
    directory = Path(tempfile.mkdtemp(prefix="quiesce-test-"))  # pytest's own are root's alone
    try:
        file = database(directory / "shop.db")
        os.chown(file, NOBODY, NOBODY)
        os.chown(directory, NOBODY, NOBODY)
        with preparing(file) as writer:
            assert users[-1] == NOBODY
            made = [directory / f"shop.db{end}" for end in ("-wal", "-shm")]
            assert [path.stat().st_uid for path in made] == [NOBODY, NOBODY]
            writer.hold(deadline_in_ns(5))
            assert os.geteuid() == 0
            service = other(file, NOBODY)
            assert service.say("SELECT count(*) FROM t") == "[(1,)]"
            writer.release()
            assert writer.grade is Grade.CLEAN
            assert service.say("INSERT INTO t VALUES (2)") == "[]"
        assert {path.stat().st_uid for path in directory.iterdir()} == {NOBODY}
    finally:
        shutil.rmtree(directory)


# -- which files


def test_only_regular_files_with_sqlites_header_are_databases(tmp_path):
    """Broken: looking at a machine would hang at a pipe, or call something a database that is none."""
    file = database(tmp_path / "shop.db")
    (tmp_path / "link").symlink_to(file)
    assert is_database(str(file))
    assert not is_database(str(tmp_path / "link"))  # what a process has open is shown without links
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes(b"SQLite format 3")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("SQLite format 3 is what this is about")
    for name in ("fifo", "short", "empty", "text", "absent", "", "shop.db (deleted)"):
        assert not is_database(str(tmp_path / name)), name
    for path in ("/dev/zero", "/proc/self/mem", "socket:[1]", "pipe:[2]", "anon_inode:[eventfd]", "/memfd:x (deleted)"):
        assert not is_database(path), path


def test_a_service_is_one_writer_of_all_its_files_and_a_file_is_in_one_writer(tmp_path, monkeypatch):
    """Broken: two services that share a file would wait for each other's hold; or a container's path be opened here."""
    one, two = str(database(tmp_path / "one.db")), str(database(tmp_path / "two.db"))
    opened = {1: [two, "/dev/null", one], 2: [one, one], 3: [one], 4: [two], 5: ["pipe:[3]"]}
    units = {1: "a.service", 2: "a.service", 3: "b.service", 4: "", 5: "c.service"}
    monkeypatch.setattr(processes, "running", lambda: (Process(pid, "x", 0, container=pid == 9) for pid in [*opened, 9]))
    monkeypatch.setattr(processes, "unit", lambda pid: units.get(pid, "docker.service"))
    monkeypatch.setattr(processes, "open_files", lambda pid: iter(opened[pid]))
    [writer] = sqlite.discover()
    assert isinstance(writer, Sqlite)
    assert (writer.id, writer._paths) == ("sqlite:a.service", [one, two])
