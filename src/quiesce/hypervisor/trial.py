"""The definition of a copy of a checkpoint that is booted aside, made of the definition at the checkpoint. Pure.

What the copy has in common with the VM is what its disks, its processors and its firmware are; nothing else of the host, and
nothing of the VM itself, can be reached from it. So the list below says what is kept. Example: a device that a later libvirt
brings is left out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.definition import remove_refused
from quiesce.hypervisor.domain_xml import QEMU_AGENT_PORT, Identity
from quiesce.model.errors import RefusedError

PREFIX = "io.quiesce.trial="
"""Of the string in the SMBIOS data by which a guest learns that it is a copy (agent/trial.py)."""
_KEPT = frozenset({*("emulator", "disk", "controller", "video", "input", "hub", "memballoon", "rng", "panic", "tpm", "iommu")})
"""Devices that reach nothing outside once they are changed as below."""
_NOT_MISSED = frozenset(
    {
        "graphics",
        "audio",
        "sound",
        "serial",
        "console",
        "parallel",
        "channel",
        "redirdev",
        "redirfilter",
        "smartcard",
        "watchdog",
    }
)
"""Devices that no application needs to start."""
_OF_THE_HOST = (
    *("title", "description", "metadata", "cputune", "numatune", "memtune", "blkiotune", "resource", "memoryBacking"),
    *("maxMemory", "currentMemory", "seclabel", "idmap", "throttlegroups"),
)
"""What the VM is called, and its share of the host: the copy must not take production's processors and huge pages."""
_OF_A_CARD = frozenset({"mac", "model", "address", "alias", "link"})
"""What a card of the copy has in common with the VM's: what its guest knows it by."""
_WITH_SMBIOS = ("x86_64", "i686", "aarch64")


Plug = Callable[[str], tuple[str, int]]
"""Returns where QEMU is to connect a card to, address and port. The argument names the network that the VM's card is on."""


@dataclass(frozen=True)
class TrialFiles:
    """The files of the copy."""

    disks: Mapping[str, str]
    """Path of each overlay, by target."""
    nvram: str
    console: str


@dataclass(frozen=True)
class Trial:
    xml: str
    left_out: tuple[str, ...]
    """What the VM has and the copy has not, for a person."""
    memory: int
    """In bytes."""


def trial(
    xml: str,
    *,
    identity: Identity,
    generation: str,
    files: TrialFiles,
    port: str,
    memory_limit: int | None = None,
    plug: Plug | None = None,
    lasting: bool = False,
) -> Trial:
    """The copy's definition. `identity`: its own name and UUID. `port`: the name of the guest agent's port, the only one that
    it has. `memory_limit`: the most memory that it gets, in bytes. `plug`: the copy has the VM's network cards, connected to
    where this function says; None: it has none. `lasting`: what is written to its disks is to last, and its guest can be shut
    down through qemu-guest-agent, if the VM has that.

    Raises RefusedError for a machine whose guest cannot be told that it is a copy."""
    _require_smbios(xml)
    root = ET.fromstring(domain_xml.restored(xml, identity=identity, generation=generation, sources=files.disks, nvram=None))
    cards = _plugged(root, plug) if plug else []
    left_out = [*_keep_devices(root, files.disks), *remove_refused(root)]
    _required(root, "devices").extend(cards)
    for tag in _OF_THE_HOST:
        for element in root.findall(tag):
            root.remove(element)
    for vcpu in root.findall("vcpu"):
        vcpu.attrib.pop("cpuset", None)
    _set_disks(root, lasting=lasting)
    _set_firmware(root, files.nvram)
    ports = [port, *([QEMU_AGENT_PORT] if lasting and QEMU_AGENT_PORT in domain_xml.channels(xml) else [])]
    _set_ports(root, dict.fromkeys(ports), files.console)
    _tell(root, identity)
    memory = _limit_memory(root, memory_limit)
    for event in ("on_poweroff", "on_crash"):
        _set(root, event, "destroy")
    listed = [name for name in dict.fromkeys(left_out) if name not in (*_NOT_MISSED, *_OF_THE_HOST)]
    return Trial(ET.tostring(root, encoding="unicode"), tuple(listed), memory)


def port_for(xml: str, agent_port: str) -> str:
    """The port of our agent, or of qemu-guest-agent if the VM has only that one, as a Windows guest has."""
    ports = domain_xml.channels(xml)
    return QEMU_AGENT_PORT if agent_port not in ports and QEMU_AGENT_PORT in ports else agent_port


def _require_smbios(xml: str) -> None:
    kind, architecture, _ = domain_xml.machine(xml)
    if architecture and architecture not in _WITH_SMBIOS:
        raise RefusedError(f"a guest on {architecture} ({kind}) has no SMBIOS data, so it cannot be told that it is a copy")


