"""Loads and settings of production servers: the application grade is had under each of them, and is what the server's own log
says after a restore."""

from __future__ import annotations

import pytest

from lab import Machine, loads
from lab.ledger import Ledger
from lab.proof import recovery
from lab.standstill import wait_for
from quiesce.applications.postgresql import same_end
from tests.host import Quiesce

CONFIGURATION = """
max_prepared_transactions = 5
wal_log_hints = on
synchronous_standby_names = nobody
synchronous_commit = local
"""
LATE = """
ALTER ROLE postgres SET statement_timeout = '50ms';
ALTER ROLE postgres SET lock_timeout = '1ms';
ALTER ROLE postgres SET synchronous_commit = on;
ALTER DATABASE closed ALLOW_CONNECTIONS false
"""
"""Our sessions would be cancelled by these, or wait for a standby that never comes. The loads are connected already."""


@pytest.mark.timeout(600)
def test_every_load_at_once(machine: Machine, quiesce: Quiesce) -> None:
    """Standing still needs no lock, so nothing that clients do is in the way. They wait, and get no error."""
    machine.write_file("/etc/postgresql/17/main/conf.d/loads.conf", CONFIGURATION.encode())
    machine.run("pg_ctlcluster 17 main restart")
    machine.wait_for_postgresql()
    machine.sql("CREATE DATABASE closed")
    ledger = Ledger(machine, clients=1)
    ledger.start()
    loads.start(machine, loads.LOADS)
    machine.spawn('exec setsid runuser -u postgres -- sh -c "sleep 900 | psql -X -q -d closed"')
    wait_for(lambda: machine.sql("SELECT gid FROM pg_prepared_xacts"), 60, every_s=1)
    machine.sql(LATE)

    node = quiesce("checkpoint", machine.name, "--name", "busy", timeout=200)
    (writer,) = node["writers"]
    assert (node["consistency"], writer["grade"]) == ("application", "stands-still"), writer
    assert "rolls back the " in writer["reason"]
    message = quiesce.fails("checkpoint", machine.name, "--require-grade", "nil-redo", "--window", "4", code=6)
    assert "prepared transaction 'transfer-42' in database 'loads'" in message
    ledger.stop()
    assert ledger.errors() == ""
    assert loads.errors(machine) == ""
    entries = ledger.acknowledged()
    held, released = node["guest_clock_ns"]["held"], node["guest_clock_ns"]["released"]
    before = {entry.key for entry in entries if entry.acknowledged_ns < held}
    after = {entry.key for entry in entries if entry.started_ns > released}
    assert before
    assert after

    quiesce("restore", f"{machine.name}@busy", "--start", "--discard-current", timeout=200)
    machine.wait_for_guest()
    machine.wait_for_postgresql()
    reset = "psql -X -q -c 'ALTER ROLE postgres RESET ALL'"
    machine.run(f"runuser -u postgres -- env PGOPTIONS='-c statement_timeout=0 -c synchronous_commit=local' {reset}")
    seen, position = recovery(machine), writer["position"]
    print(writer["reason"], seen)
    assert seen.redo_starts == position["redo_lsn"]
    assert same_end(seen.log_ends, position["insert_lsn"])
    stored = ledger.stored()
    assert before <= stored
    assert not after & stored
    assert machine.sql("SELECT gid FROM pg_prepared_xacts") == "transfer-42"
    assert machine.sql("SELECT count(*) FROM nightly", database=loads.DATABASE) == "0"
