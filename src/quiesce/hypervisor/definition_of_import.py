"""The definition of an imported VM, made of that of the export: every path in it is of the new VM, and what only one VM of a
host can have is free again. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from quiesce.hypervisor import domain_xml
from quiesce.hypervisor.definition import Boot
from quiesce.hypervisor.domain_xml import Identity

LOGGED = ("serial", "console", "parallel", "channel")


@dataclass(frozen=True)
class Files:
    """The files of the new VM, in its directory."""

    disks: Mapping[str, str]
    """Path by target."""
    nvram: str
    logs: str
    """The beginning of the path of each log; a number and `.log` follow."""
    others: set[str] = field(default_factory=set)
    """Filled by `imported`: the paths of logs and UEFI variables in the definition."""


def imported(
    root: ET.Element,
    *,
    identity: Identity,
    generation: str,
    files: Files,
    boot: Boot,
    emulator: str,
    same: bool,
    accepted: Collection[str] = (),
) -> str:
    """The definition of the new VM. Elements that an administrator accepted keep their paths and ports. Without `same`, the
    VM's network cards get new MAC addresses, and it shares no port and no address with the exported VM."""
    xml = ET.tostring(root, encoding="unicode")
    root = ET.fromstring(domain_xml.restored(xml, identity=identity, generation=generation, sources=files.disks, nvram=None))
    _set_emulator(root, emulator, accepted)
    _set_firmware(root, files, boot)
    _set_logs(root, files, accepted)
    for backend in root.iterfind("./devices/tpm/backend"):
        _remove(backend, "source")  # libvirt has a place for each UUID
    for graphics in _devices(root, "graphics", accepted):
        for element in (graphics, *graphics.findall("listen")):
            element.attrib.pop("socket", None)
    for entry in root.iterfind("./sysinfo/system/entry[@name='uuid']"):
        entry.text = identity.uuid
    if not same:
        _free(root, accepted)
    return ET.tostring(root, encoding="unicode")


def _free(root: ET.Element, accepted: Collection[str]) -> None:
    for card in root.iterfind("./devices/interface"):
        _remove(card, "mac")
        if "interface" not in accepted:
            _remove(card, "target")
    for graphics in _devices(root, "graphics", accepted):
        for port in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(port, None)
        if not graphics.findall("listen[@type='socket']"):
            graphics.set("autoport", "yes")
    for vsock in _devices(root, "vsock", accepted):
        _remove(vsock, "cid")
        ET.SubElement(vsock, "cid", {"auto": "yes"})


def _set_emulator(root: ET.Element, emulator: str, accepted: Collection[str]) -> None:
    devices = root.find("devices")
    assert devices is not None
    if "emulator" not in accepted:
        for element in devices.findall("emulator"):
            element.text = emulator


def _set_firmware(root: ET.Element, files: Files, boot: Boot) -> None:
    """The VM gets UEFI variables of its own. libvirt finds the template again; a firmware that it does not offer here, it
    chooses again."""
    system = root.find("os")
    if system is None:
        return
    for loader in system.findall("loader"):
        if system.get("firmware") and (loader.text or "").strip() not in boot.loaders:
            system.remove(loader)
    for old in system.findall("nvram"):
        format = {"format": old.get("format", "raw")} if old.get("format") else {}
        place = list(system).index(old)
        system.remove(old)
        new = ET.Element("nvram", format)
        new.text = files.nvram
        system.insert(place, new)
        files.others.add(files.nvram)


def _set_logs(root: ET.Element, files: Files, accepted: Collection[str]) -> None:
    """A <serial> and its <console> are one device, with one path."""
    new: dict[str, str] = {}
    for tag in LOGGED:
        for device in _devices(root, tag, accepted):
            for element, attribute in _paths(device):
                old = element.get(attribute, "")
                path = new.setdefault(old, f"{files.logs}{len(new)}.log")
                element.set(attribute, path)
    files.others.update(new.values())


def _paths(device: ET.Element) -> Iterator[tuple[ET.Element, str]]:
    device.attrib.pop("tty", None)
    for source in device.findall("source"):
        if device.get("type") == "file":
            yield source, "path"
        elif device.get("type") in ("pty", "unix"):
            device.remove(source)  # libvirt makes a terminal, or a socket, of its own
        else:
            source.attrib.pop("path", None)
    for log in device.findall("log"):
        yield log, "file"


def _devices(root: ET.Element, tag: str, accepted: Collection[str]) -> list[ET.Element]:
    return [] if tag in accepted else root.findall(f"./devices/{tag}")


def _remove(element: ET.Element, tag: str) -> None:
    for child in element.findall(tag):
        element.remove(child)
