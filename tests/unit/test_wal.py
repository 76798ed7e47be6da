"""agent/writers/wal.py"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quiesce.agent.writers import wal
from quiesce.agent.writers.wal import WalError, parse_lsn, records
from tests.unit.wal_files import CHECKPOINT_ONLINE, CHECKPOINT_REDO, INSERT, PAGE, RUNNING_XACTS, Log

BASE = 0x1_0000_0000  # a segment's first byte, for any segment size


def read(log: Log) -> list[tuple[int, str]]:
    found = records(str(log.directory), log.timeline, log.segment, log.start, log.position)
    return [(record.at, record.name) for record in found]


def test_a_checkpoints_own_records_have_names(tmp_path):
    """Broken: nil redo could never be proved."""
    log = Log(tmp_path, BASE + 0x1000)
    expected = [(log.record(kind, length), name) for kind, length, name in (
        (CHECKPOINT_REDO, 30, "CHECKPOINT_REDO"),
        (RUNNING_XACTS, 50, "RUNNING_XACTS"),
        (CHECKPOINT_ONLINE, 114, "CHECKPOINT_ONLINE"),
    )]  # fmt: skip
    log.write()
    assert read(log) == expected
    assert {name for _, name in expected} == set(wal.NAMES.values())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (INSERT, "Heap/0x00"),
        ((10, 0x7F), "Heap/0x70"),
        ((0, 0x00), "XLOG/0x00"),
        ((1, 0x10), "Transaction/0x10"),
        ((99, 0), "99/0x00"),
    ],
)
def test_every_other_record_is_named_by_its_manager(kind, name, tmp_path):
    """Broken: a change would pass for a checkpoint's bookkeeping, and a crash image for nil redo."""
    log = Log(tmp_path, BASE + 0x1000)
    log.record(CHECKPOINT_REDO)
    log.record(kind, 60)
    log.write()
    assert [found for _, found in read(log)] == ["CHECKPOINT_REDO", name]
    assert not wal.LogRecord(0, *kind).bookkeeping
    assert not wal.LogRecord(0, *kind).harmless


@given(
    # Anywhere a record can begin, so not within a page's header.
    offset=st.integers(0, 4 * PAGE // 8 - 1).map(lambda number: number * 8).filter(lambda at: at % PAGE not in range(8, 40)),
    written=st.lists(
        st.tuples(st.sampled_from([CHECKPOINT_REDO, CHECKPOINT_ONLINE, RUNNING_XACTS, INSERT]), st.integers(24, 12_000)),
        min_size=1,
        max_size=4,
    ),
)
@example(offset=PAGE - 8, written=[(INSERT, 24)])  # the header itself lies across a page boundary
@example(offset=PAGE - 24, written=[(INSERT, 24), (RUNNING_XACTS, 24)])  # a record ends where the page does
@example(offset=4 * PAGE - 16, written=[(INSERT, 24), (RUNNING_XACTS, 24)])  # across a segment boundary
@example(offset=0, written=[(INSERT, 5 * PAGE), (RUNNING_XACTS, 24)])  # one record over a whole segment
@example(offset=2**32 - 4 * PAGE, written=[(INSERT, 5 * PAGE)])  # into the next log id
def test_records_are_found_across_pages_and_segments(offset, written):
    """Broken: a hold would fail, or worse be vouched for, depending on where in the log it happened."""
    with tempfile.TemporaryDirectory() as directory:
        log = Log(Path(directory), BASE + offset)
        expected = [log.record(kind, length) for kind, length in written]
        log.write()
        found = read(log)
    assert [at for at, _ in found] == expected
    assert [name for _, name in found] == [wal.LogRecord(0, *kind).name for kind, _ in written]


def test_an_empty_span_has_no_records(tmp_path):
    """Broken: a log at rest would look as if it could not be read."""
    assert records(str(tmp_path), 1, 16 << 20, BASE + 0x1000, BASE + 0x1000) == []


@pytest.mark.parametrize("timeline", [1, 0x1F])
def test_the_log_of_the_right_timeline_is_read(timeline, tmp_path):
    """Broken: after a failover the old timeline's log would be judged."""
    other = Log(tmp_path, BASE + 0x1000, timeline=timeline + 1)
    other.record(INSERT)
    other.write()
    log = Log(tmp_path, BASE + 0x1000, timeline=timeline)
    log.record(CHECKPOINT_REDO)
    log.write()
    assert [name for _, name in read(log)] == ["CHECKPOINT_REDO"]


def test_a_log_that_ends_within_a_page_is_an_error(tmp_path):
    """Broken: what was not written yet would count as nothing to replay."""
    log = Log(tmp_path, BASE + 0x1000)
    log.record(CHECKPOINT_REDO)
    log.write()
    with pytest.raises(WalError, match="ends early"):
        records(str(tmp_path), 1, log.segment, log.start, log.position + 64)


def test_a_page_of_a_recycled_segment_is_an_error(tmp_path):
    """Broken: records of long ago, still in a reused file, would count as the log."""
    log = Log(tmp_path, BASE + PAGE - 64)
    log.record(CHECKPOINT_REDO, 40)
    log.record(INSERT, 24)
    log.record(CHECKPOINT_ONLINE, 114)
    log.write()
    with log.path(BASE).open("r+b") as file:
        file.seek(PAGE)
        file.write(struct.pack("=HHIQI", 0xD116, 0, 1, BASE - 16 * PAGE, 0))
    with pytest.raises(WalError, match="ends early"):
        read(log)


@pytest.mark.parametrize("size", [0, 10, 100])
def test_a_truncated_segment_is_an_error(size, tmp_path):
    """Broken: half a header would end the hold with an exception nobody expects."""
    log = Log(tmp_path, BASE + 0x1000)
    log.record(INSERT)
    log.write()
    with log.path(log.start).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(WalError, match="ends early"):
        read(log)


def test_a_record_that_reaches_beyond_the_end_is_an_error(tmp_path):
    """Broken: a record whose length was never checked would swallow the changes after it."""
    log = Log(tmp_path, BASE + 0x1000)
    log.record(CHECKPOINT_REDO, 24)
    end = log.position
    longer = Log(tmp_path, BASE + 0x1000)
    longer.record(CHECKPOINT_REDO, 5000)
    longer.write()
    with pytest.raises(WalError, match="beyond the end"):
        records(str(tmp_path), 1, log.segment, log.start, end)


def test_a_missing_segment_is_an_error(tmp_path):
    """Broken: a log that is gone would count as empty."""
    log = Log(tmp_path, BASE + 4 * PAGE - 32)
    log.record(CHECKPOINT_REDO)
    log.record(INSERT)
    log.write()
    log.path(BASE + 4 * PAGE).unlink()
    with pytest.raises(OSError, match="No such file"):
        read(log)


def test_a_long_span_is_refused_without_reading(tmp_path):
    """Broken: the window would be spent reading log."""
    with pytest.raises(WalError, match="far more"):
        records(str(tmp_path / "absent"), 1, 16 << 20, BASE, BASE + 64 * 1024 + 1)


@pytest.mark.parametrize(
    ("text", "number"), [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("1/0", 2**32), ("FFFFFFFF/FFFFFFFF", 2**64 - 1)]
)
def test_positions_are_read_as_postgresql_writes_them(text, number):
    """Broken: the log would be read somewhere else."""
    assert parse_lsn(text) == number
