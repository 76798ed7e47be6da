"""agent/writers/mariadb_blockers.py and mariadb_status.py: the right one is named, with user, statement and age."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymysql.err import ProgrammingError

from quiesce.agent.writers.base import WriterError, deadline_in_ns
from quiesce.agent.writers.mariadb_blockers import Blockers, OtherSession
from tests.unit.fake_mariadb import FTWRL, Server, database, prepared, refused, says, serving

LOCKER = (8, "root", "Sleep", 33, None)
WRITER = (9, "app", "Query", 5, "UPDATE  b SET n = 1")
READER = (10, "app", "Query", 99, "SELECT * FROM b")
OTHERS = (11, "app", "Query", 7, "INSERT INTO bb VALUES (1)")
OURS = (1, "root", "Sleep", 500, None)
SLAVE = (3, "system user", "Slave_SQL", 1000, None)
LOCK_B = "LOCK TABLES `shop`.`b` READ"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with serving(monkeypatch, tmp_path) as server:
        yield server


def blockers(**answers: Any) -> Blockers:
    """`sessions`, `plugin`, `schema` (the performance schema), `in_use`, `transactions`: what the server answers."""

    def run(question: str) -> list[Any]:
        begins = {
            "SELECT id": "sessions",
            "SELECT thread_id": "plugin",
            "SELECT t.processlist_id": "schema",
            "SHOW OPEN TABLES": "in_use",
            "SELECT trx": "transactions",
            "SELECT user": "users",
        }
        name = next(name for start, name in begins.items() if question.startswith(start))
        if name not in answers:
            raise ProgrammingError(1109, "Unknown table")
        return list(answers[name])

    return Blockers(run, {1})


def test_a_session_is_described_in_a_persons_words():
    """Broken: the administrator would not know whom to ask, or what they did."""
    assert str(OtherSession(*LOCKER)) == "thread 8 of user 'root', idle for 33 s"
    assert str(OtherSession(*WRITER)) == "thread 9 of user 'app', running \"UPDATE b SET n = 1\" for 5 s"
    assert str(OtherSession(9, None, "Binlog", 1, None)) == "thread 9 of user 'unknown', binlog for 1 s"
    assert len(str(OtherSession(9, "app", "Query", 5, "x" * 500))) < 150


@pytest.mark.parametrize("how", ["plugin", "schema"])
def test_who_holds_the_lock_is_named_where_the_server_tells(how):
    """Broken: somebody else would be ended who is innocent."""
    asked = blockers(sessions=[LOCKER, WRITER, OURS], **{how: [(8,), (1,)]})
    assert asked.of_table("`shop`.`b`") == "thread 8 of user 'root', idle for 33 s"
    assert asked.of_everything() == "thread 8 of user 'root', idle for 33 s"


def test_who_writes_to_the_table_is_named_and_not_who_reads_it_or_writes_to_another():
    """Broken: a report, which is in nobody's way, would be ended; or a table named like this one be taken for it."""
    sessions = [LOCKER, WRITER, READER, OTHERS, OURS, SLAVE, (12, "app", "Query", 3, "SELECT n FROM b FOR UPDATE")]
    named = blockers(sessions=sessions, in_use=[("shop", "b", 1, 0)]).of_table("`shop`.`b`")
    assert named.split("; ") == [
        str(OtherSession(*WRITER)),
        "thread 12 of user 'app', running \"SELECT n FROM b FOR UPDATE\" for 3 s",
    ]


def test_a_lock_of_an_idle_session_is_inferred():
    """Broken: the oldest transaction would be named, which has nothing to do with it (as today)."""
    known = {"in_use": [("shop", "b", 1, 0)], "transactions": [(13,)]}
    sessions = [LOCKER, READER, OURS, (13, "app", "Sleep", 900, None)]
    assert (
        blockers(sessions=sessions, **known).of_table("`shop`.`b`")
        == "held by LOCK TABLES of thread 8 of user 'root', idle for 33 s"
    )
    more = [*sessions, (14, "app", "Sleep", 50, None)]
    named = blockers(sessions=more, **known).of_table("`shop`.`b`")
    assert named.startswith("held by LOCK TABLES of one of: thread 14 of user 'app', idle for 50 s; thread 8 ")
    assert blockers(sessions=sessions, **known).of_table("`shop`.`a`") == ""
    assert blockers(sessions=sessions, in_use=[]).of_table("`shop`.`b`") == ""
    assert "thread 8" in blockers(sessions=[LOCKER], **known).of_everything()


