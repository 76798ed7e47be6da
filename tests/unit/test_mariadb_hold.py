"""agent/writers/mariadb.py and mariadb_locks.py: tables and the log at rest, those who are in the way, and that all go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pymysql.err import ProgrammingError

from lab.standstill import within
from quiesce.agent import memory
from quiesce.agent.writers import mariadb, mariadb_locked
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from tests.unit.fake_mariadb import FTWRL, Connection, Server, database, held, prepared, says, serving
from tests.unit.innodb_files import table


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as server:
        yield server


def test_tables_are_locked_one_by_one_then_everything_then_the_log_is_emptied(server):
    """Broken: transactions would be stopped in their middle, or the log hold what a recovery replays."""
    writer = held()
    assert writer.grade is Grade.NIL_REDO
    locks = server.of("LOCK TABLES")
    assert [statement for _, statement in locks] == [f"LOCK TABLES {name} READ" for name, _ in server.tables]
    assert len({id for id, _ in locks}) == 3
    said = [statement for _, statement in server.said]
    assert said.index(locks[-1][1]) < said.index(FTWRL) < len(said) - said[::-1].index(mariadb_locked.CHECKPOINT)
    assert not server.of("UNLOCK")
    writer.release()
    assert (writer.grade, writer.outcome, writer.error) == (Grade.NIL_REDO, Outcome.STABLE, None)
    assert {id for id, _ in server.of("UNLOCK TABLES")} == {id for id, _ in [*locks, *server.of(FTWRL)]}


def test_every_session_ends_by_itself_soon_after_the_window(server):
    """Broken: a stopped agent would hold the database until somebody notices."""
    writer = prepared()
    before = len(server.said)
    writer.hold(deadline_in_ns(5))
    armed = [id for id, statement in server.said[before:] if "wait_timeout = 3," in statement]
    assert armed == sorted({connection.id for connection in server.connections if not connection.closed}, key=armed.index)
    assert len(armed) == 5


def test_a_table_in_use_is_given_up_and_comes_first_the_next_time(server):
    """Broken: we would collide with the application's lock order again and again, and its clients wait for it."""
    server.waits["LOCK TABLES `shop`.`c` READ"] = 1
    writer = held()
    assert writer.timings["lock_tries"] == 2
    order = [statement.split("`")[3] for _, statement in server.of("LOCK TABLES")]
    assert order == ["a", "b", "c", "c", "a", "b"]
    (killed,) = server.of("KILL QUERY")
    (waiting, _) = server.of("LOCK TABLES `shop`.`c`")[0]
    assert killed[1] == f"KILL QUERY {waiting}"
    assert killed[0] not in {id for id, _ in server.of("LOCK")}
    assert len(server.of("UNLOCK TABLES")) == 4
    writer.release()
    writer.remember()
    assert memory.recall(mariadb.MEMORY) == {"mariadb:main": ["`shop`.`c`"]}
    server.said.clear()
    held()
    assert server.of("LOCK TABLES")[0][1] == "LOCK TABLES `shop`.`c` READ"


def test_a_lock_that_came_after_its_time_is_given_back(server):
    """Broken: the kill would hit a later statement of ours, as the one that lets go."""
    server.waits["LOCK TABLES `shop`.`a` READ"] = 1
    server.late = True
    writer = held()
    (waiting, _) = server.of("LOCK TABLES `shop`.`a`")[0]
    lock = "LOCK TABLES `shop`.`a` READ"
    assert [statement for id, statement in server.said if id == waiting][-4:] == [lock, "DO 0", "UNLOCK TABLES", lock]
    assert writer.timings["lock_tries"] == 2


def test_a_statement_that_everything_waits_for_is_waited_for_again(server):
    """Broken: one long statement would fail the hold, or make every client wait as long as it runs."""
    server.waits[FTWRL] = 2
    writer = held()
    assert writer.timings["lock_tries"] == 3
    assert len(server.of("KILL QUERY")) == 2


def test_a_transaction_that_wrote_and_is_open_lets_everybody_go_on_first(server):
    """Broken: the image would hold half a transaction, which a recovery rolls back."""
    server.transactions = [[(9, "app", 4, 2, None)], []]
    writer = held()
    assert writer.timings["lock_tries"] == 2
    assert len(server.of("UNLOCK TABLES")) == 4


