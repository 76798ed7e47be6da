"""applications/postgresql.py: whether a cluster moved, whether a standby could follow, and bytes of log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quiesce.applications.changes import ChangeKind, compare_writers
from quiesce.model.divergence import Agreement
from quiesce.model.reports import WriterReport
from tests.unit.reports import NOT_MOVED, NOT_NOW, compared, found, postgresql, standby, writer


def test_a_log_moves_by_itself_and_a_database_does_not():
    """Broken: every PostgreSQL would seem to have moved a moment later, and the warning be ignored when it counts."""
    held = postgresql(lsn="0/100", checkpoint_lsn="0/90", redo_lsn="0/80")  # which names more
    assert compared(held, postgresql(lsn="0/9100")) == (Agreement.AGREES, f"PostgreSQL 17/main {NOT_MOVED}")


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ("0:800", "0:801", "has moved 1 transaction since the checkpoint (LSN 0/100 -> 1/200)"),
        ("0:4294967290", "1:1000", "has moved 1,006 transactions since the checkpoint (LSN 0/100 -> 1/200)"),
        ("1:5", "0:4294967295", "is 6 transactions behind the checkpoint (LSN 0/100 -> 1/200)"),
    ],
    ids=["one", "across an epoch", "back in time"],
)
def test_transactions_of_postgresql_are_counted(before, now, text):
    """Broken: nobody could tell one transaction from a day of them, or a number that begins anew would be a huge step back."""
    assert compared(postgresql(before), postgresql(now, "1/200")) == (Agreement.MOVED, f"PostgreSQL 17/main {text}")


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"system_identifier": "8"}, "is another cluster now"), ({"timeline": "2"}, "is on another timeline now")],
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
        f"PostgreSQL 17/main {NOT_NOW}: it is down",
    )


@pytest.mark.parametrize(
    ("replayed", "verdict", "text"),
    [
        ("0/FF", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        ("0/100", Agreement.AGREES, "is not ahead of the checkpoint and can follow from there"),
        (
            "0/1100",
            Agreement.MOVED,
            "is 4,096 bytes ahead of the checkpoint (LSN 0/100 -> 0/1100);"
            " it could not follow, and would have to be set up anew",
        ),
    ],
)
def test_a_standby_may_be_behind_the_primary_that_goes_back_and_not_ahead(replayed, verdict, text):
    """Broken: a standby with a future that the primary no longer has would be left in service."""
    for then in (None, [standby("0/1")]):
        assert found(then, [standby(replayed)], [postgresql(lsn="0/100")]) == (
            verdict,
            [f"PostgreSQL 17/main, which replicates a server that goes back, {text}"],
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
    assert compared(then, postgresql(in_progress_xids="790,799")) == (Agreement.AGREES, f"PostgreSQL 17/main {NOT_MOVED}")
    assert compared(then, postgresql(**now)) == (
        Agreement.MOVED,
        "PostgreSQL 17/main has ended transactions that were open at the checkpoint (LSN 0/100 -> 0/100)",
    )


def test_a_standby_is_ahead_by_what_it_has_yet_to_replay():
    """Broken: a delayed standby would be left in service with a future that its primary no longer has."""
    verdict, (text,) = found(None, [standby("0/50", receive_lsn="0/110")], [postgresql(lsn="0/100")])
    assert verdict is Agreement.MOVED
    assert "is 16 bytes ahead of the checkpoint (LSN 0/100 -> 0/110)" in text
    assert found(None, [standby("0/100", receive_lsn="0/50")], [postgresql(lsn="0/100")])[0] is Agreement.AGREES


def test_a_standby_of_somebody_else_is_judged_by_what_it_has_replayed():
    """Broken: it would seem to stand still, as it takes no transaction numbers of its own."""
    assert compared(standby("0/100"), standby("0/100")) == (Agreement.AGREES, f"PostgreSQL 17/main {NOT_MOVED}")
    assert compared(standby("0/100"), standby("0/1100")) == (
        Agreement.MOVED,
        "PostgreSQL 17/main has moved 4,096 bytes since the checkpoint (LSN 0/100 -> 0/1100)",
    )
    assert compared(standby("0/101"), standby("0/100")) == (
        Agreement.MOVED,
        "PostgreSQL 17/main is 1 byte behind the checkpoint (LSN 0/101 -> 0/100)",
    )


# -- bytes of log between two checkpoints


def report(**position: str) -> WriterReport:
    return writer("postgresql:17/main", position)


def test_how_far_a_database_got():
    """Broken: nobody could tell how much would be lost by a restore."""
    first = report(system_identifier="7", timeline="1", insert_lsn="0/FFFFFF00", redo_lsn="0/10", next_xid="5")
    second = report(system_identifier="7", timeline="1", insert_lsn="1/100", redo_lsn="0/8", next_xid="9")
    (change,) = compare_writers([first], [second], one_line=True)
    assert (change.kind, change.log_bytes) == (ChangeKind.CHANGED, {"insert_lsn": 0x200, "redo_lsn": -8})


@pytest.mark.parametrize(
    ("one_line", "changed"),
    [
        (False, {}),
        (True, {"timeline": "2"}),
        (True, {"system_identifier": "8"}),
        (True, {"insert_lsn": "nonsense"}),
        (True, {"insert_lsn": "1/2/3"}),
    ],
    ids=["two branches", "another timeline", "another cluster", "no LSN", "no LSN either"],
)
def test_where_a_distance_would_mean_nothing_there_is_none(one_line, changed):
    """Broken: a number would be believed."""
    position = {"system_identifier": "7", "timeline": "1", "insert_lsn": "0/10"}
    second = report(**{**position, "insert_lsn": "0/20", **changed})
    (change,) = compare_writers([report(**position)], [second], one_line=one_line)
    assert (change.kind, change.log_bytes) == (ChangeKind.CHANGED, {})


def test_a_stopped_databases_position_has_no_timeline():
    """Broken: a cluster whose timeline nobody knows would be compared as if it were known."""
    (change,) = compare_writers([report(redo_lsn="0/10")], [report(redo_lsn="0/20")], one_line=True)
    assert change.log_bytes == {}
