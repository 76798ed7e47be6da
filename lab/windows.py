"""A Linux guest that looks like a Windows guest to the host: a script answers on the port of qemu-guest-agent.

    with windows(machine, "ok") as guest:
        quiesce("checkpoint", machine.name)     # through "VSS"
    guest.events                                # what it did, and when

Inside the block, the lab cannot run commands in the guest, because it needs qemu-guest-agent for that.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from lab import windows_guest
from lab.machine import Machine

PROGRAM = "/run/windows_guest.py"
TAKEOVER_TIMEOUT_S = 60.0


@dataclass
class WindowsGuest:
    events: list[tuple[int, str]] = field(default_factory=list)
    """Filled at the end of the block: the guest's CLOCK_MONOTONIC in ns, and what the guest did at that time."""

    def names(self) -> list[str]:
        return [name for _, name in self.events if name != "ready"]

    def when(self, name: str) -> int:
        """The time of the last event of this name, in ns."""
        return max(at for at, event in self.events if event == name)


@contextlib.contextmanager
def windows(machine: Machine, scenario: str, seconds: float = 150) -> Iterator[WindowsGuest]:
    """Makes the guest a Windows guest that follows a scenario of `windows_guest`. After at most `seconds` it is Linux again."""
    guest = WindowsGuest()
    machine.write_file(PROGRAM, Path(windows_guest.__file__).read_bytes())
    machine.spawn(f"exec setsid python3 -I {PROGRAM} {scenario} {seconds}")
    _wait(lambda: _os_id(machine) == "mswindows", TAKEOVER_TIMEOUT_S)
    try:
        yield guest
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            _ask(machine, windows_guest.END)
        _wait(lambda: _os_id(machine) not in ("", "mswindows"), seconds + TAKEOVER_TIMEOUT_S)
        lines = machine.run(f"cat {windows_guest.LOG}").stdout.splitlines()
        guest.events = [(int(at), name) for at, name in (line.split(maxsplit=1) for line in lines)]


def _os_id(machine: Machine) -> str:
    """The guest's operating system; empty if qemu-guest-agent does not answer."""
    with contextlib.suppress(libvirt.libvirtError):
        return str(_ask(machine, "guest-get-osinfo")["id"])
    return ""


def _ask(machine: Machine, command: str) -> Any:
    return json.loads(libvirt_qemu.qemuAgentCommand(machine.domain, json.dumps({"execute": command}), 10, 0))["return"]


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("qemu-guest-agent did not change places in time")
        time.sleep(0.2)
