"""agent/writers/mariadb.py with a MySQL, which is held by its tables alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quiesce.agent.writers import mariadb_locked
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_mariadb import Server, held, prepared, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as server:
        yield server


LOG_STATUS = (
    '{"gtid_executed": "u:1-9", "binary_log_file": "binlog.000002", "binary_log_position": 157}',
    '{"InnoDB": {"LSN": 2000, "LSN_checkpoint": 1900}}',
)


@pytest.fixture
def mysql(server: Server) -> Server:
    del server.variables["innodb_log_checkpoint_now"], server.variables["server_id"], server.variables["wsrep_on"]
    server.variables.update(version="8.0.36-0ubuntu0.22.04.1", server_uuid="u")
    server.tables.append(("`shop`.`log`", "MyISAM"))
    server.answers["SELECT `LOCAL`"] = [LOG_STATUS]
    return server


def test_mysql_is_held_by_its_tables_and_recovers_all_the_same(mysql):
    """Broken: MySQL would be called clean, or the lock on everything wait for those who wait for us."""
    writer = held("mysqld")
    assert (writer.grade, writer.version, writer.id) == (Grade.HELD, "8.0.36", "mysql:main")
    assert "recovery runs" in str(writer.reason)
    assert not mysql.of("FLUSH")
    assert not mysql.of(mariadb_locked.CHECKPOINT)
    assert len(mysql.of("LOCK TABLES")) == 4
    (instance,) = mysql.of("LOCK INSTANCE FOR BACKUP")
    assert writer.position == {
        "server_uuid": "u",
        "gtid_executed": "u:1-9",
        "binlog_file": "binlog.000002",
        "binlog_position": "157",
        "innodb_lsn": "2000",
        "innodb_lsn_checkpoint": "1900",
    }
    mysql.answers["SELECT `LOCAL`"] = [(LOG_STATUS[0], LOG_STATUS[1].replace("2000", "2040"))]
    writer.release()
    assert writer.grade is Grade.HELD
    assert mysql.of("UNLOCK INSTANCE") == [(instance[0], "UNLOCK INSTANCE")]
    assert len(mysql.of("UNLOCK TABLES")) == 4


def test_mysql_that_wrote_during_the_window_loses_the_grade(mysql):
    """Broken: a transaction committed during the hold would not show in the label."""
    writer = held("mysqld")
    mysql.answers["SELECT `LOCAL`"] = [(LOG_STATUS[0].replace("1-9", "1-10"), LOG_STATUS[1])]
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)


def test_mysql_with_too_many_tables_is_not_held_by_half(mysql):
    """Broken: tables that nobody locked would pass for held."""
    mysql.variables["max_connections"] = "9"
    writer = prepared("mysqld")
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.NON_RETRYABLE)
    assert "it has 4 tables, and at most 2" in str(writer.reason)


def test_mysql_with_a_new_table_is_not_held_by_half(mysql):
    """Broken: a table created since prepare, that nobody locked, would pass for held."""
    writer = prepared("mysqld")
    mysql.tables.append(("`shop`.`new`", "InnoDB"))
    with pytest.raises(WriterError, match=r"`shop`.`new` was created just now"):
        writer.hold(deadline_in_ns(5))
    assert writer.report().grade is Grade.CRASH
