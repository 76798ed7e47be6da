"""Applications under load in a guest: what was acknowledged to their clients, how long each waited, and what is stored.

A client writes one thing after another, each with a key of its own, and notes in memory (/run) when it asked and when it was
answered; a restore of the disks does not touch those notes. Whatever error it is told is noted too.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lab.emulation import client_pause_s
from lab.machine import Machine
from lab.waits import Entry

NOTES = "/run/quiesce-workload"

CLIENT = """
import os, sys, time
name = sys.argv[1]
notes = os.open("%(notes)s/" + name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
errors = os.open("%(notes)s/" + name + ".errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
%(code)s
connection, number = None, 0 if len(sys.argv) < 3 else time.monotonic_ns() // 1000000
left = int(sys.argv[2]) if len(sys.argv) > 2 else -1
while left and not os.path.exists("%(notes)s/stop"):
    number += 1
    key = "%%s-%%06d" %% (name, number)
    started = time.monotonic_ns()
    try:
        connection = connection or connect()
        write(connection, key)
        os.write(notes, b"%%s %%d %%d\\n" %% (key.encode(), started, time.monotonic_ns()))
        left -= 1
    except Exception as error:
        os.write(errors, b"%%d %%s\\n" %% (time.monotonic_ns(), repr(error).encode()[:300].replace(b"\\n", b" ")))
        connection = None
        time.sleep(0.1)
    time.sleep(%(pause)s)
"""


@dataclass(frozen=True)
class Workload:
    """An application and its clients."""

    name: str
    setup: str
    """Shell: has it run, with an empty store."""
    client: str
    """Python: `connect()` and `write(connection, key)`."""
    stored: str
    """Shell: prints the keys it has, a line each."""
    start: str = "true"
    """Shell: has it run again after a restore."""
    clients: int = 1
    user: str = "root"
    pause_s: float = field(default_factory=lambda: client_pause_s(0.01))
    unclean: str = ""
    """Shell: prints what its own log says of a recovery at its last start; nothing if it started clean."""
    timeout_s: float = 240


class Load:
    """The clients of some applications in one guest."""

    def __init__(self, machine: Machine, workloads: Sequence[Workload]) -> None:
        self._machine = machine
        self._workloads = workloads

    def set_up(self) -> None:
        self._machine.run(f"install -d -m 1777 {NOTES}")
        for workload in self._workloads:
            self._machine.run("set -e\n" + workload.setup, timeout=workload.timeout_s)

    def start(self) -> None:
        for workload in self._workloads:
            self._write_program(workload)
            for number in range(workload.clients):
                program = f"python3 {NOTES}/{workload.name}.py {workload.name}.{number}"
                self._machine.spawn(f"exec setsid runuser -u {workload.user} -- {program} >/dev/null 2>&1")
        self.wait_for_writes(3)

    def _write_program(self, workload: Workload) -> None:
        values = {"notes": NOTES, "code": textwrap.dedent(workload.client), "pause": workload.pause_s}
        self._machine.write_file(f"{NOTES}/{workload.name}.py", (CLIENT % values).encode())

    def writes_once(self, workload: Workload, within_s: float) -> bool:
        """Whether one write more is acknowledged within so many seconds."""
        self._write_program(workload)
        name = f"{workload.name}.once"
        program = f"python3 {NOTES}/{workload.name}.py {name} 1"
        until = f"rm -f {NOTES}/{name}; timeout {within_s} runuser -u {workload.user} -- {program}; test -s {NOTES}/{name}"
        return self._machine.run(until, check=False, timeout=within_s + 30).returncode == 0

    def wait_for_writes(self, count: int, timeout: float = 90) -> None:
        """Until every client has had so many more writes acknowledged."""
        before = self._counts()
        deadline = time.monotonic() + timeout
        while any(number < before.get(name, 0) + count for name, number in self._counts().items()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a client stands still: {before} -> {self._counts()}: {self.errors()}")
            time.sleep(0.3)

    def _counts(self) -> dict[str, int]:
        found = {f"{workload.name}.{number}": 0 for workload in self._workloads for number in range(workload.clients)}
        for line in self._machine.run(f"cd {NOTES}; wc -l *.[0-9] 2>/dev/null", check=False).stdout.splitlines():
            count, name = line.split()
            if name in found:
                found[name] = int(count)
        return found

    def stop(self) -> None:
        self._machine.run(f"touch {NOTES}/stop; sleep 1")

    def acknowledged(self, workload: Workload) -> list[Entry]:
        text = self._machine.run(f"cat {NOTES}/{workload.name}.[0-9]").stdout
        entries = [line.split() for line in text.splitlines() if line.count(" ") == 2]
        return [Entry(key, int(started), int(answered)) for key, started, answered in entries]

    def errors(self) -> str:
        return self._machine.run(f"cat {NOTES}/*.errors", check=False).stdout

    def stored(self, workload: Workload) -> set[str]:
        said = self._machine.run(workload.stored, timeout=workload.timeout_s).stdout
        return {word for line in said.splitlines() if (word := line.strip()).startswith(workload.name)}

    def start_again(self) -> None:
        for workload in self._workloads:
            self._machine.run("set -e\n" + workload.start, timeout=workload.timeout_s)

    def unclean(self, workload: Workload) -> str:
        return self._machine.run(workload.unclean, check=False).stdout.strip() if workload.unclean else ""
