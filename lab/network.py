"""A network for machines of the lab: a bridge of this host, on which the host has an address, too."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt

from lab import cache, machine
from lab.bare import directory
from lab.machine import PREFIX, Machine, used_names

BRIDGE = "ql"
"""Prefix of the names of bridges. The rest is the end of the name of the bridge's directory among the machines."""


UNIT = "lab-network.service"
SERVICE = """
[Unit]
DefaultDependencies=no
Before=network.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'ip link set lo up; until card=$$(ls /sys/class/net | grep -v lo) && \\
    ip address replace %ADDRESS%/24 dev $$card && ip link set $$card up; do sleep 0.2; done'
[Install]
WantedBy=sysinit.target
"""
"""It tries again and again, because udev may rename the card meanwhile. In a unit, `$$` means `$`."""


@dataclass(frozen=True)
class Network:
    bridge: str
    subnet: str
    """The first three bytes of the addresses, from 198.18.0.0/15, which is reserved for tests (RFC 2544)."""

    def address(self, number: int) -> str:
        return f"{self.subnet}.{number}"

    def plug(self, guest: Machine, number: int) -> None:
        """Plugs a card into the running machine and gives it the address of this number, now and at its next starts."""
        guest.domain.attachDeviceFlags(
            f"<interface type='bridge'><mac address='52:54:00:18:00:{number:02x}'/><source bridge='{self.bridge}'/>"
            "<model type='virtio'/></interface>",
            libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
        guest.write_file(f"/etc/systemd/system/{UNIT}", SERVICE.replace("%ADDRESS%", self.address(number)).encode())
        guest.run(f"systemctl daemon-reload; systemctl enable -q --now {UNIT}", timeout=120)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    remove_abandoned()
    with directory() as path:  # by it, a later run finds what a killed run left
        found = Network(_bridge(path.name), f"198.18.{int(path.name[-2:], 16)}")
        _ip("link", "add", found.bridge, "type", "bridge")
        try:
            _ip("address", "add", f"{found.address(1)}/24", "dev", found.bridge)
            _ip("link", "set", found.bridge, "up")
            yield found
        finally:
            _ip("link", "delete", found.bridge)


def remove_abandoned() -> None:
    """Removes bridges whose owner died, and their directories."""
    machine.remove_abandoned()
    known = {_bridge(path.name) for path in (cache.root() / "machines").glob(f"{PREFIX}*")}
    for bridge in set(_bridges()) - known:
        with contextlib.suppress(subprocess.CalledProcessError):  # another process may be deleting it
            _ip("link", "delete", bridge)


def left_behind() -> list[str]:
    """Bridges that this process left."""
    return sorted(set(_bridges()) & {_bridge(name) for name in used_names})


def _bridge(name: str) -> str:
    return BRIDGE + name.removeprefix(PREFIX)


def _bridges() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob(f"{BRIDGE}????????")]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
