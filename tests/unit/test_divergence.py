"""model/divergence.py: what is said of a server that stays as it is, when others go back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.model.divergence import Agreement, Finding, Server, describe, judge
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import WriterReport

STANDS = "stands where it stood"


def writer(id: str, position: dict[str, str], **others: object) -> WriterReport:
    values = {"version": "1", "level": Level.BACK_END, "grade": Grade.CLEAN, "position": position}
    return WriterReport(id, id.partition(":")[0], **{**values, **others})


def postgresql(xid: str = "0:800", lsn: str = "0/100", **others: str) -> WriterReport:
    position = {"system_identifier": "7", "timeline": "1", "next_xid": xid, "insert_lsn": lsn, **others}
    return writer("postgresql:17/main", position, role="primary")


def standby(replay_lsn: str, **others: str) -> WriterReport:
    position = {"system_identifier": "7", "timeline": "1", "replay_lsn": replay_lsn, **others}
    return writer("postgresql:17/main", position, role="standby")


def mariadb(gtid: str = "0-1-5501", **others: str) -> WriterReport:
    position = {"server_id": "1", "server_uid": "u", "lsn_current": "900", "gtid_binlog_pos": gtid, **others}
    return writer("mariadb:main", position, role="primary")


def mariadb_without_log(lsn: str) -> WriterReport:
    return writer(
        "mariadb:main", {"server_id": "1", "server_uid": "u", "lsn_current": lsn, "lsn_checkpoint": lsn}, role="primary"
    )


def replica(gtid: str) -> WriterReport:
    return writer("mariadb:main", {"gtid_slave_pos": gtid}, role="replica", grade=Grade.CRASH)


def redis(**others: str) -> WriterReport:
    position = {"run_id": "r", "rdb_last_save_time": "1700000000", "rdb_changes_since_last_save": "0", "keys": "7", **others}
    return writer("redis:6379", position, role="primary")


NGINX = writer("nginx:nginx.service", {}, stateless=True)


def found(
    then: list[WriterReport] | None, now: list[WriterReport], going: list[WriterReport] | None = None
) -> tuple[Agreement, list[str]]:
    judged = judge("db", then, now, going or [])
    return judged.verdict, [finding.text for finding in judged.findings]


def compared(before: WriterReport, now: WriterReport) -> tuple[Agreement, str]:
    verdict, (text,) = found([before], [now])
    return verdict, text


# -- PostgreSQL


def test_a_log_moves_by_itself_and_a_database_does_not():
    """Broken: every PostgreSQL would seem to have moved a moment later, and the warning be ignored when it counts."""
    held = postgresql(lsn="0/100", checkpoint_lsn="0/90", redo_lsn="0/80")  # which names more
    assert compared(held, postgresql(lsn="0/9100")) == (Agreement.AGREES, f"PostgreSQL 17/main {STANDS}")


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ("0:800", "0:801", "has moved 1 transaction (LSN 0/100 -> 1/200) since"),
        ("0:4294967290", "1:1000", "has moved 1,006 transactions (LSN 0/100 -> 1/200) since"),
        ("1:5", "0:4294967295", "stands 6 transactions before that (LSN 0/100 -> 1/200)"),
    ],
    ids=["one", "across an epoch", "back in time"],
)
def test_transactions_of_postgresql_are_counted(before, now, text):
    """Broken: nobody could tell one transaction from a day of them, or a number that begins anew would be a huge step back."""
    assert compared(postgresql(before), postgresql(now, "1/200")) == (Agreement.MOVED, f"PostgreSQL 17/main {text}")


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"system_identifier": "8"}, "is another cluster now"), ({"timeline": "2"}, "went on along another timeline")],
)
def test_another_history_has_moved_whatever_its_numbers_are(changed, text):
    """Broken: a cluster that was set up anew, or promoted, would agree because its numbers happen to be the same."""
    assert compared(postgresql(), postgresql(**changed)) == (Agreement.MOVED, f"PostgreSQL 17/main {text}")


def test_a_cluster_that_is_down_stands_where_its_files_do():
    """Broken: one that was down then and is now would be unknown, or one that ran in between agree."""
    down = writer("postgresql:17/main", {"system_identifier": "7", "checkpoint_lsn": "0/90", "redo_lsn": "0/90"}, role="down")
    assert compared(down, down)[0] is Agreement.AGREES
    assert compared(down, replace(down, position={**down.position, "redo_lsn": "0/A0"}))[0] is Agreement.MOVED
    assert compared(down, postgresql())[0] is Agreement.UNKNOWN
    assert compared(postgresql(), replace(down, reason="it is down")) == (
        Agreement.UNKNOWN,
        "PostgreSQL 17/main does not say where it stands: it is down",
    )


@pytest.mark.parametrize(
    ("replayed", "verdict", "text"),
    [
        ("0/FF", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        ("0/100", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        (
            "0/1100",
            Agreement.MOVED,
            "is 4,096 bytes ahead of the checkpoint (LSN 0/100 -> 0/1100); it could not follow, and would have to be made anew",
        ),
    ],
)
def test_a_standby_may_be_behind_the_primary_that_goes_back_and_not_ahead(replayed, verdict, text):
    """Broken: a standby with a future that the primary no longer has would be left in service."""
    for then in (None, [standby("0/1")]):
        assert found(then, [standby(replayed)], [postgresql(lsn="0/100")]) == (
            verdict,
            [f"PostgreSQL 17/main, which follows, {text}"],
        )


@pytest.mark.parametrize(
    "now",
    [standby("0/50", system_identifier="8"), standby("0/50", timeline="2"), standby("0/0"), standby("nonsense")],
    ids=["of another cluster", "on another timeline", "has replayed nothing", "no LSN"],
)
def test_whether_a_standby_could_follow_is_not_guessed(now):
    """Broken: it would be said to be able to follow, by a number of another log or by none."""
    assert found(None, [now], [postgresql()])[0] is Agreement.UNKNOWN


@pytest.mark.parametrize("now", [{}, {"in_progress_xids": "799"}])
def test_a_transaction_that_was_open_and_ended_is_no_agreement(now):
    """Broken: what committed since, with a number from before, would be called the same."""
    then = postgresql(in_progress_xids="790,799")
    assert compared(then, postgresql(in_progress_xids="790,799")) == (Agreement.AGREES, f"PostgreSQL 17/main {STANDS}")
    assert compared(then, postgresql(**now)) == (
        Agreement.MOVED,
        "PostgreSQL 17/main has ended transactions that were open then (LSN 0/100 -> 0/100)",
    )


def test_a_standby_is_ahead_by_what_it_has_yet_to_replay():
    """Broken: a delayed standby would be left in service with a future that its primary no longer has."""
    verdict, (text,) = found(None, [standby("0/50", receive_lsn="0/110")], [postgresql(lsn="0/100")])
    assert verdict is Agreement.MOVED
    assert "is 16 bytes ahead of the checkpoint (LSN 0/100 -> 0/110)" in text
    assert found(None, [standby("0/100", receive_lsn="0/50")], [postgresql(lsn="0/100")])[0] is Agreement.AGREES


def test_a_standby_of_somebody_else_is_judged_by_what_it_has_replayed():
    """Broken: it would seem to stand still, as it takes no transaction numbers of its own."""
    assert compared(standby("0/100"), standby("0/100")) == (Agreement.AGREES, f"PostgreSQL 17/main {STANDS}")
    assert compared(standby("0/100"), standby("0/1100")) == (
        Agreement.MOVED,
        "PostgreSQL 17/main has moved 4,096 bytes (LSN 0/100 -> 0/1100) since",
    )
    assert compared(standby("0/101"), standby("0/100")) == (
        Agreement.MOVED,
        "PostgreSQL 17/main stands 1 byte before that (LSN 0/101 -> 0/100)",
    )


# -- MariaDB


@pytest.mark.parametrize(
    ("before", "now", "verdict", "text"),
    [
        ("0-1-5501", "0-1-5501", Agreement.AGREES, STANDS),
        ("0-1-5501", "0-1-6705", Agreement.MOVED, "has moved 1,204 transactions (GTID 0-1-5501 -> 0-1-6705) since"),
        ("", "0-1-1", Agreement.MOVED, "has moved 1 transaction (GTID none -> 0-1-1) since"),
        ("0-1-9", "0-1-7", Agreement.MOVED, "stands 2 transactions before that (GTID 0-1-9 -> 0-1-7)"),
        ("0-1-9,5-1-3", "5-1-3,0-1-9", Agreement.AGREES, STANDS),
        ("0-1-9,5-1-3", "0-1-10,5-1-5", Agreement.MOVED, "has moved 3 transactions (GTID 0-1-9,5-1-3 -> 0-1-10,5-1-5) since"),
        ("0-1-9", "0-2-9", Agreement.MOVED, "has moved (GTID 0-1-9 -> 0-2-9) since"),
    ],
    ids=["unmoved", "moved", "first", "back", "another order", "several domains", "as many of another server"],
)
def test_transactions_of_mariadb_are_counted_by_its_binary_log(before, now, verdict, text):
    """Broken: what the stock did after the orders' checkpoint would not be known, or be miscounted."""
    assert compared(mariadb(before), mariadb(now, lsn_current="999")) == (verdict, f"MariaDB main {text}")


