"""agent/writers/innodb_log.py: where InnoDB's recovery begins and ends. Compared with real servers (10.11)."""

from __future__ import annotations

from pathlib import Path

import pytest

from quiesce.agent.writers import innodb_log
from quiesce.agent.writers.checksums import crc32c
from quiesce.agent.writers.innodb_log import HEADER, InnodbLog, InnodbLogError
from tests.unit.innodb_files import FIRST, FORMAT, Ring


def opened(ring: Ring, directory: Path) -> InnodbLog:
    ring.save(directory)
    return InnodbLog(str(directory))


def test_the_checksum_is_castagnolis():
    """The check value that RFC 3720's appendix and every implementation has."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283


@pytest.mark.parametrize("form", [FORMAT, FORMAT | 1 << 31], ids=["plain", "encrypted"])
@pytest.mark.parametrize("sizes", [(1,), (4, 15, 3), (16,), (15 + 0x7F,), (15 + 0x80,), (300, 5), (15 + 0x4080,), (40000,)])
def test_it_ends_after_the_last_whole_change(form, sizes, tmp_path):
    """Broken: a shorter or longer recovery would be promised than the server does."""
    ring = Ring(form=form)
    ring.write(7)
    end = ring.write(*sizes)
    log = opened(ring, tmp_path)
    assert log.end(FIRST) == end
    assert log.end(end) == end
    log.close()


def test_it_is_a_ring(tmp_path):
    """Broken: after one turn of the log, what an earlier turn left behind would count, or the end not be found."""
    ring = Ring(capacity=4096)
    known = FIRST
    for number in range(2000):
        before, end = known, ring.write(3 + number % 60)
        known = end
        if number % 97 == 0:
            log = opened(ring, tmp_path)
            assert log.end(before) == end
            log.close()
    assert end > FIRST + 10 * 4096


def test_half_a_change_does_not_count(tmp_path):
    """Broken: a change that the stopped server had not written whole would be said to be recovered."""
    ring = Ring()
    end = ring.write(9)
    ring.write(30)
    ring.data[HEADER + end - FIRST + 20] ^= 1
    log = opened(ring, tmp_path)
    assert log.end(FIRST) == end
    log.close()


def test_the_later_of_two_checkpoints_counts_if_it_is_whole(tmp_path):
    """Broken: the start of the recovery would be one that the server passes over."""
    ring = Ring()
    ring.checkpoint(FIRST + 100)
    ring.checkpoint(FIRST + 300, block=8192)
    log = opened(ring, tmp_path)
    assert log.checkpoint() == FIRST + 300
    log.close()
    ring.data[8192 + 60] ^= 1
    log = opened(ring, tmp_path)
    assert log.checkpoint() == FIRST + 100
    log.close()
    ring.data[4096 + 60] ^= 1
    log = opened(ring, tmp_path)
    with pytest.raises(InnodbLogError, match="no valid checkpoint"):
        log.checkpoint()
    log.close()


def test_what_cannot_be_told_is_said(tmp_path, monkeypatch):
    """Broken: the log of another release would be misread, or a window spent on reading."""
    with pytest.raises(OSError, match="ib_logfile0"):
        InnodbLog(str(tmp_path))
    with pytest.raises(InnodbLogError, match="format 0x50485953"):
        opened(Ring(form=0x50485953), tmp_path)
    ring = Ring()
    for _ in range(20):
        ring.write(15)
    monkeypatch.setattr(innodb_log, "MAX_WALK", 100)
    log = opened(ring, tmp_path)
    with pytest.raises(InnodbLogError, match="more than 100 bytes"):
        log.end(FIRST)
    (tmp_path / "ib_logfile0").write_bytes(bytes(ring.data[:HEADER]))
    with pytest.raises(InnodbLogError, match="no room"):
        InnodbLog(str(tmp_path))
    (tmp_path / "ib_logfile0").write_bytes(b"short")
    with pytest.raises(InnodbLogError, match="shorter"):
        log.end(FIRST)
    log.close()
