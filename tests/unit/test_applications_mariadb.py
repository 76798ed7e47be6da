"""applications/mariadb.py: whether a server moved, and whether a replica could follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.model.divergence import Agreement
from quiesce.model.grades import Grade
from tests.unit.reports import NOT_MOVED, NOT_NOW, compared, found, mariadb, mariadb_without_log, replica, writer


@pytest.mark.parametrize(
    ("before", "now", "verdict", "text"),
    [
        ("0-1-5501", "0-1-5501", Agreement.AGREES, NOT_MOVED),
        (
            "0-1-5501",
            "0-1-6705",
            Agreement.MOVED,
            "has moved 1,204 transactions since the checkpoint (GTID 0-1-5501 -> 0-1-6705)",
        ),
        ("", "0-1-1", Agreement.MOVED, "has moved 1 transaction since the checkpoint (GTID none -> 0-1-1)"),
        ("0-1-9", "0-1-7", Agreement.MOVED, "is 2 transactions behind the checkpoint (GTID 0-1-9 -> 0-1-7)"),
        ("0-1-9,5-1-3", "5-1-3,0-1-9", Agreement.AGREES, NOT_MOVED),
        (
            "0-1-9,5-1-3",
            "0-1-10,5-1-5",
            Agreement.MOVED,
            "has moved 3 transactions since the checkpoint (GTID 0-1-9,5-1-3 -> 0-1-10,5-1-5)",
        ),
        ("0-1-9", "0-2-9", Agreement.MOVED, "has moved since the checkpoint (GTID 0-1-9 -> 0-2-9)"),
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
        f"MariaDB main has moved 4,096 bytes since the checkpoint (LSN 5000 -> 9096{more}",
    )
    assert compared(mariadb_without_log("5000"), mariadb_without_log("4999")) == (
        Agreement.MOVED,
        f"MariaDB main is 1 byte behind the checkpoint (LSN 5000 -> 4999{more}",
    )


def test_another_mariadb_server_has_moved_whatever_its_numbers_are():
    """Broken: a server that was set up anew would agree because its numbers happen to be the same."""
    assert compared(mariadb(), mariadb(server_uid="v")) == (Agreement.MOVED, "MariaDB main is another server now")


def test_a_mariadb_that_cannot_be_asked_is_no_other_server():
    """Broken: a server that does not let us in would be said to be another one, and nobody would look for the reason."""
    refused = writer("mariadb:main", {}, grade=Grade.REFUSED, reason="access denied")
    text = f"MariaDB main {NOT_NOW}: access denied"
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
    assert said.startswith(f"MariaDB main, which replicates a server that goes back, {text}")


def test_a_replica_of_somebody_else_is_judged_by_what_it_has_applied():
    """Broken: a replica of another primary would be measured by numbers that are not its own."""
    going = [mariadb("0-1-10"), mariadb_without_log("5000")]
    assert found([replica("0-4-7")], [replica("0-4-7")], going) == (Agreement.AGREES, [f"MariaDB main {NOT_MOVED}"])
    assert found([replica("0-4-7")], [replica("0-4-9")], going) == (
        Agreement.MOVED,
        ["MariaDB main has moved 2 transactions since the checkpoint (GTID 0-4-7 -> 0-4-9)"],
    )
    assert found(None, [replica("0-4-7")], going)[0] is Agreement.UNKNOWN


def test_a_replica_that_was_promoted_does_not_agree():
    """Broken: what it was written by itself since would be passed over."""
    assert compared(replica("0-1-10"), mariadb("0-1-10"))[0] is Agreement.UNKNOWN


@pytest.mark.parametrize("lie", ["", "x", "-5", "1e9", "²"])
def test_a_position_that_is_no_number_is_no_error_of_ours(lie):
    """Broken: a guest that lies would end a restore with a traceback, or agree."""
    assert compared(mariadb_without_log("5000"), mariadb_without_log(lie))[0] is Agreement.MOVED
