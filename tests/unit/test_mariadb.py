"""agent/writers/mariadb.py: what it says of a server before it holds it, and where the data is. tests/vm has real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.err import OperationalError

from quiesce.agent import identity
from quiesce.agent.processes import Process
from quiesce.agent.writers import mariadb
from quiesce.agent.writers.mariadb_files import elsewhere
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire
from tests.unit.fake_mariadb import Server, database, refused, says, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as server:
        yield server


def test_it_says_what_it_is_and_what_can_be_expected(server):
    """Broken: no MariaDB would be held, or its position not be known."""
    writer = database()
    writer.identify()
    found = writer.report()
    assert (found.id, found.application, found.version, found.level) == ("mariadb:main", "mariadb", "10.11.19", Level.BACK_END)
    assert (found.grade, found.role, found.outcome) == (Grade.NIL_REDO, "primary", Outcome.STABLE)
    assert "binary log" in str(found.reason)
    assert (found.data_directory, found.warnings) == ("/var/lib/mysql", ())
    assert found.position == {
        "server_id": "1",
        "lsn_current": "1016",
        "lsn_checkpoint": "1000",
        "gtid_binlog_pos": "0-1-7",
        "gtid_current_pos": "0-1-7",
        "binlog_file": "bin.000003",
        "binlog_position": "4711",
    }
    assert from_wire(WriterReport, to_wire(found)) == found


def test_servers_are_called_by_their_program_and_where_they_keep_data(monkeypatch):
    """Broken: a writer's id would change, and with it what later checkpoints are compared by."""
    found = [Process(1, "mariadbd", 0, container=False), Process(2, "mysqld", 0, container=False)]
    monkeypatch.setattr(identity, "applications", lambda *names: (process for process in found if process.name in names))
    where = {"/proc/1/cwd": "/var/lib/mysql", "/proc/2/cwd": "/srv/second"}
    monkeypatch.setattr("os.readlink", where.__getitem__)
    assert [writer.id for writer in mariadb.discover()] == ["mariadb:main", "mysql:/srv/second"]


def _another(name: str, value: str) -> Callable[[Server], None]:
    return lambda server: server.variables.update({name: value})


@pytest.mark.parametrize(
    ("change", "why", "grade"),
    [
        (_another("wsrep_on", "ON"), "Galera", Grade.CRASH),
        (says("SHOW ALL SLAVES STATUS", ("", "Waiting")), "a replica", Grade.CRASH),
        (lambda server: server.variables.pop("innodb_log_checkpoint_now"), "cannot be told to empty its log", Grade.CRASH),
        (_another("version", "8.0.21"), "older than 8.0.22", Grade.CRASH),
        (says("XA RECOVER", (1, 2, 0, b"t\xff"), (1, 2, 0, b"u")), "prepared transaction 't�' and 1 more", Grade.REFUSED),
    ],
)
def test_what_cannot_be_held_is_said_before_the_attempt(change, why, grade, server):
    """Broken: clients would be made to wait for a hold that is worth nothing."""
    change(server)
    writer = database()
    assert why in refused(writer)
    assert writer.grade is grade
    writer.abort()
    assert all(connection.closed for connection in server.connections)


def test_a_server_in_a_container_is_refused_and_says_why(server):
    """Broken: a database that nobody holds would pass for held."""
    assert "container" in refused(database(container=True))
    assert not server.connections


@pytest.mark.parametrize("code", [1045, 1698])
def test_root_that_is_not_let_in_is_told_how_to_be(code, server, monkeypatch):
    """Broken: the user would read an error number, and not what to do."""

    def connect(**_: Any) -> None:
        raise OperationalError(code, "Access denied for user 'root'@'localhost'")

    monkeypatch.setattr(pymysql, "connect", connect)
    writer = database()
    assert "IDENTIFIED VIA unix_socket" in refused(writer)
    assert writer.outcome is Outcome.NON_RETRYABLE


def test_what_keeps_less_than_it_seems_is_warned_of(server):
    """Broken: tables in memory would come back empty, and nobody would have said so."""
    server.engines += [("MEMORY", "shop.sessions", 2)]
    server.variables["innodb_flush_log_at_trx_commit"] = "2"
    writer = database()
    writer.identify()
    assert writer.grade is Grade.NIL_REDO
    assert "table shop.sessions and 1 more" in writer.warnings[0]
    assert "innodb_flush_log_at_trx_commit" in writer.warnings[1]


def test_without_a_binary_log_nothing_is_gone_through_at_its_start(server):
    """Broken: the grade would promise less than there is; with one, more."""
    server.variables["log_bin"] = "OFF"
    writer = database()
    writer.identify()
    assert (writer.grade, writer.reason) == (Grade.CLEAN, None)


def test_an_engine_with_a_recovery_of_its_own_is_not_called_clean(server):
    """Broken: a table of RocksDB, which recovers, would be promised not to."""
    server.engines += [("ROCKSDB", "shop.big", 1)]
    writer = database()
    writer.identify()
    assert (writer.grade, writer.reason) == (Grade.HELD, "table shop.big: kept by ROCKSDB, which recovers in its own way")


def test_all_directories_of_a_server_are_named(server, tmp_path):
    """Broken: a log on a disk that does not freeze would pass for held."""
    for name in ("data", "redo", "binlog"):
        (tmp_path / name).mkdir()
    server.variables.update(
        datadir=f"{tmp_path}/data/",
        innodb_log_group_home_dir=str(tmp_path / "redo"),
        innodb_undo_directory="./",
        innodb_data_home_dir="",
        log_bin_basename=str(tmp_path / "binlog" / "bin"),
        aria_log_dir_path=str(tmp_path / "missing"),
    )
    writer = database()
    writer.identify()
    assert writer.paths() == [str(tmp_path / name) for name in ("binlog", "data", "redo")]


def test_what_the_server_says_becomes_the_reason():
    """Broken: the user would read a Python tuple."""
    writer = database()
    assert writer.say(OperationalError(1040, "Too many connections")) == "Too many connections (1040)"
    assert writer.say(pymysql.err.InterfaceError(0, "")) == "its connection is closed"
    assert writer.say(OSError(2, "No such file")) == "FileNotFoundError: [Errno 2] No such file"


def test_tables_outside_the_data_directory_are_found(tmp_path):
    """Broken: a table with a DATA DIRECTORY on a tmpfs, or on another disk, would be vouched for and not be in the
    checkpoint."""
    data, fast, slow, other = (tmp_path / name for name in ("data", "fast", "slow", "other"))
    for directory in (data / "shop", fast / "shop", slow, other):
        directory.mkdir(parents=True)
    (data / "shop" / "orders.isl").write_text(f"{fast}/shop/orders.ibd\n")
    (slow / "log.MYD").touch()
    (data / "shop" / "log.MYD").symlink_to(slow / "log.MYD")
    (data / "archive").symlink_to(other)
    (data / "shop" / "items.ibd").touch()
    (data / "shop" / "broken.isl").write_bytes(b"\xff")
    assert elsewhere(str(data)) == {str(fast / "shop"), str(slow), str(other)}
    assert elsewhere(str(tmp_path / "gone")) == set()
    writer = database(directory=str(data))
    writer.data_directory = str(data)
    assert writer.paths() == sorted(map(str, (data, fast / "shop", slow, other)))
