"""What a host in memory answers in the words of libvirt and QEMU themselves."""

from __future__ import annotations

import socket
import xml.etree.ElementTree as ET
from dataclasses import dataclass


@dataclass(frozen=True)
class FakeDomain:
    """The part of a libvirt.virDomain that operations use."""

    _name: str
    _uuid: str

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's own name
        return self._uuid


def connected_cards(xml: str) -> list[socket.socket]:
    """QEMU's ends of the network cards that connect to another program."""
    sources = ET.fromstring(xml).iterfind("./devices/interface[@type='client']/source")
    return [socket.create_connection((source.attrib["address"], int(source.attrib["port"])), 10) for source in sources]