def test_a_statement_that_everything_waits_for_is_named_whatever_it_does():
    """Broken: FLUSH TABLES WITH READ LOCK waits for a SELECT, too, and nobody would know for which."""
    many = [(20 + n, "app", "Query", n, "SELECT SLEEP(99)") for n in range(5)]
    named = blockers(sessions=[LOCKER, *many]).of_everything()
    assert named.startswith("thread 24 of user 'app', running \"SELECT SLEEP(99)\" for 4 s; thread 23")
    assert named.endswith(" and 2 more")


def test_what_cannot_be_told_is_not_told():
    """Broken: an error of our question would hide why the hold failed."""
    assert blockers().of_table("`shop`.`b`") == blockers().of_everything() == blockers().connections() == ""
    users = [("app", 148, 33), ("root", 3, 0)]
    assert blockers(users=users).connections() == "148 of user 'app' (idle for up to 33 s), 3 of user 'root'"


def test_odd_names_are_quoted(server):
    """Broken: a table with a quotation mark in its name would be an error, or somebody's statement."""
    asked: list[str] = []
    Blockers(lambda question: asked.append(question) or [], {1}).of_table("`it's`.`a``b\\`")  # type: ignore[func-returns-value]
    assert any("table_schema = 'it''s' AND table_name = 'a`b\\\\'" in question for question in asked)


def test_the_hold_names_who_has_the_table_locked_and_not_the_oldest_transaction(server):
    """Given LOCK TABLES of an idle session and an older transaction of somebody else, the first is named."""
    server.waits[LOCK_B] = 10**6
    server.transactions = [[(13, "app", 900, 0, None)]]
    says("SELECT id, user, command", LOCKER, (13, "app", "Sleep", 900, None))(server)
    says("SELECT trx_mysql_thread_id", (13,))(server)
    says("SHOW OPEN TABLES", ("shop", "b", 1, 0))(server)
    writer = prepared()
    with pytest.raises(WriterError, match=r"table `shop`.`b` was in use: held by LOCK TABLES of thread 8 of user 'root', idle"):
        writer.hold(deadline_in_ns(0.5))


def test_the_hold_names_the_statement_that_everything_waits_for(server):
    """Given a statement that does not end, it is in the message."""
    server.waits[FTWRL] = 10**6
    says("SELECT id, user, command", (9, "app", "Query", 61, "ALTER TABLE a ADD COLUMN x INT"))(server)
    writer = prepared()
    with pytest.raises(
        WriterError, match=r'had to wait: thread 9 of user \'app\', running "ALTER TABLE a ADD COLUMN x INT" for 61'
    ):
        writer.hold(deadline_in_ns(0.5))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((9, "app", 33, 2, None), "thread 9 of user 'app' is in a transaction for 33 s (idle)"),
        ((9, "app", 33, 2, "UPDATE a"), "thread 9 of user 'app' is in a transaction for 33 s (running \"UPDATE a\")"),
        ((0, None, 33, 2, None), "a prepared XA transaction, which XA RECOVER lists, is open for 33 s"),
    ],
)
def test_a_transaction_that_stays_open_is_named_with_what_it_does(row, words, server):
    """Broken: thread 0 of user 'unknown' would be looked for."""
    server.transactions = [[row]]
    writer = prepared()
    with pytest.raises(WriterError) as raised:
        writer.hold(deadline_in_ns(0.5))
    assert words in str(raised.value)


STATUS = """
---TRANSACTION 31, ACTIVE (PREPARED) 7 sec recovered trx
1 lock struct(s), heap size 1128, 0 row lock(s), undo log entries 1
---TRANSACTION 30, ACTIVE (PREPARED) {age} sec
1 lock struct(s), heap size 1128, 0 row lock(s), undo log entries 1
MariaDB thread id 11, OS thread handle 140356981671616, query id 36 localhost app{end}
---TRANSACTION 29, ACTIVE 900 sec
MariaDB thread id 10, OS thread handle 140356982286016, query id 31 localhost root{end}
"""


@pytest.mark.parametrize(
    ("ids", "age", "words"),
    [
        ([b"t"], 33, "prepared transaction 't' (for 33 s, thread 11 of user 'app') holds its locks"),
        (
            [b"t", b"u"],
            33,
            "prepared transaction 't' and 1 more (the oldest for 33 s, thread 11 of user 'app') holds its locks",
        ),
        ([b"t", b"u"], 2, "prepared transaction 't' and 1 more (the oldest for 7 s) holds its locks"),
    ],
)
def test_a_prepared_transaction_is_named_with_its_session_and_age(ids, age, words, server):
    """Broken: whoever has to end it would not know whose it is."""
    says("XA RECOVER", *((1, 1, 0, name) for name in ids))(server)
    says("SHOW ENGINE INNODB STATUS", ("InnoDB", "", STATUS.format(age=age, end=" ")))(server)
    writer = database()
    assert words in refused(writer)
    writer.abort()
