"""Groups of real guests: held, frozen and switched together, restored tier by tier."""

from __future__ import annotations

import re

import pytest

from lab import Image, Machine, SavedMachine
from tests.host import Quiesce


@pytest.mark.timeout(600)
def test_a_server_that_is_not_taken(image: Image, ready: SavedMachine, quiesce: Quiesce) -> None:
    """It is asked all the same: what it did since; as a standby, whether it could still follow."""
    with Machine(image, start_from=ready) as db, Machine(image, start_from=ready) as other:  # clones: of one system identifier
        quiesce("group", "create", "shop", f"{db.name}:back", f"{other.name}:external")

        def asked(checkpoint: str) -> tuple[str, str]:
            """(verdict, what is said of PostgreSQL)"""
            (server,) = quiesce("group", "divergence", f"shop@{checkpoint}")["servers"]
            assert server["vm"] == other.name
            return server["verdict"], " ".join(finding["text"] for finding in server["findings"])

        # Autovacuum takes numbers of transactions, too.
        other.run("echo autovacuum=off >>/etc/postgresql/17/main/postgresql.conf; pg_ctlcluster 17 main reload")
        db.sql("CREATE TABLE t (x int)")
        opened = "-c BEGIN -c 'SELECT pg_current_xact_id()' -c 'SELECT pg_sleep(3600)'"
        other.spawn(f"runuser -u postgres -- psql -X -d postgres {opened}")
        other.run(
            "until [ $(runuser -u postgres -- psql -XAt -c 'SELECT count(backend_xid) FROM pg_stat_activity') = 1 ]; do :; done"
        )
        other.sql("SELECT pg_current_xact_id()")  # one that begins later, and ends
        taken = quiesce("group", "checkpoint", "shop", "--name", "then", "--window", "30", timeout=300)
        assert [node["vm_name"] for node in taken["checkpoints"]] == [db.name]
        assert asked("then")[0] == "agrees"
        other.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid IS NOT NULL")
        verdict, said = asked("then")
        assert verdict == "moved"
        assert "has ended transactions that were open at the checkpoint" in said
        other.sql("CREATE TABLE t AS SELECT generate_series(1, 50000)")
        verdict, said = asked("then")
        assert verdict == "moved"
        assert re.search(r"PostgreSQL 17/main has moved \d+ transactions? since the checkpoint \(LSN \S+ -> \S+\)", said), said
        told = said.partition(" -> ")[0]  # its log moves by itself meanwhile
        assert told in quiesce.fails("restore", f"{db.name}@then", code=4)
        assert told in quiesce.fails("group", "restore", "shop@then", code=4)
        assert db.sql("SELECT count(*) FROM t") == "0", "the refused restores touched it"

        other.run("runuser -u postgres -- touch /var/lib/postgresql/17/main/standby.signal; pg_ctlcluster 17 main restart")
        other.wait_for_postgresql()
        verdict, said = asked("then")
        assert verdict == "moved"
        assert re.search(
            r"which replicates a server that goes back, is [\d,]+ bytes ahead of the checkpoint .*could not follow", said
        ), said
        db.sql("INSERT INTO t SELECT generate_series(1, 200000)")
        quiesce("group", "checkpoint", "shop", "--name", "later", "--window", "30", timeout=300)
        verdict, said = asked("later")
        assert verdict == "agrees"
        assert "can follow from there" in said
