"""agent/writers/wal.py: where the log of a cluster ends that stands still, and the transactions in its last records."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quiesce.agent.writers import wal
from quiesce.agent.writers.checksums import crc32c
from tests.unit.wal_files import PAGE, Log, castagnoli

COMMIT, ABORT, INSERT = (1, 0x00), (1, 0x20), (10, 0x00)
HAS_INFO = 0x80


def commit(*subtransactions: int) -> bytes:
    """The main data of a commit, with a database and these subtransactions."""
    if not subtransactions:
        return struct.pack("=q", 1)
    return struct.pack("=qIIIi", 1, 3, 5, 1663, len(subtransactions)) + struct.pack(
        f"={len(subtransactions)}I", *subtransactions
    )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path, 0x1_0000_0000)


def tail(log: Log, start: int | None = None) -> wal.Tail:
    log.write()
    return wal.tail(str(log.directory), 1, log.segment, log.start if start is None else start)


def test_the_checksum_is_postgresqls():
    """Broken: no record would count as whole. The value is the one that RFC 3720, B.4, gives."""
    assert crc32c(bytes(32)) == castagnoli(bytes(32)) == 0x8A9136AA


def test_an_empty_log_ends_where_it_begins(log):
    """Broken: a cluster that nobody writes to could not be checkpointed."""
    assert tail(log) == wal.Tail(log.start, frozenset(), frozenset())


@given(st.lists(st.integers(0, 3 * PAGE), min_size=1, max_size=6), st.integers(0, 5))
def test_the_end_is_that_of_the_last_whole_record(tmp_path_factory, sizes, chosen):
    """Broken: the record would promise what a recovery does not replay, or leave out what it does."""
    log = Log(tmp_path_factory.mktemp("wal"), 0x1_0000_0000)
    ends = []
    for size in sizes:
        log.append(INSERT, b"x" * size, xid=7)
        ends.append(log.position)
    log.write()
    start = ([log.start, *ends])[chosen % (len(ends) + 1)]
    assert wal.tail(str(log.directory), 1, log.segment, start).end == (ends[-1] + 7) & ~7


def test_a_record_that_its_process_had_not_finished_is_none(log):
    """Broken: the end would be after a record that a recovery takes for garbage."""
    log.append(INSERT, b"x" * 100)
    whole = log.position
    log.append(INSERT, b"y" * 100, damaged=True)
    assert tail(log).end == whole


def test_a_used_segment_is_not_taken_for_the_log(log):
    """Broken: records of an earlier use of the file would count."""
    log.append(INSERT, b"x" * 100)
    whole = log.position
    log.append(INSERT, b"old", previous=0x5000)
    assert tail(log).end == whole


def test_a_page_of_an_earlier_use_ends_the_log(log):
    """Broken: half a record, of which the second page was not written yet, would count as whole."""
    log.append(INSERT, b"x" * 100)
    whole = log.position
    log.append(INSERT, b"y" * (2 * PAGE))
    log.write()
    page = log.start - log.start % PAGE + PAGE
    with log.path(page).open("r+b") as file:
        file.seek(page % log.segment)
        file.write(bytes(PAGE))
    assert wal.tail(str(log.directory), 1, log.segment, log.start).end == whole


def test_more_log_than_can_be_read_in_a_window_is_refused(log, monkeypatch):
    """Broken: clients would wait for minutes while the log of a busy server is read."""
    monkeypatch.setattr(wal, "MOST", 4 * PAGE)
    for _ in range(5):
        log.append(INSERT, b"x" * PAGE)
    with pytest.raises(wal.WalError, match=f"more than {4 * PAGE} bytes"):
        tail(log)


def test_transactions_that_begin_and_end_in_it(log):
    """Broken: one that committed would be called in flight, or one in flight be forgotten."""
    log.append(INSERT, b"x", xid=100)
    log.append(INSERT, b"x", xid=101)
    log.append(COMMIT, commit(), xid=100)
    log.append((1, ABORT[1]), commit(), xid=102)
    log.append((1, HAS_INFO), commit(104, 105), xid=103)
    log.append((1, 0x10), b"prepared", xid=106)
    found = tail(log)
    assert found.begun == {100, 101, 102, 103, 106}
    assert found.ended == {100, 102, 103, 104, 105}


def test_a_commit_with_an_origin_and_a_long_list_is_read(log):
    """Broken: a commit of a logical subscription, or of very many subtransactions, would not be seen."""
    log.append((1, HAS_INFO), commit(*range(200, 400)), xid=150, before_data=b"\xfd\x01\x00")
    assert tail(log).ended == {150, *range(200, 400)}
