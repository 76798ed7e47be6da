"""Reads and rewrites domain XML. Pure: strings in, strings or dataclasses out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

QEMU_AGENT_PORT = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class Disk:
    """A disk of the domain XML."""

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
    """Whether a block copy or an active commit runs on the disk."""
    chain: tuple[str, ...]
    """Paths of the backing files, nearest first, as far as the XML names them."""
    mirror: str | None = None
    """The image that a block copy writes, or into which an active commit goes."""
    mirror_ready: bool = False
    """Whether `mirror` has all data of the disk."""
    serial: str = ""
    """What the guest sees as its serial number; empty: none of ours."""
    volume: tuple[str, str] | None = None
    """(pool, volume) of a disk of type volume."""
    transient: bool = False
    """Whether the disk forgets at each shutdown what was written."""
    encrypted: bool = False
    """Whether the disk, or an image in its chain that the XML names, has an <encryption>."""
    sliced: bool = False
    """Whether the disk, or an image in its chain that the XML names, is only a part of its file (<slices>)."""

    @property
    def removable(self) -> bool:
        """Whether it is a drive with, or without, a medium."""
        return self.device in ("cdrom", "floppy")

    def spelled(self, spell: Callable[[str], str]) -> Disk:
        """The disk with every path as `spell` writes it."""
        return replace(
            self,
            path=spell(self.path) if self.path else self.path,
            chain=tuple(map(spell, self.chain)),
            mirror=spell(self.mirror) if self.mirror else self.mirror,
        )


@dataclass(frozen=True)
class Source:
    """What a definition is to name as the image of a disk."""

    path: str
    format: str = "qcow2"
    device: bool = False
    """Whether it is a block device."""
    size: int = 0
    """How much of it is the disk, in bytes from its beginning; 0: all."""


@dataclass(frozen=True)
class Channel:
    name: str
    connected: bool
    """Whether a program in the guest has the port open."""


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


def nvram(xml: str) -> str | None:
    """The file that holds the UEFI variables."""
    element = ET.fromstring(xml).find("./os/nvram")
    if element is None:
        return None
    source = element.find("source")
    return source.get("file") if source is not None else (element.text or "").strip() or None


def passthrough_devices(xml: str) -> tuple[str, ...]:
    """Host devices of the guest whose state no checkpoint can contain."""
    root = ET.fromstring(xml)
    return tuple(
        f"{device.get('type', 'scsi')} host device"
        for device in root.iterfind("./devices/hostdev")
        if device.get("type") in ("scsi", "scsi_host", "storage")
    )


@dataclass(frozen=True)
class Identity:
    name: str
    uuid: str


def identity(xml: str) -> Identity:
    root = ET.fromstring(xml)
    return Identity(root.findtext("./name") or "", root.findtext("./uuid") or "")


def restored(xml: str, *, identity: Identity, generation: str, sources: Mapping[str, str], nvram: str | None) -> str:
    """The definition `xml` with other images, under the VM's present name and UUID.

    `sources`: image path by disk target. `nvram`: another file for the UEFI variables, if the VM has any. `generation`: the new
    VM generation ID, a UUID, which tells the guest that it went back in time.
    """
    root = ET.fromstring(moved(xml, identity=identity, sources=sources, nvram=nvram))
    element = root.find("genid")
    if element is None:
        element = ET.Element("genid")
        root.insert(list(root).index(_required(root, "name")) + 1, element)
    element.text = generation
    return ET.tostring(root, encoding="unicode")


def moved(xml: str, *, identity: Identity, sources: Mapping[str, str], nvram: str | None) -> str:
    """The definition `xml` with another name and UUID, and with other files; nothing else changes."""
    root = ET.fromstring(xml)
    _required(root, "name").text = identity.name
    _required(root, "uuid").text = identity.uuid
    _point(root, sources)
    element = root.find("./os/nvram")
    if nvram and element is not None:
        source = element.find("source")
        if source is not None:
            source.set("file", nvram)
        else:
            element.text = nvram
    return ET.tostring(root, encoding="unicode")


def with_disks_of(xml: str, other: str, targets: tuple[str, ...]) -> str:
    """The definition `xml`, with the disks `targets` taken from the definition `other`."""
    root = ET.fromstring(xml)
    devices = _required(root, "devices")
    for disk in ET.fromstring(other).findall("./devices/disk"):
        target = _required(disk, "target").get("dev", "")
        if target in targets:
            for old in [old for old in devices.findall("disk") if _required(old, "target").get("dev") == target]:
                devices.remove(old)
            devices.append(disk)
    return ET.tostring(root, encoding="unicode")


def exported(xml: str, *, sources: Mapping[str, str], nvram: str | None) -> str:
    """The definition `xml` with the disks `sources` only, and with no medium in its drives."""
    root = ET.fromstring(moved(xml, identity=identity(xml), sources=sources, nvram=nvram))
    devices = _required(root, "devices")
    for disk in devices.findall("disk"):
        if disk.get("device") in ("cdrom", "floppy"):
            for source in disk.findall("source"):
                disk.remove(source)
        elif _required(disk, "target").get("dev") not in sources:
            devices.remove(disk)
    return ET.tostring(root, encoding="unicode")


def boot_files(xml: str) -> set[str]:
    """The kernel and initrd that the VM boots from, if any."""
    root = ET.fromstring(xml)
    return {path for name in ("kernel", "initrd") if (path := root.findtext(f"./os/{name}", "").strip())}


def emulator_and_loaders(capabilities: str) -> tuple[str, frozenset[str]]:
    """The emulator and the firmware that libvirt's domain capabilities name."""
    root = ET.fromstring(capabilities)
    return root.findtext("./path", ""), frozenset(value.text or "" for value in root.iterfind("./os/loader/value"))


