"""What the host must have before a VM can start with a definition. Pure.

A definition that is restored is an old one: the medium in its drive may have been removed since, its network or bridge may have
another name now. libvirt says so only when it starts the VM."""

from __future__ import annotations

import enum
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field


class Wanted(enum.Enum):
    FILE = "file"
    """A file or a device, by its path."""
    DIRECTORY = "directory"
    NETWORK = "network"
    INTERFACE = "network interface"
    """Of the host: a bridge, or the card below a macvtap device."""
    FILTER = "network filter"
    PCI = "PCI device"
    """As 0000:01:00.0."""
    USB = "USB device"
    """As 0951:1625 (vendor and product), or 1.4 (bus and device)."""
    MEDIATED = "mediated device"
    POOL = "storage pool"
    VOLUME = "volume"
    """As POOL/VOLUME."""
    SECRET = "secret"  # noqa: S105
    """By UUID, or by usage as `ceph:client.admin`."""
    ADDRESS = "address"
    """Of the host, on which the VM listens."""
    PORT = "port"
    """As 127.0.0.1:5901."""
    HUGE_PAGES = "set of huge pages"
    """As `512 x 2048 KiB`; of whatever size the host has, as `1 x 1048576 KiB or smaller`."""


@dataclass(frozen=True)
class Need:
    kind: Wanted
    name: str
    by: str
    """What needs it, for a message: `filesystem`, `disk vdb`, ..."""
    drive: str | None = None
    """Target of the drive in which it is a medium: the VM starts without it, if the drive is emptied."""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}, for its {self.by}"


_FILES = (
    ("os/kernel", ""), ("os/initrd", ""), ("os/dtb", ""), ("os/shim", ""), ("os/loader", ""), ("os/acpi/table", ""),
    ("sysinfo/entry", "@file"), ("devices/emulator", ""), ("devices/memory/source/path", ""),
    ("devices/filesystem/source", "@file"), ("devices/filesystem/source", "@dev"), ("devices/filesystem/source", "@socket"),
    ("devices/filesystem/binary", "@path"), ("devices/rng/backend[@model='random']", ""), ("devices/input/source", "@evdev"),
    ("devices/input/source", "@dev"), ("devices/tpm/backend/device", "@path"), ("devices/graphics/gl", "@rendernode"),
    ("devices/interface[@type='vdpa']/source", "@dev"),
    ("devices/interface[@type='vhostuser']/source[@mode='client']", "@path"),
    ("devices/hostdev/source/block", ""), ("devices/hostdev/source/char", ""),
)  # fmt: skip
_DIRECTORIES = (("devices/filesystem/source", "@dir"),)
_CHARACTER_DEVICES = ("serial", "parallel", "console", "channel", "rng", "smartcard", "redirdev")


def needs(xml: str, without: Collection[str]) -> list[Need]:
    """`without`: targets of disks whose images are looked at by others."""
    root = ET.fromstring(xml)
    found = [*_paths(root), *_disks(root, without), *_cards(root), *_host_devices(root), *_secrets(root), *_listens(root)]
    found += [_huge(size, kib) for size, kib in _huge_memory(root).items()]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Own:
    """What a VM that runs has of the host now, and what is free when it is off."""

    ports: frozenset[int] = frozenset()
    """Those that it listens on, also those that libvirt chose."""
    huge: Mapping[int, int] = field(default_factory=dict)
    """Its memory in huge pages, in KiB, by their size in KiB; 0: of whatever size."""

    def besides(self, need: Need) -> Need | None:
        """What of the need is left for the host to have."""
        if need.kind is Wanted.PORT:
            return None if int(need.name.rpartition(":")[2]) in self.ports else need
        if need.kind is Wanted.HUGE_PAGES:
            size, kib = huge(need)
            return _huge(size, more) if (more := kib - self.huge.get(size, 0)) > 0 else None
        return need


NOTHING = Own()


def own(xml: str) -> Own:
    """Of a VM that runs with this definition."""
    root = ET.fromstring(xml)
    return Own(frozenset(port for _, _, port, _ in _sockets(root) if port), _huge_memory(root))


