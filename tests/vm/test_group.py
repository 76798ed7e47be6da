"""Groups of real guests: held, frozen and switched together, restored tier by tier."""

from __future__ import annotations

import pytest

from lab import Image, Machine, SavedMachine
from tests.host import Quiesce


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_two_servers(image: Image, ready: SavedMachine, quiesce: Quiesce) -> None:
    """One checkpoint of both; one that cannot be held leaves none to the other; both come back, the back end first."""
    with Machine(image, start_from=ready) as web, Machine(image, start_from=ready) as db:
        servers = (web, db)
        quiesce("group", "create", "shop", f"{web.name}:front", f"{db.name}:back")
        for server in servers:
            server.sql("CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        taken = quiesce("group", "checkpoint", "shop", "--name", "now", "--window", "30", timeout=300)
        print(taken["skew_us"], [node["stall_ms"] for node in taken["checkpoints"]])
        assert [node["vm_name"] for node in taken["checkpoints"]] == [web.name, db.name]
        for node in taken["checkpoints"]:
            assert (node["consistency"], node["writers"][0]["grade"]) == ("application", "nil-redo")
            # None went on before the last had switched, so each was held for longer than between the two switches.
            assert taken["skew_us"] / 1000 < node["stall_ms"] < 30_000
        for server in servers:
            server.sql("INSERT INTO t VALUES (2)")

        db.run("sed -i 's/peer/reject/' /etc/postgresql/17/main/pg_hba.conf; pg_ctlcluster 17 main reload; sleep 0.5")
        assert "rejects connection" in quiesce.fails("group", "checkpoint", "shop", "--name", "refused", code=6)
        web.sql("INSERT INTO t VALUES (3)", timeout=20)
        assert [node["name"] for node in quiesce("tree", web.name)["checkpoints"]] == ["now"]

        restored = quiesce("group", "restore", "shop@now", "--start", "--discard-current", timeout=800)
        assert [item["restored"]["vm_name"] for item in restored["restored"]] == [web.name, db.name]
        for server in servers:
            server.wait_for_guest()
            server.wait_for_postgresql()
            assert server.sql("SELECT x FROM t") == "1"