def cpu_model(xml: str) -> str | None:
    """The model of the VM's processor, if the definition names one."""
    return ET.fromstring(xml).findtext("./cpu[@mode='custom']/model")


def networks(xml: str) -> set[str]:
    """Names of the libvirt networks that the VM's network cards use."""
    sources = ET.fromstring(xml).iterfind("./devices/interface/source")
    return {name for source in sources if (name := source.get("network"))}


def machine(xml: str) -> tuple[str, str, str]:
    """(domain type, architecture, machine type)."""
    root = ET.fromstring(xml)
    kind = root.find("./os/type")
    return root.get("type", ""), *((kind.get("arch", ""), kind.get("machine", "")) if kind is not None else ("", ""))


def with_sources(xml: str, sources: Mapping[str, str | Source]) -> str:
    """The definition `xml` with other images for the disks in `sources`: a path is that of a qcow2 file. Nothing else
    changes."""
    root = ET.fromstring(xml)
    _point(root, sources)
    return ET.tostring(root, encoding="unicode")


def without_chains(xml: str, images: Set[str]) -> str | None:
    """The definition `xml` without the <backingStore> elements of each disk that names one of `images` as a backing file; None
    if no disk does."""
    root = ET.fromstring(xml)
    stale = [disk for disk in root.iterfind("./devices/disk") if not images.isdisjoint(_chain(disk))]
    for disk in stale:
        for child in disk.findall("backingStore"):
            disk.remove(child)
    return ET.tostring(root, encoding="unicode") if stale else None


def raw_images(xml: str) -> set[str]:
    """The paths of the images, backing files included, that the definition declares raw."""
    return {path for disk in ET.fromstring(xml).iterfind("./devices/disk") for path in _raw(disk)}


def _raw(element: ET.Element) -> Iterator[str]:
    kind = element.find("driver" if element.tag == "disk" else "format")
    path, below = _path(element), element.find("backingStore")
    if path and kind is not None and kind.get("type") == "raw":
        yield path
    if below is not None:
        yield from _raw(below)


def _point(root: ET.Element, sources: Mapping[str, str | Source]) -> None:
    """Changes the images of these disks, and nothing else that the definition says of them. Removes what libvirt wrote about
    the old chain (backingStore, mirror, index): libvirt would believe it instead of the images' headers."""
    for disk in root.iterfind("./devices/disk"):
        target = _required(disk, "target").get("dev", "")
        if target not in sources:
            continue
        for stale in ("backingStore", "mirror"):
            for child in disk.findall(stale):
                disk.remove(child)
        given = sources[target]
        source = Source(given) if isinstance(given, str) else given
        _name(disk, source)
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", {"name": "qemu"})
        driver.set("type", source.format)


