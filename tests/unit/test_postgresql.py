"""agent/writers/postgresql.py, as far as it needs no server: tests/vm has the server."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent.writers.base import WriterError
from quiesce.agent.writers.postgresql import MIB, Cluster
from quiesce.agent.writers.postgresql_files import Postmaster, cluster_id, data_directories, read_control_file
from quiesce.agent.writers.postgresql_locks import LockSession
from quiesce.agent.writers.postgresql_nil_redo import NilRedo
from quiesce.agent.writers.postgresql_session import sqlstate_of, words_of
from quiesce.agent.writers.postgresql_stopped import StoppedCluster
from quiesce.agent.writers.wal import format_lsn, parse_lsn
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire
from tests.unit.wal_files import CHECKPOINT_ONLINE, CHECKPOINT_REDO, INSERT, RUNNING_XACTS, Log

STARTUP, SHUT_DOWN, SHUT_DOWN_IN_RECOVERY, IN_PRODUCTION = 0, 1, 2, 6
SYSTEM, CHECKPOINT, REDO = 7_400_000_000_000_000_001, 0x16_B374_D848, 0x16_B374_D800


def control_file(directory: Path, state: int, checkpoint: int = CHECKPOINT) -> str:
    """pg_control as PostgreSQL 17 writes it, 8192 bytes of which the first 296 count."""
    (directory / "global").mkdir(exist_ok=True)
    (directory / "PG_VERSION").write_text("17\n")
    head = struct.pack("=QIIi4xqQQII", SYSTEM, 1700, 202406281, state, 1_760_000_000, checkpoint, REDO, 1, 1)
    (directory / "global" / "pg_control").write_bytes(head.ljust(8192, b"\0"))
    return str(directory)


def test_the_control_file_is_read_where_postgresql_writes_it(tmp_path):
    """Broken: a cluster that crashed would be called clean, or its position would be another one."""
    assert read_control_file(control_file(tmp_path, IN_PRODUCTION)) == (SYSTEM, IN_PRODUCTION, CHECKPOINT, REDO)


@pytest.mark.parametrize("state", [SHUT_DOWN, SHUT_DOWN_IN_RECOVERY])
def test_a_cluster_shut_down_cleanly_is_clean(state, tmp_path):
    """Broken: a VM with a stopped database could not be checkpointed."""
    writer = StoppedCluster(control_file(tmp_path, state))
    writer.prepare(0, 0)
    writer.hold(0)
    writer.release()
    found = writer.report()
    assert (found.grade, found.role, found.version, found.level) == (Grade.CLEAN, "down", "17", Level.BACK_END)
    assert found.position == {"system_identifier": str(SYSTEM), "checkpoint_lsn": "16/B374D848", "redo_lsn": "16/B374D800"}
    writer.abort()
    writer.abort()


@pytest.mark.parametrize("state", [STARTUP, 3, 4, 5, IN_PRODUCTION])
def test_a_cluster_that_was_not_shut_down_is_a_crash_image(state, tmp_path):
    """Broken: a database that will recover at its start would be called clean."""
    writer = StoppedCluster(control_file(tmp_path, state))
    writer.prepare(0, 0)
    assert writer.report().grade is Grade.CRASH
    assert "not shut down cleanly" in str(writer.report().reason)
    writer.hold(0)
    writer.release()
    assert writer.report().grade is Grade.CRASH


@pytest.mark.parametrize(("state", "checkpoint"), [(IN_PRODUCTION, CHECKPOINT), (SHUT_DOWN, CHECKPOINT + 40)])
@pytest.mark.parametrize("when", ["prepare", "hold", "release"])
def test_a_cluster_started_during_the_attempt_is_a_crash_image(when, state, checkpoint, tmp_path):
    """Broken: a database that began to write in the window would keep the label of the one that stood still."""
    writer = StoppedCluster(control_file(tmp_path, SHUT_DOWN))
    writer.identify()
    steps = {"prepare": lambda: writer.prepare(0, 0), "hold": lambda: writer.hold(0), "release": writer.release}
    for name, step in steps.items():
        if name == when:
            control_file(tmp_path, state, checkpoint)
        if name == when == "hold":
            with pytest.raises(WriterError, match="started during the attempt"):
                step()
        else:
            step()
    assert writer.report().grade is Grade.CRASH
    assert "started during the attempt" in str(writer.report().reason)


@pytest.mark.parametrize("content", [None, b"", b"short", b"\0" * 47])
def test_an_unreadable_control_file_is_refused_and_never_raises(content, tmp_path):
    """Broken: one broken directory would keep the agent from saying anything about the others."""
    if content is not None:
        (tmp_path / "global").mkdir()
        (tmp_path / "global" / "pg_control").write_bytes(content)
    writer = StoppedCluster(str(tmp_path))
    writer.prepare(0, 0)
    found = writer.report()
    assert (found.grade, found.version) == (Grade.REFUSED, "unknown")
    assert "control file" in str(found.reason)
    writer.hold(0)
    writer.forgo("no")
    writer.release()
    writer.abort()
    writer.remember()


def test_a_version_that_is_no_text_is_no_error(tmp_path):
    """Broken: one damaged PG_VERSION would keep the guest from every checkpoint."""
    control_file(tmp_path, SHUT_DOWN)
    (tmp_path / "PG_VERSION").write_bytes(b"\xff\xfe\n")
    writer = StoppedCluster(str(tmp_path))
    writer.identify()
    assert writer.report().grade is Grade.CLEAN


def test_a_control_file_that_vanishes_in_the_window_is_no_longer_vouched_for(tmp_path):
    """Broken: a cluster deleted under our eyes would stay clean."""
    writer = StoppedCluster(control_file(tmp_path, SHUT_DOWN))
    writer.prepare(0, 0)
    writer.hold(0)
    (tmp_path / "global" / "pg_control").unlink()
    writer.release()
    assert writer.report().grade is Grade.CRASH


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("/var/lib/postgresql/17/main", "postgresql:17/main"),
        ("/var/lib/postgresql/9.6/second", "postgresql:9.6/second"),
        ("/var/lib/pgsql/data", "postgresql:/var/lib/pgsql/data"),
        ("/srv/pg/17/main", "postgresql:/srv/pg/17/main"),
        ("/var/lib/postgresql/17/main/deeper", "postgresql:/var/lib/postgresql/17/main/deeper"),
    ],
)
def test_a_cluster_is_called_as_its_distribution_calls_it(directory, expected):
    """Broken: a writer's id would change, and with it what later checkpoints are compared by."""
    assert cluster_id(directory) == expected


