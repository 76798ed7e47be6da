"""agent/writers/mariadb.py, as far as it needs no server: a small one in memory answers, and tests/vm has the real one."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.err import OperationalError, ProgrammingError

from lab.standstill import within
from quiesce.agent import memory, processes
from quiesce.agent.processes import Process
from quiesce.agent.writers import mariadb, mariadb_locks
from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb import DatabaseServer
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Outcome, WriterReport
from quiesce.wire.schema import from_wire, to_wire

FTWRL = "FLUSH TABLES WITH READ LOCK"
KILLED = OperationalError(1317, "Query execution was interrupted")
VARIABLES = {
    "version": "10.11.19-MariaDB-0+deb12u1",
    "datadir": "/var/lib/mysql/",
    "server_id": "1",
    "log_bin": "ON",
    "wsrep_on": "OFF",
    "max_connections": "151",
    "innodb_log_checkpoint_now": "OFF",
    "innodb_flush_log_at_trx_commit": "1",
    "gtid_binlog_pos": "0-1-7",
    "gtid_current_pos": "0-1-7",
}
STATUS = {
    "Threads_connected": "5",
    "Innodb_lsn_current": "1016",
    "Innodb_lsn_last_checkpoint": "1000",
    "Innodb_buffer_pool_pages_dirty": "0",
}


class Server:
    """What it answers can be changed by a test; who holds what is remembered."""

    def __init__(self) -> None:
        self.variables = dict(VARIABLES)
        self.status = dict(STATUS)
        self.tables = [("`shop`.`a`", "InnoDB"), ("`shop`.`b`", "InnoDB"), ("`shop`.`c`", "InnoDB")]
        self.engines: list[tuple[str, str, int]] = [("InnoDB", "shop.a", 3)]
        self.answers: dict[str, Any] = {"SHOW BINLOG STATUS": [("bin.000003", 4711, "", "")]}
        """By how a statement begins: rows, or an error."""
        self.waits: dict[str, int] = {}
        """By statement: how often it waits for a kill."""
        self.transactions: list[list[tuple[Any, ...]]] = []
        """What each look finds of others; the last one for ever."""
        self.old_copies = 0
        """How many looks are answered from a copy made before, that shows nobody."""
        self.late = False
        """A kill comes when the statement has just been done."""
        self.connections: list[Connection] = []
        self.said: list[tuple[int, str]] = []

    def connect(self, unix_socket: str, user: str, **_: Any) -> Connection:
        assert (unix_socket, user) == ("/run/mysqld/mysqld.sock", "root")
        self.connections.append(Connection(self, len(self.connections) + 1))
        return self.connections[-1]

    def perform(self, connection: Connection, statement: str) -> Any:
        """Rows, an error, or None: no answer yet."""
        self.said.append((connection.id, statement))
        if self.waits.get(statement):
            self.waits[statement] -= 1
            return None
        if kill := re.fullmatch(r"KILL QUERY (\d+)", statement):
            self.connections[int(kill.group(1)) - 1].answer([] if self.late else KILLED)
        if named := re.match(r"SHOW GLOBAL (VARIABLES|STATUS) ", statement):
            values = self.variables if named.group(1) == "VARIABLES" else self.status
            return [(name, values[name]) for name in re.findall(r"'(\w+)'", statement) if name in values]
        for start, answer in self.answers.items():
            if statement.startswith(start):
                return answer
        if statement == mariadb._TABLES:
            return self.tables
        if statement == mariadb._ENGINES:
            return self.engines
        if "innodb_trx" in statement:
            return self.look(connection.id, statement)
        return []

    def look(self, id: int, statement: str) -> list[tuple[Any, ...]]:
        if self.old_copies:
            self.old_copies -= 1
            return [(id, "root", 0, 0, statement.replace("quiesce", "before"))]
        others = self.transactions.pop(0) if len(self.transactions) > 1 else (self.transactions or [[]])[0]
        return [*others, (id, "root", 0, 0, statement)]

    def of(self, start: str) -> list[tuple[int, str]]:
        return [(id, statement) for id, statement in self.said if statement.startswith(start)]


class Connection:
    """PyMySQL's, as far as the writer uses it."""

    def __init__(self, server: Server, id: int) -> None:
        self.server, self.id = server, id
        self._sock, self._other = socket.socketpair()
        self._pending: Any = None
        self._result: Any = None
        self.rows: Any = ()
        self.closed = self.gone = False

    def thread_id(self) -> int:
        return self.id

    def _execute_command(self, command: int, sql: bytes) -> None:
        assert command == pymysql.constants.COMMAND.COM_QUERY
        if self.gone:
            raise OperationalError(2006, "MySQL server has gone away")
        answer = self.server.perform(self, sql.decode())
        if answer is not None:
            self.answer(answer)

    def answer(self, answer: Any) -> None:
        self._pending = answer
        self._other.send(b"x")

    def _read_query_result(self) -> None:
        self._sock.recv(1)
        if isinstance(self._pending, Exception):
            raise self._pending
        self._result, self.rows = self, self._pending

    def close(self) -> None:
        self.closed = True
        self._sock.close()
        self._other.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It is the one that the writer connects to, and waits are short."""
    server = Server()
    monkeypatch.setattr(pymysql, "connect", server.connect)
    monkeypatch.setattr(processes, "listening_paths", lambda _: ["/run/a/mysqlx.sock", "/run/mysqld/mysqld.sock"])
    monkeypatch.setattr(memory, "DIRECTORY", str(tmp_path))
    for name, value in {"PREPARE_FLUSH_S": 0.01, "HOLD_BUDGET_MS": 100}.items():
        monkeypatch.setattr(mariadb, name, value)
    for name, value in {"LOCK_TIMEOUT_MS": 2, "STALE_S": 0.001}.items():
        monkeypatch.setattr(mariadb_locks, name, value)
    yield server
    for connection in server.connections:
        connection.close()


def database(name: str = "mariadbd", directory: str = "/var/lib/mysql", container: bool = False) -> DatabaseServer:
    return DatabaseServer(Process(1, name, 0, container), directory)


def prepared(name: str = "mariadbd") -> DatabaseServer:
    writer = database(name)
    writer.prepare(deadline_in_ns(5), 1500)
    return writer


def held(name: str = "mariadbd") -> DatabaseServer:
    writer = prepared(name)
    writer.hold(deadline_in_ns(5))
    return writer


def refused(writer: DatabaseServer) -> str:
    """Why it cannot be held, of a writer that says so before the attempt."""
    writer.identify()
    assert not writer.grade.vouched
    return str(writer.reason)


# -- what it says of itself


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
    monkeypatch.setattr(processes, "running", lambda *names: (process for process in found if process.name in names))
    where = {"/proc/1/cwd": "/var/lib/mysql", "/proc/2/cwd": "/srv/second"}
    monkeypatch.setattr("os.readlink", where.__getitem__)
    assert [writer.id for writer in mariadb.discover()] == ["mariadb:main", "mysql:/srv/second"]


def _another(name: str, value: str) -> Callable[[Server], None]:
    return lambda server: server.variables.update({name: value})


def _says(statement: str, *rows: tuple[Any, ...]) -> Callable[[Server], None]:
    return lambda server: server.answers.update({statement: list(rows)})


@pytest.mark.parametrize(
    ("change", "why", "grade"),
    [
        (_another("wsrep_on", "ON"), "Galera", Grade.CRASH),
        (_says("SHOW ALL SLAVES STATUS", ("", "Waiting")), "a replica", Grade.CRASH),
        (lambda server: server.variables.pop("innodb_log_checkpoint_now"), "cannot be told to empty its log", Grade.CRASH),
        (_another("version", "8.0.21"), "older than 8.0.22", Grade.CRASH),
        (_says("XA RECOVER", (1, 2, 0, b"t\xff"), (1, 2, 0, b"u")), "prepared transaction 't�' and 1 more", Grade.REFUSED),
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


# -- the attempt


def test_tables_are_locked_one_by_one_then_everything_then_the_log_is_emptied(server):
    """Broken: transactions would be stopped in their middle, or the log hold what a recovery replays."""
    writer = held()
    assert writer.grade is Grade.NIL_REDO
    locks = server.of("LOCK TABLES")
    assert [statement for _, statement in locks] == [f"LOCK TABLES {name} READ" for name, _ in server.tables]
    assert len({id for id, _ in locks}) == 3
    said = [statement for _, statement in server.said]
    assert said.index(locks[-1][1]) < said.index(FTWRL) < len(said) - said[::-1].index(mariadb._CHECKPOINT)
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
    assert armed == sorted({connection.id for connection in server.connections}, key=armed.index)
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
    """Broken: the table would be named, and not who is in it."""
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
        if statement == mariadb._CHECKPOINT and steps:
            server.status["Innodb_lsn_current"], server.status["Innodb_lsn_last_checkpoint"] = steps.pop(0)
        return perform(connection, statement)

    monkeypatch.setattr(server, "perform", move)
    writer.hold(deadline_in_ns(5))
    assert (writer.position["lsn_current"], writer.position["lsn_checkpoint"]) == ("1132", "1116")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda server: server.variables.update(gtid_binlog_pos="0-1-8"), "gtid_binlog_pos from 0-1-7 to 0-1-8"),
        (_says("SHOW BINLOG STATUS", ("bin.000003", 4712)), "binlog_position from 4711 to 4712"),
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
    assert len(server.of(mariadb._CHECKPOINT)) > mariadb.MAX_FLUSHES // 2


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
    assert (writer.grade, writer.reason) == (Grade.CRASH, "MySQL server has gone away (2006)")


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
    server.waits[mariadb._CHECKPOINT] = 1
    writer = prepared()
    assert writer.error is None
    assert len(server.of("KILL QUERY")) == 1


# -- MySQL

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
    assert not mysql.of(mariadb._CHECKPOINT)
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


# -- the rest


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


def test_letting_go_can_be_said_at_any_time_and_again(server):
    """Broken: an attempt that failed early would leave a session, and its locks, behind."""
    writer = database()
    writer.abort()
    writer = held()
    writer.abort()
    writer.abort()
    assert writer.warnings == []
    assert all(connection.closed for connection in server.connections)


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
    assert mariadb.elsewhere(str(data)) == {str(fast / "shop"), str(slow), str(other)}
    assert mariadb.elsewhere(str(tmp_path / "gone")) == set()
    writer = database(directory=str(data))
    writer.data_directory = str(data)
    assert writer.paths() == sorted(map(str, (data, fast / "shop", slow, other)))
