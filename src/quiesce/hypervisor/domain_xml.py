"""Reads and rewrites domain XML. Pure: strings in, strings or dataclasses out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

QEMU_AGENT_PORT = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Disk:
    """A disk as the domain XML has it."""

    target: str
    device: str
    """disk, cdrom, floppy or lun."""
    source_type: str
    """file, block, network, volume, ..."""
    path: str | None
    format: str
    read_only: bool
    shareable: bool
    mirrored: bool
    """A copy or an active commit runs on it."""
    chain: tuple[str, ...]
    """Paths of its backing images, nearest first, as far as the XML names them."""
    mirror: str | None = None
    """The image it copies to or commits into."""


@dataclass(frozen=True)
class Channel:
    name: str
    connected: bool
    """Something in the guest has opened the port."""


def disks(xml: str) -> tuple[Disk, ...]:
    return tuple(_disk(element) for element in ET.fromstring(xml).iterfind("./devices/disk"))


def channels(xml: str) -> dict[str, Channel]:
    found = {}
    for target in ET.fromstring(xml).iterfind("./devices/channel/target"):
        name = target.get("name", "")
        found[name] = Channel(name, target.get("state") == "connected")
    return found


def generation_id(xml: str) -> str | None:
    return ET.fromstring(xml).findtext("./genid")


def passthrough_devices(xml: str) -> tuple[str, ...]:
    """Host devices given to the guest that hold state no checkpoint can hold."""
    root = ET.fromstring(xml)
    return tuple(
        f"{device.get('type', 'scsi')} host device"
        for device in root.iterfind("./devices/hostdev")
        if device.get("type") in ("scsi", "scsi_host", "storage")
    )


def restored(xml: str, *, name: str, generation: str, sources: Mapping[str, str]) -> str:
    """The definition `xml` for running on other images, under the VM's present name.

    `sources`: image path for each disk target. `generation`: the new VM generation ID, a UUID, which tells the guest that it
    went back in time.
    """
    root = ET.fromstring(xml)
    _required(root, "name").text = name
    element = root.find("genid")
    if element is None:
        element = ET.Element("genid")
        root.insert(list(root).index(_required(root, "name")) + 1, element)
    element.text = generation
    _point(root, sources)
    return ET.tostring(root, encoding="unicode")


def with_sources(xml: str, sources: Mapping[str, str]) -> str:
    """The definition `xml` with other images for some of its disks, and nothing else changed."""
    root = ET.fromstring(xml)
    _point(root, sources)
    return ET.tostring(root, encoding="unicode")


def _point(root: ET.Element, sources: Mapping[str, str]) -> None:
    """What libvirt noted of the old chain (backingStore, mirror, index) is removed: it would be believed over the images' own
    headers."""
    for disk in root.iterfind("./devices/disk"):
        target = _required(disk, "target").get("dev", "")
        if target not in sources:
            continue
        for stale in ("backingStore", "mirror", "source"):
            for child in disk.findall(stale):
                disk.remove(child)
        disk.set("type", "file")
        disk.insert(0, ET.Element("source", {"file": sources[target]}))
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", {"name": "qemu"})
        driver.set("type", "qcow2")


def helper(name: str, images: Mapping[str, str], kind: str) -> str:
    """A domain with nothing but these images. `kind`: the domain type the host can run, as `kvm` or `qemu`."""
    root = ET.Element("domain", {"type": kind})
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "memory", {"unit": "MiB"}).text = "16"
    ET.SubElement(ET.SubElement(root, "os"), "type").text = "hvm"
    devices = ET.SubElement(root, "devices")
    for target, path in images.items():
        disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(disk, "driver", {"name": "qemu", "type": "qcow2"})
        ET.SubElement(disk, "source", {"file": path})
        ET.SubElement(disk, "target", {"dev": target})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    return ET.tostring(root, encoding="unicode")


def snapshot(overlays: Mapping[str, str], others: tuple[str, ...]) -> str:
    """A snapshot request: `overlays` maps targets to prepared images; `others` are the targets to leave alone."""
    root = ET.Element("domainsnapshot")
    listed = ET.SubElement(root, "disks")
    for target, path in overlays.items():
        disk = ET.SubElement(listed, "disk", {"name": target, "snapshot": "external", "type": "file"})
        ET.SubElement(disk, "driver", {"type": "qcow2"})
        ET.SubElement(disk, "source", {"file": path})
    for target in others:
        ET.SubElement(listed, "disk", {"name": target, "snapshot": "no"})
    return ET.tostring(root, encoding="unicode")


def overlay_volume(name: str, capacity: int, backing_path: str, backing_format: str) -> str:
    """A differencing disk.

    128 KiB clusters with extended L2 entries: 4 KiB subclusters, so that a first write of 4 KiB copies nothing and the
    image grows by little (measured: a quarter of the time and a fifteenth of the space of plain 64 KiB clusters).
    """
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity").text = str(capacity)
    ET.SubElement(root, "allocation").text = "0"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", {"type": "qcow2"})
    ET.SubElement(target, "compat").text = "1.1"
    ET.SubElement(target, "clusterSize", {"unit": "KiB"}).text = "128"
    ET.SubElement(ET.SubElement(target, "features"), "extended_l2")
    backing = ET.SubElement(root, "backingStore")
    ET.SubElement(backing, "path").text = backing_path
    ET.SubElement(backing, "format", {"type": backing_format})
    return ET.tostring(root, encoding="unicode")


def raw_volume(name: str, size: int) -> str:
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity").text = str(size)
    ET.SubElement(root, "allocation").text = str(size)
    ET.SubElement(ET.SubElement(root, "target"), "format", {"type": "raw"})
    return ET.tostring(root, encoding="unicode")


def directory_pool(name: str, directory: str) -> str:
    root = ET.Element("pool", {"type": "dir"})
    ET.SubElement(root, "name").text = name
    ET.SubElement(ET.SubElement(root, "target"), "path").text = directory
    return ET.tostring(root, encoding="unicode")


def pool_directory(xml: str) -> str | None:
    """The directory of a pool whose volumes are files, else None."""
    root = ET.fromstring(xml)
    return root.findtext("./target/path") if root.get("type") in ("dir", "fs", "netfs") else None


def volume_backing(xml: str) -> str | None:
    """Path of the image a volume is an overlay of."""
    return ET.fromstring(xml).findtext("./backingStore/path")


def channel(name: str) -> str:
    return f"<channel type='unix'><target type='virtio' name='{name}'/></channel>"


def _disk(element: ET.Element) -> Disk:
    driver = element.find("driver")
    return Disk(
        target=_required(element, "target").get("dev", ""),
        device=element.get("device", "disk"),
        source_type=element.get("type", "file"),
        path=_path(element),
        format=driver.get("type", "raw") if driver is not None else "raw",
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        mirrored=element.find("mirror") is not None,
        mirror=_mirror(element),
        chain=tuple(_chain(element)),
    )


def _path(element: ET.Element) -> str | None:
    source = element.find("source")
    return source.get("file") or source.get("dev") if source is not None else None


def _mirror(element: ET.Element) -> str | None:
    mirror = element.find("mirror")
    return _path(mirror) if mirror is not None else None


def _chain(element: ET.Element) -> list[str]:
    below = element.find("backingStore")
    if below is None:
        return []
    path = _path(below)
    return ([path] if path else []) + _chain(below)


def _required(element: ET.Element, name: str) -> ET.Element:
    found = element.find(name)
    if found is None:
        raise ValueError(f"domain XML without <{name}>")
    return found
