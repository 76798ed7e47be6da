"""RabbitMQ: frozen, and a crash image all the same.

Messages confirmed to a publisher are on disk, but a node that was not stopped rebuilds its indices when it starts; so the grade
is `crash`. For a clean grade, have the node stopped for the checkpoint: `Action=stop` (docs/writers.md); its clients reconnect.
Blocking publishers by an alarm instead (`rabbitmqctl set_vm_memory_high_watermark 0`) would start an Erlang at either end of
the window, which takes seconds, and would not change the grade.
"""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import replace

from quiesce.agent import commands, identity, logs, processes
from quiesce.agent.writers.base import ApplicationWriter, WriterError, left_s
from quiesce.agent.writers.frozen import FrozenCgroup
from quiesce.agent.writers.unsupported import Unreached
from quiesce.model.grades import Grade
from quiesce.model.reports import Outcome
from quiesce.model.starts import Did, Start

LOGS = "/var/log/rabbitmq/rabbit@*.log"
RABBITMQCTL = "/usr/sbin/rabbitmqctl"
MAX_ANSWER = 16 << 20
"""Most that is read of what it says, in characters."""
LOOK_TIMEOUT_S = 60.0
"""Longest wait for `rabbitmqctl`, in seconds: it starts an Erlang of its own. It runs only outside the window."""


def discover() -> list[ApplicationWriter]:
    """One writer for each system service that runs RabbitMQ. Another Erlang server is an application without a writer."""
    found: dict[str, ApplicationWriter] = {}
    for process in identity.applications("beam.smp"):
        unit = identity.own_unit(process.pid)
        writer: ApplicationWriter
        if not any("rabbit" in word for word in processes.command_line(process.pid)):
            writer = OtherErlang(f"erlang:{unit or process.pid}", process.pid)
        else:
            writer = RabbitMq(unit) if unit else Unreached(f"rabbitmq:{process.pid}", "rabbitmq", process.pid)
        found[writer.id] = writer
    return [found[id] for id in sorted(found)]


class RabbitMq(FrozenCgroup):
    """A node."""

    application = "rabbitmq"
    worth = Grade.CRASH
    worth_reason = (
        "confirmed messages are in it, but it rebuilds its indices when it starts, as after a power failure;"
        " Action=stop in /etc/quiesce/writers.d has it stopped cleanly instead"
    )

    def __init__(self, unit: str) -> None:
        super().__init__(f"rabbitmq:{unit}", unit=unit)
        self.data_directory = "/var/lib/rabbitmq"

    def on_prepare(self, deadline_ns: int, window_ms: int) -> None:
        """Notes the position now: a frozen node answers no question."""
        queues = json.loads(_ask(deadline_ns, "--formatter", "json", "list_queues", "name", "messages", "durable"))
        definitions = json.loads(_ask(deadline_ns, "export_definitions", "-"))
        self.version = str(definitions.get("rabbitmq_version", "unknown"))
        self.position = {
            "queues": str(len(queues)),
            "messages": str(sum(int(queue["messages"]) for queue in queues)),
            "definitions_sha256": hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest(),
        }
        fleeting = [queue["name"] for queue in queues if not queue["durable"]]
        if fleeting:
            self.warnings.append(f"queue {fleeting[0]!r} and its messages are gone after any restart: it is not durable")

    def on_verify(self, start: Start, deadline_ns: int) -> Start:
        """By what its log says of its indices, and by whether it can list its queues."""
        queues = json.loads(_ask(deadline_ns, "--formatter", "json", "list_queues", "name", "messages", "durable"))
        lines = [line for path in glob.glob(LOGS) for line in logs.end_of(path).splitlines()]
        begun = [number for number, line in enumerate(lines) if "Starting RabbitMQ" in line]
        rebuilt = [line for line in lines[begun[-1] if begun else 0 :] if "rebuilding indices from scratch" in line]
        count = sum(int(queue["messages"]) for queue in queues)
        return replace(
            start,
            did=Did.REDO if rebuilt else Did.NOTHING if begun else Did.UNKNOWN,
            checks=(f"it lists {len(queues)} queues with {count} messages",),
            evidence=tuple(rebuilt[:4]),
        )

    def paths(self) -> list[str]:
        return ["/var/lib/rabbitmq"]


class OtherErlang(ApplicationWriter):
    """An Erlang server that is not RabbitMQ."""

    application = "an Erlang server"

    def __init__(self, id: str, pid: int) -> None:
        super().__init__(id)
        self.pids = (pid,)

    def on_identify(self, deadline_ns: int) -> None:
        raise WriterError(
            "quiesce has no writer for it; restored, it starts as after a power failure", Outcome.NON_RETRYABLE, Grade.CRASH
        )


def _ask(deadline_ns: int, *words: str) -> str:
    """Raises WriterError."""
    timeout_s = min(LOOK_TIMEOUT_S, left_s(deadline_ns))
    return commands.run_command([RABBITMQCTL, "--quiet", *words], timeout_s, None, limit=MAX_ANSWER)