def test_one_that_only_reads_is_in_nobodys_way(server):
    """Broken: a report that runs for an hour would keep the database from being held."""
    server.transactions = [[(9, "app", 3600, 0, "SELECT 1")]]
    assert held().timings["lock_tries"] == 1


def test_one_that_stays_open_is_named_and_nothing_stays_locked(server):
    """Broken: nobody would know whom to ask, or the application would go on waiting."""
    server.transactions = [[(9, "app", 33, 2, None)]]
    writer = prepared()
    with pytest.raises(WriterError, match="thread 9 of user 'app' is in a transaction for 33 s") as raised:
        writer.hold(deadline_in_ns(0.5))
    assert raised.value.outcome is Outcome.TIMEOUT
    assert writer.report().grade is Grade.CRASH
    assert all(connection.closed for connection in server.connections)


def test_a_table_that_stays_in_use_names_the_oldest_transaction(server):
    """Broken: the table would be named, and not who is in it. Here nothing else can be known."""
    server.waits["LOCK TABLES `shop`.`b` READ"] = 10**6
    server.transactions = [[(9, "app", 33, 0, None)]]
    writer = prepared()
    with pytest.raises(WriterError, match=r"table `shop`.`b` was in use; thread 9 of user 'app'"):
        writer.hold(deadline_in_ns(0.5))


def test_an_old_list_of_transactions_is_not_believed(server):
    """Broken: a copy of a moment without transactions, as monitoring may keep it alive, would vouch for one with some."""
    server.transactions = [[(9, "app", 4, 2, None)], []]
    server.old_copies = 2
    assert held().timings["lock_tries"] == 2
    server.old_copies = 10**6
    writer = prepared()
    with pytest.raises(WriterError, match="does not say which transactions are open"):
        writer.hold(deadline_in_ns(5))
    assert {statement for _, statement in server.said[-30:]} >= {"COMMIT"}


@pytest.mark.parametrize(
    "status", [{"Innodb_lsn_current": "1100"}, {"Innodb_buffer_pool_pages_dirty": "1"}], ids=["bytes", "pages"]
)
def test_a_log_that_does_not_come_to_rest_is_not_clean(status, server):
    """Broken: a server that will recover at its start would be called clean."""
    server.status.update(status)
    writer = prepared()
    with pytest.raises(WriterError, match="does not come to rest"):
        writer.hold(deadline_in_ns(5))
    assert writer.report().grade is Grade.CRASH


def test_a_log_that_still_moves_is_emptied_again(server, monkeypatch):
    """Broken: what the purge writes after the last checkpoint would be replayed."""
    writer = prepared()
    perform, steps = server.perform, [("1100", "1000"), ("1116", "1100"), ("1132", "1116")]

    def move(connection: Connection, statement: str) -> Any:
        if statement == mariadb_locked.CHECKPOINT and steps:
            server.status["Innodb_lsn_current"], server.status["Innodb_lsn_last_checkpoint"] = steps.pop(0)
        return perform(connection, statement)

    monkeypatch.setattr(server, "perform", move)
    writer.hold(deadline_in_ns(5))
    assert (writer.position["lsn_current"], writer.position["lsn_checkpoint"]) == ("1132", "1116")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda server: server.variables.update(gtid_binlog_pos="0-1-8"), "gtid_binlog_pos from 0-1-7 to 0-1-8"),
        (says("SHOW BINLOG STATUS", ("bin.000003", 4712)), "binlog_position from 4711 to 4712"),
    ],
)
def test_what_was_written_during_the_window_loses_the_grade(change, what, server):
    """Broken: a write that slipped through the hold would not show in the label."""
    writer = held()
    change(server)
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert what in str(writer.reason)
    assert len(server.of("UNLOCK TABLES")) == 4


def test_housekeeping_of_its_own_is_said_and_is_no_write_of_anybodys(server):
    """Broken: a purge in the background would fail honest checkpoints; or the image be called clean, and recover."""
    server.variables["log_bin"] = "OFF"
    writer = held()
    assert writer.grade is Grade.CLEAN
    server.status["Innodb_lsn_current"] = "1017"
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.NIL_REDO, Outcome.STABLE)
    assert "lsn_current from 1016 to 1017" in str(writer.reason)
    assert len(server.of("UNLOCK TABLES")) == 4


