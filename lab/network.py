"""A network for machines of the lab: a bridge of this host, on which the host has an address, too."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt

from lab import cache, machine
from lab.bare import directory
from lab.machine import PREFIX, Machine, used_names

ETH_P_ALL, SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 3, 263, 1, 1
"""Of linux/if_ether.h, linux/socket.h and linux/if_packet.h. Python knows no names for them."""
EXPERIMENTAL = b"\x88\xb5"
"""A type of frames that is nobody's (IEEE 802)."""
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
            f"<interface type='bridge'><mac address='{mac_address(number)}'/><source bridge='{self.bridge}'/>"
            "<model type='virtio'/></interface>",
            libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
        guest.write_file(f"/etc/systemd/system/{UNIT}", SERVICE.replace("%ADDRESS%", self.address(number)).encode())
        guest.run(f"systemctl daemon-reload; systemctl enable -q --now {UNIT}", timeout=120)

    @contextlib.contextmanager
    def listening(self) -> Iterator[set[str]]:
        """The MAC addresses, as senders and receivers, of all frames that pass the bridge during the block; packet(7)."""
        heard: set[str] = set()
        ended = threading.Event()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as ear:
            ear.bind((self.bridge, 0))
            ear.settimeout(0.1)
            index = socket.if_nametoindex(self.bridge)
            everything = struct.pack("iHH8s", index, PACKET_MR_PROMISC, 0, b"")
            ear.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, everything)

            def listen() -> None:
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        frame = ear.recv(14)
                        heard.update(frame[at : at + 6].hex(":") for at in (0, 6))

            listener = threading.Thread(target=listen)
            listener.start()
            try:
                yield heard
            finally:
                ended.set()
                listener.join()

    def send_as(self, mac: str) -> None:
        """Sends a frame from this address to all."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((self.bridge, 0))
            sender.send(b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + EXPERIMENTAL + bytes(46))


def mac_address(number: int) -> str:
    """Of the card of the machine with this number."""
    return f"52:54:00:18:00:{number:02x}"


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
