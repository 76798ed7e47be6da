"""A program in a guest that writes to both filesystems all the time, and notes how long each write had to wait."""

from __future__ import annotations

from lab.machine import Machine
from lab.waits import Entry

TICKER = b"""
import os, time
files = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in ("/root/tick", "/var/lib/postgresql/tick")]
notes = os.open("/run/ticks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    started = time.monotonic_ns()
    for file in files:
        os.pwrite(file, b"x", 0)
        os.fsync(file)
    os.write(notes, b"%d %d\\n" % (started, time.monotonic_ns()))
    time.sleep(0.01)
"""


def start(machine: Machine) -> None:
    machine.write_file("/run/ticker.py", TICKER)
    machine.spawn("exec setsid python3 /run/ticker.py")


def forget(machine: Machine) -> None:
    """How often it has written, and how long it had to wait, is told from now on."""
    machine.run("truncate -s 0 /run/ticks")


def ticks(machine: Machine) -> int:
    """How often it has written."""
    return int(machine.run("wc -l </run/ticks").stdout)


def waits(machine: Machine) -> list[Entry]:
    """Every time it wrote: from when it began until both filesystems had taken it."""
    times = (line.split() for line in machine.run("cat /run/ticks").stdout.splitlines())
    return [Entry(str(number), int(started), int(ended)) for number, (started, ended) in enumerate(times)]