def emptied(xml: str, drives: Collection[str]) -> str:
    """The definition without the media in these drives."""
    root = ET.fromstring(xml)
    for disk in root.iterfind("./devices/disk"):
        if _target(disk) in drives:
            for source in [*disk.findall("source"), *disk.findall("backingStore")]:
                disk.remove(source)
            if disk.get("type") not in ("file", "block"):
                disk.set("type", "file")
    return ET.tostring(root, encoding="unicode")


def _paths(root: ET.Element) -> Iterator[Need]:
    for kind, table in ((Wanted.FILE, _FILES), (Wanted.DIRECTORY, _DIRECTORIES)):
        for place, attribute in table:
            for element in root.iterfind(f"./{place}"):
                text = element.get(attribute[1:]) if attribute else (element.text or "").strip()
                if text and text.startswith("/"):
                    yield Need(kind, text, _words(place))
    nvram = root.find("./os/nvram")
    if nvram is not None and nvram.get("template") and not (nvram.text or "").strip() and nvram.find("source") is None:
        yield Need(Wanted.FILE, nvram.get("template", ""), "UEFI variables")
    for tag in _CHARACTER_DEVICES:
        for device in root.iterfind(f"./devices/{tag}"):
            yield from _character_device(device)


def _words(place: str) -> str:
    tags = [part.partition("[")[0] for part in place.split("/")]
    return tags[1] if tags[0] in ("devices", "os") else tags[0]


def _character_device(device: ET.Element) -> Iterator[Need]:
    source, log = device.find("source"), device.find("log")
    path = source.get("path", "") if source is not None else ""
    if path and source is not None:
        if device.get("type") == "file" or (device.get("type") == "unix" and source.get("mode") == "bind"):
            yield Need(Wanted.DIRECTORY, posixpath.dirname(path), device.tag)
        elif device.get("type") == "dev" or (device.get("type") == "unix" and source.get("mode") == "connect"):
            yield Need(Wanted.FILE, path, device.tag)
    if log is not None and log.get("file"):
        yield Need(Wanted.DIRECTORY, posixpath.dirname(log.get("file", "")), f"log of a {device.tag}")


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _disks(root: ET.Element, without: Collection[str]) -> Iterator[Need]:
    for disk in root.iterfind("./devices/disk"):
        target, source = _target(disk), disk.find("source")
        if source is None or target in without:
            continue
        removable = disk.get("device") in ("cdrom", "floppy")
        by, drive = f"{'drive' if removable else 'disk'} {target}", target if removable else None
        if path := source.get("file") or source.get("dev"):
            yield Need(Wanted.FILE, path, by, drive)
        elif disk.get("type") == "dir":
            yield Need(Wanted.DIRECTORY, source.get("dir", ""), by, drive)
        elif disk.get("type") == "volume":
            if drive is None:
                yield Need(Wanted.POOL, source.get("pool", ""), by)
            yield Need(Wanted.VOLUME, f"{source.get('pool')}/{source.get('volume')}", by, drive)


def _cards(root: ET.Element) -> Iterator[Need]:
    for card in root.iterfind("./devices/interface"):
        source, kind, filterref = card.find("source"), card.get("type"), card.find("filterref")
        if source is not None:
            for attribute, wanted, what in (
                ("network", "network", Wanted.NETWORK),
                ("bridge", "bridge", Wanted.INTERFACE),
                ("direct", "dev", Wanted.INTERFACE),
            ):
                if kind == attribute and source.get(wanted):
                    yield Need(what, source.get(wanted, ""), "network card")
            if kind == "hostdev" and (address := source.find("address[@type='pci']")) is not None:
                yield Need(Wanted.PCI, _pci(address), "network card")
        if filterref is not None:
            yield Need(Wanted.FILTER, filterref.get("filter", ""), "network card")


def _host_devices(root: ET.Element) -> Iterator[Need]:
    for device in root.iterfind("./devices/hostdev[@mode='subsystem']"):
        source, kind = device.find("source"), device.get("type")
        if source is None or source.get("startupPolicy") == "optional":
            continue
        address = source.find("address")
        if kind == "pci" and address is not None:
            yield Need(Wanted.PCI, _pci(address), "hostdev")
        elif kind == "mdev" and address is not None:
            yield Need(Wanted.MEDIATED, address.get("uuid", ""), "hostdev")
        elif kind == "usb":
            vendor, product = source.find("vendor"), source.find("product")
            if vendor is not None and product is not None:
                yield Need(Wanted.USB, f"{_number(vendor, 'id'):04x}:{_number(product, 'id'):04x}", "hostdev")
            elif address is not None:
                yield Need(Wanted.USB, f"{_number(address, 'bus')}.{_number(address, 'device')}", "hostdev")


