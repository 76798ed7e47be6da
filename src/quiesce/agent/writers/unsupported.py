"""Servers that are known to keep data and that no writer can hold yet: said, so that no label passes them over in silence."""

from __future__ import annotations

import os

from quiesce.agent.writers import ApplicationWriter
from quiesce.model.grades import Grade, Level
from quiesce.model.reports import Writer

KNOWN = {
    "mariadbd": "MariaDB",
    "mysqld": "MySQL",
    "mongod": "MongoDB",
    "redis-server": "Redis",
    "valkey-server": "Valkey",
    "etcd": "etcd",
    "slapd": "OpenLDAP",
    "beam.smp": "RabbitMQ or another Erlang server",
    "influxd": "InfluxDB",
    "clickhouse-serv": "ClickHouse",
    "cockroach": "CockroachDB",
}
"""By the kernel's name of the process (at most 15 characters)."""


def discover() -> list[ApplicationWriter]:
    """One entry an application of which a process runs."""
    names = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", errors="replace") as file:
                names.add(file.read().strip())
        except OSError:
            continue  # it ended
    return [Unsupported(name) for name in sorted(names & KNOWN.keys())]


class Unsupported:
    """An application that goes on writing."""

    level = Level.BACK_END

    def __init__(self, process: str) -> None:
        self._process = process

    def identify(self) -> Writer:
        return Writer(
            id=self._process,
            application=KNOWN[self._process],
            version="unknown",
            level=self.level,
            grade=Grade.CRASH,
            reason=f"quiesce has no writer for {KNOWN[self._process]} yet; restored, it starts as after a power failure",
        )

    def prepare(self, deadline_ns: int, window_ms: int) -> None:
        pass

    def hold(self, deadline_ns: int) -> None:
        pass

    def forgo(self, reason: str) -> None:
        pass

    def release(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def paths(self) -> list[str]:
        return []

    def remember(self) -> None:
        pass
