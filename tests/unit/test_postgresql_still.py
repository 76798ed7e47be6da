"""agent/writers/postgresql_still.py: a cluster that stands still, with a log of our own and a control group that follows a
script. tests/vm has the server and the kernel."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from quiesce.agent.undos import Undo
from quiesce.agent.writers import postgresql_still, wal
from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql import Cluster
from quiesce.agent.writers.postgresql_files import Postmaster
from quiesce.agent.writers.postgresql_nil_redo import NilRedo
from quiesce.agent.writers.postgresql_still import StandingCluster
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.wal_files import Log

COMMIT, INSERT = (1, 0x00), (10, 0x00)
DONE = struct.pack("=q", 1)


class Freezer:
    """A control group. `on_stop` happens as the last thing before its processes stand still."""

    path = "/system.slice/postgresql.service"
    undo = Undo(7, b"0")

    def __init__(self) -> None:
        self.on_stop: Any = lambda: None
        self.standing = False
        self.thawed_by_others = False
        self.stops = 0

    def stop(self, _deadline_ns: int) -> None:
        self.on_stop()
        self.standing = True
        self.stops += 1

    def stopped(self) -> bool:
        return self.standing and not self.thawed_by_others

    def go_on(self) -> None:
        self.standing = False

    def close(self) -> None:
        self.standing = False


class Control:
    """A session. The answer to the flush is where the log ends at that time."""

    def __init__(self, log: Log, *, next_xid: int = 100, in_progress: tuple[int, ...] = (), asynchronous: bool = False) -> None:
        self._log = log
        self._next_xid = next_xid
        self._in_progress = in_progress
        self._asynchronous = asynchronous

    def run(self, statement: str) -> list[list[Any]]:
        if "emit_message" in statement:
            self._log.write()
            end = wal.format_lsn(self._log.position)
            return [[end, "7", "1", str(self._next_xid), [str(xid) for xid in self._in_progress]]]
        return [[self._asynchronous]]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    (tmp_path / "pg_wal").mkdir()
    log = Log(tmp_path / "pg_wal", 0x1_0000_0000)
    (tmp_path / "global").mkdir()
    head = struct.pack("=QIIi4xqQQII", 7, 1700, 202406281, 6, 1, log.start + 8, log.start, 1, 1)
    (tmp_path / "global" / "pg_control").write_bytes(head.ljust(8192, b"\0"))
    return log


@pytest.fixture
def freezer() -> Freezer:
    return Freezer()


def standing(log: Log, freezer: Freezer) -> StandingCluster:
    cluster = StandingCluster(Postmaster(1, 0, str(log.directory.parent), 5432, "/nowhere", container=False), freezer)  # type: ignore[arg-type]
    cluster.segment_size = log.segment
    return cluster


def test_the_end_is_that_of_the_log_when_all_processes_had_stopped(log, freezer):
    """Broken: the record would leave out what was acknowledged between the flush and the standstill."""
    cluster = standing(log, freezer)

    def more() -> None:
        log.append(INSERT, b"x" * 300, xid=101)
        log.append(COMMIT, DONE, xid=101)
        log.append(INSERT, b"x", xid=102)
        log.write()

    log.append(INSERT, b"x" * 500, xid=99)
    freezer.on_stop = more
    reason = cluster.take(Control(log, next_xid=101, in_progress=(98, 99)), 0)
    size = log.position - log.start
    assert cluster.position == {
        "system_identifier": "7",
        "timeline": "1",
        "checkpoint_lsn": wal.format_lsn(log.start + 8),
        "redo_lsn": wal.format_lsn(log.start),
        "insert_lsn": wal.format_lsn(log.position),
        "next_xid": "0:103",
        "redo_bytes": str(size),
        "in_progress_xids": "98,99,102",
    }
    first, last = wal.format_lsn(log.start), wal.format_lsn(log.position)
    assert (
        reason
        == f"its start replays {size:,} bytes of log, from {first} to {last}, and rolls back the 3 transactions in flight"
    )
    cluster.release(None)
    assert not freezer.standing


@pytest.mark.parametrize(
    ("in_progress", "expected"), [((), ""), ((99,), ", and rolls back the transaction in flight")], ids=["none", "one"]
)
def test_what_is_rolled_back_is_said(in_progress, expected, log, freezer):
    """Broken: nobody could tell what a restore loses."""
    reason = str(standing(log, freezer).take(Control(log, in_progress=in_progress), 0))
    assert reason.partition(" to ")[2].partition(",")[2] == expected.removeprefix(",")


def test_transactions_whose_numbers_begin_anew_are_told_apart(log, freezer):
    """Broken: after four thousand million transactions a checkpoint would be compared by wrong numbers."""
    freezer.on_stop = lambda: (log.append(INSERT, b"x", xid=3), log.write())
    cluster = standing(log, freezer)
    cluster.take(Control(log, next_xid=(5 << 32) - 2), 0)
    assert cluster.position["next_xid"] == "5:4"
    assert cluster.position["in_progress_xids"] == str((5 << 32) + 3)


def test_commits_that_may_be_missing_are_said(log, freezer):
    """Broken: an acknowledged commit would be missing after a restore, and the label would not speak of it."""
    cluster = standing(log, freezer)
    control = Control(log, asynchronous=True)
    cluster.prepare(control, 0, 1000)
    assert "(synchronous_commit = off) may be missing" in str(cluster.take(control, 0))


def test_a_busy_log_is_flushed_again(log, freezer, monkeypatch):
    """Broken: a cluster that wrote much at the wrong moment could not be held, or clients waited for a long log to be read."""
    monkeypatch.setattr(wal, "MOST", 8192)

    def burst() -> None:
        if freezer.stops < 1:
            for _ in range(4):
                log.append(INSERT, b"x" * 4000)
            log.write()

    freezer.on_stop = burst
    standing(log, freezer).take(Control(log), 0)
    assert (freezer.stops, freezer.standing) == (2, True)


def test_a_log_that_never_gets_short_is_given_up_and_the_cluster_runs(log, freezer, monkeypatch):
    """Broken: the cluster would stand still for ever."""
    monkeypatch.setattr(wal, "MOST", 64)
    freezer.on_stop = lambda: (log.append(INSERT, b"x" * 4000), log.write())
    with pytest.raises(WriterError, match="the end of its log cannot be told: more than 64 bytes"):
        standing(log, freezer).take(Control(log), 0)
    assert (freezer.stops, freezer.standing) == (postgresql_still.MAX_STOPS, False)


def test_a_log_that_is_gone_is_given_up_and_the_cluster_runs(log, freezer, monkeypatch):
    """Broken: the cluster would stand still until the dead-man comes."""
    monkeypatch.setattr(wal, "tail", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(WriterError, match="its log cannot be read: gone"):
        standing(log, freezer).take(Control(log), 0)
    assert not freezer.standing


def test_a_cluster_that_somebody_thawed_loses_its_grade(log, freezer):
    """Broken: what ran during the window would be vouched for."""
    cluster = standing(log, freezer)
    cluster.take(Control(log), 0)
    freezer.thawed_by_others = True
    with pytest.raises(WriterError, match="its processes ran during the window") as raised:
        cluster.release(None)
    assert raised.value.outcome is Outcome.INCONSISTENT


def test_a_log_that_moved_loses_its_grade(log, freezer):
    """Broken: what wrote to the cluster's files during the window would be vouched for."""
    cluster = standing(log, freezer)
    cluster.take(Control(log), 0)
    log.append(INSERT, b"x")
    log.write()
    with pytest.raises(WriterError, match="its log moved during the window"):
        cluster.release(None)
    assert not freezer.standing


@pytest.mark.parametrize(
    ("alone", "nil_redo", "kind", "grade"),
    [
        (True, False, StandingCluster, Grade.STANDS_STILL),
        (True, True, NilRedo, Grade.NIL_REDO),
        (False, False, NilRedo, Grade.NIL_REDO),
    ],
)
def test_a_cluster_is_locked_where_it_is_asked_for_or_cannot_be_stopped_alone(
    alone, nil_redo, kind, grade, log, freezer, monkeypatch
):
    """Broken: who asked for nil redo would get less, or a cluster in a session with other programs would stop them, too."""
    monkeypatch.setattr(StandingCluster, "of", lambda _: standing(log, freezer) if alone else None)
    cluster = Cluster(Postmaster(1, 0, str(log.directory.parent), 5432, "/nowhere", container=False))
    cluster.nil_redo = nil_redo
    undo = cluster.undo()
    assert type(cluster._chosen) is kind
    assert cluster._chosen.grade is grade
    assert (undo is freezer.undo, cluster.outlives) == (kind is StandingCluster, kind is StandingCluster)