def _pci(address: ET.Element) -> str:
    numbers = [_number(address, name) for name in ("domain", "bus", "slot", "function")]
    return f"{numbers[0]:04x}:{numbers[1]:02x}:{numbers[2]:02x}.{numbers[3]:x}"


def _number(element: ET.Element, attribute: str) -> int:
    return int(element.get(attribute) or "0", 0)


def _secrets(root: ET.Element) -> Iterator[Need]:
    devices = root.find("devices")
    for device in devices if devices is not None else ():
        by = f"disk {_target(device)}" if device.tag == "disk" else device.tag
        for secret in device.iter("secret"):
            usage = f"{secret.get('type', 'volume')}:{secret.get('usage')}" if secret.get("usage") else ""
            if name := secret.get("uuid") or usage:
                yield Need(Wanted.SECRET, name, by)
        for encryption in device.iterfind("./backend/encryption"):
            if encryption.get("secret"):
                yield Need(Wanted.SECRET, encryption.get("secret", ""), by)


def _listens(root: ET.Element) -> Iterator[Need]:
    for device, address, port, chosen in _sockets(root):
        if address:
            yield Need(Wanted.ADDRESS, address, device)
        if port and not chosen:
            yield Need(Wanted.PORT, f"{address or '127.0.0.1'}:{port}", device)


def _sockets(root: ET.Element) -> Iterator[tuple[str, str, int, bool]]:
    """(what listens, its address or "", its port or 0, whether libvirt chooses the port at each start)"""
    for graphics in root.iterfind("./devices/graphics"):
        listens = [graphics.get("listen", ""), *(each.get("address", "") for each in graphics.findall("listen"))]
        numbers = [_port(graphics.get(name)) for name in ("port", "tlsPort", "websocket")]
        for address in dict.fromkeys(filter(None, listens)) or [""]:
            for port in filter(None, numbers) if any(numbers) else [0]:
                yield "graphics", address, port, graphics.get("autoport") == "yes"
    for tag in _CHARACTER_DEVICES:
        for source in root.iterfind(f"./devices/{tag}[@type='tcp']/source[@mode='bind']"):
            yield tag, source.get("host", ""), _port(source.get("service")), False


def _port(text: str | None) -> int:
    """0 if the definition gives none: libvirt writes -1 then."""
    return int(text) if text and text.isdecimal() else 0


def huge(need: Need) -> tuple[int, int]:
    """(size of a page in KiB, or 0; KiB in all)"""
    number, _, size, _, *or_smaller = need.name.split()
    return 0 if or_smaller else int(size), int(number) * int(size)


def _huge(size: int, kib: int) -> Need:
    name = f"{-(-kib // size)} x {size} KiB" if size else f"1 x {kib} KiB or smaller"
    return Need(Wanted.HUGE_PAGES, name, "memory")


def _huge_memory(root: ET.Element) -> dict[int, int]:
    pages = root.find("./memoryBacking/hugepages")
    if pages is None:
        return {}
    cells = {cell.get("id", ""): int(cell.get("memory", 0)) for cell in root.iterfind("./cpu/numa/cell")}
    left = int(root.findtext("./memory", "0"))
    found: dict[int, int] = {}
    for page in pages.iterfind("./page[@nodeset]"):
        kib = sum(cells.get(id, 0) for id in _numbers(page.get("nodeset", "")))
        found[int(page.get("size", 0))] = found.get(int(page.get("size", 0)), 0) + kib
        left -= kib
    sizes = [int(page.get("size", 0)) for page in pages.iterfind("./page") if not page.get("nodeset")]
    for size in sizes or ([] if found else [0]):
        found[size] = found.get(size, 0) + left
    return {size: kib for size, kib in found.items() if kib > 0}


def _numbers(text: str) -> Iterator[str]:
    """Of `0-2,5`; libvirt writes exclusions out."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            yield from map(str, range(int(first), int(last or first) + 1))