def test_without_a_binary_log_mariadb_is_judged_by_innodbs():
    """Broken: a server without a binary log would always agree, or its bytes be taken for transactions."""
    assert compared(mariadb_without_log("5000"), mariadb_without_log("5000"))[0] is Agreement.AGREES
    more = "; how many transactions, only a binary log would tell)"
    assert compared(mariadb_without_log("5000"), mariadb_without_log("9096")) == (
        Agreement.MOVED,
        f"MariaDB main has moved 4,096 bytes (LSN 5000 -> 9096{more} since",
    )
    assert compared(mariadb_without_log("5000"), mariadb_without_log("4999")) == (
        Agreement.MOVED,
        f"MariaDB main stands 1 byte before that (LSN 5000 -> 4999{more}",
    )


def test_another_mariadb_server_has_moved_whatever_its_numbers_are():
    """Broken: a server that was set up anew would agree because its numbers happen to be the same."""
    assert compared(mariadb(), mariadb(server_uid="v")) == (Agreement.MOVED, "MariaDB main is another server now")


def test_a_mariadb_that_cannot_be_asked_is_no_other_server():
    """Broken: a server that does not let us in would be said to be another one, and nobody would look for the reason."""
    refused = writer("mariadb:main", {}, grade=Grade.REFUSED, reason="access denied")
    text = "MariaDB main does not say where it stands: access denied"
    assert compared(mariadb(), refused) == (Agreement.UNKNOWN, text)
    older = mariadb()  # and an older release has no such number
    older = replace(older, position={key: value for key, value in older.position.items() if key != "server_uid"})
    assert compared(older, mariadb())[0] is Agreement.AGREES


