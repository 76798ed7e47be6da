"""agent/writers/mariadb.py and mariadb_still.py: a server that stands still, and what keeps it from that. Plain files stand for
the kernel's freezer and for the server's logs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymysql.err import OperationalError

from lab.standstill import wait_for
from quiesce.agent import cgroups, processes, systemd
from quiesce.agent.writers import standstill
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb import DatabaseServer
from quiesce.agent.writers.mariadb_locked import CHECKPOINT
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_mariadb import FTWRL, Server, database, says, serving
from tests.unit.fake_systemd import Group, group_below
from tests.unit.innodb_files import Ring, table
from tests.unit.test_deadman import in_conversation, not_this_machine, soon, wait_gone  # noqa: F401 - a fixture
from tests.unit.test_mariadb_files import event, gtid

MARIADB = "/system.slice/mariadb.service"


class Machine:
    """A server in a control group of its own, which comes to a standstill when it is asked to."""

    def __init__(self, server: Server, directory: Path, group: Group) -> None:
        self.server, self.directory, self.group = server, directory, group
        self.ring = Ring()
        self.ring.checkpoint(self.ring.write(5))
        self.checkpoint = self.ring.lsn
        self.lsn = self.ring.write(9)
        self.ring.save(directory)
        server.status.update(Innodb_lsn_current=str(self.lsn), Innodb_lsn_flushed=str(self.lsn))
        server.status.update(Innodb_lsn_last_checkpoint=str(self.lsn - 16))
        self.at_stop: Callable[[], Any] = lambda: None
        """What the server does at the last moment."""

    def stops(self) -> bool:
        """As the kernel does, once a stop was asked for."""
        if self.group.asked == "1":
            self.at_stop()
            self.group.settles()
            return True
        return False


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    root, data = tmp_path / "cgroup", tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr(cgroups, "ROOT", str(root))
    monkeypatch.setattr(standstill, "ROOT", str(root))
    monkeypatch.setattr(processes, "cgroup", lambda _: MARIADB)
    monkeypatch.setattr(processes, "open_files", lambda _: iter(()))
    monkeypatch.setattr(systemd, "freezable_cgroup", lambda unit: f"/system.slice/{unit}")
    with serving(monkeypatch, tmp_path) as server:
        server.variables.update(datadir=str(data), log_bin="OFF")
        made = Machine(server, data, group_below(root, MARIADB))
        frozen = cgroups.Cgroup.frozen
        monkeypatch.setattr(cgroups.Cgroup, "frozen", lambda cgroup: made.stops() and frozen(cgroup))
        yield made


def prepared() -> DatabaseServer:
    """As an attempt does it, with a dead-man that has the undo."""
    writer = database()
    assert writer.undo() is not None
    writer.guarded = True
    writer.prepare(deadline_in_ns(5), 1500)
    return writer


def held() -> DatabaseServer:
    writer = prepared()
    writer.hold(deadline_in_ns(5))
    return writer


def test_it_stands_still_and_the_length_of_its_recovery_is_known(machine):
    """Broken: every client would wait for locks; or the next start do something else than the grade says."""
    machine.at_stop = lambda: (machine.ring.write(30), machine.ring.save(machine.directory))
    looked = database()
    looked.identify()
    assert (looked.grade, looked.reason, machine.group.asked) == (Grade.STANDS_STILL, None, "0")
    looked.abort()
    writer = held()
    end = machine.ring.lsn
    assert machine.group.asked == "1"
    assert writer.position["lsn_checkpoint"] == str(machine.checkpoint)
    assert int(writer.position["lsn_current"]) > machine.lsn
    machine.at_stop = lambda: None
    assert writer.reason == (
        f"it stood still: its start recovers InnoDB from LSN {machine.checkpoint} to {end}, {end - machine.checkpoint} bytes,"
        " and rolls back what was not committed"
    )
    assert not machine.server.of("LOCK TABLES")
    assert not machine.server.of(FTWRL)
    assert sum(not connection.closed for connection in machine.server.connections) == 1
    writer.release()
    assert (writer.grade, writer.outcome, machine.group.asked) == (Grade.STANDS_STILL, Outcome.STABLE, "0")
    writer.abort()


def test_dirty_pages_are_written_before_the_window(machine):
    """Broken: the next start would recover whatever was in memory."""
    writer = prepared()
    assert len(machine.server.of(CHECKPOINT)) == 1
    before = len(machine.server.said)
    writer.hold(deadline_in_ns(5))
    assert not [statement for _, statement in machine.server.said[before:] if statement == CHECKPOINT]
    writer.abort()


def test_the_binary_log_is_read_to_its_end(machine):
    """Broken: the restored server would seem to have moved on by the transactions of the last milliseconds."""
    begun = b"\xfebin" + gtid(7) + event(16)
    log = machine.directory / "bin.000003"
    log.write_bytes(begun)
    machine.server.variables.update(log_bin="ON", log_bin_basename=str(machine.directory / "bin"))
    machine.server.answers["SHOW BINLOG STATUS"] = [("bin.000003", len(begun), "", "")]
    machine.at_stop = lambda: log.write_bytes(begun + gtid(8) + event(16))
    writer = held()
    assert (writer.position["gtid_binlog_pos"], writer.position["gtid_current_pos"]) == ("0-1-8", "0-1-8")
    assert writer.position["binlog_position"] == str(log.stat().st_size)
    assert "goes through its last binary log" in str(writer.reason)
    writer.release()
    assert writer.grade is Grade.STANDS_STILL
    writer.abort()


def test_what_was_acknowledged_before_it_was_written_is_flushed_and_said(machine):
    """Broken: a whole second of acknowledged commits would be missing (FLUSH ENGINE LOGS alone does nothing with this setting:
    7,959 of 7,959 on a real server), or nobody would have said that some may be."""
    machine.server.variables["innodb_flush_log_at_trx_commit"] = "0"
    machine.server.answers["SELECT 1 FROM information_schema.processlist"] = [(1,)]
    writer = held()
    (flush,) = machine.server.of("BEGIN NOT ATOMIC SET GLOBAL innodb_flush_log_at_trx_commit = 1; FLUSH LOCAL ENGINE LOGS;")
    assert flush[1].endswith("DO SLEEP(0.5); SET GLOBAL innodb_flush_log_at_trx_commit = 0; END")  # whatever becomes of us
    assert "missing" not in str(writer.reason)
    writer.release()
    assert writer.grade is Grade.STANDS_STILL
    writer.abort()
    machine.group.settles(False)
    for too_late in (0, 0.6):  # the server did not come to it in time; it took the setting back before it stood still
        machine.server.answers["SELECT 1 FROM information_schema.processlist"] = [(1,)] if too_late else []
        machine.at_stop = lambda seconds=too_late: time.sleep(seconds)
        writer = held()
        assert "those of the last milliseconds may be missing" in str(writer.reason)
        writer.abort()
        machine.group.settles(False)
    machine.at_stop = lambda: None
    machine.server.variables["innodb_flush_log_at_trx_commit"] = "2"  # written at each commit, and so in the frozen image
    writer = held()
    assert "missing" not in str(writer.reason)
    writer.abort()


def test_a_log_that_cannot_be_read_is_said(machine):
    """Broken: a server of another release could not be held, or its recovery be promised to be shorter than it is."""
    Ring(form=0x50485953).save(machine.directory)
    writer = held()
    assert writer.grade is Grade.STANDS_STILL
    assert f"from LSN {machine.lsn - 16} to {machine.lsn}" in str(writer.reason)
    assert "the log may end somewhat later (its log is of format 0x50485953)" in str(writer.reason)
    writer.release()
    assert writer.grade is Grade.STANDS_STILL
    writer.abort()


def test_a_server_without_innodb_log_checkpoint_now_or_with_a_prepared_transaction_stands_still_all_the_same(machine):
    """Broken: an older release, and an application with two-phase commits, could not be had."""
    del machine.server.variables["innodb_log_checkpoint_now"]
    machine.server.answers["XA RECOVER"] = [(1, 1, 0, b"t")]
    writer = held()
    assert writer.grade is Grade.STANDS_STILL
    assert writer.warnings == ["prepared transaction 't': it is prepared after a restore, too"]
    writer.abort()


@pytest.mark.parametrize("name", ["shop.log.MYI", "shop.log.MAI", "shop.log.CSM", "mysql.column_stats.MAI"])
def test_an_idle_table_of_another_engine_is_closed_and_it_stands_still(name, machine, monkeypatch):
    """Broken: a table of MyISAM that was written to last week would cost every checkpoint its locks."""
    opened = table(machine.directory, name, marked=1)
    monkeypatch.setattr(processes, "open_files", lambda _: iter([str(opened)]))
    schema, plain, _ = name.split(".")
    statement = f"FLUSH LOCAL TABLES `{schema}`.`{plain}`"
    machine.server.on[statement] = lambda: table(machine.directory, name)
    writer = held()
    assert machine.server.of(statement)
    assert writer.grade is Grade.STANDS_STILL
    writer.abort()


@pytest.mark.parametrize("when", ["before", "at the stop"])
def test_a_table_of_another_engine_that_is_being_written_to_is_held_by_locks(when, machine):
    """Broken: a server would stand still in the middle of a write to a table that no log protects."""
    machine.server.answers["SHOW OPEN TABLES"] = [("shop", "log", 1, 0)]
    table(machine.directory, "shop.log.MYI")
    writer = database()
    assert writer.undo() is not None
    writer.guarded = True

    def write() -> None:
        table(machine.directory, "shop.log.MYI", marked=1)

    def close() -> None:
        table(machine.directory, "shop.log.MYI")

    machine.server.on[FTWRL] = close
    if when == "before":
        machine.server.on[CHECKPOINT] = write
    else:
        machine.at_stop = write
    writer.prepare(deadline_in_ns(5), 1500)
    machine.server.on.pop(CHECKPOINT, None)
    writer.hold(deadline_in_ns(5))
    assert machine.server.of(FTWRL)
    assert (writer.grade, machine.group.asked) == (Grade.CLEAN, "0")
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CLEAN, Outcome.STABLE)
    writer.abort()


@pytest.mark.parametrize("own", [True, False], ids=["the server's", "the application's"])
def test_a_write_to_arias_log_is_seen(own, machine):
    """Broken: a table of Aria that is written to, whose file is marked later, would be missed; or CREATE USER cost locks."""
    log = machine.directory / "aria_log.00000001"
    log.touch()
    if not own:
        machine.server.engines.append(("Aria", "shop.log", 1))
    machine.at_stop = lambda: os.utime(log, ns=(1, 1))
    writer = held()
    assert writer.grade is (Grade.STANDS_STILL if own else Grade.CLEAN)
    assert ("may go through Aria's log" in str(writer.reason)) == own
    writer.abort()


@pytest.mark.parametrize("engine", ["ROCKSDB", "ARCHIVE"])
def test_engines_of_which_nothing_is_known_are_held_by_locks(engine, machine):
    """Broken: a table would be vouched for whose engine may be in the middle of anything."""
    machine.server.engines.append((engine, "shop.big", 1))
    writer = held()
    assert machine.server.of(FTWRL)
    assert machine.group.asked == "0"
    writer.abort()


def test_who_asks_for_nil_redo_gets_locks(machine):
    """Broken: `--require-grade nil-redo` could not be had."""
    writer = database()
    writer.nil_redo = True
    assert writer.undo() is None
    writer.prepare(deadline_in_ns(5), 1500)
    writer.hold(deadline_in_ns(5))
    assert machine.server.of(FTWRL)
    assert (writer.grade, machine.group.asked) == (Grade.CLEAN, "0")
    writer.abort()


def test_a_unit_with_a_watchdog_is_held_by_locks(machine, monkeypatch):
    """Broken: systemd would kill a server that stands still."""

    def watched(unit: str) -> str:
        raise systemd.UnitError(f"{unit} has a watchdog")

    monkeypatch.setattr(systemd, "freezable_cgroup", watched)
    writer = database()
    assert writer.undo() is None
    writer.prepare(deadline_in_ns(5), 1500)
    writer.hold(deadline_in_ns(5))
    assert (writer.grade, machine.group.asked) == (Grade.CLEAN, "0")
    writer.abort()


# -- what ends the hold


def test_a_killed_agent_and_its_dead_man(machine):
    """Given a server that stands still, when the agent dies, then its dead-man lets the server go on."""
    writer = database()
    undo = writer.undo()
    assert undo is not None

    def die(watcher: Any) -> None:
        watcher.arm(soon(60_000))
        watcher.doing(0)
        machine.group.set("1")
        os.kill(os.getpid(), signal.SIGKILL)

    child, watcher = in_conversation(die, undos=[undo])
    os.waitpid(child, 0)
    wait_gone(watcher)
    wait_for(lambda: machine.group.asked.startswith("0"), 5)
    writer.abort()


def test_a_server_that_was_restarted_in_the_hold(machine):
    """Given a server that stands still, when it is killed and started again, then nothing is vouched for."""
    writer = held()
    for connection in machine.server.connections:
        connection.gone = True
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert writer.reason == "it ended, or closed the session"
    assert machine.group.asked == "0"
    writer.abort()


def test_a_server_that_somebody_let_go_on(machine):
    """Given a server that stands still, when somebody thaws it, then the checkpoint does not vouch for it."""
    writer = held()
    machine.group.set("0")
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert "somebody thawed its control group" in str(writer.reason)
    writer.abort()


def test_a_log_that_moved_in_the_window(machine):
    """Given a server that seems to stand still, when its log has moved, then the checkpoint does not vouch for it."""
    writer = held()
    machine.ring.write(9)
    machine.ring.save(machine.directory)
    writer.release()
    assert (writer.grade, writer.reason) == (Grade.CRASH, "its logs moved during the window")
    writer.abort()


def test_a_binary_log_that_is_gone_lets_the_server_go_on(machine):
    """Given a server about to stand still, when its position cannot be read, then it runs on."""
    machine.server.variables.update(log_bin="ON", log_bin_basename=str(machine.directory / "bin"))
    writer = prepared()
    with pytest.raises(WriterError, match=r"its binary log .*/bin.000003: No such file"):
        writer.hold(deadline_in_ns(5))
    assert (writer.grade, machine.group.asked) == (Grade.CRASH, "0")


def test_exhausted_connections_name_who_has_them(machine, monkeypatch):
    """Given clients that have all connections but the administrator's, it stands still; locks are refused, and say by whom."""
    connect = machine.server.connect

    def only_one(**how: Any) -> Any:
        if sum(not connection.closed for connection in machine.server.connections):
            raise OperationalError(1040, "Too many connections")
        return connect(**how)

    monkeypatch.setattr("pymysql.connect", only_one)
    writer = held()
    assert writer.grade is Grade.STANDS_STILL
    writer.abort()
    says("SELECT user, COUNT(*)", ("app", 150, 33), ("root", 1, 0))(machine.server)
    writer = database()
    writer.nil_redo = True
    writer.prepare(deadline_in_ns(5), 1500)
    assert str(writer.reason).endswith("(max_connections): 150 of user 'app' (idle for up to 33 s), 1 of user 'root'")
    other = database()
    other.identify()
    assert str(other.reason).endswith("also the one that it keeps for an administrator (max_connections)")
    writer.abort()
