"""What servers are like: each value is what an administrator may have set."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

places = st.sampled_from(("/srv", "/data2"))
other_places = st.sampled_from(("", "", "/data2", "/mem"))
namespaces = st.lists(st.sampled_from(("pid", "mount", "net", "ipc")), unique=True)
groups = st.sampled_from(("", "", "", "shared"))
"""`shared`: one control group for all servers of the configuration."""


def some(*of: Any, at_most: int = 3) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(of), unique_by=str, max_size=at_most)


postgresql = st.fixed_dictionaries(
    {
        "kind": st.just("postgresql"),
        "place": places,
        "wal": other_places,
        "tablespace": other_places,
        "checksums": st.booleans(),
        "segment_mib": st.sampled_from((1, 16, 64)),
        "namespaces": namespaces,
        "private_tmp": st.sampled_from((False, False, True)),
        "hidden": st.sampled_from(("", "", "", "", "/mem", "/data2")),
        "group": groups,
        "settings": st.fixed_dictionaries(
            {"max_prepared_transactions": st.just("5")},
            optional={
                "synchronous_commit": st.sampled_from(("off", "local", "on")),
                "fsync": st.just("off"),
                "full_page_writes": st.just("off"),
                "wal_log_hints": st.just("on"),
                "wal_level": st.sampled_from(("minimal", "logical")),
                "max_wal_senders": st.just("0"),
                "wal_compression": st.just("on"),
                "wal_writer_delay": st.just("10000"),
                "commit_delay": st.just("10000"),
                "autovacuum_naptime": st.just("1"),
                "checkpoint_timeout": st.just("30"),
                "max_connections": st.sampled_from(("12", "100")),
                "shared_buffers": st.just("1MB"),
                "data_sync_retry": st.just("on"),
                "track_commit_timestamp": st.just("on"),
                "log_statement": st.just("all"),
            },
        ),
        "sessions": some(
            "BEGIN; INSERT INTO others VALUES (1);",
            "BEGIN; INSERT INTO others SELECT generate_series(1, 20000);",
            "BEGIN; INSERT INTO others VALUES (2); PREPARE TRANSACTION 'two';",
            "CREATE TABLE locked (x int); BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE;",
            "CREATE TEMP TABLE mine AS SELECT generate_series(1, 1000);",
            "CREATE UNLOGGED TABLE fast AS SELECT generate_series(1, 1000);",
            "CREATE SEQUENCE numbers; SELECT nextval('numbers');",
            "LISTEN news; NOTIFY news;",
            "CREATE TABLE parted (x int) PARTITION BY HASH (x);"
            " CREATE TABLE part PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);",
            "SELECT pg_create_physical_replication_slot('slot', true);",
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM others;",
        ),
        "changes": some(
            "ALTER SYSTEM SET statement_timeout = 1",
            "ALTER ROLE postgres SET lock_timeout = 1",
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "ALTER ROLE postgres SET synchronous_commit = off",
            "ALTER SYSTEM SET archive_command = 'false'",
            "ALTER ROLE postgres SET transaction_timeout = 1",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
            "ALTER ROLE postgres SET search_path = nowhere",
        ),
    }
)
mariadb = st.fixed_dictionaries(
    {
        "kind": st.just("mariadb"),
        "place": places,
        "places": st.dictionaries(
            st.sampled_from(("log_bin", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path", "tmpdir")),
            st.sampled_from(("/data2", "/mem")),
            max_size=2,
        ),
        "table_place": other_places,
        "engines": st.lists(
            st.sampled_from(("InnoDB", "InnoDB", "Aria", "MyISAM", "ARCHIVE", "CSV")), min_size=1, max_size=2, unique=True
        ),
        "namespaces": namespaces,
        "private_tmp": st.sampled_from((False, False, True)),
        "hidden": st.sampled_from(("", "", "", "", "/mem", "/data2")),
        "group": groups,
        "settings": st.fixed_dictionaries(
            {},
            optional={
                "innodb_flush_log_at_trx_commit": st.sampled_from(("0", "2")),
                "sync_binlog": st.just("1"),
                "innodb_doublewrite": st.just("0"),
                "innodb_undo_tablespaces": st.just("3"),
                "innodb_file_per_table": st.just("0"),
                "innodb_flush_method": st.just("fsync"),
                "innodb_fast_shutdown": st.just("2"),
                "aria_checkpoint_interval": st.just("0"),
                "log_output": st.just("TABLE"),
                "general_log": st.just("1"),
                "max_connections": st.just("12"),
                "innodb_checksum_algorithm": st.just("full_crc32"),
                "lower_case_table_names": st.just("0"),
                "read_only": st.just("0"),
            },
        ),
        "sessions": some(
            "BEGIN; CREATE TEMPORARY TABLE mine (x INT)",
            "XA START 'one'; XA END 'one'; XA PREPARE 'one'",
            "LOCK TABLES mysql.user READ",
            "START TRANSACTION WITH CONSISTENT SNAPSHOT",
            at_most=2,
        ),
        "changes": some(
            "SET GLOBAL innodb_flush_log_at_trx_commit = 0",
            "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
            "SET GLOBAL max_statement_time = 0.001",
            "SET GLOBAL lock_wait_timeout = 1",
            "SET GLOBAL innodb_max_dirty_pages_pct = 99",
            "SET GLOBAL general_log = 1",
            "SET GLOBAL sql_mode = 'ANSI_QUOTES'",
            "SET GLOBAL wait_timeout = 1",
            at_most=2,
        ),
    }
)
redis = st.fixed_dictionaries(
    {
        "kind": st.just("redis"),
        "program": st.sampled_from(("redis", "valkey")),
        "place": places,
        "port": st.sampled_from((0, 6379, 6380)),
        "namespaces": namespaces,
        "private_tmp": st.sampled_from((False, False, True)),
        "hidden": st.sampled_from(("", "", "", "", "/mem", "/data2")),
        "group": groups,
        "settings": some(
            "appendonly yes",
            'save ""',
            "save 3600 1",
            "appendfsync no",
            "appendfsync always",
            "appenddirname elsewhere",
            "dbfilename other.rdb",
            "rdbcompression no",
            "aof-use-rdb-preamble no",
            "maxmemory 100mb",
            "no-appendfsync-on-rewrite yes",
            "rename-command CONFIG hidden",
        ),
        "changes": some(
            ("config", "set", "appendonly", "yes"),
            ("config", "set", "appendonly", "no"),
            ("config", "set", "save", ""),
            ("config", "set", "save", "60 1"),
            ("config", "set", "dbfilename", "third.rdb"),
            ("config", "set", "dir", "/data2"),
            ("config", "set", "dir", "/mem"),
            ("config", "rewrite"),
            ("config", "set", "requirepass", ""),
        ),
    }
)


def can_run(servers: list[dict[str, Any]]) -> bool:
    """Two servers cannot listen on one port of one network."""
    ports = [server["port"] for server in servers if server.get("port") and "net" not in server["namespaces"]]
    return len(ports) == len(set(ports))


def postgresql_with(**more: Any) -> dict[str, Any]:
    plain = {"kind": "postgresql", "place": "/srv", "wal": "", "tablespace": "", "checksums": False, "segment_mib": 16}
    return plain | {"namespaces": [], "group": "", "settings": {}, "sessions": [], "changes": []} | more


def mariadb_with(**more: Any) -> dict[str, Any]:
    plain = {"kind": "mariadb", "place": "/srv", "places": {}, "settings": {}, "table_place": "", "engines": ["InnoDB"]}
    return plain | {"namespaces": [], "group": "", "sessions": [], "changes": []} | more


def redis_with(**more: Any) -> dict[str, Any]:
    plain = {"kind": "redis", "program": "redis", "place": "/srv", "port": 6379, "settings": [], "changes": []}
    return plain | {"namespaces": [], "group": ""} | more