@pytest.mark.parametrize(
    ("applied", "verdict", "text"),
    [
        ("0-1-5501", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        ("0-1-40", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        ("0-1-5502", Agreement.MOVED, "is 1 transaction ahead of the checkpoint (GTID 0-1-5501 -> 0-1-5502);"),
        ("0-1-6705", Agreement.MOVED, "is 1,204 transactions ahead of the checkpoint (GTID 0-1-5501 -> 0-1-6705);"),
        ("0-1-5501,5-1-12", Agreement.MOVED, "is 2 transactions ahead of the checkpoint (GTID 5-1-10 -> 5-1-12);"),
        ("0-1-5501,6-1-2", Agreement.MOVED, "is 2 transactions ahead of the checkpoint (GTID none -> 6-1-2);"),
        ("0-1-5501,9-4-12", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
    ],
    ids=["as far", "behind", "one ahead", "ahead", "ahead in another domain", "in a new domain", "of another primary"],
)
def test_a_replica_may_be_behind_the_primary_that_goes_back_and_not_ahead(applied, verdict, text):
    """Broken: a replica with transactions that the primary no longer has would be left in service."""
    judged, (said,) = found(None, [replica(applied)], [mariadb("0-1-5501,5-1-10")])
    assert judged is verdict
    assert said.startswith(f"MariaDB main, which follows, {text}")


def test_a_replica_of_somebody_else_is_judged_by_what_it_has_applied():
    """Broken: a replica of another primary would be measured by numbers that are not its own."""
    going = [mariadb("0-1-10"), mariadb_without_log("5000")]
    assert found([replica("0-4-7")], [replica("0-4-7")], going) == (Agreement.AGREES, [f"MariaDB main {STANDS}"])
    assert found([replica("0-4-7")], [replica("0-4-9")], going) == (
        Agreement.MOVED,
        ["MariaDB main has moved 2 transactions (GTID 0-4-7 -> 0-4-9) since"],
    )
    assert found(None, [replica("0-4-7")], going)[0] is Agreement.UNKNOWN


def test_a_replica_that_was_promoted_does_not_agree():
    """Broken: what it was written by itself since would be passed over."""
    assert compared(replica("0-1-10"), mariadb("0-1-10"))[0] is Agreement.UNKNOWN


# -- others


@pytest.mark.parametrize(
    ("changed", "verdict", "text"),
    [
        ({}, Agreement.AGREES, STANDS),
        ({"rdb_changes_since_last_save": "3"}, Agreement.MOVED, "has moved (rdb_changes_since_last_save 0 -> 3) since"),
        ({"run_id": "s", "keys": "8"}, Agreement.MOVED, "has moved (run_id r -> s, keys 7 -> 8) since"),
        ({"new": "1"}, Agreement.AGREES, STANDS),
    ],
    ids=["unmoved", "a key set again", "restarted", "names more"],
)
def test_others_stand_where_all_that_they_named_is_the_same(changed, verdict, text):
    """Broken: a Redis whose keys are as many, and have other values, would agree."""
    assert compared(redis(), redis(**changed)) == (verdict, f"Redis 6379 {text}")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"files": "3", "/srv/a.db": "change 5 pages 9"}, {"files": "3"}),
        ({"files": "3"}, {"files": "3"}),
        ({"files": "3"}, {"files": "3", "/srv/a.db": "change 5 pages 9"}),
        ({}, {}),
        ({}, {"files": "3"}),
    ],
    ids=["now only how many", "only how many", "then only how many", "nothing", "nothing then"],
)
def test_a_writer_that_names_less_than_its_state_is_unknown(before, now):
    """Broken: a service would agree because nobody looked into its files."""
    verdict, text = compared(writer("sqlite:shop.service", before), writer("sqlite:shop.service", now))
    assert verdict is Agreement.UNKNOWN
    assert text.startswith("sqlite:shop.service d")