@given(st.integers(0, 2**64 - 1))
def test_positions_are_written_as_they_are_read(position):
    """Broken: the positions in a report would not be those of the log."""
    assert parse_lsn(format_lsn(position)) == position


def _cluster(log: Log) -> Cluster:
    """A running cluster over a log of our own, with no server behind it."""
    directory = log.directory.parent
    (directory / "PG_VERSION").write_text("17\n")
    cluster = Cluster(Postmaster(1, 0, str(directory), 5432, "/nowhere", container=False))
    cluster._segment_size = log.segment
    way = cluster._chosen = NilRedo(cluster._postmaster)
    way.segment_size = log.segment
    way.position = {"redo_lsn": format_lsn(log.start), "timeline": "1"}
    return cluster


def _way(cluster: Cluster) -> NilRedo:
    assert isinstance(cluster._chosen, NilRedo)
    return cluster._chosen


@pytest.fixture
def log(tmp_path: Path) -> Log:
    (tmp_path / "pg_wal").mkdir()
    return Log(tmp_path / "pg_wal", 0x1_0000_1000)


def test_a_log_of_bookkeeping_alone_is_nil_redo(log):
    """Broken: no hold could ever be vouched for."""
    for kind in (CHECKPOINT_REDO, RUNNING_XACTS, CHECKPOINT_ONLINE):
        log.record(kind, 48)
    log.write()
    cluster = _cluster(log)
    assert _way(cluster)._beyond_bookkeeping(format_lsn(log.position)) == ""
    assert _way(cluster).position["redo_records"] == "CHECKPOINT_REDO,RUNNING_XACTS,CHECKPOINT_ONLINE"
    assert _way(cluster).position["redo_bytes"] == str(log.position - log.start)


def test_one_other_record_in_the_log_is_not(log):
    """Broken: an image that changes when it recovers would be called nil redo."""
    log.record(CHECKPOINT_REDO)
    log.record(INSERT, 80)
    log.record(CHECKPOINT_ONLINE, 114)
    log.write()
    assert _way(_cluster(log))._beyond_bookkeeping(format_lsn(log.position)) == "1 record of Heap/0x00"


