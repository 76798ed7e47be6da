"""Runs `quiesce.testing.writer` in a guest: an application that behaves well or badly, as its options say."""

from __future__ import annotations

import contextlib
import time

from lab.machine import URI, Machine
from quiesce.guests import linux
from quiesce.guests.port import IDENTIFY_TIMEOUT_S
from quiesce.hypervisor.vm import Vm

PROGRAM = (
    "PYTHONPATH=/usr/local/lib/quiesce/quiesce-agent.pyz exec setsid python3 -m quiesce.testing.writer --data /srv/counter"
)
KNOWN_S = 60.0


def start(machine: Machine, *options: str) -> None:
    """Starts the application, and returns when the agent knows it. Raises TimeoutError."""
    machine.spawn(f"{PROGRAM} {' '.join(options)}")
    _wait(machine, known=True)


def stop(machine: Machine) -> None:
    """Ends the application, and returns when the agent no longer knows it. Raises TimeoutError."""
    machine.run("pkill -TERM -f '[q]uiesce.testing.writer'")
    _wait(machine, known=False)


def _wait(machine: Machine, *, known: bool) -> None:
    deadline = time.monotonic() + KNOWN_S
    while _known(machine) is not known:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the test writer of {machine.name} is {'not ' if known else ''}known to the agent")
        time.sleep(0.2)


def _known(machine: Machine) -> bool:
    with contextlib.closing(Vm(URI, machine.name)) as vm, linux.linux_guest(vm) as guest:
        return any(writer.application == "test" for writer in guest.identify(IDENTIFY_TIMEOUT_S).writers)