_OF_ANY_IMAGE = ("seclabel", "encryption")
"""What a <source> says that holds for an overlay, too. The rest tells where the old image is, and how to reach it;
libvirt takes it for network disks and LUNs only, which are never the image of a disk before or after."""


def _name(disk: ET.Element, image: Source) -> None:
    """Names the image of a disk."""
    disk.set("type", "block" if image.device else "file")
    source = disk.find("source")
    if source is None:
        source = ET.Element("source")
        disk.insert(0, source)
    policy = source.get("startupPolicy")
    source.attrib.clear()
    source.set("dev" if image.device else "file", image.path)
    if policy:
        source.set("startupPolicy", policy)
    for child in [child for child in source if child.tag not in _OF_ANY_IMAGE]:
        source.remove(child)
    if image.size:
        part = {"type": "storage", "offset": "0", "size": str(image.size)}
        ET.SubElement(ET.SubElement(source, "slices"), "slice", part)


def helper(name: str, kind: str) -> str:
    """A helper domain without disks; they are attached later. `kind`: the domain type, `kvm` or `qemu`."""
    root = ET.Element("domain", {"type": kind})
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "memory", {"unit": "MiB"}).text = "16"
    ET.SubElement(ET.SubElement(root, "os"), "type").text = "hvm"
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    return ET.tostring(root, encoding="unicode")


def helper_disk(target: str, source: Source, *, read_only: bool) -> str:
    """A SCSI disk for a helper domain. A SCSI disk can be detached although no guest runs."""
    disk = ET.Element("disk", {"device": "disk"})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": source.format})
    _name(disk, source)
    ET.SubElement(disk, "target", {"dev": target, "bus": "scsi"})
    if read_only:
        ET.SubElement(disk, "readonly")
    return ET.tostring(disk, encoding="unicode")


def copy_target(path: str) -> str:
    """The destination of a block copy."""
    disk = ET.Element("disk", {"type": "file"})
    ET.SubElement(disk, "driver", {"type": "qcow2"})
    ET.SubElement(disk, "source", {"file": path})
    return ET.tostring(disk, encoding="unicode")


def snapshot(overlays: Mapping[str, str], others: tuple[str, ...], memory: str | None = None) -> str:
    """A request for virDomainSnapshotCreateXML. `overlays`: path of the prepared overlay, by target. `others`: targets of disks
    that do not switch. `memory`: the file for memory and devices."""
    root = ET.Element("domainsnapshot")
    if memory:
        ET.SubElement(root, "memory", {"snapshot": "external", "file": memory})
    listed = ET.SubElement(root, "disks")
    for target, path in overlays.items():
        disk = ET.SubElement(listed, "disk", {"name": target, "snapshot": "external", "type": "file"})
        ET.SubElement(disk, "driver", {"type": "qcow2"})
        ET.SubElement(disk, "source", {"file": path})
    for target in others:
        ET.SubElement(listed, "disk", {"name": target, "snapshot": "no"})
    return ET.tostring(root, encoding="unicode")


def channel(name: str) -> str:
    return f"<channel type='unix'><target type='virtio' name='{name}'/></channel>"


def _disk(element: ET.Element) -> Disk:
    driver, source = element.find("driver"), element.find("source")
    pool, volume = (source.get("pool"), source.get("volume")) if source is not None else (None, None)
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
        mirror_ready=element.find("mirror[@ready='yes']") is not None,
        chain=tuple(_chain(element)),
        serial=element.findtext("serial", ""),
        volume=(pool, volume) if pool and volume else None,
        transient=element.find("transient") is not None,
        encrypted=next(element.iter("encryption"), None) is not None,
        sliced=next(element.iter("slices"), None) is not None,
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
        raise ValueError(f"libvirt's domain XML has no <{name}> in <{element.tag}>")
    return found
