"""A program in a guest. It writes to both filesystems again and again, and notes how long each write took."""

from __future__ import annotations

from lab.emulation import client_pause_s
from lab.machine import Machine
from lab.waits import Entry

TICKER = f"""
import os, time
files = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in ("/root/tick", "/var/lib/postgresql/tick")]
notes = os.open("/run/ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    started = time.monotonic_ns()
    for file in files:
        os.pwrite(file, b"x", 0)
        os.fsync(file)
    os.write(notes, b"%d %d\\n" % (started, time.monotonic_ns()))
    time.sleep({client_pause_s(0.01)})
""".encode()

ANSWER = b"[Match]\nWriter=unaccounted:qemu-guest-agent.service\nRequired=no\n"
"""The ticker's files look like a database's, and have nothing that a checkpoint could miss. qemu-guest-agent starts it."""


def start(machine: Machine) -> None:
    machine.write_file("/run/ticker.py", TICKER)
    machine.run("mkdir -p /etc/quiesce/writers.d")
    machine.write_file("/etc/quiesce/writers.d/ticker.conf", ANSWER)
    machine.run("chmod 644 /etc/quiesce/writers.d/ticker.conf")
    machine.spawn("exec setsid python3 /run/ticker.py")


def forget(machine: Machine) -> None:
    """Forgets the writes so far: `ticks` and `longest_ms` begin anew."""
    machine.run("truncate -s 0 /run/ticks")


def ticks(machine: Machine) -> int:
    """The number of writes."""
    return int(machine.run("wc -l </run/ticks").stdout)


def waits(machine: Machine) -> list[Entry]:
    """The duration of the longest write, in milliseconds."""
    times = (line.split() for line in machine.run("cat /run/ticks").stdout.splitlines())
    return [Entry(str(number), int(started), int(ended)) for number, (started, ended) in enumerate(times)]
