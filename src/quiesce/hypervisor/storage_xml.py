"""Reads and writes the XML of storage pools and volumes. Pure: strings in, strings or dataclasses out."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from quiesce.model.chains import Image


def volume(xml: str) -> Image:
    root = ET.fromstring(xml)
    kind = root.find("./target/format")
    return Image(
        path=root.findtext("./target/path") or "",
        format=kind.get("type", "raw") if kind is not None else "raw",
        backing=root.findtext("./backingStore/path"),
        capacity=int(root.findtext("./capacity") or 0),
        allocation=int(root.findtext("./allocation") or 0),
        written=root.findtext("./target/timestamps/mtime") or "",
        size=int(root.findtext("./physical") or 0),
    )


def overlay_volume(name: str, capacity: int, backing_path: str, backing_format: str) -> str:
    """A request for an overlay.

    It has 128 KiB clusters with extended L2 entries, which means 4 KiB subclusters: the first write of 4 KiB copies nothing
    from the backing file, and the image grows by little (measured: a quarter of the time and a fifteenth of the space of plain
    64 KiB clusters).
    """
    root, target = _volume(name, capacity, 0, "qcow2")
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


def raw_volume(name: str, size: int) -> str:
    root, _ = _volume(name, size, size, "raw")
    return ET.tostring(root, encoding="unicode")


def _volume(name: str, capacity: int, allocation: int, format: str) -> tuple[ET.Element, ET.Element]:
    """A request, and its <target>."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity").text = str(capacity)
    ET.SubElement(root, "allocation").text = str(allocation)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", {"type": format})
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


def is_device(path: str) -> bool:
    """Whether the path is one of a block device. Example: /dev/vg/data is; /dev/shm/vda.qcow2 is a file."""
    return path.startswith("/dev/") and not path.startswith("/dev/shm/")  # noqa: S108
