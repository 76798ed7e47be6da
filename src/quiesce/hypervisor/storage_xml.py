"""Reads and writes the XML of storage pools and volumes. Pure: strings in, strings or dataclasses out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from quiesce.model.chains import Image


def volume(xml: str) -> Image:
    root = ET.fromstring(xml)
    kind, below = root.find("./target/format"), root.find("./backingStore/format")
    return Image(
        path=root.findtext("./target/path") or "",
        format=kind.get("type", "raw") if kind is not None else "raw",
        backing=root.findtext("./backingStore/path"),
        capacity=int(root.findtext("./capacity") or 0),
        allocation=int(root.findtext("./allocation") or 0),
        written=root.findtext("./target/timestamps/mtime") or "",
        size=int(root.findtext("./physical") or 0),
        changed=root.findtext("./target/timestamps/ctime") or "",
        access=" ".join(
            found for name in ("owner", "group", "mode", "label") if (found := root.findtext(f"./target/permissions/{name}"))
        ),
        backing_format=below.get("type") if below is not None else None,
        encrypted=root.find("./target/encryption") is not None,
    )


KIB = 1024
"""libvirt makes qcow2 images of whole kibibytes: it rounds a capacity up (virStorageBackendCreateQemuImgCmdFromVol)."""


@dataclass(frozen=True)
class Rights:
    """Who may use a file."""

    owner: int | None
    """None: whoever makes the file."""
    group: int | None
    mode: int


def rights(xml: str) -> Rights | None:
    """Those of a volume; None if libvirt does not tell."""
    found = ET.fromstring(xml).find("./target/permissions")
    if found is None:
        return None
    owner, group, mode = (found.findtext(name) for name in ("owner", "group", "mode"))
    return Rights(int(owner) if owner else None, int(group) if group else None, int(mode, 8)) if mode else None


def overlay_volume(name: str, capacity: int, backing_path: str, backing_format: str, rights: Rights | None = None) -> str:
    """A request for an overlay.

    It has 128 KiB clusters with extended L2 entries, which means 4 KiB subclusters: the first write of 4 KiB copies nothing
    from the backing file, and the image grows by little (measured: a quarter of the time and a fifteenth of the space of plain
    64 KiB clusters).
    """
    root, target = _volume(name, capacity, 0, "qcow2", rights)
    if capacity % KIB and (rounded := root.find("capacity")) is not None:
        root.remove(rounded)  # the guest's disk must not grow; QEMU takes the capacity of the backing file
    ET.SubElement(target, "compat").text = "1.1"
    ET.SubElement(target, "clusterSize", {"unit": "KiB"}).text = "128"
    ET.SubElement(ET.SubElement(target, "features"), "extended_l2")
    backing = ET.SubElement(root, "backingStore")
    ET.SubElement(backing, "path").text = backing_path
    ET.SubElement(backing, "format", {"type": backing_format})
    return ET.tostring(root, encoding="unicode")


def flat_volume(name: str, capacity: int) -> str:
    """A request for an image without a backing file, in plain qcow2, which every QEMU of the last ten years reads."""
    root, target = _volume(name, capacity, 0, "qcow2")
    ET.SubElement(target, "compat").text = "1.1"
    return ET.tostring(root, encoding="unicode")


def raw_volume(name: str, size: int, rights: Rights | None = None) -> str:
    root, _ = _volume(name, size, size, "raw", rights)
    return ET.tostring(root, encoding="unicode")


def _volume(
    name: str, capacity: int, allocation: int, format: str, rights: Rights | None = None
) -> tuple[ET.Element, ET.Element]:
    """A request, and its <target>. The owner of the file can always write it."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity").text = str(capacity)
    ET.SubElement(root, "allocation").text = str(allocation)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", {"type": format})
    if rights:
        permissions = ET.SubElement(target, "permissions")
        ET.SubElement(permissions, "mode").text = f"{rights.mode | 0o600:04o}"
        for name, value in (("owner", rights.owner), ("group", rights.group)):
            if value is not None:
                ET.SubElement(permissions, name).text = str(value)
    return root, target


def directory_pool(name: str, directory: str, mode: str | None = None) -> str:
    """`mode`: the rights of the directory if libvirt makes it, in octal."""
    root = ET.Element("pool", {"type": "dir"})
    ET.SubElement(root, "name").text = name
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "path").text = directory
    if mode:
        ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = mode
    return ET.tostring(root, encoding="unicode")


def pool_rights(xml: str) -> tuple[int, int]:
    """Owner and mode of a pool's directory; nobody's and all rights if libvirt does not tell."""
    rights = ET.fromstring(xml).find("./target/permissions")
    if rights is None:
        return -1, 0o777
    return int(rights.findtext("owner") or -1), int(rights.findtext("mode") or "777", 8)


def pool_directory(xml: str) -> str | None:
    """The directory of a pool whose volumes are files; None for other pools."""
    root = ET.fromstring(xml)
    return root.findtext("./target/path") if root.get("type") in ("dir", "fs", "netfs") else None


def host_uuid(capabilities: str) -> str:
    return ET.fromstring(capabilities).findtext("./host/uuid") or ""