def test_a_log_that_cannot_be_read_is_not(log):
    """Broken: what nobody looked at would be vouched for."""
    assert "No such file" in _way(_cluster(log))._beyond_bookkeeping(format_lsn(log.start + 64))
    log.record(CHECKPOINT_REDO)
    log.write()
    assert "ends early" in _way(_cluster(log))._beyond_bookkeeping(format_lsn(log.position + 64))
    assert "far more" in _way(_cluster(log))._beyond_bookkeeping(format_lsn(log.start + 2**20))


class Server:
    """A session that answers with rows, or fails."""

    def __init__(self, answer: object, write: Callable[[], object] = lambda: None) -> None:
        self.answer = answer
        self.said: list[str] = []
        self._write = write
        """The WAL writer, which comes by when it is asked about for the second time."""

    def run(self, statement: str) -> object:
        self.said.append(statement)
        if isinstance(self.answer, Exception):
            raise self.answer
        if "pg_current_wal_lsn" in statement:
            asked = sum("pg_current_wal_lsn" in said for said in self.said)
            if asked == 2:
                self._write()
            return [[asked > 1]]
        return self.answer

    def close(self) -> None:
        pass


def test_a_running_cluster_says_where_it_stands(log):
    """Broken: nobody could tell whether it moved since a checkpoint, whose transaction numbers are written by epochs."""
    cluster = _cluster(log)
    cluster._control = Server([["7", "1", "0/100", str((1 << 32) + 1000), []]])
    cluster._see_position()
    assert cluster.position == {"system_identifier": "7", "timeline": "1", "next_xid": "1:1000", "insert_lsn": "0/100"}


def test_a_running_cluster_names_transactions_that_have_not_ended(log):
    """Broken: one that commits later, with a number from before, would not show."""
    cluster = _cluster(log)
    cluster._control = Server([["7", "1", "0/100", "1000", ["990", "998"]]])
    cluster._see_position()
    assert cluster.position["in_progress_xids"] == "990,998"


@pytest.fixture
def held(log: Log) -> Cluster:
    """A cluster whose hold succeeded: its log ends with the checkpoint."""
    log.record(CHECKPOINT_REDO)
    log.record(CHECKPOINT_ONLINE, 114)
    log.write()
    cluster = _cluster(log)
    cluster.holding = True
    cluster.grade = Grade.NIL_REDO
    _way(cluster)._insert_lsn = format_lsn(log.position)
    cluster._control = Server([[_way(cluster)._insert_lsn]])
    return cluster


def test_a_hold_that_held_keeps_its_grade(held):
    """Broken: no checkpoint could be application-consistent."""
    held.release()
    assert held.report().grade is Grade.NIL_REDO


def test_a_log_that_moved_by_a_change_loses_the_grade(held, log):
    """Broken: a write that slipped through the hold would not show in the label."""
    log.record(INSERT, 80)
    log.write()
    held._control = Server([[format_lsn(log.position)]])
    held.release()
    assert held.report().grade is Grade.CRASH
    assert "moved during the window: 1 record of Heap/0x00" in str(held.report().reason)


def test_a_log_that_moved_by_bookkeeping_keeps_it(held, log):
    """Broken: the server's background records would fail honest checkpoints."""
    log.record(RUNNING_XACTS, 50)
    log.write()
    held._control = Server([[format_lsn(log.position)]])
    held.release()
    assert held.report().grade is Grade.NIL_REDO


def test_records_that_no_client_can_tell_are_counted_and_named(held, log):
    """Broken: one nextval(), or a reader that meets a fresh page, would cost the grade; or nobody would know of it."""
    for kind in ((15, 0x00), (15, 0x00), (0, 0xA0)):
        log.record(kind, 60)
    log.write()
    held._control = Server([[format_lsn(log.position)]])
    held.release()
    assert held.report().grade is Grade.NIL_REDO
    expected = "its start also replays 2 records of values of a sequence and 1 of hint bits, which no client can tell"
    assert held.report().reason == expected


def test_bookkeeping_not_yet_in_the_file_is_waited_for(held, log):
    """Broken: a checkpoint in which the server's background records fall would fail, as the files end before them."""
    log.record(RUNNING_XACTS, 50)
    held._control = Server([[format_lsn(log.position)]], log.write)
    held.release()
    assert held.report().grade is Grade.NIL_REDO
    assert _way(held).position["redo_records"] == "CHECKPOINT_REDO,CHECKPOINT_ONLINE,RUNNING_XACTS"
    assert _way(held).position["insert_lsn"] == format_lsn(log.position)


