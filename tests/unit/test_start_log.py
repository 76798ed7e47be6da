"""agent/writers/start_log.py: proofs of a restore read servers' logs by it."""

from __future__ import annotations

import pytest

from quiesce.agent.writers.start_log import recovery_in
from quiesce.applications.postgresql import same_end

FIRST = "LOG:  starting PostgreSQL 17\nLOG:  redo starts at 0/1000028\nLOG:  redo done at 0/1000100\n"


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("invalid record length at 0/464A538: wanted 24, got 0", "0/464A538"),
        ("invalid record length at 0/464A538: expected at least 24, got 0", "0/464A538"),
        ("invalid magic number 0000 in WAL segment 000000010000000000000006, LSN 0/628000, offset 2523136", "0/628000"),
        ("unexpected pageaddr 0/5628000 in WAL segment 000000010000000000000006, LSN 0/628000, offset 2523136", "0/628000"),
        ("record with incorrect prev-link 0/100 at 0/628018", "0/628018"),
        ("invalid magic number 0000 in log segment 000000010000000000000002, offset 5447680", "0/2532000"),
        ("unexpected pageaddr 0/532000 in log segment 000000010000000000000002, offset 8192", "0/2002000"),
        ("could not read from log segment 000000010000000000000002, offset 8192: read 0 of 8192", "0/2002000"),
    ],
)
def test_the_end_of_a_log_is_found_however_the_server_says_it(said, end):
    """Broken: a proof would compare a claim with nothing, or call a true claim wrong at one page boundary in three hundred."""
    seen = recovery_in(f"{FIRST}LOG:  starting PostgreSQL 17\nLOG:  redo starts at 0/2000028\nLOG:  {said}\n")
    assert (seen.redo_starts, seen.redo_done, seen.log_ends) == ("0/2000028", None, end)


@pytest.mark.parametrize(
    ("done", "segment", "offset", "end"),
    [
        ("0/1531FD8", "000000010000000000000001", 5447680, "0/1532000"),
        ("0/1331FD8", "000000010000000000000013", 204800, "0/1332000"),  # segments of 1 MiB
        ("7/C0001FD8", "000000010000000700000003", 8192, "7/C0002000"),  # of 1 GiB
    ],
)
def test_the_end_by_the_segment_of_the_log(done, segment, offset, end):
    """Broken: PostgreSQL 15 would prove nothing where its log ends at a page boundary. Its segments may have any size."""
    said = f"LOG:  invalid magic number 0000 in log segment {segment}, offset {offset}\nLOG:  redo done at {done} system usage:"
    assert recovery_in(f"LOG:  starting PostgreSQL 15\nLOG:  redo starts at 0/28\n{said}\n").log_ends == end


def test_an_end_at_a_page_boundary_has_two_spellings():
    """Broken: a true claim would be called wrong; or two ends of a log that differ by a record would be one."""
    assert same_end("0/628000", "0/628018")
    assert same_end("0/1000000", "0/1000028")
    assert not same_end("0/628000", "0/628020")
    assert not same_end("0/628018", "0/628040")
    assert not same_end(None, "0/628000")