def test_what_transactions_left_behind_is_waited_for(server):
    """Broken: its purge would write during the window."""
    server.status["Innodb_history_list_length"] = "7"
    held()
    assert len(server.of(mariadb_locked.CHECKPOINT)) > mariadb_locked.MAX_FLUSHES // 2


def test_a_lost_session_loses_the_grade(server):
    """Broken: a hold that the server itself ended (its time-out, a KILL) would be vouched for."""
    writer = held()
    (second, _) = server.of("LOCK TABLES `shop`.`b`")[0]
    server.connections[second - 1].gone = True
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.CRASH, Outcome.INCONSISTENT)
    assert "`shop`.`b`" in str(writer.reason)
    assert len(server.of("UNLOCK TABLES")) == 3


def test_a_server_that_is_gone_at_release_loses_the_grade(server):
    """Broken: a server killed in the window would be vouched for."""
    writer = held()
    for connection in server.connections:
        connection.gone = True
    writer.release()
    assert (writer.grade, writer.reason) == (Grade.CRASH, "it ended, or closed the session")


def test_a_server_that_says_nothing_is_not_waited_for_beyond_the_deadline(server):
    """Broken: a hanging database would hold the whole guest."""
    writer = prepared()
    server.waits["SHOW BINLOG STATUS"] = 10**6
    with within(1.3), pytest.raises(WriterError, match="no answer in time") as raised:
        writer.hold(deadline_in_ns(0.3))
    assert raised.value.outcome is Outcome.TIMEOUT


def test_a_table_dropped_since_prepare_is_passed_over(server):
    """Broken: an application that drops a table would keep its database from being held."""
    writer = prepared()
    server.answers["LOCK TABLES `shop`.`b`"] = ProgrammingError(1146, "Table 'shop.b' doesn't exist")
    writer.hold(deadline_in_ns(5))
    assert writer.timings["lock_tries"] == 1


def test_more_tables_than_connections_are_held_by_the_lock_on_everything(server, monkeypatch):
    """Broken: a big database could not be held, or its applications would find no connection left."""
    server.variables["max_connections"] = "9"
    memory.retain(mariadb.MEMORY, {"mariadb:main": ["`shop`.`dropped`", "`shop`.`c`"]})
    writer = held()
    assert [statement.split("`")[3] for _, statement in server.of("LOCK TABLES")] == ["c", "a"]
    assert "only 2 of its 3 tables can be locked one by one" in writer.warnings[0]
    assert server.of(FTWRL)


def test_tables_of_other_engines_need_no_wait_for_transactions(server):
    """Broken: connections would be spent on tables that the lock on everything closes."""
    server.tables.append(("`shop`.`log`", "Aria"))
    held()
    assert not server.of("LOCK TABLES `shop`.`log`")


def test_a_flush_that_has_no_end_does_not_keep_from_being_prepared(server):
    """Broken: under load, where the checkpoint is never the log's end, nothing could be held."""
    server.waits[mariadb_locked.CHECKPOINT] = 1
    server.answers["KILL QUERY"] = []  # which is not heeded: there is no answer afterwards, either
    with within(2):
        writer = prepared()
    assert writer.error is None
    ((flusher, _),) = server.of(mariadb_locked.CHECKPOINT)
    assert [statement for _, statement in server.of("KILL QUERY")] == [f"KILL QUERY {flusher}"]
    assert server.connections[flusher - 1].closed


def test_letting_go_can_be_said_at_any_time_and_again(server):
    """Broken: an attempt that failed early would leave a session, and its locks, behind."""
    writer = database()
    writer.abort()
    writer = held()
    writer.abort()
    writer.abort()
    assert writer.warnings == []
    assert all(connection.closed for connection in server.connections)


