"""lab/recovery_log.py: the proofs of a restore read servers' logs by it."""

from __future__ import annotations

import pytest

from lab.recovery_log import recovery_in, same_end

FIRST = "LOG:  starting PostgreSQL 17\nLOG:  redo starts at 0/1000028\nLOG:  redo done at 0/1000100\n"


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("invalid record length at 0/464A538: wanted 24, got 0", "0/464A538"),
        ("invalid record length at 0/464A538: expected at least 24, got 0", "0/464A538"),
        ("invalid magic number 0000 in WAL segment 000000010000000000000006, LSN 0/628000, offset 2523136", "0/628000"),
        ("unexpected pageaddr 0/5628000 in WAL segment 000000010000000000000006, LSN 0/628000, offset 2523136", "0/628000"),
        ("record with incorrect prev-link 0/100 at 0/628018", "0/628018"),
    ],
)
def test_the_end_of_a_log_is_found_however_the_server_says_it(said, end):
    """Broken: a proof would compare a claim with nothing, or call a true claim wrong at one page boundary in three hundred."""
    seen = recovery_in(f"{FIRST}LOG:  starting PostgreSQL 17\nLOG:  redo starts at 0/2000028\nLOG:  {said}\n")
    assert (seen.redo_starts, seen.redo_done, seen.log_ends) == ("0/2000028", None, end)


def test_an_end_at_a_page_boundary_has_two_spellings():
    """Broken: a true claim would be called wrong; or two ends of a log that differ by a record would be one."""
    assert same_end("0/628000", "0/628018")
    assert same_end("0/1000000", "0/1000028")
    assert not same_end("0/628000", "0/628020")
    assert not same_end("0/628018", "0/628040")
    assert not same_end(None, "0/628000")
