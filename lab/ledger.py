"""A database client that notes, outside the disks, which commits were acknowledged and how long each took.

`client.py` below runs in the guest. Its notes are in memory (/run), so a restore of the disks does not change them. They are
read before the VM is ruined.
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.emulation import client_pause_s
from lab.machine import Machine

DATABASE = "ledger"
DIRECTORY = "/run/quiesce-ledger"

CLIENT = f"""
import os, sys, time
import psycopg2
client = int(sys.argv[1])
connection = psycopg2.connect(dbname={DATABASE!r}, user="postgres")
cursor = connection.cursor()
notes = os.open("{DIRECTORY}/client-%d" % client, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sequence = 0
while not os.path.exists("{DIRECTORY}/stop"):
    sequence += 1
    started = time.monotonic_ns()
    cursor.execute("INSERT INTO entries VALUES (%s, %s)", (client, sequence))
    connection.commit()
    os.write(notes, b"%d %d %d %d\\n" % (client, sequence, started, time.monotonic_ns()))
    time.sleep(float(sys.argv[2]))
"""


@dataclass(frozen=True)
class Entry:
    """One acknowledged commit; times are the guest's CLOCK_MONOTONIC in nanoseconds."""

    client: int
    sequence: int
    started_ns: int
    acknowledged_ns: int

    @property
    def key(self) -> tuple[int, int]:
        return self.client, self.sequence


class Ledger:
    """Clients that commit one row after the other."""

    def __init__(self, machine: Machine, clients: int = 2, pause_s: float = client_pause_s(0.01)) -> None:
        self._machine = machine
        self._clients = clients
        self._pause_s = pause_s

    def start(self) -> None:
        machine = self._machine
        machine.sql(f"CREATE DATABASE {DATABASE}")
        machine.sql("CREATE TABLE entries (client int, sequence int, PRIMARY KEY (client, sequence))", database=DATABASE)
        machine.run(f"install -d -o postgres {DIRECTORY}")
        machine.write_file(f"{DIRECTORY}/client.py", CLIENT.encode())
        for client in range(1, self._clients + 1):
            program = f"python3 {DIRECTORY}/client.py {client} {self._pause_s}"
            machine.spawn(f"exec setsid runuser -u postgres -- {program} 2>{DIRECTORY}/errors-{client}")

    def stop(self) -> None:
        self._machine.run(f"touch {DIRECTORY}/stop; sleep 0.5")

    def acknowledged(self) -> list[Entry]:
        """Every commit that was acknowledged so far, in order of time."""
        text = self._machine.run(f"cat {DIRECTORY}/client-*").stdout
        entries = [Entry(*map(int, line.split())) for line in text.splitlines() if line.count(" ") == 3]
        return sorted(entries, key=lambda entry: entry.acknowledged_ns)

    def forget(self) -> None:
        """Forgets the commits that were acknowledged so far."""
        self._machine.run(f"truncate -s 0 {DIRECTORY}/client-[0-9]*")

    def errors(self) -> str:
        return self._machine.run(f"cat {DIRECTORY}/errors-*").stdout

    def stored(self) -> set[tuple[int, int]]:
        """The keys in the database."""
        rows = self._machine.sql("SELECT client || ' ' || sequence FROM entries", database=DATABASE)
        return {(int(client), int(sequence)) for client, sequence in (row.split() for row in rows.splitlines())}