def test_tables_of_other_engines_are_closed_and_arias_log_is_emptied(server, tmp_path):
    """Broken: a server called clean would say "Aria engine: starting recovery" or "marked as crashed" at its next start."""
    server.variables.update(datadir=str(tmp_path), log_bin="OFF")
    log, index = tmp_path / "aria_log.00000001", table(tmp_path, "shop.log.MAI")
    log.touch()
    writer = prepared()
    table(tmp_path, "shop.log.MAI", marked=1)
    server.on["FLUSH LOCAL TABLES `shop`.`log`"] = lambda: table(tmp_path, "shop.log.MAI")
    writer.hold(deadline_in_ns(5))
    said = [statement for _, statement in server.said]
    assert said.count("SET GLOBAL aria_checkpoint_interval = 30") == 2
    assert said.index(FTWRL) < said.index("SET GLOBAL aria_checkpoint_interval = 30")
    assert said.index("FLUSH LOCAL TABLES `shop`.`log`") < said.index(mariadb_locked.CHECKPOINT, said.index(FTWRL))
    assert (writer.grade, writer.reason) == (Grade.CLEAN, None)
    os.utime(log, ns=(1, 1))
    writer.release()
    assert (writer.grade, writer.outcome) == (Grade.NIL_REDO, Outcome.STABLE)
    assert "Aria's own housekeeping" in str(writer.reason)
    assert index.exists()


def test_a_table_of_aria_that_a_waiting_client_has_open_is_gone_through_at_the_next_start(server, tmp_path):
    """Broken: Aria's recovery would not be in the grade; or a site that writes to Aria all the time could not be held."""
    server.variables.update(datadir=str(tmp_path), log_bin="OFF")
    table(tmp_path, "shop.log.MAI")
    writer = prepared()
    server.answers["SHOW OPEN TABLES"] = [("shop", "log", 1, 0)]
    table(tmp_path, "shop.log.MAI", marked=1)
    writer.hold(deadline_in_ns(5))
    assert not server.of("FLUSH LOCAL TABLES")
    assert (writer.grade, writer.reason) == (
        Grade.NIL_REDO,
        "InnoDB starts without recovery; the server goes through Aria's log, which changes nothing",
    )


def test_a_table_without_a_log_that_a_session_keeps_open_is_not_vouched_for(server, tmp_path):
    """Broken: a server called clean would find a table marked as crashed."""
    server.variables.update(datadir=str(tmp_path))
    table(tmp_path, "shop.log.MYI")
    writer = prepared()
    table(tmp_path, "shop.log.MYI", marked=1)
    with pytest.raises(WriterError, match=r"table shop.log is kept open by a session"):
        writer.hold(deadline_in_ns(5))
    assert writer.report().grade is Grade.CRASH


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda server: server.status.update(Tc_log_page_size="4096"), "tc.log"),
        (lambda server: server.variables.update(aria_checkpoint_interval="0"), "Aria's log"),
        (lambda server: server.variables.update(log_output="FILE,TABLE", slow_query_log="ON"), "mysql.slow_log"),
    ],
    ids=["tc.log", "no checkpoints of Aria", "log tables"],
)
def test_what_the_next_start_goes_through_is_in_the_grade(change, what, server):
    """Broken: a server called clean would write to its own log that it recovers (with tc.log, Debian 13's default does)."""
    server.variables["log_bin"] = "OFF"
    change(server)
    writer = held()
    assert writer.grade is Grade.NIL_REDO
    assert what in str(writer.reason)
    writer.release()
    assert writer.grade is Grade.NIL_REDO


def test_a_tc_log_in_the_data_directory_is_gone_through(server, tmp_path):
    """Broken: as above, for a release that does not count its pages."""
    server.variables.update(datadir=str(tmp_path), log_bin="OFF")
    (tmp_path / "tc.log").touch()
    assert "tc.log" in str(held().reason)


def test_a_full_filesystem_is_refused_by_name(server, tmp_path, monkeypatch):
    """Broken: the server would wait for room ("Disk is full") in our hold, with all its clients."""
    server.variables["datadir"] = str(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    writer = prepared()
    assert (writer.grade, writer.outcome) == (Grade.REFUSED, Outcome.OUT_OF_RESOURCES)
    assert f"{tmp_path} has less than 16 MiB free" in str(writer.reason)
    assert not server.of("SET GLOBAL")


def test_sessions_that_the_server_ended_in_the_hold_end_it(server):
    """Broken: a server that was restarted in the hold, and took its locks away with it, would be vouched for; or the agent wait
    for it."""
    writer = held()
    for connection in server.connections:
        connection.gone = True
    with within(2):
        writer.release()
        writer.abort()
    assert (writer.grade, writer.outcome, writer.let_go) == (Grade.CRASH, Outcome.INCONSISTENT, True)
