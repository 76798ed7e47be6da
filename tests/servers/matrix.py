"""The tables of loads and settings in docs/writers.md. `python -m tests.servers.matrix` prints them anew."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.loads import LOADS
from quiesce.model.reports import WriterReport
from quiesce.wire.schema import from_wire
from tests.servers import labels
from tests.servers.configurations import mariadb_with, postgresql_with, redis_with

DOCS = Path(__file__).parents[2] / "docs/writers.md"
COLUMNS: dict[str, dict[str, tuple[int, dict[str, str]]]] = {
    "postgresql": {"PostgreSQL 15": (12, {}), "PostgreSQL 17": (13, {})},
    "mariadb": {"MariaDB 10.11": (12, {}), "MariaDB 11.8": (13, {})},
    "redis": {"Redis 7.0": (12, {}), "Redis 8.0": (13, {}), "Valkey 8.1": (13, {"program": "valkey"})},
}
"""By kind of server and head of the column: the version of Debian, and what else is configured."""


@dataclass(frozen=True)
class Row:
    kind: str
    name: str
    server: dict[str, Any]
    nil_redo: bool = False

    def outcome(self, column: str) -> str:
        """The grade that holds, or why there is none. Raises AssertionError if what is claimed is not so."""
        debian, more = COLUMNS[self.kind][column]
        configuration = {"servers": [self.server | more], "nil_redo": self.nil_redo, "debian": debian}
        result = labels.run(configuration)
        wrong = labels.lies(configuration, result)
        assert wrong == [], (self.name, wrong)
        writers = [from_wire(WriterReport, each) for each in result["claimed"]["writers"]]
        writers = [writer for writer in writers if writer.application != "systemd"]
        assert len(writers) == 1, (self.name, writers)
        (writer,) = writers
        return writer.grade.value if writer.grade.vouched else f"{writer.grade.value}: {_without_numbers(str(writer.reason))}"


def _without_numbers(text: str) -> str:
    """What differs from run to run is left out."""
    return re.sub(r"\d+", "N", text).replace("|", "/")


def _load(name: str) -> dict[str, Any]:
    (load,) = (load for load in LOADS if load.name == name)
    if load.session:
        alter = r"\\! psql -X -q -d loads"
        session = re.sub(alter, r"\\! psql -X -q -h SOCKET -d postgres", load.session)
        return {"sessions": [f"{load.set_up}; {session}"], "settings": {"max_prepared_transactions": "5"}}
    return {"loads": [dataclasses.asdict(load)]}


_MANY = "SELECT format('CREATE TABLE t%s (x int)', n) FROM generate_series(1, 5000) n \\gexec"
_PARTITIONS = (
    "CREATE TABLE parted (x int, y int) PARTITION BY LIST (x);"
    " SELECT format('CREATE TABLE p%s PARTITION OF parted FOR VALUES IN (%s) PARTITION BY LIST (y)', n, n)"
    " FROM generate_series(1, 100) n \\gexec\n"
    " SELECT format('CREATE TABLE p%s_%s PARTITION OF p%s FOR VALUES IN (%s)', n, m, n, m)"
    " FROM generate_series(1, 100) n, generate_series(1, 200) m \\gexec"
)
POSTGRESQL: dict[str, dict[str, Any]] = {
    "clients that insert and commit": {},
    **{load.name: _load(load.name) for load in LOADS},
    "5,000 tables": {"sessions": [_MANY]},
    "20,000 partitions": {"sessions": [_PARTITIONS]},
    "a tablespace on another disk": {"tablespace": "/data2"},
    "its log on another disk": {"wal": "/data2"},
    "data checksums, and readers of fresh pages": {
        "checksums": True,
        "loads": [{"set_up": "CREATE TABLE fresh (x int)", "clients": 2,
                   "script": "INSERT INTO fresh VALUES (1);\nSELECT count(*) FROM fresh;\nDELETE FROM fresh;\n"}],
    },
    "wal_log_hints": {"settings": {"wal_log_hints": "on"}},
    "autovacuum all the time": {"settings": {"autovacuum_naptime": "1", "autovacuum_vacuum_threshold": "1"}},
    "a logical slot": {
        "settings": {"wal_level": "logical"},
        "sessions": ["SELECT pg_create_logical_replication_slot('slot', 'test_decoding');"],
    },
    "no connection left": {"settings": {"max_connections": "10"}, "sessions": ["SELECT 1;"] * 5},
    "statement_timeout = 1 ms": {"changes": ["ALTER SYSTEM SET statement_timeout = 1"]},
    "synchronous_commit = off": {"settings": {"synchronous_commit": "off"}},
    "in a control group with others": {"neighbour": True},
    "a tablespace in memory": {"tablespace": "/mem"},
}  # fmt: skip
MARIADB: dict[str, dict[str, Any]] = {
    "InnoDB": {},
    "InnoDB, with a binary log": {"places": {"log_bin": "/data2"}},
    "InnoDB, innodb_flush_log_at_trx_commit = 2": {"settings": {"innodb_flush_log_at_trx_commit": "2"}},
    "InnoDB, innodb_flush_log_at_trx_commit = 0": {"settings": {"innodb_flush_log_at_trx_commit": "0"}},
    "InnoDB, in a control group with others": {"neighbour": True},
    "InnoDB, and a prepared XA transaction": {"sessions": ["XA START 'one'; XA END 'one'; XA PREPARE 'one'"]},
    "InnoDB, and LOCK TABLES of another": {"sessions": ["LOCK TABLES mysql.user READ"]},
    "InnoDB, no connection left": {"settings": {"max_connections": "10"}, "sessions": ["SELECT 1"] * 7},
    "Aria": {"engines": ["Aria"]},
    "MyISAM": {"engines": ["MyISAM"]},
    "InnoDB and Aria": {"engines": ["InnoDB", "Aria"]},
    "InnoDB and MyISAM": {"engines": ["InnoDB", "MyISAM"]},
    "ARCHIVE": {"engines": ["ARCHIVE"]},
    "InnoDB, a table in memory": {"table_place": "/mem"},
}
REDIS: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "appendonly yes": {"settings": ["appendonly yes"]},
    "appendonly yes, appendfsync no": {"settings": ["appendonly yes", "appendfsync no"]},
    "appendonly yes by CONFIG SET": {"changes": [("config", "set", "appendonly", "yes")]},
    "appendonly yes by CONFIG SET, and CONFIG REWRITE": {
        "changes": [("config", "set", "appendonly", "yes"), ("config", "rewrite")]
    },
    "save 3600 1": {"settings": ["save 3600 1"]},
    'save ""': {"settings": ['save ""']},
    "save 60 1 by CONFIG SET": {"settings": ['save ""'], "changes": [("config", "set", "save", "60 1")]},
    "dir by CONFIG SET": {"changes": [("config", "set", "dir", "/data2")]},
    "its dir in memory": {"place": "/mem"},
    "no CONFIG command": {"settings": ["rename-command CONFIG hidden"]},
}
ROWS = [
    *(Row("postgresql", name, postgresql_with(**more)) for name, more in POSTGRESQL.items()),
    *(
        Row("postgresql", f"{name}; nil redo required", postgresql_with(**POSTGRESQL[name]), nil_redo=True)
        for name in ("clients that insert and commit", "nextval", "5,000 tables", "long transaction")
    ),
    *(Row("mariadb", name, mariadb_with(**more)) for name, more in MARIADB.items()),
    *(
        Row("mariadb", f"{name}; nil redo required", mariadb_with(**MARIADB[name]), nil_redo=True)
        for name in ("InnoDB", "InnoDB and Aria")
    ),
    *(Row("redis", name, redis_with(**more)) for name, more in REDIS.items()),
]


def documented(row: Row, column: str) -> str:
    """What docs/writers.md says of it."""
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0].strip() == _cell(row.name) and len(cells) == 1 + len(COLUMNS[row.kind]):
            return cells[1 + list(COLUMNS[row.kind]).index(column)].strip(" |")
    raise AssertionError(f"docs/writers.md has no row {row.name!r}")


def _cell(text: str) -> str:
    return text.replace("|", "/")


def main() -> None:
    for kind, columns in COLUMNS.items():
        print(f"\n| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
        for row in ROWS:
            if row.kind == kind:
                print(f"| {_cell(row.name)} | {' | '.join(_outcome(row, column) for column in columns)} |", flush=True)


def _outcome(row: Row, column: str) -> str:
    try:
        return row.outcome(column)
    except AssertionError as error:
        print(f"{row.name}, {column}: {error}", file=sys.stderr)
        return "WRONG"


if __name__ == "__main__":
    main()