def test_sqlite_files_that_were_looked_into_are_compared():
    """Broken: files whose change counters are known on both sides would be unknown."""
    first, second = ({"files": "1", "/srv/a.db": f"change {n} pages 9"} for n in (5, 6))
    assert compared(writer("sqlite:shop.service", first), writer("sqlite:shop.service", first))[0] is Agreement.AGREES
    assert compared(writer("sqlite:shop.service", first), writer("sqlite:shop.service", second))[0] is Agreement.MOVED


def test_it_is_said_which_side_is_silent_and_why():
    """Broken: an administrator would mend the server of today for what was not known then."""
    refused = replace(redis(), position={}, reason="it wants a password")
    assert compared(refused, redis()) == (Agreement.UNKNOWN, "Redis 6379 did not say where it stood: it wants a password")
    assert compared(redis(), refused) == (Agreement.UNKNOWN, "Redis 6379 does not say where it stands: it wants a password")


# -- the server


def test_writers_that_keep_nothing_count_for_nothing():
    """Broken: restoring a database would be refused because of a web server that was restarted, replaced or is gone."""
    later = replace(NGINX, position={"connections": "3"})
    for then in (None, [], [NGINX], [replace(NGINX, id="haproxy:haproxy.service")]):
        assert found(then, [later]) == (Agreement.SILENT, [])
    assert found([NGINX], []) == (Agreement.SILENT, [])
    assert found([NGINX, redis()], [NGINX, redis()]) == (Agreement.AGREES, [f"Redis 6379 {STANDS}"])


