"""Servers that keep data and that no writer can hold yet: reported, so that no label passes them over in silence."""

from __future__ import annotations

from quiesce.agent import processes
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

KNOWN = {
    "mongod": "MongoDB",
    "etcd": "etcd",
    "influxd": "InfluxDB",
    "clickhouse-serv": "ClickHouse",
    "cockroach": "CockroachDB",
}
"""Applications, by the kernel's name of their process (at most 15 characters)."""


def discover() -> list[ApplicationWriter]:
    """One writer for each of these applications of which a process runs."""
    names = {process.name for process in processes.running()}
    return [Unsupported(name) for name in sorted(names & KNOWN.keys())]


class Unsupported(ApplicationWriter):
    """An application that goes on writing during the window."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.application = KNOWN[process]

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            f"quiesce has no writer for {self.application} yet; restored, it starts as after a power failure",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )


class Unreached(ApplicationWriter):
    """An application that has a writer, which cannot reach it where it runs."""

    def __init__(self, id: str, application: str) -> None:
        super().__init__(id)
        self.application = application

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            "it does not run in a system service (perhaps in a container), so it is not held; restored, it starts as after a"
            " power failure (CGroup= in /etc/quiesce/writers.d makes it stand still meanwhile)",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )
