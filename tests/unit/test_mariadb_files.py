"""agent/writers/mariadb_files.py: what files tell of tables of other engines than InnoDB, and of the binary log."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from quiesce.agent import processes
from quiesce.agent.writers.mariadb_files import ARIA, MYISAM_AND_CSV, OtherTables, aria_log, binary_log_end
from quiesce.agent.writers.mariadb_still import add_gtids
from tests.unit.innodb_files import table


def of(directory: Path) -> OtherTables:
    return OtherTables(str(directory), 1)


@pytest.mark.parametrize(
    "name", ["shop.orders.MAI", "shop.orders.MYI", "shop.orders.CSM", "shop.orders#P#p0.MYI", "mysql.orders.MAI"]
)
def test_a_table_is_written_to_if_its_own_file_says_so(name, tmp_path):
    """Broken: a server would be stopped in the middle of a write to a table that no log protects."""
    path = table(tmp_path, name)
    others = of(tmp_path)
    assert others.changed() == []
    table(tmp_path, name, marked=1)
    assert others.changed() == [f"{path.parent.name}.orders"]
    assert others.changed(ARIA if path.suffix == ".MAI" else MYISAM_AND_CSV) == others.changed()
    assert others.changed(MYISAM_AND_CSV if path.suffix == ".MAI" else ARIA) == []


def test_a_table_that_was_made_meanwhile_counts(tmp_path):
    """Broken: a table created since `prepare` would be passed over."""
    table(tmp_path, "shop.a.MYI")
    others = of(tmp_path)
    table(tmp_path, "shop.b.MYI", marked=1)
    os.utime(tmp_path / "shop", (1, 1))  # another time than before, however coarse this filesystem's clock is
    assert others.changed() == ["shop.b"]
    table(tmp_path, "more.c@0024d.MYI", marked=1)
    assert others.changed() == ["more.c$d", "shop.b"]


def test_what_is_no_write_of_now_does_not_count(tmp_path, monkeypatch):
    """Broken: a table that crashed last year, one being altered, or the server's own log would keep it from standing still."""
    old = table(tmp_path, "shop.old.MYI", marked=1)
    used = table(tmp_path, "shop.used.MYI", marked=1)
    table(tmp_path, "shop.#sql-alter-1.MYI", marked=1)
    table(tmp_path, "mysql.general_log.CSM", marked=1)
    (tmp_path / "shop" / "orders.ibd").write_bytes(b"\1" * 100)
    monkeypatch.setattr(processes, "open_files", lambda _: iter([str(used)]))
    others = of(tmp_path)
    assert others.changed() == ["shop.used"]
    table(tmp_path, "shop.old.MYI", marked=2)  # and now the server has it open as well
    assert others.changed() == ["shop.old", "shop.used"]
    old.unlink()
    assert others.changed() == ["shop.used"]


def test_a_file_that_cannot_be_read_counts(tmp_path):
    """Broken: what is not known would pass for rest."""
    others = of(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "loop.MYI").symlink_to("loop.MYI")
    assert others.changed() == ["shop.loop"]


def test_arias_log_is_seen_to_move(tmp_path):
    """Broken: a write to a transactional table of Aria, which marks no file at once, would not be noticed."""
    assert aria_log(str(tmp_path / "missing")) == []
    (tmp_path / "aria_log.00000001").write_bytes(b"x")
    (tmp_path / "aria_log_control").write_bytes(b"x")
    before = aria_log(str(tmp_path))
    assert [name for name, _, _ in before] == ["aria_log.00000001"]
    os.utime(tmp_path / "aria_log.00000001", ns=(1, 1))
    assert aria_log(str(tmp_path)) != before


GTID, QUERY, ROWS, XID, ROTATE = 162, 2, 23, 16, 4


def event(kind: int, body: bytes = b"", server: int = 1) -> bytes:
    return struct.pack("<IBIIIH", 0, kind, server, 19 + len(body) + 4, 0, 0) + body + b"crc."


def gtid(number: int, domain: int = 0, *, alone: bool = False, server: int = 1) -> bytes:
    return event(GTID, struct.pack("<QIB", number, domain, int(alone)) + bytes(6), server)


def test_transactions_up_to_the_end_of_the_binary_log_are_counted(tmp_path):
    """Broken: the recorded GTID would be short of what the restored server has, which would seem to have moved since."""
    first = b"\xfebin" + gtid(7) + event(XID)
    more = gtid(8) + event(ROWS) + event(XID) + gtid(9, alone=True) + event(QUERY, b"CREATE TABLE t (i int)")
    (tmp_path / "bin.000009").write_bytes(first + more + event(ROTATE))
    rest = gtid(3, 5, server=2) + event(QUERY, b"INSERT") + event(QUERY, b"COMMIT") + gtid(10) + event(ROWS)
    (tmp_path / "bin.000010").write_bytes(b"\xfebin" + rest + event(XID)[:10])
    name, length, gtids = binary_log_end(str(tmp_path), "bin.000009", len(first))
    assert (name, length) == ("bin.000010", 4 + len(rest) + 10)
    assert gtids == ["0-1-8", "0-1-9", "5-2-3"]
    assert add_gtids("0-1-7", gtids) == "0-1-9,5-2-3"
    assert add_gtids("0-1-7,5-1-2", ["0-1-8"]) == "0-1-8,5-1-2"
    assert add_gtids("", []) == ""


def test_what_is_no_event_ends_the_count(tmp_path):
    """Broken: an encrypted or damaged file would be gone through for ever."""
    (tmp_path / "bin.000001").write_bytes(b"\xfebin" + bytes(200))
    assert binary_log_end(str(tmp_path), "bin.000001", 4) == ("bin.000001", 204, [])
