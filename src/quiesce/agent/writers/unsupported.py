"""Servers that keep data and that no writer can hold yet: reported, so that no label passes them over in silence."""

from __future__ import annotations

from quiesce.agent import identity, processes
from quiesce.agent.writers.base import ApplicationWriter, WriterError
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome

KNOWN = {
    "mongod": "MongoDB",
    "etcd": "etcd",
    "influxd": "InfluxDB",
    "clickhouse-serv": "ClickHouse",
    "cockroach": "CockroachDB",
    "ns-slapd": "389 Directory Server",
    "samba": "Samba Active Directory",
    "sqlservr": "Microsoft SQL Server",
    "keydb-server": "KeyDB",
    "dragonfly": "Dragonfly",
}
"""Applications, by the kernel's name of their process (at most 15 characters)."""
JAVA = {
    "kafka.Kafka": "Kafka",
    "org.elasticsearch": "Elasticsearch",
    "org.opensearch": "OpenSearch",
    "org.apache.cassandra": "Cassandra",
    "org.neo4j": "Neo4j",
}
"""Applications that run in Java, by the beginning of the main class, or of a module, among the arguments."""
ERLANG = {"couchdb": "CouchDB"}
"""Applications that run in Erlang, by a word among the arguments."""


def discover() -> list[ApplicationWriter]:
    """One writer for each of these applications of which a process runs."""
    found: dict[str, Unsupported] = {}
    for process in processes.running():
        called = known_as(process)
        if called and not identity.why_stranger(process):
            name = _name(process)
            id = name if name in KNOWN else called.lower()
            found.setdefault(id, Unsupported(id, called)).pids += (process.pid,)
    return [found[name] for name in sorted(found)]


def known_as(process: processes.Process) -> str:
    """The application that the process has the name of; empty if it has none of those known."""
    return KNOWN.get(_name(process)) or _by_arguments(process)


def _name(process: processes.Process) -> str:
    return process.name.partition(":")[0]  # some append what the process does, as in `samba: root process`


def _by_arguments(process: processes.Process) -> str:
    """The application that an interpreter runs; empty if it is none of those known."""
    if process.name == "java":
        words = processes.command_line(process.pid)
        main = (word.partition("/")[2] if "/" in word and word[0] != "/" else word for word in words)
        return next((JAVA[name] for word in main for name in JAVA if word.startswith(name)), "")
    if process.name == "beam.smp":
        words = processes.command_line(process.pid)
        return next((ERLANG[name] for name in ERLANG for word in words if name in word), "")
    return ""


class Unsupported(ApplicationWriter):
    """An application that goes on writing during the window."""

    def __init__(self, id: str, application: str) -> None:
        super().__init__(id)
        self.application = application

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            f"quiesce has no writer for {self.application} yet; restored, it starts as after a power failure",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )


class Unanswered(ApplicationWriter):
    """An application whose files cannot be looked at."""

    def __init__(self, id: str, application: str, problem: str) -> None:
        super().__init__(id)
        self.application = application
        self._problem = problem

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(f"its files cannot be looked at: {self._problem}", Outcome.TIMEOUT)


class Unreached(ApplicationWriter):
    """An application that has a writer, which cannot reach it where it runs."""

    def __init__(self, id: str, application: str, pid: int) -> None:
        super().__init__(id)
        self.application = application
        self.pids = (pid,)

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            "it does not run in a system service (perhaps in a container), so it is not held; restored, it starts as after a"
            " power failure (CGroup= in /etc/quiesce/writers.d makes it stand still meanwhile)",
            Outcome.NON_RETRYABLE,
            Grade.CRASH,
        )
