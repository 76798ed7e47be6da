"""What clients do to PostgreSQL in production and that locks cannot hold, or that takes no lock at all: row locks, sequences,
notifications, temporary tables, transactions that stay open. Each load is a script of pgbench, or a session that stays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lab.machine import Machine

DATABASE = "loads"
DIRECTORY = "/run/quiesce-loads"
PER_SECOND = 1
"""Transactions of each load. Without KVM a guest does few."""


@dataclass(frozen=True)
class PostgresqlLoad:
    name: str
    set_up: str = ""
    script: str = ""
    """For pgbench, run again and again by `clients` clients."""
    clients: int = 1
    session: str = ""
    """Statements of a session that stays connected, and in its transaction, afterwards."""
    locks_cannot_hold: bool = False
    """Whether nil redo is refused as long as the load runs."""


LOADS = (
    PostgresqlLoad(
        "for update",
        "CREATE TABLE accounts AS SELECT generate_series(1, 100) AS id; ALTER TABLE accounts ADD PRIMARY KEY (id)",
        "\\set id random(1, 100)\nSELECT * FROM accounts WHERE id = :id FOR UPDATE;",
        clients=2,
    ),
    PostgresqlLoad(
        "skip locked",
        "CREATE TABLE jobs AS SELECT generate_series(1, 100) AS id",
        "BEGIN;\nSELECT id FROM jobs LIMIT 1 FOR UPDATE SKIP LOCKED;\n\\sleep 5 ms\nCOMMIT;",
        clients=3,
    ),
    PostgresqlLoad("nextval", "CREATE SEQUENCE numbers", "SELECT nextval('numbers');"),
    PostgresqlLoad("notify", "", "NOTIFY news, 'something';"),
    PostgresqlLoad(
        "temporary table",
        "",
        "CREATE TEMP TABLE IF NOT EXISTS mine (x int);\nDELETE FROM mine;\nINSERT INTO mine VALUES (1);",
    ),
    PostgresqlLoad(
        "unlogged table",
        "CREATE UNLOGGED TABLE fast (x int)",
        "DELETE FROM fast;\nINSERT INTO fast VALUES (1);",
    ),
    PostgresqlLoad(
        "subtransactions",
        "CREATE TABLE parts (x int)",
        "BEGIN;\nSAVEPOINT a;\nINSERT INTO parts VALUES (1);\nRELEASE a;\nINSERT INTO parts VALUES (2);\nCOMMIT;",
    ),
    PostgresqlLoad(
        "long transaction",
        "CREATE TABLE nightly (x int)",
        session="BEGIN; INSERT INTO nightly VALUES (1);",
        locks_cannot_hold=True,
    ),
    PostgresqlLoad(
        "prepared transaction",
        "CREATE TABLE transfers (x int)",
        session="BEGIN; INSERT INTO transfers VALUES (1); PREPARE TRANSACTION 'transfer-42';",
        locks_cannot_hold=True,
    ),
    PostgresqlLoad(
        "a waiting ALTER",
        "CREATE TABLE queued (x int); INSERT INTO queued VALUES (1)",
        session="BEGIN; SELECT * FROM queued; \\! psql -X -q -d loads -c 'ALTER TABLE queued ADD y int' &\n",
        locks_cannot_hold=True,
    ),
)


def start(machine: Machine, loads: Sequence[PostgresqlLoad]) -> None:
    """Returns when every load runs."""
    machine.sql(f"CREATE DATABASE {DATABASE}")
    machine.run(f"install -d -o postgres {DIRECTORY}")
    for number, load in enumerate(loads):
        if load.set_up:
            machine.sql(load.set_up, database=DATABASE)
        log = f"{DIRECTORY}/{number}.log"
        if load.script:
            machine.write_file(f"{DIRECTORY}/{number}.sql", load.script.encode())
            pgbench = f"pgbench -n -c {load.clients} -R {PER_SECOND} -T 900 -f {DIRECTORY}/{number}.sql {DATABASE}"
            machine.spawn(f"exec setsid runuser -u postgres -- {pgbench} >{log} 2>&1")
        if load.session:
            machine.write_file(
                f"{DIRECTORY}/{number}.session", f"{load.session}\n".encode()
            )  # psql waits for the end of a line
            psql = f"(cat {DIRECTORY}/{number}.session; sleep 900) | psql -X -q -d {DATABASE}"
            machine.spawn(f'exec setsid runuser -u postgres -- sh -c "{psql}" >{log} 2>&1')
    time.sleep(4)


def errors(machine: Machine) -> str:
    """What the clients were told of errors."""
    return machine.run(f"cat {DIRECTORY}/*.log | grep -iE 'error|fatal|panic|abort'", check=False).stdout