def test_a_log_that_is_never_written_loses_the_grade(held, log, monkeypatch):
    """Broken: log that nobody could read would be vouched for, or its waiting would never end."""
    monkeypatch.setattr("quiesce.agent.writers.postgresql_nil_redo.WRITTEN_WITHIN_S", 0.1)
    log.record(INSERT, 80)
    held._control = Server([[format_lsn(log.position)]])
    held.release()
    assert held.report().grade is Grade.CRASH
    assert "ends early" in str(held.report().reason)


def test_a_log_that_moved_by_very_many_records_is_still_reported(held, log):
    """Broken: the report would be over the wire's bounds, and the host would fail instead of saying what moved."""
    for _ in range(600):
        log.record(INSERT, 32)
    log.write()
    held._control = Server([[format_lsn(log.position)]])
    held.release()
    found = held.report()
    assert from_wire(WriterReport, to_wire(found)) == found
    assert "600 records of Heap/0x00" in str(found.reason)


def test_a_server_that_is_gone_at_release_loses_the_grade(held):
    """Broken: a server killed in the window would be vouched for."""
    held._control = Server(OSError("connection lost"))
    held.release()
    assert held.report().grade is Grade.CRASH


def test_a_lost_session_loses_the_grade(held):
    """Broken: a hold that the server itself ended (its time-out) would be vouched for."""
    good = Server([])
    _way(held).locks.sessions = [LockSession("good", good, [], []), LockSession("lost", Server(OSError("gone")), [], [])]
    held.release()
    assert held.report().grade is Grade.CRASH
    assert "'lost'" in str(held.report().reason)
    assert good.said == ["ROLLBACK"]


def test_a_cluster_in_a_container_is_refused_and_says_why(log):
    """Broken: a database that nobody holds would pass for held."""
    cluster = Cluster(Postmaster(1, 0, str(log.directory.parent), 5432, "/nowhere", container=True))
    cluster.identify()
    found = cluster.report()
    assert found.grade is Grade.REFUSED
    assert "container" in str(found.reason)


@pytest.mark.parametrize("free_mib", [0, 47])
def test_a_server_without_room_is_not_asked_for_a_checkpoint(free_mib, log, monkeypatch):
    """Broken: our CHECKPOINT would make the server stop, and it could not start again until somebody frees space."""
    cluster = _cluster(log)
    cluster._segment_size = 16 * MIB
    cluster._control = Server([])
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free_mib * 256, f_frsize=4096))
    with pytest.raises(WriterError, match=rf"has {free_mib} MiB free .* may need 48") as raised:
        cluster.on_prepare(0, 10_000)
    assert raised.value.outcome is Outcome.OUT_OF_RESOURCES
    assert not [statement for statement in cluster._control.said if "CHECKPOINT" in statement]


def test_a_server_with_room_is_asked(log, monkeypatch):
    """Broken: no checkpoint could be had."""
    cluster = _cluster(log)
    cluster._segment_size = 16 * MIB
    cluster._control = Server([])
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=48 * 256, f_frsize=4096))
    cluster.on_prepare(0, 10_000)
    assert cluster._control.said.count("CHECKPOINT") == 2


def test_what_the_server_says_becomes_the_reason():
    """Broken: the user would read a Python dictionary, or a retry would not be recognised."""
    error = Exception({"S": "ERROR", "C": "55P03", "M": "canceling statement due to lock timeout"})
    assert sqlstate_of(error) == "55P03"
    assert words_of(error) == "canceling statement due to lock timeout"
    assert (sqlstate_of(OSError("gone")), words_of(OSError("gone"))) == ("", "OSError: gone")
    assert words_of(TimeoutError()) == "TimeoutError"
    assert words_of(Exception({})) == "an error without a message"


def test_data_directories_are_found_where_debians_configuration_says(tmp_path, monkeypatch):
    """Broken: a stopped cluster kept elsewhere would be missed, and the label would not speak of it."""
    control_file(tmp_path, SHUT_DOWN)
    configuration = tmp_path / "postgresql.conf"
    configuration.write_text(f"# data_directory = '/wrong'\n data_directory = '{tmp_path}'\t# note\n")
    monkeypatch.setattr(
        "quiesce.agent.writers.postgresql_files.glob.glob",
        lambda pattern: [str(configuration)] if pattern.endswith("conf") else [],
    )
    assert list(data_directories()) == [str(tmp_path)]
