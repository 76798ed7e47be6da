"""Asks systemd about units. Runs `systemctl`, so it must not be used while filesystems are frozen."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from quiesce.agent import linux

SYSTEMCTL = "/usr/bin/systemctl"
BOOTED = "/run/systemd/system"
"""Is there if systemd is the machine's init system; sd_booted(3)."""
TIMEOUT_S = 20.0
_PROPERTIES = (
    *("LoadState", "ActiveState", "Result", "ExecMainStartTimestamp"),
    *("WatchdogUSec", "FreezerState", "ControlGroup", "MainPID", "ActiveEnterTimestampMonotonic"),
)
NEVER_FROZEN = (
    "dbus",
    "dbus-broker",
    "quiesce-agent",
    "qemu-guest-agent",
    "open-vm-tools",
    "vmtoolsd",
    "ssh",
    "sshd",
    "systemd-journald",
    "systemd-logind",
    "systemd-udevd",
    "init",
)
"""Units without which the machine cannot be reached, or the agent itself would wait."""


class UnitError(Exception):
    """The unit is not there, or must not be frozen."""


def properties_of(unit: str) -> dict[str, str]:
    """Some of the unit's properties, by name. Raises UnitError."""
    return properties_of_units([unit])[unit]


def properties_of_units(units: Sequence[str]) -> dict[str, dict[str, str]]:
    """The same properties of several units, by unit. Raises UnitError."""
    command = [SYSTEMCTL, "show", "--property", ",".join(_PROPERTIES), "--", *units]
    try:
        said = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False, preexec_fn=linux.limit_no_memory)
    except (OSError, subprocess.TimeoutExpired) as error:
        if not os.path.isdir(BOOTED):
            raise UnitError("systemd does not run in this machine") from None
        raise UnitError(f"systemctl show {units[0]}: {error}") from None
    blocks = said.stdout.decode(errors="replace").strip().split("\n\n")
    if said.returncode and not os.path.isdir(BOOTED):
        raise UnitError("systemd does not run in this machine")
    if said.returncode or len(blocks) != len(units):
        raise UnitError(said.stderr.decode(errors="replace").strip()[:300] or f"systemctl show {units[0]} failed")
    found = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return dict(zip(units, found))


def main_process(unit: str) -> int:
    """The process for which systemd runs the service: all others in it are there for that one. Other processes of a service may
    be each other's equals: several servers under one supervisor, or what a cron job left running. 0 if there is none."""
    try:
        return int(properties_of(unit).get("MainPID", "0"))
    except (UnitError, ValueError):
        return 0


def require_dispensable(unit: str) -> None:
    """Raises UnitError if the machine needs the unit running."""
    if unit.rpartition(".")[0] in NEVER_FROZEN:
        raise UnitError(f"{unit} is never frozen: the machine, or this agent, could not be reached any more")


def would_stop_with(unit: str) -> list[str]:
    """The running units that systemd stops when this one is stopped; systemd.unit(5), Requires=, BindsTo=, PartOf=."""
    command = [SYSTEMCTL, "show", "--property", "RequiredBy,BoundBy,ConsistsOf", "--value", "--", unit]
    try:
        said = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_S, check=False, preexec_fn=linux.limit_no_memory
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"systemctl show {unit}: {error}") from None
    names = sorted({name for name in said.split() if name.endswith((".service", ".socket"))})
    shown = properties_of_units(names) if names else {}
    return [name for name, found in shown.items() if found.get("ActiveState") in ("active", "activating", "reloading")]


def freezable_cgroup(unit: str) -> str:
    """The control group of a running unit, if it may be frozen. Raises UnitError with the reason if it may not.

    A unit with a watchdog may not: systemd up to 257 kills a frozen unit, too, that does not feed its watchdog, and then leaves
    the group frozen (systemd issue 38517).
    """
    require_dispensable(unit)
    found = properties_of(unit)
    if found.get("LoadState") != "loaded":
        raise UnitError(f"there is no unit {unit}")
    if found.get("ActiveState") != "active" or not found.get("ControlGroup"):
        raise UnitError(f"{unit} is not running: it is {found.get('ActiveState', 'unknown')}")
    if found.get("WatchdogUSec", "0") not in ("0", "infinity"):
        raise UnitError(
            f"{unit} has a watchdog (WatchdogSec={found['WatchdogUSec']}): systemd would kill it for standing still"
        )
    if found.get("FreezerState", "running") != "running":
        raise UnitError(f"{unit} is {found['FreezerState']} already, by somebody else")
    return found["ControlGroup"]
