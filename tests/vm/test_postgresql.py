"""The PostgreSQL writer against real clusters in a real guest: every circumstance has its own clear outcome."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lab import Machine
from tests.host import Quiesce

NIL_REDO = ("--require-grade", "nil-redo")


def writer(report: dict[str, Any], name: str = "17/main") -> dict[str, Any]:
    return next(writer for writer in report["writers"] if writer["id"] == f"postgresql:{name}")


def background(machine: Machine, sql: str, database: str = "postgres") -> None:
    """A session that runs `sql` and then stays connected, and as it is, for a minute."""
    machine.spawn(f"""exec setsid runuser -u postgres -- sh -c "(echo \\"{sql}\\"; sleep 60) | psql -X -q -d {database}" """)
    time.sleep(2)


def test_several_clusters_one_down(machine: Machine, quiesce: Quiesce) -> None:
    """Two running clusters are both held; one that is down cleanly is clean; one that crashed is no better than a crash."""
    machine.run("pg_createcluster 17 second --start && pg_createcluster 17 third --start", timeout=120)
    machine.run("pg_ctlcluster 17 third stop")
    node = quiesce("checkpoint", machine.name, "--name", "three")
    assert node["consistency"] == "application"
    assert {item["id"]: item["grade"] for item in node["writers"]} == {
        "postgresql:17/main": "stands-still",
        "postgresql:17/second": "stands-still",
        "postgresql:17/third": "clean",
    }
    systems = {item["position"]["system_identifier"] for item in node["writers"]}
    assert len(systems) == 3
    machine.run("pg_ctlcluster 17 third start; kill -9 $(head -1 /var/lib/postgresql/17/third/postmaster.pid); sleep 1")
    message = quiesce.fails("checkpoint", machine.name, code=6)
    assert "postgresql:17/third: it is down and was not shut down cleanly" in message
    assert quiesce("checkpoint", machine.name, "--require", "filesystem")["consistency"] == "filesystem"


def test_standby(machine: Machine, quiesce: Quiesce) -> None:
    """A standby cannot be held and says so; its position is recorded."""
    machine.run("""
        set -e
        pg_createcluster 17 standby
        rm -rf /var/lib/postgresql/17/standby
        runuser -u postgres -- pg_basebackup -D /var/lib/postgresql/17/standby -R -c fast
        pg_ctlcluster 17 standby start
    """, timeout=180)  # fmt: skip
    report = writer(quiesce("writers", machine.name), "17/standby")
    assert (report["role"], report["grade"]) == ("standby", "crash")
    message = quiesce.fails("checkpoint", machine.name, code=6)
    assert "postgresql:17/standby: a standby" in message
    node = quiesce("checkpoint", machine.name, "--require", "filesystem")
    assert node["consistency"] == "filesystem"
    assert writer(node)["grade"] == "stands-still"
    assert "/" in writer(node, "17/standby")["position"]["replay_lsn"]


def test_prepared_transaction(machine: Machine, quiesce: Quiesce) -> None:
    """A prepared transaction is named before anything is locked."""
    machine.run("echo max_prepared_transactions=5 >>/etc/postgresql/17/main/postgresql.conf; pg_ctlcluster 17 main restart")
    machine.sql("CREATE TABLE t (x int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'transfer-42'")
    message = quiesce.fails("checkpoint", machine.name, *NIL_REDO, code=6)
    assert "prepared transaction 'transfer-42' in database 'postgres'" in message
    machine.sql("COMMIT PREPARED 'transfer-42'")
    assert writer(quiesce("checkpoint", machine.name, *NIL_REDO))["grade"] == "nil-redo"


def test_lock_that_cannot_be_had(machine: Machine, quiesce: Quiesce) -> None:
    """A long transaction that wrote: the attempt gives up in time, names it, and the application goes on."""
    machine.sql("CREATE TABLE t (x int)")
    background(machine, "SET application_name = 'nightly'; BEGIN; INSERT INTO t VALUES (1);")
    message = quiesce.fails("checkpoint", machine.name, *NIL_REDO, "--window", "4", code=6)
    assert "postgresql:17/main: not held: its writers could not be held in time" in message
    assert "(nightly) is in a writing transaction" in message
    machine.sql("INSERT INTO t VALUES (2)", timeout=5)
    assert quiesce("tree", machine.name)["checkpoints"] == []


def test_catalog_writer_is_waited_for(machine: Machine, quiesce: Quiesce) -> None:
    """DDL takes no lock on any table of ours, yet it writes: no boundary while it is open."""
    background(machine, "SET application_name = 'migration'; BEGIN; CREATE TABLE half_made (x int);")
    assert "(migration) is in a writing transaction" in quiesce.fails(
        "checkpoint", machine.name, *NIL_REDO, "--window", "4", code=6
    )


def test_catalogs_are_held(machine: Machine) -> None:
    """While it is held, vacuum passes a catalog over, as autovacuum does by itself, and whoever creates a table waits."""
    machine.write_file("/etc/quiesce/writers.d/grade.conf", b"[Match]\nWriter=postgresql:*\nGrade=nil-redo\n")
    machine.run("chmod 644 /etc/quiesce/writers.d/grade.conf")
    hook = "/usr/local/lib/quiesce/fsfreeze-hook"
    machine.run(f"{hook} freeze", timeout=60)
    vacuum = "psql -X -q -c 'VACUUM (SKIP_LOCKED, SKIP_DATABASE_STATS) pg_class' 2>&1"
    assert "lock not available" in machine.run(f"runuser -u postgres -- {vacuum}").stdout
    background(machine, "CREATE TABLE later (x int);")
    waiting = machine.sql("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock'")
    released = machine.run(f"{hook} thaw 2>&1", timeout=60)
    assert waiting == "1"
    assert "postgresql:17/main: nil-redo" in released.stdout
    time.sleep(2)
    assert machine.sql("SELECT count(*) FROM later") == "0"


def test_tables_of_every_kind_and_odd_names(machine: Machine, quiesce: Quiesce) -> None:
    """Partitions, inheritance, unlogged tables, quotes in names, several databases: all held, the copy proved nil-redo."""
    machine.sql("""CREATE DATABASE "Odd ""name"" %";""")
    machine.sql("""
        CREATE SCHEMA "Sch ema";
        CREATE TABLE "Sch ema"."Ta""ble" (x int);
        CREATE TABLE parted (x int) PARTITION BY RANGE (x);
        CREATE TABLE part1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
        CREATE UNLOGGED TABLE fast (x int);
        CREATE TABLE parent (x int); CREATE TABLE child () INHERITS (parent);
    """, database='\'Odd "name" %\'')  # fmt: skip
    node = quiesce("checkpoint", machine.name, *NIL_REDO)
    assert writer(node)["grade"] == "nil-redo"


@pytest.mark.parametrize("state", ["wrong-authentication", "many-tables"])
def test_reach(machine: Machine, quiesce: Quiesce, state: str) -> None:
    """A cluster that does not let us in is refused with the server's words; 3,000 tables are held in one window."""
    if state == "wrong-authentication":
        machine.run("sed -i 's/peer/reject/' /etc/postgresql/17/main/pg_hba.conf; pg_ctlcluster 17 main reload; sleep 0.5")
        assert "pg_hba.conf rejects connection" in quiesce.fails("checkpoint", machine.name, code=6)
    else:
        machine.sql(
            "DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format('CREATE TABLE t%s (x int)', n); END LOOP; END $$", timeout=200
        )
        assert writer(quiesce("checkpoint", machine.name, *NIL_REDO))["grade"] == "nil-redo"