def _keep_devices(root: ET.Element, disks: Mapping[str, str]) -> list[str]:
    """Returns what was left out."""
    left_out = []
    devices = _required(root, "devices")
    for device in list(devices):
        keep, name = device.tag in _KEPT, device.tag
        if device.tag == "disk":
            target = _required(device, "target").get("dev", "")
            if device.get("device") in ("cdrom", "floppy"):
                for source in device.findall("source"):
                    device.remove(source)
            elif target not in disks:
                keep, name = False, f"disk {target}"
        elif device.tag == "tpm" and device.find("backend[@type='emulator']") is None:
            keep = False
        if not keep:
            devices.remove(device)
            left_out.append(name)
    return left_out


def _plugged(root: ET.Element, plug: Plug) -> list[ET.Element]:
    """The VM's cards, taken out of its devices, with nothing of the host but the connection. A card of the host's own is no
    part of the VM, so it stays where it is."""
    devices, cards = _required(root, "devices"), []
    for card in devices.findall("interface"):
        if card.get("type") == "hostdev":
            continue
        devices.remove(card)
        host, port = plug(_network(card))
        made = ET.Element("interface", {"type": "client"})
        ET.SubElement(made, "source", {"address": host, "port": str(port)})
        made.extend(child for child in card if child.tag in _OF_A_CARD)
        cards.append(made)
    return cards


def _network(card: ET.Element) -> str:
    """Cards of the same network have the same. VLANs of one bridge are different networks."""
    source = card.find("source")
    named = [source.get(name, "") for name in ("network", "bridge", "dev", "portgroup")] if source is not None else []
    tags = sorted(tag.get("id", "") for tag in card.iterfind("./vlan/tag"))
    return " ".join([str(card.get("type")), *named, *tags])


def _set_disks(root: ET.Element, *, lasting: bool) -> None:
    """What is written to the copy need not last, and an overlay that has no room left must not pause the copy for good. If it
    is to last, the copy stops where something cannot be written."""
    for disk in root.iterfind("./devices/disk"):
        for tag in ("shareable", "backingStore", "mirror"):
            _remove(disk, tag)
        if disk.get("device") == "lun":
            disk.set("device", "disk")
        disk.attrib.pop("snapshot", None)
        driver = disk.find("driver")
        if driver is not None and disk.find("source") is not None:
            driver.attrib.pop("io", None)
            if lasting:
                driver.attrib.pop("cache", None)
            else:
                driver.set("cache", "unsafe")
            driver.set("error_policy", "stop" if lasting else "report")


def _set_firmware(root: ET.Element, nvram: str) -> None:
    system = _required(root, "os")
    for old in system.findall("nvram"):
        for source in old.findall("source"):
            old.remove(source)
        old.attrib.pop("type", None)
        old.text = nvram
    for backend in root.iterfind("./devices/tpm/backend"):
        _remove(backend, "source")  # libvirt has a place for each UUID
        backend.attrib.pop("persistent_state", None)


def _set_ports(root: ET.Element, ports: Iterable[str], console: str) -> None:
    """A log of the console, and the agents' ports; libvirt makes a socket of the copy's own for each."""
    devices = _required(root, "devices")
    devices.extend(ET.fromstring(domain_xml.channel(port)) for port in ports)
    serial = ET.SubElement(devices, "serial", {"type": "file"})
    ET.SubElement(serial, "source", {"path": console})
    ET.SubElement(serial, "target", {"port": "0"})


def _tell(root: ET.Element, identity: Identity) -> None:
    """The guest reads the string before it starts anything. Fields of the VM's own, as those of licences, stay."""
    system = _required(root, "os")
    _remove(system, "smbios")
    ET.SubElement(system, "smbios", {"mode": "sysinfo"})
    told = root.find("./sysinfo[@type='smbios']")
    if told is None:
        told = ET.SubElement(root, "sysinfo", {"type": "smbios"})
    for entry in told.iterfind("./system/entry[@name='uuid']"):
        entry.text = identity.uuid
    strings = told.find("oemStrings")
    if strings is None:
        strings = ET.SubElement(told, "oemStrings")
    ET.SubElement(strings, "entry").text = PREFIX + identity.uuid


_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20}
_UNITS |= {"GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40}


def _limit_memory(root: ET.Element, limit: int | None) -> int:
    """Returns the memory in bytes. NUMA nodes name sizes of their own, so the copy has none."""
    memory = _required(root, "memory")
    own = int(memory.text or 0) * _UNITS.get(memory.get("unit", "KiB"), 1 << 10)
    size = min(own, limit) if limit is not None else own
    memory.attrib.clear()
    memory.set("unit", "KiB")
    memory.text = str(size >> 10)
    for processor in root.findall("cpu"):
        _remove(processor, "numa")
    return size


def _set(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = ET.SubElement(root, tag)
    element.text = text


def _remove(element: ET.Element, tag: str) -> None:
    for child in element.findall(tag):
        element.remove(child)


def _required(element: ET.Element, name: str) -> ET.Element:
    found = element.find(name)
    if found is None:
        raise ValueError(f"libvirt's domain XML has no <{name}> in <{element.tag}>")
    return found