def test_a_server_that_keeps_nothing_is_silent_and_agrees():
    """Broken: every restore of a database with a front end would be refused."""
    judged = judge("web", [NGINX], [NGINX], [postgresql()])
    assert (judged.verdict, judged.agrees) == (Agreement.SILENT, True)
    assert str(judged) == "web: keeps nothing that a writer knows of"


def test_an_application_that_is_gone_is_unknown():
    """Broken: a database that was stopped, and started again after the restore, would come up with what nobody compared."""
    assert found([redis(), mariadb()], [mariadb()]) == (
        Agreement.UNKNOWN,
        [f"MariaDB main {STANDS}", "Redis 6379 is not there now, or does not run"],
    )


def test_an_application_that_is_stopped_goes_by_another_id_and_is_unknown():
    """Broken: a MariaDB that was shut down would be said to be a new one."""
    down = writer("mariadb:mariadb.service", {}, role="down")
    assert found([mariadb()], [down]) == (
        Agreement.UNKNOWN,
        ["where MariaDB mariadb.service stood at that instant is not known", "MariaDB main is not there now, or does not run"],
    )


def test_an_application_that_is_new_has_moved():
    """Broken: data that came after the checkpoint would be passed over."""
    assert found([], [redis()]) == (Agreement.MOVED, ["Redis 6379 was not there then"])


def test_a_server_that_was_not_asked_then_is_unknown():
    """Broken: a server that joined the group later would agree, or be said to have moved."""
    assert found(None, [NGINX, redis()]) == (Agreement.UNKNOWN, ["where Redis 6379 stood at that instant is not known"])


BEST_FIRST = (Agreement.AGREES, Agreement.SILENT, Agreement.UNKNOWN, Agreement.MOVED)


@pytest.mark.parametrize("worst", BEST_FIRST)
def test_the_verdict_is_the_worst(worst):
    """Broken: a database that moved would hide behind one that did not."""
    verdicts = BEST_FIRST[: BEST_FIRST.index(worst) + 1]
    judged = Server("db", tuple(Finding(verdict.value, verdict, f"is {verdict.value}") for verdict in verdicts))
    assert judged.verdict is worst
    assert judged.agrees is (worst in (Agreement.AGREES, Agreement.SILENT))
    assert str(judged) == f"db: is {worst.value}"


def test_what_a_program_is_told():
    """Broken: a script could not tell which application of which server moved."""
    judged = judge("db", [redis(), mariadb()], [redis(), mariadb("0-1-5502")], [])
    assert describe([judged, Server.whole("web", Agreement.UNKNOWN, "it cannot be asked"), Server("proxy", ())]) == [
        {
            "vm": "db",
            "verdict": "moved",
            "findings": [
                {"writer": "redis:6379", "verdict": "agrees", "text": f"Redis 6379 {STANDS}"},
                {
                    "writer": "mariadb:main",
                    "verdict": "moved",
                    "text": "MariaDB main has moved 1 transaction (GTID 0-1-5501 -> 0-1-5502) since",
                },
            ],
        },
        {"vm": "web", "verdict": "unknown", "findings": [{"writer": None, "verdict": "unknown", "text": "it cannot be asked"}]},
        {"vm": "proxy", "verdict": "silent", "findings": []},
    ]


@pytest.mark.parametrize("lie", ["", "x", "-5", "1e9", "²"])
def test_a_position_that_is_no_number_is_no_error_of_ours(lie):
    """Broken: a guest that lies would end a restore with a traceback, or agree."""
    assert compared(mariadb_without_log("5000"), mariadb_without_log(lie))[0] is Agreement.MOVED
